"""Run by test_accelerate_suite.py: a test script of accelerate with `LayerwiseDecay` as its optimizer.

accelerate_run.py SCRIPT TIMING [DIRECTORY]
"""

import importlib
import json
import os
import sys
import types

import torch
from accelerate import PartialState
from torch.nn.modules.module import register_module_forward_pre_hook

from hf_lpwd.optimizer import LayerwiseDecay

WEIGHT_DECAY = 0.1
SAMPLES = 40


class Substitute:
    """Makes `LayerwiseDecay` optimizers where a script means to make its own, and counts what they do."""

    def __init__(self, timing):
        self.timing = timing
        self.made = []
        self.steps = self.decays = 0

    def for_class(self, optimizer_cls):
        def make(params, lr):
            optimizer = LayerwiseDecay(
                params, optimizer_cls, decay_timing=self.timing, weight_decay=WEIGHT_DECAY, lr=lr
            )
            self.made.append(optimizer)
            optimizer.register_step_post_hook(self.count_step)
            return optimizer

        return make

    def count_step(self, *_):
        self.steps += 1

    def before_forward(self, module, _):
        """The line that pwd needs and the scripts lack: `optimizer.train()` before the forward pass."""
        parameter = next(module.parameters(), None)
        for optimizer in self.made if module.training else ():
            if optimizer.param_groups[0]["params"][0] is parameter:
                due = self.timing == "pwd" and not optimizer.param_groups[0]["decay_applied"]
                optimizer.train()
                self.decays += due


def with_optimizer(optimizer_maker):
    """torch, but for torch.optim.SGD."""
    stand_in = types.ModuleType("torch")
    stand_in.__dict__.update(vars(torch))
    stand_in.optim = types.SimpleNamespace(SGD=optimizer_maker)
    return stand_in


def offline(script, directory):
    """Puts a tiny BERT and random sentences in the place of what a script fetches from the Hub."""
    from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

    class Accuracy:
        """Counts, as the metric of the Hub does, over all batches since the last `compute`."""

        def __init__(self):
            self.right = self.all = 0

        def add_batch(self, predictions, references):
            self.right += (predictions == references).sum().item()
            self.all += len(references)

        def compute(self):
            accuracy = self.right / self.all
            self.__init__()
            return {"accuracy": accuracy}

    class Sentences(torch.utils.data.Dataset):
        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            tokens = torch.randint(50, (6,), generator=torch.Generator().manual_seed(index))
            return {"input_ids": tokens, "labels": tokens[0] % 2}

    def collate(samples):
        return BatchEncoding({key: torch.stack([s[key] for s in samples]) for key in samples[0]})

    def loaders(accelerator, batch_size, model_name):
        return tuple(
            torch.utils.data.DataLoader(Sentences(), batch_size=4, shuffle=shuffle, collate_fn=collate)
            for shuffle in (True, False)
        )

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    if PartialState().is_main_process:
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(f"{directory}/model")
    PartialState().wait_for_everyone()
    script.get_dataloaders = loaders
    script.evaluate = types.SimpleNamespace(load=lambda *_: Accuracy())


def main(name, timing, directory=None):
    package = "external_deps." if directory else ""
    script = importlib.import_module(f"accelerate.test_utils.scripts.{package}{name}")
    substitute = Substitute(timing)
    report = {}
    if name == "test_script":
        plain = script.mock_training(32, 8, torch.Generator())[1]
        script.torch = with_optimizer(substitute.for_class(torch.optim.SGD))
    else:
        script.AdamW = substitute.for_class(torch.optim.AdamW)
    if name == "test_script" and timing == "pwd":
        try:
            script.mock_training(32, 8, torch.Generator())
        except RuntimeError as error:
            report["refused"] = str(error)
        substitute.made.clear()
    handle = register_module_forward_pre_hook(substitute.before_forward)
    if name == "test_script":
        ours = script.mock_training(32, 8, torch.Generator())[1]
        report["shrunk"] = [(ours.a / plain.a).item(), (ours.b / plain.b).item()]
    if directory is None:
        script.main()
    else:
        offline(script, directory)
        # It leaves the process group, which the second run needs.
        script.Accelerator.end_training = lambda accelerator: None
        arguments = ["--model_name_or_path", f"{directory}/model", "--output_dir", directory]
        runs = [arguments, [*arguments, "--resume_from_checkpoint", f"{directory}/epoch_0"]]
        for run in runs if name == "test_checkpointing" else runs[:1]:
            sys.argv = [name, *run]
            script.main()
    handle.remove()
    report |= {"optimizers": len(substitute.made), "steps": substitute.steps, "decays": substitute.decays}
    return report


if __name__ == "__main__":
    state = PartialState(cpu=True)
    world_size, rank = state.num_processes, state.process_index
    result = main(*sys.argv[1:])
    if rank == 0:
        print("RESULT", json.dumps({"world_size": world_size, **result}), flush=True)
    # Left to the interpreter, gloo's threads now and then abort the process at its end.
    sys.stdout.flush()
    os._exit(0)
