"""Loads from the Hub that HF_ENDPOINT names, as a user does in a fresh process; prints JSON.

Usage: hub_reader.py OUTPUT_DIR. The model is user/digits at the revision v1, the dataset user/images.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_lpwd.cli import main


def quietly(*argv: str) -> dict[str, object]:
    """Runs `hf-lpwd` and returns its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


model = AutoModelForImageClassification.from_pretrained("user/digits", revision="v1")
processor = AutoImageProcessor.from_pretrained("user/digits", revision="v1")
images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
output_dir = Path(sys.argv[1])
train = quietly(
    *("train", "--model_name_or_path", "user/digits", "--model_revision", "v1"),
    *("--dataset_name", "user/images", "--ignore_mismatched_sizes", "True", "--augmentation", "none"),
    *("--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no"),
    *("--disable_tqdm", "True", "--report_to", "none", "--output_dir", str(output_dir)),
)
report = {
    "logits": model(images).logits.tolist(),
    "size": processor.size["height"],
    "explain": quietly("explain", "user/digits", "--model_revision", "v1"),
    "wrong_revision": quietly("explain", "user/digits", "--model_revision", "v2"),
    "train": train["code"],
    "train_error": train["err"] if train["code"] else "",
    "weights": str(output_dir.joinpath("layer_rates.json").exists()),
    "card": output_dir.joinpath("README.md").read_text() if train["code"] == 0 else "",
}
print(json.dumps(report))
