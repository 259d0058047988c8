"""The paper's diagnostics: measured as defined, and what they show on scikit-learn's digits."""

import csv
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from hf_lpwd.cli import main
from hf_lpwd.optimizer import LayerwiseDecay
from hf_lpwd.study.callbacks import OpposingPenalty, accuracy
from hf_lpwd.study.diagnose import SCALES, shrunk_accuracies
from hf_lpwd.study.quiet_run import quiet_run, quiet_trainer
from hf_lpwd.vision.arguments import parse_args

SHORT = [
    "--max_steps",
    "20",
    "--max_train_samples",
    "300",
    "--eval_strategy",
    "no",
    "--learning_rate",
    "1e-2",
]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_opposing_penalty_of_a_step_by_hand():
    """SGD with lr 0.5 and decay 0.4: eta lambda = 0.2, so a = theta - 0.5 g must be below 0.1 theta."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, -1.0]]))
    optimizer = LayerwiseDecay(
        [{"params": [("weight", layer.weight)], "weight_decay": 0.4}],
        torch.optim.SGD,
        decay_timing="wd",
        lr=0.5,
    )
    # Updated weights 0.5, 0.05, -0.5 and -1: decay enlarges the second and the third.
    layer.weight.grad = torch.tensor([[1.0, 1.9, 3.0, 0.0]])
    callback = OpposingPenalty({"weight": "layer_1"})
    state = SimpleNamespace(global_step=9, logging_steps=5)
    callback.on_pre_optimizer_step(None, state, None, optimizer=optimizer)
    optimizer.step()
    callback.on_optimizer_step(None, state, None, optimizer=optimizer)
    assert layer.weight.tolist() == [pytest.approx([0.3, -0.15, -0.7, -0.8])]
    assert callback.steps == [10]
    assert callback.rates == {"all": [0.5], "layer_1": [0.5]}


@pytest.mark.parametrize("timing", ["l2", "rwd", "pwd"])
def test_opposing_penalty_is_measured_under_wd_alone(timing):
    layer = nn.Linear(4, 1)
    optimizer = LayerwiseDecay(layer.named_parameters(), decay_timing=timing, lr=0.1, weight_decay=0.1)
    optimizer.train()
    layer(torch.ones(4)).sum().backward()
    callback = OpposingPenalty({"weight": "layer_1", "bias": "layer_1"})
    state = SimpleNamespace(global_step=0, logging_steps=1)
    callback.on_pre_optimizer_step(None, state, None, optimizer=optimizer)
    optimizer.step()
    callback.on_optimizer_step(None, state, None, optimizer=optimizer)
    assert callback.steps == []


def test_opposing_penalty_command(tmp_path, capsys):
    argv = ["diagnose", "opposing-penalty", "--out", str(tmp_path), "--logging_steps", "5", *SHORT]
    assert main(argv) == 0
    table = rows(tmp_path / "opposing-penalty.csv")
    # The default is the linear schedule, which leaves the stem alone.
    assert list(table[0]) == ["step", "all", *(f"layer_{i}" for i in range(1, 6))]
    assert [float(row["step"]) for row in table] == [5.0, 10.0, 15.0, 20.0]
    assert all(0.0 <= float(row["all"]) < 0.05 for row in table)
    assert capsys.readouterr().out.splitlines()[-1] == f"table and figure in {tmp_path}"
    with Image.open(tmp_path / "opposing-penalty.png") as image:
        assert image.width == 1125


def test_equivalence_command(tmp_path):
    """METHOD facts 1 and 2: next to other batches, the timings hardly differ."""
    assert main(["diagnose", "equivalence", "--out", str(tmp_path), *SHORT]) == 0
    table = rows(tmp_path / "equivalence.csv")
    assert list(table[0]) == ["step", "rwd", "pwd", "wd, other batches"]
    assert [float(row["step"]) for row in table] == [2.0 * i for i in range(1, 11)]
    last = {name: float(value) for name, value in table[-1].items()}
    assert 0.0 < last["rwd"] < 0.01 * last["wd, other batches"]
    assert 0.0 < last["pwd"] < 0.02 * last["wd, other batches"]


def test_shrinking():
    with quiet_run(parse_args(SHORT)) as (run, args):
        quiet_trainer(run, args).train()
        before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        lines = shrunk_accuracies(run, 64)
        whole = accuracy(run.model, run.images["validation"], 64)
        # Without weights only the head's bias speaks, and all pictures are of one class.
        with torch.no_grad():
            run.model.classifier.weight.zero_()
        labels = run.images["validation"].labels
        shares = [float((labels == label).float().mean()) for label in range(10)]
    assert list(lines) == ["all", *(f"layer_{i}" for i in range(6))]
    assert {len(values) for values in lines.values()} == {len(SCALES)}
    assert {values[0] for values in lines.values()} == {whole}
    assert whole > 0.12
    assert any(lines["all"][-1] == pytest.approx(share) for share in shares)
    assert lines["layer_5"][-1] == lines["all"][-1]
    after = run.model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n != "classifier.weight")


def test_shrink_prints_the_curve_and_uploads_nothing(tmp_path, capsys, hub):
    """Also where its configuration file asks for an upload."""
    config = tmp_path / "run.yaml"
    config.write_text("push_to_hub: true\nhub_model_id: user/leak\nmax_steps: 2\nmax_train_samples: 300\n")
    assert main(["diagnose", "shrink", "--out", str(tmp_path / "out"), "--config", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("shrink: multiplies the decayed weights by 1 to 0")
    assert lines[1].split() == ["1", "0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2", "0.1", "0"]
    table = rows(tmp_path / "out" / "shrink.csv")
    assert lines[2].split() == ["all", *(f"{float(row['all']):.3f}" for row in table)]
    assert hub.repos == {}


def test_help_explains_the_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["diagnose", "--help"])
    text = capsys.readouterr().out
    for words in (
        "R_op: the fraction of decayed parameters",
        "How much of the weights",
        "How far the weights",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["shrinks"], "invalid choice: 'shrinks'"),
        (["shrink", "--learning_rat", "1"], "unknown flag '--learning_rat': did you mean '--learning_rate'?"),
        (["opposing-penalty", "--dataset_name", "./nowhere"], "./nowhere"),
        (["opposing-penalty", "--weight_decay", "0", *SHORT], "set --weight_decay above 0"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys, tmp_path):
    try:
        code = main(["diagnose", *argv, "--out", str(tmp_path / "out")])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.startswith("hf-lpwd diagnose")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_anything_trains(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["diagnose", "opposing-penalty", *SHORT, "--out", str(tmp_path / "file" / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"hf-lpwd diagnose: error: {tmp_path}/file/out: Not a directory (NotADirectoryError)\n"
    )
