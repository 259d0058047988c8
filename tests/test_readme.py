"""The README's Python runs as it stands, its commands have the flags it gives, its links lead somewhere."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from small_trainers import Images, make_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hf_lpwd import LayerwiseDecay
from hf_lpwd.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = sorted(
    set(re.findall(r"^hf-lpwd \w+(?: (?=init|plan|register|run|report)\w+)?", BASH, re.MULTILINE))
)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_python(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # trl is no dependency: its trainer is a Trainer, its arguments are TrainingArguments.
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(SFTConfig=TrainingArguments, SFTTrainer=Trainer))
    args = TrainingArguments("stock", weight_decay=0.05, max_steps=1, report_to=[], use_cpu=True)
    names = {
        "model": make_model(),
        "args": args,
        "dataset": Images(8),
        "loader": DataLoader(Images(8), batch_size=4),
        "accelerator": Accelerator(cpu=True),
        "Trainer": Trainer,
        # A class that is made by exec needs the name of its module.
        "__name__": __name__,
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    stem = names["model"].vit.embeddings.patch_embeddings.projection.weight.clone()
    for block in blocks:
        exec(block, names)

    assert names["trainer"].create_optimizer().param_groups[0]["decay_timing"] == "rwd"
    assert names["args"].layer_lr_decay == 0.75
    assert names["MyArguments"]("sft", weight_decay=0.1).decay_timing == "pwd"
    assert isinstance(names["optimizer"].optimizer, LayerwiseDecay)
    trained = names["model"].vit.embeddings.patch_embeddings.projection.weight
    assert not torch.equal(trained, stem)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags(command, capsys):
    lines = [line.split("#")[0] for line in BASH.splitlines() if line.startswith(command)]
    with pytest.raises(SystemExit) as end:
        main([*command.split()[1:], "--help-all" if command == "hf-lpwd train" else "--help"])
    assert end.value.code == 0
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert set(re.findall(r"--\w+", " ".join(lines))) <= known


def test_links():
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert len(links) > 5
    for link in links:
        assert link[1:] in headings if link.startswith("#") else (ROOT / link).exists(), link


def test_scripts_and_files_exist():
    named = re.findall(r"(?:scripts|hf_lpwd|tests|model_cards)/[\w/.-]*\w", README)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
