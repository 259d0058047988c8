"""A study's file: what runs it stands for, and what is refused in it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from hf_lpwd.config import TIMINGS
from hf_lpwd.messages import BadInputError
from hf_lpwd.study.config import read_study
from hf_lpwd.study.methods import method_name

STUDY = """
train: {learning_rate: 1e-3, max_steps: 2}
grid:
  decay_timing: [wd, pwd]
  layer_schedule: [uniform, linear]
  weight_decay: [0.1, 1]
  seed: [1, 0]
"""


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, name="study.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return read_study(str(path))

    return write_and_read


def test_the_grid_by_hand(read):
    specs = read(STUDY)
    found = [
        tuple(spec.settings[name] for name in ("seed", "decay_timing", "weight_decay")) for spec in specs
    ]
    cells = [(timing, rate) for timing in ("wd", "pwd") for _ in range(2) for rate in (0.1, 1.0)]
    assert found == [(seed, *cell) for seed in (0, 1) for cell in cells]
    assert len({spec.id for spec in specs}) == 16
    assert {method_name(spec.settings) for spec in specs} == {
        "wd uniform",
        "wd linear",
        "pwd uniform",
        "pwd linear",
    }


def test_settings_are_read_as_train_reads_them(read):
    """YAML takes 1e-3 for text and 1 for an integer; the run, and so its name, is the same."""
    other = STUDY.replace("1e-3", "0.001").replace("[0.1, 1]", "[1.0, 0.1]")
    assert {spec.id for spec in read(STUDY)} == {spec.id for spec in read(other)}
    assert read(STUDY)[0].settings["learning_rate"] == 0.001


def test_a_name_depends_on_the_settings_alone(read):
    spec = read("train: {seed: 3}\ngrid: {weight_decay: [0.1]}")[0]
    assert spec.settings == {"seed": 3, "weight_decay": 0.1}
    assert spec.id == "8cd67e68e47370e4"
    assert spec.id == read(json.dumps({"grid": {"weight_decay": [0.1], "seed": [3]}}), "study.json")[0].id


def test_groups_change_several_flags_together(read):
    specs = read("grid: {model: [{model_type: vit}, {model_type: resnet, config_overrides: 'depths=[1,1]'}]}")
    assert [spec.settings for spec in specs] == [
        {"model_type": "vit"},
        {"model_type": "resnet", "config_overrides": "depths=[1,1]"},
    ]


def test_peers_take_the_place_of_the_methods(read):
    specs = read(STUDY + "peers: [no_decay, head_only, adamw_uniform, reverse]\n")
    by_method = {}
    for spec in specs:
        by_method.setdefault(method_name(spec.settings), []).append(spec.settings)
    # No decay is one run a seed; uniform AdamW is the grid's.
    assert {method: len(found) for method, found in by_method.items()} == {
        "wd uniform": 4,
        "wd linear": 4,
        "pwd uniform": 4,
        "pwd linear": 4,
        "no decay": 2,
        "head only": 4,
        "wd reverse": 4,
    }
    assert by_method["no decay"][0]["weight_decay"] == 0.0


def test_the_papers_metric_makes_other_runs(read):
    plain, paper = read(STUDY), read(STUDY + "paper_metric: true\n")
    assert not {spec.id for spec in plain} & {spec.id for spec in paper}
    assert paper[0].settings["paper_metric"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grids: {}", "unknown setting 'grids': did you mean 'grid'?"),
        ("train: {learning_rat: 1}", "train: unknown flag 'learning_rat': did you mean 'learning_rate'?"),
        ("grid: {decay_timng: [wd]}", "grid: unknown flag 'decay_timng': did you mean 'decay_timing'?"),
        ("grid: {model: [{model_typ: vit}]}", "grid: model: unknown flag 'model_typ'"),
        ("grid: {model: vit}", "grid: model is 'vit', but must be a list of mappings"),
        ("grid: {seed: 3}", "grid: seed is 3, but must be a list of values"),
        ("grid: {seed: []}", "grid: seed is [], but must be a list of values"),
        ("grid: [1]", "grid is [1], but must hold flags by name"),
        ("peers: [head]", "unknown peer 'head': did you mean 'head_only'?"),
        ("peers: head_only", "peers is 'head_only', but must be a list"),
        ("paper_metric: 10", "paper_metric is 10, but must be true or false"),
        ("train: {output_dir: x}", "output_dir has no place in a study"),
        ("train: {token: x}", "token has no place in a study"),
        ("train: {hub_token: x}", "hub_token has no place in a study"),
        ("- 1", "must hold the keys train, grid, peers, paper_metric"),
        ("a: [", "cannot be read"),
    ],
)
def test_refused_in_one_line(read, text, message):
    with pytest.raises(BadInputError, match=r"study\.yaml") as error:
        read(text)
    assert message in str(error.value)


def test_a_value_that_train_refuses_ends_the_sweep_before_it_begins(read, capsys):
    with pytest.raises(SystemExit) as end:
        read("grid: {decay_timing: [wd, pwdd]}")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "'pwdd'" in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInputError, match="cannot be read"):
        read_study(str(tmp_path / "none.yaml"))


def test_names_of_methods():
    assert method_name({}) == "pwd linear"
    assert method_name({"decay_timing": "wd", "layer_schedule": "power:3", "match_decay_budget": True}) == (
        "wd power:3 matched"
    )
    assert method_name({"layer_schedule": "uniform", "match_decay_budget": True}) == "pwd uniform"
    assert method_name({"decay_coupling": "independent"}) == "pwd linear independent"
    assert method_name({"peer": "head_only", "decay_timing": "wd"}) == "head only"


def test_the_study_of_the_replication():
    specs = read_study(str(Path(__file__).parents[2] / "scripts" / "study_cifar10.yaml"))
    methods = Counter(method_name(spec.settings) for spec in specs)
    cells = {f"{timing} {schedule}" for timing in TIMINGS for schedule in ("uniform", "linear")}
    assert methods == dict.fromkeys(cells, 9) | {"no decay": 3, "linear budget": 9}
