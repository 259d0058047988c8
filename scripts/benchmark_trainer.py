"""Times complete training steps of `LPWDTrainer` under every decay timing against the stock `Trainer`.

All train the same ViT of 2.7 million parameters on the same random images of 32 pixels. They take turns, a
few steps each, in an order shuffled each round; a step lasts from the beginning of one to that of the next,
so that data, callbacks and logging are in it: one step in ten is logged, with each layer's values in
`LPWDTrainer`. A second stock `Trainer` tells how much of a ratio is noise.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from typing import Any

import numpy as np
import psutil
import torch
from machine import conditions
from scipy import stats
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_lpwd import LPWDTrainer, LPWDTrainingArguments
from hf_lpwd.files import write_json

TIMINGS = ("l2", "wd", "rwd", "pwd")
#: Steps of a turn; the first, which makes the optimizer's state, is not counted.
STEPS = 11


class StepTimes(TrainerCallback):
    """Seconds from the beginning of each step to that of the next."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Reads the clock."""
        self.begun.append(time.perf_counter())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Reads the clock."""
        self.begun.append(time.perf_counter())

    def take(self) -> np.ndarray:
        """Returns the seconds of each step but the first and the last, and forgets them."""
        seconds = np.diff(self.begun)[1:-1]
        self.begun.clear()
        return seconds


def make_trainer(timing: str | None, batch_size: int, device: str, folder: str) -> tuple[Trainer, StepTimes]:
    """Returns a trainer and what times its steps; the stock one without `timing`."""
    torch.manual_seed(0)
    size = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    model = ViTForImageClassification(ViTConfig(**size, image_size=32, patch_size=4, num_labels=10))
    images = TensorDataset(torch.randn(STEPS * batch_size, 3, 32, 32), torch.arange(STEPS * batch_size) % 10)
    settings = {
        "output_dir": folder,
        "max_steps": STEPS + 1,
        "per_device_train_batch_size": batch_size,
        "weight_decay": 0.05,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
    }
    if timing is None:
        trainer_class, args = Trainer, TrainingArguments(**settings)
    else:
        trainer_class, args = LPWDTrainer, LPWDTrainingArguments(**settings, decay_timing=timing)
    times = StepTimes()
    trainer = trainer_class(
        model=model, args=args, train_dataset=images, data_collator=collate, callbacks=[times]
    )
    return trainer, times


def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stacks images and labels."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def main() -> None:
    """Prints a table, and writes all figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--output", default="benchmark_trainer.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chip = torch.cuda.get_device_name() if args.device == "cuda" else None
    where = f"{conditions('torch', 'transformers', 'accelerate', chip=chip)}; {args.threads} threads"
    order = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: make_trainer(timing, args.batch_size, args.device, folder)
            for name, timing in {"Trainer": None, "Trainer again": None, **{t: t for t in TIMINGS}}.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for round_ in range(-1, args.rounds):
            for name in order.permutation(list(trainers)):
                trainer, times = trainers[name]
                with contextlib.redirect_stdout(io.StringIO()):  # the losses
                    trainer.train()
                mean = float(times.take().mean())
                if round_ >= 0:
                    seconds[name].append(mean)
    print(f"{where}; {args.rounds} rounds of {STEPS - 1} steps of {args.batch_size} images")
    base = np.array(seconds["Trainer"])
    print(f"Trainer: {1e3 * np.median(base):.1f} ms a step\n")
    print("| trainer | median ratio | its 95% interval |\n|---|---|---|")
    rows = {}
    for name, values in seconds.items():
        ratios = np.array(values) / base
        low, high = (1.0, 1.0)
        if name != "Trainer":
            low, high = stats.bootstrap((ratios,), np.median, rng=0, method="percentile").confidence_interval
        rows[name] = {"ratio": float(np.median(ratios)), "interval": [low, high], "seconds": values}
        print(f"| {name} | {np.median(ratios):.4f} | {low:.4f} to {high:.4f} |")
    write_json(args.output, {"conditions": where, "batch_size": args.batch_size, "trainers": rows})


if __name__ == "__main__":
    main()
