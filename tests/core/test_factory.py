import copy
import json
import math

import numpy as np
import pytest
import tiny_models
import torch
from accelerate import Accelerator

import hf_lpwd
from hf_lpwd.factory import create_lpwd_optimizer, layer_param_groups
from hf_lpwd.layers import layer_index_map
from hf_lpwd.trainer_optimizer import lpwd_optimizer_factory


def make_model():
    torch.manual_seed(0)
    return tiny_models.HandWritten(depth=3)


def rate_by_name(optimizer):
    return {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}


DECAYED = {
    "project.weight": 0,
    **{f"body.{i}.{layer}.weight": i + 1 for i in range(3) for layer in ("up", "down")},
    "out.weight": 4,
}


def test_the_defaults_are_the_papers_method():
    optimizer = create_lpwd_optimizer(make_model(), lr=1e-3, weight_decay=0.4)
    assert type(optimizer) is hf_lpwd.LayerwiseDecay
    assert type(optimizer.base) is torch.optim.AdamW
    expected = {
        name: pytest.approx(0.1 * DECAYED.get(name, 0)) for name, _ in make_model().named_parameters()
    }
    assert rate_by_name(optimizer) == expected
    for group in optimizer.param_groups:
        assert (group["decay_timing"], group["decay_coupling"], group["lr"]) == ("pwd", "lr", 1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4]
    )


def test_match_budget_keeps_the_mean_over_decayed_scalars():
    model = make_model()
    for schedule in ("linear", "reverse", "cosine", "power:3"):
        optimizer = create_lpwd_optimizer(
            model, lr=1e-3, weight_decay=0.4, layer_schedule=schedule, match_decay_budget=True
        )
        rates = rate_by_name(optimizer)
        sizes = {name: p.numel() for name, p in model.named_parameters() if name in DECAYED}
        total = math.fsum(rates[name] * size for name, size in sizes.items())
        assert total / sum(sizes.values()) == pytest.approx(0.4, rel=1e-14)


def test_what_decays_is_the_users():
    model = make_model()
    rates = rate_by_name(create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4, decay_all=True))
    assert rates["body.1.norm.bias"] == pytest.approx(0.2)
    assert rates["last_norm.weight"] == pytest.approx(0.4)
    rates = rate_by_name(
        create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4, no_decay_pattern=[r"\.up\.", "bias$"])
    )
    assert (rates["body.1.up.weight"], rates["out.bias"]) == (0.0, 0.0)
    assert rates["last_norm.weight"] == pytest.approx(0.4)


def test_frozen_parameters_are_left_out():
    model = make_model()
    model.body.requires_grad_(False)
    optimizer = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4)
    assert set(rate_by_name(optimizer)) == {
        name for name, _ in model.named_parameters() if not name.startswith("body")
    }
    # Layers keep their index: the head's rate does not depend on what is frozen.
    assert rate_by_name(optimizer)["out.weight"] == 0.4
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4)


def test_a_layer_map_takes_the_place_of_detection():
    model = make_model()
    layer_map = layer_index_map(model)
    assert rate_by_name(
        create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4, layer_map=layer_map)
    ) == rate_by_name(create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4))
    rules = {"project.*": "stem", r"body\.(\d+)\..*": "block", ".*": "head"}
    by_rules = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4, layer_map=rules)
    assert rate_by_name(by_rules)["body.2.up.weight"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"has no parameter 'body\.3\.norm\.weight'"):
        create_lpwd_optimizer(
            tiny_models.HandWritten(depth=4), lr=1e-3, weight_decay=0.4, layer_map=layer_map
        )


@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs", "fused"),
    [
        (torch.optim.AdamW, {}, True),
        (torch.optim.Adam, {}, True),
        (torch.optim.SGD, {"momentum": 0.9}, True),
        (torch.optim.AdamW, {"fused": False}, False),
        (torch.optim.AdamW, {"foreach": True}, None),
        (torch.optim.RAdam, {}, None),
    ],
)
def test_fused_is_the_default_where_there_is_a_kernel(optimizer_cls, kwargs, fused):
    optimizer = create_lpwd_optimizer(make_model(), optimizer_cls, lr=1e-3, weight_decay=0.4, **kwargs)
    assert {group.get("fused") for group in optimizer.param_groups} == {fused}


def test_no_fused_kernel_without_a_device():
    with torch.device("meta"):
        model = tiny_models.HandWritten()
    optimizer = create_lpwd_optimizer(model, lr=1e-3, weight_decay=0.4)
    assert {group["fused"] for group in optimizer.param_groups} == {None}


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"betaz": (0.9, 0.99)}, TypeError, "unknown argument 'betaz': did you mean 'betas'"),
        ({"timing": "wd"}, TypeError, "unknown argument 'timing': did you mean 'decay_timing'"),
        ({"lr": "0.1x"}, ValueError, "lr is '0.1x', but must be a number"),
        ({"decay_timing": "after"}, ValueError, "unknown decay_timing 'after'"),
        ({"decay_coupling": "both"}, ValueError, "unknown decay_coupling 'both'"),
        ({"layer_schedule": "up"}, ValueError, "unknown layer_schedule 'up'"),
        ({"layer_schedule": [0.1, 0.2]}, ValueError, "lists 2 rates, but the model has 5 layer indices"),
        ({"weight_decay": math.nan}, ValueError, "weight_decay is nan"),
        ({"weight_decay": 1000.0}, ValueError, r"lr \* weight_decay = 0\.001 \* 1000\.0 must be in"),
        ({"no_decay_pattern": "nothing_like_it"}, ValueError, "matches no parameter"),
        ({"no_decay_pattern": "bias", "decay_all": True}, ValueError, "drop one"),
        ({"optimizer_cls": torch.optim.LBFGS}, TypeError, "LBFGS cannot be wrapped"),
        ({"optimizer_cls": lpwd_optimizer_factory}, TypeError, "must be a class derived from"),
        ({"optimizer_cls": torch.optim.SGD([torch.ones(1)])}, TypeError, "not an object of SGD"),
    ],
)
def test_bad_input_is_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        create_lpwd_optimizer(make_model(), **{"lr": 1e-3, "weight_decay": 0.4, **kwargs})


@pytest.mark.parametrize("missing", ["lr", "weight_decay"])
def test_lr_and_weight_decay_have_no_default(missing):
    kwargs = {"lr": 1e-3, "weight_decay": 0.4}
    del kwargs[missing]
    with pytest.raises(TypeError, match=missing):
        create_lpwd_optimizer(make_model(), **kwargs)


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd", "pwd"])
def test_a_loop_with_accelerate_is_the_loop_without(timing):
    """Four micro-batches a step, the last window with two, in a loop of one's own."""
    batches = torch.randn(10, 6, 4, generator=torch.Generator().manual_seed(0))
    settings = {"lr": 0.05, "weight_decay": 0.4, "decay_timing": timing}

    model = make_model()
    optimizer = create_lpwd_optimizer(model, **settings)
    for start in range(0, 10, 4):
        window = batches[start : start + 4]
        optimizer.train()
        for batch in window:
            (model(batch).square().mean() / 4).backward()
        optimizer.step()
        optimizer.zero_grad()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    other = make_model()
    other, wrapped = accelerator.prepare(other, create_lpwd_optimizer(other, **settings))
    for i, batch in enumerate(batches):
        accelerator.gradient_state._set_sync_gradients(i % 4 == 3 or i == 9)
        wrapped.train()
        accelerator.backward(other(batch).square().mean())
        wrapped.step()
        wrapped.zero_grad()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["vit", "timm_swin", "clip", "t5"])
def test_any_model_of_either_library_takes_a_step(name):
    torch.manual_seed(0)
    model = tiny_models.TINY_MODELS[name]()
    optimizer = create_lpwd_optimizer(model, lr=1e-2, weight_decay=0.4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = rate_by_name(optimizer)
    optimizer.train()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[key] * (1 - 1e-2 * rates[key]), rtol=1e-6, atol=0)
    optimizer.step()
    assert sum(rate > 0 for rate in rates.values()) > 5


def test_an_optimizer_that_takes_any_keyword_is_not_given_a_former_name():
    class TakesAll(torch.optim.AdamW):
        def __init__(self, params, lr, weight_decay=0.0, **others):
            super().__init__(params, lr=lr, weight_decay=weight_decay)

    with pytest.raises(TypeError, match="unknown argument 'schedule': did you mean 'layer_schedule'"):
        create_lpwd_optimizer(make_model(), TakesAll, lr=0.1, weight_decay=0.4, schedule="uniform")


def test_groups_for_any_optimizer():
    model = make_model()
    groups = layer_param_groups(model, weight_decay=0.4, layer_schedule="reverse")
    assert {n: g["weight_decay"] for g in groups for n in g["param_names"]} == rate_by_name(
        create_lpwd_optimizer(model, lr=0.1, weight_decay=0.4, layer_schedule="reverse")
    )
    with pytest.raises(TypeError, match="decay_timing has no effect on parameter groups"):
        layer_param_groups(model, weight_decay=0.4, decay_timing="wd")
    with pytest.raises(TypeError, match="unknown setting 'schedule': did you mean 'layer_schedule'"):
        layer_param_groups(model, weight_decay=0.4, schedule="reverse")


@pytest.mark.parametrize("layer_lr_decay", [1.0, 0.5])
def test_layers_that_are_trained_later_get_their_own_rate(layer_lr_decay):
    settings = {"lr": 0.1, "weight_decay": 0.4, "layer_lr_decay": layer_lr_decay}
    whole = create_lpwd_optimizer(make_model(), **settings)
    model = make_model()
    model.body.requires_grad_(False)
    optimizer = create_lpwd_optimizer(model, **settings)
    for i in (2, 1, 0):
        model.body[i].requires_grad_(True)
        named = [(name, p) for name, p in model.named_parameters() if name.startswith(f"body.{i}.")]
        optimizer.add_param_group({"params": named})

    def settings_by_name(made):
        return {n: (g["weight_decay"], g["lr"]) for g in made.param_groups for n in g["param_names"]}

    assert settings_by_name(optimizer) == settings_by_name(whole)
    assert optimizer.plan.differences(model, optimizer.param_groups) == []
    extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"found by their names: give \{'params'"):
        optimizer.add_param_group({"params": extra.parameters()})
    with pytest.raises(
        ValueError, match=r"the plan has no parameter 'weight': names are like 'project\.weight'"
    ):
        optimizer.add_param_group({"params": extra.named_parameters()})


@pytest.mark.parametrize(
    "of",
    [
        lambda model: [{"params": model.parameters()}],
        lambda model: [{"params": list(model.named_parameters())}],
        lambda model: [{"params": p} for p in model.parameters()],
        lambda model: model.parameters(),
        lambda model: model.named_parameters(),
    ],
)
def test_groups_of_the_user_are_any_that_torch_takes(of):
    """A generator was read by a first look at its parameters, and nothing trained."""
    model = make_model()
    plan = hf_lpwd.plan_layers(model, hf_lpwd.LPWDConfig(weight_decay=0.4))
    optimizer = hf_lpwd.optimizer_from_plan(plan, model, lr=0.1, param_groups=of(model))
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in found] == [id(p) for p in model.parameters()]


def test_a_group_that_is_refused_leaves_the_others_as_they_were():
    model = make_model()
    model.project.requires_grad_(False)
    optimizer = create_lpwd_optimizer(model, lr=0.1, weight_decay=0.4)
    before = [list(group["params"]) for group in optimizer.param_groups]
    model.project.requires_grad_(True)
    named = [(n, p) for n, p in model.named_parameters() if n.startswith(("project", "out"))]
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        optimizer.add_param_group({"params": named})
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [
        list(map(id, params)) for params in before
    ]


def test_numbers_of_numpy_can_be_saved(tmp_path):
    settings = {"weight_decay": np.float32(0.5), "layer_lr_decay": np.float64(0.5)}
    optimizer = create_lpwd_optimizer(make_model(), lr=np.float64(0.1), **settings)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert saved["param_groups"] == optimizer.state_dict()["param_groups"]
    config = hf_lpwd.LPWDConfig(weight_decay=np.float32(0.5), layer_schedule=np.array([0.0, 0.25, 0.5]))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["weight_decay"] == 0.5
    assert config.to_dict()["layer_schedule"] == [0.0, 0.25, 0.5]


def test_the_optimizer_has_the_plan_that_it_was_made_from():
    model = make_model()
    optimizer = create_lpwd_optimizer(model, lr=0.1, weight_decay=0.4, layer_lr_decay=0.5)
    assert optimizer.plan == hf_lpwd.explain(model, weight_decay=0.4, layer_lr_decay=0.5)
    assert copy.deepcopy(optimizer).plan == optimizer.plan


@pytest.mark.parametrize("lr", ["0.1", None])
def test_a_learning_rate_that_is_no_number_is_named(lr):
    with pytest.raises(ValueError, match=f"lr is {lr!r}, but must be a number >= 0"):
        create_lpwd_optimizer(
            torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)]), lr=lr, weight_decay=0.1
        )
