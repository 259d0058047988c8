"""`LPWDConfig` and `plan_layers`: what is decided for each parameter, and that all show the same."""

import json
import math

import pytest
import torch
from tiny_models import TINY_MODELS, HandWritten, partitioned
from torch import nn

from hf_lpwd.config import LPWDConfig
from hf_lpwd.layers import LayerMap, Place, layer_index_map
from hf_lpwd.plan import explain, plan_layers
from hf_lpwd.schedules import layer_rates


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)


def plan(model=None, **settings):
    return plan_layers(Tiny() if model is None else model, LPWDConfig(**{"weight_decay": 0.3, **settings}))


def about(**settings):
    """Name -> (rate, lr scale, reason) in the plan of the tiny model."""
    return {
        name: (round(p.rate, 12), p.lr_scale, p.not_decayed)
        for name, p in plan(**settings).parameters.items()
    }


def test_each_parameter():
    assert about() == {
        "embed.weight": (0.0, 1.0, None),
        "embed.bias": (0.0, 1.0, "bias"),
        "blocks.0.weight": (0.1, 1.0, None),
        "blocks.0.bias": (0.0, 1.0, "bias"),
        "blocks.1.weight": (0.2, 1.0, None),
        "blocks.1.bias": (0.0, 1.0, "bias"),
        "norm.weight": (0.0, 1.0, "normalization"),
        "norm.bias": (0.0, 1.0, "bias"),
        "head.weight": (0.3, 1.0, None),
        "head.bias": (0.0, 1.0, "bias"),
    }


def test_layers():
    layers = plan().layers
    assert [(row.layer, row.rate, row.parameters, row.decayed) for row in layers] == [
        (0, 0.0, 9, 6),
        (1, pytest.approx(0.1, abs=1e-15), 12, 9),
        (2, pytest.approx(0.2, abs=1e-15), 12, 9),
        (3, pytest.approx(0.3, abs=1e-15), 14, 6),
    ]
    assert layers[3].not_decayed == {"normalization": ["norm.weight"], "bias": ["norm.bias", "head.bias"]}
    assert layers[1].modules == ["block blocks.0"]


def test_its_text_is_a_table():
    assert str(plan()).splitlines() == [
        "layer  modules           parameters  decayed  rate  not decayed, and why",
        "    0  stem                       9        6     0  1 bias",
        "    1  block blocks.0            12        9   0.1  1 bias",
        "    2  block blocks.1            12        9   0.2  1 bias",
        "    3  final norm, head          14        6   0.3  1 normalization; 2 bias",
        "47 parameters, 30 of them decayed, at a mean rate of 0.15, 0.50 of weight_decay 0.3",
    ]


def test_its_table_has_the_columns_that_say_something():
    shown = plan(layer_lr_decay=0.5, decay_by_pattern={"head": 0.7}).to_dict()["table"]
    assert shown["header"][-3:] == ["lr scale", "other rates", "not decayed, and why"]
    assert shown["rows"][0][-3:] == ["0.125", "-", "1 bias"]
    assert shown["rows"][3][-3:] == ["1", "2 at 0.7 ('head')", "1 normalization; 1 bias"]


def test_as_json():
    values = plan(layer_lr_decay=0.5).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["settings"] == {
        "weight_decay": 0.3,
        "decay_timing": "pwd",
        "layer_schedule": "linear",
        "decay_coupling": "lr",
        "match_decay_budget": False,
        "decay_all": False,
        "no_decay_pattern": None,
        "decay_by_pattern": None,
        "layer_lr_decay": 0.5,
        "layer_map": None,
    }
    assert values["parameters"]["blocks.1.weight"] == {
        "stack": "",
        "layer": 2,
        "module": "block blocks.1",
        "rate": pytest.approx(0.2, abs=1e-15),
        "lr_scale": 0.5,
        "not_decayed": None,
        "shape": [3, 3],
    }
    assert values["mean_rate"] == pytest.approx(0.15, abs=1e-15)


def test_learning_rate_by_layer_scales_what_does_not_decay_too():
    scales = {name: scale for name, (_, scale, _) in about(layer_lr_decay=0.5).items()}
    assert scales == {
        **dict.fromkeys(("embed.weight", "embed.bias"), 0.125),
        **dict.fromkeys(("blocks.0.weight", "blocks.0.bias"), 0.25),
        **dict.fromkeys(("blocks.1.weight", "blocks.1.bias"), 0.5),
        **dict.fromkeys(("norm.weight", "norm.bias", "head.weight", "head.bias"), 1.0),
    }


def test_rates_by_pattern():
    """The first pattern counts, over exemptions and schedule."""
    changed = about(decay_by_pattern={r"^head\.weight": 0.7, "head": 0.6, "embed.bias": 0})
    assert changed == {
        **about(),
        "head.weight": (0.7, 1.0, None),
        "head.bias": (0.6, 1.0, None),
        "embed.bias": (0.0, 1.0, None),
    }


def test_the_budget_is_of_what_has_the_schedules_rate():
    decided = plan(match_decay_budget=True, decay_by_pattern={"head.weight": 0.7})
    scheduled = [
        p for name, p in decided.parameters.items() if p.not_decayed is None and name != "head.weight"
    ]
    mean = math.fsum(p.rate * p.size for p in scheduled) / sum(p.size for p in scheduled)
    assert mean == pytest.approx(0.3, rel=1e-14)
    assert decided["head.weight"].rate == 0.7
    assert plan(match_decay_budget=True).mean_rate == pytest.approx(0.3, rel=1e-14)


def test_frozen_parameters_do_not_decay_until_they_are_trained():
    model = Tiny()
    model.blocks[0].requires_grad_(False)
    decided = plan(model)
    assert (decided.layers[1].decayed, decided.layers[1].not_decayed) == (
        0,
        {"frozen": ["blocks.0.weight", "blocks.0.bias"]},
    )
    assert decided["blocks.0.weight"].rate == 0.0
    frozen = dict(model.blocks[0].named_parameters(prefix="blocks.0"))
    groups = decided.groups_of(frozen.items())
    assert [(g["param_names"], g["weight_decay"]) for g in groups] == [
        (["blocks.0.bias"], 0.0),
        (["blocks.0.weight"], pytest.approx(0.1, abs=1e-15)),
    ]
    assert groups[1]["params"][0] is model.blocks[0].weight


def test_patterns_see_through_wrappers():
    wrapped = nn.Sequential()
    wrapped.add_module("module", Tiny())
    decided = plan(wrapped, no_decay_pattern=[r"^head\.", "^embed"], decay_by_pattern={"^norm": 0.1})
    assert decided["module.norm.bias"].rate == 0.1
    assert {p.not_decayed for p in decided.parameters.values()} == {
        None,
        "matches no_decay_pattern '^head\\\\.'",
        "matches no_decay_pattern '^embed'",
    }
    # A plan is found by the names of the model in or out of its wrapper.
    assert decided["norm.bias"] == decided["module.norm.bias"]
    assert plan()["module._orig_mod.norm.bias"] == plan()["norm.bias"]
    assert "tail.bias" not in decided
    with pytest.raises(KeyError, match=r"tail\.bias"):
        decided["tail.bias"]


def test_partitioned_weights_count_as_whole_ones():
    assert plan(partitioned(Tiny()), match_decay_budget=True) == plan(match_decay_budget=True)


def test_groups():
    model = Tiny()
    groups = plan(model).param_groups(model)
    assert [(g["weight_decay"], g["param_names"]) for g in groups] == [
        (0.0, [name for name, (rate, _, _) in about().items() if rate == 0.0]),
        (pytest.approx(0.1, abs=1e-15), ["blocks.0.weight"]),
        (pytest.approx(0.2, abs=1e-15), ["blocks.1.weight"]),
        (0.3, ["head.weight"]),
    ]
    parameters = dict(model.named_parameters())
    for group in groups:
        assert group.keys() == {"params", "param_names", "weight_decay"}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert parameter is parameters[name]


def test_groups_with_a_learning_rate_by_layer():
    model = Tiny()
    groups = plan(model, layer_lr_decay=0.5, layer_schedule="uniform").param_groups(model, lr=0.8)
    assert [(g["weight_decay"], g["lr"], g["layer_lr_scale"], g["param_names"]) for g in groups] == [
        (0.0, 0.1, 0.125, ["embed.bias"]),
        (0.0, 0.2, 0.25, ["blocks.0.bias"]),
        (0.0, 0.4, 0.5, ["blocks.1.bias"]),
        (0.0, 0.8, 1.0, ["norm.weight", "norm.bias", "head.bias"]),
        (0.3, 0.1, 0.125, ["embed.weight"]),
        (0.3, 0.2, 0.25, ["blocks.0.weight"]),
        (0.3, 0.4, 0.5, ["blocks.1.weight"]),
        (0.3, 0.8, 1.0, ["head.weight"]),
    ]
    with pytest.raises(ValueError, match="give lr, the head's"):
        plan(model, layer_lr_decay=0.5).param_groups(model)


def test_nothing_to_train():
    model = Tiny().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        plan(model).param_groups(model)


def test_tied_weight_is_in_one_group_at_its_first_layer():
    model = TINY_MODELS["gpt2"]()
    assert model.lm_head.weight is model.transformer.wte.weight
    holders = [
        group["weight_decay"]
        for group in plan(model, layer_schedule="reverse").param_groups(model)
        for parameter in group["params"]
        if parameter is model.lm_head.weight
    ]
    assert holders == [0.3]


def test_each_tower_has_its_own_rates():
    with torch.device("meta"):
        model = TINY_MODELS["clip"]()
    decided = plan(model)
    text, vision = layer_rates(0.3, 3), layer_rates(0.3, 4)
    assert decided.rates == {"text_model": text, "vision_model": vision}
    for i in range(2):
        assert decided[f"text_model.encoder.layers.{i}.mlp.fc1.weight"].rate == text[i + 1]
    for i in range(3):
        assert decided[f"vision_model.encoder.layers.{i}.mlp.fc1.weight"].rate == vision[i + 1]
    assert decided["text_projection.weight"].rate == decided["visual_projection.weight"].rate == 0.3
    assert decided["text_model.embeddings.token_embedding.weight"].rate == 0.0
    with pytest.raises(ValueError, match="lists 5 rates, but the model has 4 layer indices"):
        plan(model, layer_schedule=[0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("name", ["clip", "t5", "swin"])
@pytest.mark.parametrize("schedule", ["linear", "reverse", "cosine"])
def test_budget_is_matched_in_each_stack(name, schedule):
    with torch.device("meta"):
        model = TINY_MODELS[name]()
    decided = plan(model, layer_schedule=schedule, match_decay_budget=True)
    for stack in decided.rates:
        decayed = [p for p in decided.parameters.values() if p.stack == stack and p.not_decayed is None]
        mean = math.fsum(p.rate * p.size for p in decayed) / sum(p.size for p in decayed)
        assert mean == pytest.approx(0.3, rel=1e-12)


def test_layers_of_the_user():
    rules = {r"body\.(\d+)\..*": "block", "project.*": "head", ".*": "stem"}
    decided = plan(HandWritten(), layer_map=rules)
    assert (decided["project.weight"].layer, decided["out.weight"].layer) == (4, 0)
    found = layer_index_map(HandWritten())
    given = plan(HandWritten(), layer_map=found)
    assert given.to_dict() == plan(HandWritten()).to_dict()
    compiled = torch.compile(HandWritten(), backend="eager")
    inside = {name: p.rate for name, p in plan(compiled, layer_map=found).parameters.items()}
    assert inside == {f"_orig_mod.{name}": p.rate for name, p in given.parameters.items()}
    moved = LayerMap({**found.places, "out.weight": Place("", 2, "mine")}, {"": 4})
    assert plan(HandWritten(), layer_map=moved)["out.weight"].rate == 0.15


def test_a_schedule_as_text_is_the_list():
    assert about(layer_schedule="0,0.1,0.2,0.4") == about(layer_schedule=[0, 0.1, 0.2, 0.4])
    assert about(layer_schedule=lambda i, n: 0.1 * i) == about()

    def rising(i, n):
        return 0.1 * i

    assert plan(layer_schedule=rising).to_dict()["settings"]["layer_schedule"] == "rising"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"weight_decay": "0.1"}, TypeError, "weight_decay is '0.1', but must be a number"),
        ({"weight_decay": -0.1}, ValueError, r"weight_decay is -0\.1"),
        ({"weight_decay": math.nan}, ValueError, "weight_decay is nan"),
        ({"decay_timing": "pvd"}, ValueError, "unknown decay_timing 'pvd': did you mean 'pwd'"),
        ({"decay_timing": ["pwd"]}, ValueError, r"unknown decay_timing \"\['pwd'\]\""),
        ({"decay_coupling": "both"}, ValueError, "unknown decay_coupling 'both'"),
        ({"decay_timing": "l2", "decay_coupling": "independent"}, ValueError, "has no meaning"),
        ({"layer_schedule": "up"}, ValueError, "unknown layer_schedule 'up'"),
        ({"layer_schedule": 0.3}, TypeError, "layer_schedule is 0.3, but must be"),
        ({"match_decay_budget": 3}, TypeError, "match_decay_budget is 3, but must be True or False"),
        ({"decay_all": True, "no_decay_pattern": "bias"}, ValueError, "decay_all leaves nothing exempt"),
        ({"no_decay_pattern": "("}, ValueError, r"no_decay_pattern '\(' is not a regular expression"),
        (
            {"no_decay_pattern": [3]},
            TypeError,
            r"no_decay_pattern is \[3\], but must be",
        ),
        ({"no_decay_pattern": []}, TypeError, r"no_decay_pattern is \[\], but must be"),
        ({"no_decay_pattern": len}, TypeError, "no_decay_pattern is <built-in function len>, but must be"),
        ({"weight_decay": True}, TypeError, "weight_decay is True, but must be a number"),
        ({"weight_decay": len}, TypeError, "weight_decay is <built-in function len>, but must be a number"),
        ({"layer_lr_decay": None}, TypeError, "layer_lr_decay is None, but must be a number"),
        ({"layer_map": "stem"}, TypeError, "layer_map is 'stem', but must be a LayerMap"),
        (
            {"layer_schedule": iter([0.1])},
            TypeError,
            r"is <list_iterator .*>, but must be",
        ),
        ({"decay_by_pattern": "head"}, TypeError, "decay_by_pattern is 'head', but must be a dict"),
        ({"decay_by_pattern": {"head": -1}}, ValueError, r"decay_by_pattern\['head'\] is -1"),
        ({"layer_lr_decay": 0.0}, ValueError, "layer_lr_decay is 0.0, but must be above 0 and at most 1"),
        ({"layer_lr_decay": 1.5}, ValueError, "layer_lr_decay is 1.5"),
        ({"layer_lr_decay": math.nan}, ValueError, "layer_lr_decay is nan"),
        ({"no_decay_pattern": "tail"}, ValueError, "no_decay_pattern 'tail' matches no parameter"),
        ({"decay_by_pattern": {"tail": 1}}, ValueError, "decay_by_pattern 'tail' matches no parameter"),
        ({"layer_schedule": "0,1"}, ValueError, "lists 2 rates, but the model has 4 layer indices"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        plan(**settings)


def test_a_wrong_model_is_named():
    with pytest.raises(
        TypeError, match=r"model must be a torch\.nn\.Module, not a generator: give the model"
    ):
        plan_layers(Tiny().parameters(), LPWDConfig(0.1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("timing", "decay_timing"),
        ("schedule", "layer_schedule"),
        ("coupling", "decay_coupling"),
        ("match_budget", "match_decay_budget"),
        ("no_decay", "no_decay_pattern"),
        ("lr_decay", "layer_lr_decay"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(old, new):
    with pytest.raises(TypeError, match=f"unknown setting '{old}': did you mean '{new}'"):
        explain(Tiny(), weight_decay=0.1, **{old: None})


def test_settings_from_arguments():
    class Arguments:
        weight_decay = 0.2
        decay_timing = "wd"

    assert LPWDConfig.from_args(Arguments()) == LPWDConfig(0.2, decay_timing="wd")
