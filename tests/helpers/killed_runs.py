"""Runs of `hf-lpwd train` in processes that are killed, through killable_run.py."""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from processes import HELPERS

from hf_lpwd.checkpoints.corruption import why_corrupt

FLAGS = [
    "train", "--model_type", "vit", "--config_overrides",
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,image_size=8,patch_size=4,"
    "hidden_dropout_prob=0.1",
    "--num_train_epochs", "2", "--max_train_samples", "200", "--per_device_train_batch_size", "16",
    "--learning_rate", "0.01", "--weight_decay", "0.5", "--warmup_steps", "3", "--disable_tqdm", "True",
    "--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2", "--report_to", "none",
]  # fmt: skip
LAST = "checkpoint-26"


TIMES = ("_runtime", "_per_second", "_model_preparation_time")


def reported(folder):
    """What a run has written of itself, apart from times."""
    found = [json.loads((folder / f"{name}.json").read_text()) for name in ("trainer_state", "all_results")]
    for entry in [found[1], *found[0]["log_history"]]:
        for name in [name for name in entry if name.endswith(TIMES)]:
            # True, or not there.
            assert entry.pop(name) > 0
    found[0]["best_model_checkpoint"] = Path(found[0]["best_model_checkpoint"]).name
    return found


class Runs:
    """Does runs one after another, through killable_run.py."""

    def __init__(self, folder):
        self.folder = folder
        script = HELPERS / "killable_run.py"
        self.server = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout.readline() == "ready\n"

    def close(self):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()

    def __call__(self, name, *flags, **order):
        """Returns exit code, whether a checkpoint was left unfinished, what was printed, and the seconds."""
        argv = [*FLAGS, "--output_dir", str(self.folder / name), *flags]
        log = self.folder / f"{name}.log"
        start = time.perf_counter()
        self.server.stdin.write(json.dumps({"argv": argv, "log": str(log), **order}) + "\n")
        self.server.stdin.flush()
        code, unfinished = json.loads(self.server.stdout.readline())
        return code, unfinished, log.read_text(), time.perf_counter() - start

    def resume(self, name, *flags, **order):
        return self(name, *flags, "--resume_from_checkpoint", "True", **order)

    def assert_same(self, name, other):
        one, two = self.folder / name, self.folder / other
        for file in ("model.safetensors", f"{LAST}/model.safetensors"):
            assert (one / file).read_bytes() == (two / file).read_bytes(), file
        states = [torch.load(run / LAST / "optimizer.pt", weights_only=True)["state"] for run in (one, two)]
        assert states[0].keys() == states[1].keys()
        for index, state in states[0].items():
            for key, value in state.items():
                assert torch.equal(value, states[1][index][key])
        assert reported(one) == reported(two)

    def assert_whole(self, name):
        """Nothing that has a checkpoint's name is half of one."""
        for checkpoint in (self.folder / name).glob("checkpoint-*"):
            assert why_corrupt(str(checkpoint)) is None, checkpoint
