"""Prints what the Trainer and timm's `create_optimizer_v2` decay that this package does not, as a table.

A row is what `hf-lpwd audit MODEL` finds; CLIP has both of its towers here.
"""

from __future__ import annotations

import torch
from transformers import CLIPConfig, CLIPModel

from hf_lpwd.commands.audit import audit
from hf_lpwd.vision.models import model_skeleton


def clip() -> torch.nn.Module:
    """Builds CLIP on the meta device."""
    with torch.device("meta"):
        return CLIPModel(CLIPConfig())


MODELS = {
    "ViT": lambda: model_skeleton("vit"),
    "DINOv2": lambda: model_skeleton("dinov2"),
    "Swin": lambda: model_skeleton("swin"),
    "ConvNeXtV2": lambda: model_skeleton("convnextv2"),
    "BERT": lambda: model_skeleton("bert"),
    "Llama": lambda: model_skeleton("llama"),
    "CLIP": clip,
}


def difference(found: dict, library: str) -> str:
    """Says which kinds of parameters a library decays and this package does not, with their number."""
    kinds: dict[str, list[str]] = {}
    for name, about in found["parameters"].items():
        if about["rates"][library] and not about["rates"]["hf_lpwd"]:
            part = name.removesuffix(".weight").rsplit(".", 1)[-1]
            kinds.setdefault(f"`{part}` ({about['kind']})", []).append(name)
    return "; ".join(f"{len(names)} {kind}" for kind, names in kinds.items()) or "nothing"


def main() -> None:
    """Prints a row for each model."""
    print("| model | Trainer decays, this package does not | timm decays, this package does not |")
    print("|---|---|---|")
    for name, build in MODELS.items():
        found = audit(build())
        print(f"| {name} | {difference(found, 'Trainer')} | {difference(found, 'timm')} |")


if __name__ == "__main__":
    main()
