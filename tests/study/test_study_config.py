"""A study's file: what runs it stands for, and what is refused in it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from hf_lpwd.config import TIMINGS
from hf_lpwd.messages import BadInputError
from hf_lpwd.study import config
from hf_lpwd.study.config import read_study
from hf_lpwd.study.methods import method_name
from hf_lpwd.study.planning import write_study
from hf_lpwd.vision import arguments

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
        return read_study(str(path)).runs

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


def test_settings_are_resolved_once_for_all_seeds(read, monkeypatch):
    one_by_one = [spec for seed in (0, 1) for spec in read(STUDY.replace("[1, 0]", f"[{seed}]"))]
    resolved = []
    monkeypatch.setattr(
        config, "arguments_from", lambda flags: resolved.append(flags) or arguments.arguments_from(flags)
    )
    together = read(STUDY)
    assert [(s.id, s.settings, s.flags) for s in together] == [
        (s.id, s.settings, s.flags) for s in one_by_one
    ]
    # 8 settings and 2 seeds.
    assert len(resolved) == 10
    assert {spec.settings["seed"] for spec in read(STUDY.replace("[1, 0]", "['1', 7]"))} == {1, 7}


def test_a_name_depends_on_the_resolved_settings_alone(read):
    """A default that is written out is the same run; so is a flag in another place of the file."""
    spec = read("train: {seed: 3}\ngrid: {weight_decay: [0.1]}")[0]
    assert spec.settings["weight_decay"] == 0.1
    assert spec.settings["seed"] == 3
    assert spec.id == read(json.dumps({"grid": {"weight_decay": [0.1], "seed": [3]}}), "study.json")[0].id
    written_out = (
        "train: {seed: 3, decay_timing: pwd, layer_schedule: linear, adam_beta1: 0.9,"
        " match_decay_budget: false, eval_strategy: epoch, skip_bad_images: false,"
        " metric_for_best_model: accuracy}\n"
        "grid: {weight_decay: [0.1]}"
    )
    assert read(written_out)[0].settings == spec.settings
    assert read(written_out.replace("0.9", "0.8"))[0].id != spec.id


def test_a_default_that_a_release_changes_is_another_run(read, monkeypatch):
    spec = read("grid: {weight_decay: [0.1]}")[0]
    monkeypatch.setitem(arguments.DIGITS_RUN, "learning_rate", 2e-3)
    assert read("grid: {weight_decay: [0.1]}")[0].id != spec.id


def test_groups_change_several_flags_together_and_have_names(read):
    specs = read(
        "grid: {model: [{model_type: vit, name: ViT},"
        " {model_type: resnet, config_overrides: 'depths=[1,1]'}]}"
    )
    assert [spec.settings["model_type"] for spec in specs] == ["vit", "resnet"]
    assert [spec.settings.get("config_overrides") for spec in specs] == [None, "depths=[1,1]"]
    assert [spec.task for spec in specs] == [{"model": "ViT"}, {}]


NAMED = """
train: {match_decay_budget: true, decay_timing: wd}
grid:
  method: [{layer_schedule: uniform}, {name: shuffled, layer_schedule: "2,0,1"}]
  seed: [0, 1]
baselines: [no_decay]
"""


def test_a_method_can_have_a_name_which_is_no_setting(tmp_path, read):
    specs = read(NAMED)
    assert [spec.method for spec in specs] == ["wd uniform", "shuffled", "no decay"] * 2
    unnamed = read(NAMED.replace("name: shuffled, ", ""))
    assert [spec.method for spec in unnamed] == ["wd uniform", "wd 2,0,1 matched", "no decay"] * 2
    assert [spec.id for spec in specs] == [spec.id for spec in unnamed]
    assert [spec.task for spec in specs] == [{}] * 6
    path = tmp_path / "asked.yaml"
    path.write_text(f"{NAMED}questions: [{{compare: [shuffled]}}]")
    study = read_study(str(path))
    assert study.questions[0].compare == ["shuffled"]
    assert [run.method for run in study.planned()] == [spec.method for spec in specs]


def test_the_named_methods_of_the_example(tmp_path, read):
    """The lines about them, uncommented in place of the flags that they stand for."""
    write_study(str(tmp_path / "init.yaml"), {})
    lines = (tmp_path / "init.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  # method:"))
    lines[start : start + 3] = [line.replace("  # ", "  ", 1) for line in lines[start : start + 3]]
    rest = ("  decay_timing", "  layer_schedule", "  match_decay_budget")
    specs = read("\n".join(line for line in lines if not line.startswith(rest)))
    assert {spec.method for spec in specs} == {"wd uniform", "wd shuffled", "no decay", "noise floor"}


def test_a_baseline_that_is_a_method_of_the_grid_has_the_name_of_the_grid(read):
    specs = read(
        "grid: {method: [{name: AdamW, decay_timing: wd, layer_schedule: uniform}, {name: own}]}\n"
        "baselines: [adamw_uniform, head_only]"
    )
    assert [spec.method for spec in specs] == ["AdamW", "own", "head only"]


def test_total_decay_takes_the_place_of_weight_decay(read):
    specs = read(
        "grid: {total_decay: [0.1, 1]}\nbaselines: [no_decay, noise_floor]\ntrain: {decay_timing: wd}"
    )
    assert [spec.settings.get("total_decay") for spec in specs] == [0.1, 1.0, None, 1.0]
    assert [spec.settings.get("weight_decay") for spec in specs] == [None, None, 0.0, None]
    # The noise floor is run at the middle of the rates only.
    assert [spec.method for spec in specs] == ["wd linear", "wd linear", "no decay", "noise floor"]


def test_what_a_grid_gives_its_methods_alone_stands_beside_baselines(read):
    specs = read(
        "train: {layer_lr_decay: 1}\ngrid: {decay_coupling: [independent]}\n"
        "baselines: [adamw_uniform]\nquestions: [{compare: [{peer: false}], to: wd uniform}]"
    )
    assert [spec.method for spec in specs] == ["pwd linear independent", "wd uniform"]


def test_a_uniform_schedule_is_at_its_budget_as_it_is(read):
    specs = read("grid: {layer_schedule: [uniform, linear], match_decay_budget: [false, true]}")
    assert [spec.method for spec in specs] == ["pwd uniform", "pwd linear", "pwd linear matched"]


def test_questions(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        STUDY + "questions: [{compare: [pwd linear], margin: 0.5},"
        " {compare: [{decay_timing: pwd}], to: {decay_timing: wd}, at: equal}]\n"
    )
    first, second = read_study(str(path)).questions
    assert (first.compare, first.to, first.at, first.margin) == (["pwd linear"], "wd uniform", "best", 0.5)
    assert (second.compare, second.to) == ([{"decay_timing": "pwd"}], {"decay_timing": "wd"})


def test_peers_take_the_place_of_the_methods(read):
    specs = read(STUDY + "baselines: [no_decay, head_only, adamw_uniform, reverse]\n")
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
        ("peers: [no_decay]", "the key peers is called baselines now"),
        (
            "train: {lr_scheduler_type: reduce_lr_on_plateau}\ngrid: {total_decay: [0.1]}",
            "total_decay needs learning rates that are known before training, unlike those of "
            "lr_scheduler_type reduce_lr_on_plateau: give weight_decay, or another schedule",
        ),
        (
            "train: {decay_coupling: independent}\ngrid: {seed: [0]}\nbaselines: [adamw_uniform]",
            "train: decay_coupling independent would not count for the baselines, which have lr: give it in "
            "the grid (decay_coupling: [independent]) for its methods alone, or leave the baselines out",
        ),
        (
            "grid: {data: [{dataset_name: digits, layer_lr_decay: 0.5}]}\nbaselines: [no_decay]",
            "grid: data: layer_lr_decay 0.5 would not count for the baselines, which have 1.0",
        ),
        (
            "grid: {seed: [0]}\nquestions: [{to: {match_budget: false}}]",
            "questions: 1: unknown setting 'match_budget': did you mean 'match_decay_budget'?",
        ),
        (
            "grid: {seed: [0]}\nquestions: [{compare: [{decay_timing: wd}, {timming: pwd}]}]",
            "questions: 1: unknown setting 'timming'",
        ),
        ("train: {model_type: [vit]}", "train: model_type is a list of 1, but must be one value"),
        ("train: {learning_rate: [1, 2]}", "learning_rate is a list of 2, but must be one value"),
        ("grid: {seed: [[1, 2]]}", "grid: seed is a list of 2, but must be one value"),
        ("grid: {model: [{model_type: [vit]}]}", "grid: model: model_type is a list of 1"),
        ("train: {weight_decay: 1, total_decay: 1}", "give either weight_decay or total_decay"),
        ("grid: {total_decay: [-1]}", "total_decay is -1, but must be a number of 0 or more"),
        ("questions: [{to: wd unifor}]", "questions: 1: unknown method 'wd unifor'"),
        ("questions: [{margn: 1}]", "questions: 1: margn: Extra inputs are not permitted"),
        ("questions: {to: 1}", "questions is a dict, but must be a list of mappings"),
        (
            "a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ntrain: {model_type: [*d,*d,*d,*d,*d,*d,*d,*d]}",
            "unknown setting 'a'",
        ),
        ("grids: {}", "unknown setting 'grids': did you mean 'grid'?"),
        ("train: {learning_rat: 1}", "train: unknown flag 'learning_rat': did you mean 'learning_rate'?"),
        ("grid: {decay_timng: [wd]}", "grid: unknown flag 'decay_timng': did you mean 'decay_timing'?"),
        ("grid: {model: [{model_typ: vit}]}", "grid: model: unknown flag 'model_typ'"),
        ("grid: {model: vit}", "grid: model is 'vit', but must be a list of mappings"),
        ("grid: {seed: 3}", "grid: seed is 3, but must be a list of values"),
        ("grid: {seed: []}", "grid: seed is an empty list, but must be a list of values"),
        ("grid: {model: []}", "grid: model is an empty list, but must be a list of mappings"),
        ("", "nothing to compare: grid is empty"),
        ("train: {model_type: vit}", "nothing to compare: grid is empty"),
        ("grid: {}\nbaselines: []", "nothing to compare: grid is empty"),
        ("grid: {weight_decay: [1], total_decay: [1]}", "give either weight_decay or total_decay"),
        ("train: {weight_decay: 1}\ngrid: {total_decay: [1]}", "give either weight_decay or total_decay"),
        ("train: {total_decay: 1}\ngrid: {weight_decay: [1]}", "give either weight_decay or total_decay"),
        (
            "grid: {weight_decay: [1], data: [{total_decay: 1}]}",
            "give either weight_decay or total_decay",
        ),
        (
            "train: {seed: 7}\ngrid: {seed: [0, 1]}",
            "seed is in train and in grid, and its values in train have no effect: give it once",
        ),
        (
            "train: {decay_timing: wd}\ngrid: {model: [{decay_timing: pwd}, {decay_timing: rwd}]}",
            "decay_timing is in train and in grid: model, and its values in train have no effect",
        ),
        (
            "grid: {weight_decay: [1, 2], data: [{weight_decay: 3}]}",
            "weight_decay is in grid and in grid: data, and its values in grid have no effect",
        ),
        (
            "grid: {seed: [0, 1], data: [{seed: 3}]}",
            "seed is in grid: data and in grid, and its values in grid: data have no effect",
        ),
        ("grid: {seed: [0, 1, 0]}", "grid: seed holds 0 twice"),
        (f"grid: {{seed: [{10**309}, {10**309}]}}", f"grid: seed holds {10**309} twice"),
        ("grid: {learning_rate: [0.001, 1e-3]}", "grid: learning_rate holds '1e-3' twice"),
        (
            "grid: {model: [{model_type: vit, name: a}, {name: b, model_type: vit}]}",
            "grid: model holds a dict of 2 twice",
        ),
        ("baselines: [no_decay, reverse, no_decay]", "baselines holds 'no_decay' twice"),
        (
            "grid: {seed: [0]}\nquestions: [{}, {compare: [pwd linear], to: pwd linear}]",
            "questions: 2: compares 'pwd linear' to itself",
        ),
        (
            "questions: [{compare: [{decay_timing: wd}], to: {decay_timing: wd}}]",
            "questions: 1: compares {'decay_timing': 'wd'} to itself",
        ),
        (
            "questions: [{compare: [no decay, pwd linear, no decay]}]",
            "questions: 1: compare holds 'no decay' twice",
        ),
        ("grid: [1]", "grid must hold lists of values by flag, not a list of 1"),
        (
            "grid: {method: [{name: a, decay_timing: wd, learning_rate: 1}]}",
            "grid: method: learning_rate is no flag of a method, which are decay_coupling, decay_timing, "
            "layer_lr_decay, layer_schedule, match_decay_budget",
        ),
        (
            "grid: {method: [{name: a, layer_schedule: reverse}], decay_timing: [wd, pwd]}",
            "the name 'a' stands for several methods: pwd reverse, wd reverse",
        ),
        (
            "grid: {method: [{name: a, decay_timing: wd}, {name: a, decay_timing: pwd}]}",
            "the name 'a' stands for several methods: pwd linear, wd linear",
        ),
        (
            "grid: {method: [{name: a, layer_schedule: uniform}, "
            "{name: b, layer_schedule: uniform, match_decay_budget: true}]}",
            "the method pwd uniform has several names: a, b",
        ),
        (
            "grid: {method: [{name: head only, layer_schedule: uniform}]}",
            "the name 'head only' is that of a baseline",
        ),
        (
            "grid: {method: [{name: wd linear, layer_schedule: '1,0'}, {decay_timing: wd}]}",
            "the name 'wd linear' stands for several methods: pwd 1,0, wd linear",
        ),
        ("baselines: [head]", "unknown baseline 'head': did you mean 'head_only'?"),
        ("baselines: [[head_only]]", "unknown baseline \"['head_only']\""),
        ("baselines: head_only", "baselines is 'head_only', but must be a list"),
        ("paper_metric: 10", "paper_metric is 10, but must be true or false"),
        ("train: {output_dir: x}", "output_dir has no place in a study"),
        ("train: {token: x}", "token has no place in a study"),
        ("train: {hub_token: x}", "hub_token has no place in a study"),
        ("- 1", "must hold settings by name, not a list"),
        ("a: [", "cannot be read"),
    ],
)
def test_refused_in_one_line(read, text, message):
    with pytest.raises(BadInputError, match=r"study\.yaml") as error:
        read(text)
    assert message in str(error.value)


def test_a_flag_in_train_and_grid_that_has_an_effect(read):
    """Train's value is that of the mappings without the flag; and the grid may repeat what train says."""
    assert len(read("train: {weight_decay: 0.5, seed: 1}\ngrid: {weight_decay: ['5e-1'], seed: [1]}")) == 1
    specs = read("train: {decay_timing: wd}\ngrid: {data: [{decay_timing: pwd}, {layer_schedule: reverse}]}")
    assert [spec.method for spec in specs] == ["pwd linear", "wd reverse"]


def test_a_value_that_train_refuses_ends_the_sweep_before_it_begins(read):
    with pytest.raises(BadInputError, match=r"study\.yaml: .*'pwdd'"):
        read("grid: {decay_timing: [wd, pwdd]}")


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
    specs = read_study(str(Path(__file__).parents[2] / "scripts" / "study_cifar10.yaml")).runs
    methods = Counter(method_name(spec.settings) for spec in specs)
    cells = {f"{timing} {schedule}" for timing in TIMINGS for schedule in ("uniform", "linear")}
    assert methods == dict.fromkeys(cells, 9) | {"no decay": 3, "linear budget": 9}
