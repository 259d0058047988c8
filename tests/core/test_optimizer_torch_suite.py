"""PyTorch's own checks of optimizers, in this project's words: each input that torch registers for its tests.

`optim_db` lists for SGD, Adam and AdamW the settings, the wrong settings and the schedulers that PyTorch's
test_optim.py runs. Here `LayerwiseDecay` around each of them runs with the same, for every timing.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from small_optimizers import TIMINGS, assert_same, step_by_hand
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hf_lpwd.optimizer import LayerwiseDecay

with warnings.catch_warnings():
    # torch's tests can use hypothesis; these here do not.
    warnings.simplefilter("ignore", ImportWarning)
    from torch.testing._internal.common_optimizers import (
        OptimizerErrorEnum,
        _get_optim_inputs_including_global_cliquey_kwargs,
        optim_db,
    )

# Only where there is a GPU does torch list capturable optimizers.
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
INFOS = [info for info in optim_db if info.optim_cls in (SGD, Adam, AdamW)]
RATES = (0.1, 0.5)
SINGLE_TENSOR = {"foreach": False, "fused": False}


def _name(value):
    return value.name if hasattr(value, "optim_cls") else None


each_class = pytest.mark.parametrize("info", INFOS, ids=_name)
each_timing = pytest.mark.parametrize("timing", TIMINGS)
each_input = pytest.mark.parametrize(
    ("info", "kwargs", "device"),
    [
        pytest.param(info, given.kwargs, device, id=f"{info.name}-{given.desc}-{device}")
        for device in DEVICES
        for info in INFOS
        # `LayerwiseDecay` refuses to be differentiated through.
        for given in _get_optim_inputs_including_global_cliquey_kwargs(
            device, torch.float64, info, skip=("differentiable",)
        )
    ],
)


def make_params(device="cpu", dtype=torch.float64):
    """A matrix, one that is not contiguous, one without elements, and a scalar."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(3, 4), (5, 2), (0, 3), ()]]
    tensors[1] = tensors[1].T
    params = [nn.Parameter(tensor.to(device)) for tensor in tensors]
    assert not params[1].is_contiguous()
    return params


def make_groups(params, rates=RATES):
    """The first two in one group, the others in another."""
    return [
        {"params": params[:2], "weight_decay": rates[0]},
        {"params": params[2:], "weight_decay": rates[1]},
    ]


def split(kwargs):
    """Rates of the two groups, and what is not about decay."""
    rate = kwargs.get("weight_decay")
    return (
        RATES if rate is None else (rate, rate / 2),
        copy.deepcopy({key: value for key, value in kwargs.items() if key != "weight_decay"}),
    )


def make(info, timing, kwargs, params):
    rates, others = split(kwargs)
    return LayerwiseDecay(make_groups(params, rates), info.optim_cls, decay_timing=timing, **others)


def loss_of(params, step):
    """Depends on the weights in a way that no decay and no constant gradient would leave as it is."""
    return sum((torch.view_as_real(p) if p.is_complex() else p).sub(step / 7).pow(2).sum() for p in params)


def train(params, optimizer, steps):
    for step in steps:
        optimizer.train()
        optimizer.zero_grad()
        loss_of(params, step).backward()
        optimizer.step()


def train_by_hand(params, info, timing, kwargs, steps):
    """The base optimizer without a decay of its own, one tensor after another, decayed by hand."""
    rates, others = split(kwargs)
    base = info.optim_cls(make_groups(params, (0.0, 0.0)), **{**others, **SINGLE_TENSOR})

    def set_gradients(step):
        base.zero_grad()
        loss_of(params, step).backward()

    for step in steps:
        step_by_hand(base, rates, timing, "lr", partial(set_gradients, step))
    return base


def assert_close(one, other):
    """Equal but for the order in which a kernel multiplies and adds."""
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-13, atol=1e-15)


@each_timing
@each_input
def test_every_implementation_is_the_plain_base_optimizer_with_decay_by_hand(info, kwargs, device, timing):
    params, by_hand = make_params(device), make_params(device)
    optimizer = make(info, timing, kwargs, params)
    train(params, optimizer, range(6))
    base = train_by_hand(by_hand, info, timing, kwargs, range(6))
    for one, other in zip(params, by_hand, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-12, atol=1e-14)
        for key, value in base.state[other].items():
            torch.testing.assert_close(optimizer.state[one][key], value, rtol=1e-10, atol=1e-14, msg=key)


@each_timing
@each_input
def test_a_fresh_optimizer_goes_on_from_a_state_dict_bit_for_bit(info, kwargs, device, timing):
    params = make_params(device)
    optimizer = make(info, timing, kwargs, params)
    train(params, optimizer, range(3))
    others = [nn.Parameter(parameter.detach().clone()) for parameter in params]
    saved = optimizer.state_dict()
    unchanged = copy.deepcopy(saved)
    resumed = make(info, timing, {**kwargs, "lr": 0.5}, others)
    resumed.load_state_dict(copy.deepcopy(saved))
    again = resumed.state_dict()
    assert str(again) == str(saved) == str(unchanged)
    train(params, optimizer, range(3, 6))
    train(others, resumed, range(3, 6))
    assert_same(params, others)
    assert str(again["param_groups"]) == str(optimizer.state_dict()["param_groups"])


@each_timing
@each_input
def test_copies_have_the_same_attributes_and_go_on_alike(info, kwargs, device, timing):
    params = make_params(device)
    optimizer = make(info, timing, kwargs, params)
    train(params, optimizer, range(2))
    optimizer.zero_grad()
    optimizer.train()
    copies = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    train(params, optimizer, range(2, 4))
    for other_params, other in copies:
        assert {key for key in vars(other) if key[0] != "_"} == {"base", "defaults", "plan"}
        assert str(other.defaults) == str(optimizer.defaults)
        train(other_params, other, range(2, 4))
        assert_same(params, other_params)


@each_timing
@each_input
def test_closures_and_schedulers(info, kwargs, device, timing):
    """Each scheduler that torch tries, with closures: the rates are the base's, and the loss goes its way."""
    for schedulers in info.scheduler_inputs:
        params, by_hand, plain = (make_params(device) for _ in range(3))
        optimizer, other = make(info, timing, kwargs, params), make(info, timing, kwargs, by_hand)
        driven = [scheduler(optimizer) for scheduler in schedulers]
        base = info.optim_cls(plain, **split(kwargs)[1])
        base_driven = [scheduler(base) for scheduler in schedulers]

        def closure(optimizer=optimizer, params=params):
            optimizer.zero_grad()
            loss = loss_of(params, 0)
            loss.backward()
            return loss

        losses = []
        for _ in range(6):
            for one, group in zip(optimizer.param_groups, other.param_groups, strict=True):
                group["lr"] = copy.deepcopy(one["lr"])
                group.update({key: one[key] for key in ("momentum", "betas") if key in one})
            losses.append(optimizer.step(closure).item())
            other.train()
            other.zero_grad()
            loss_of(by_hand, 0).backward()
            other.step()
            base.step()
            for scheduler in (*driven, *base_driven):
                arguments = [losses[-1]] if isinstance(scheduler, ReduceLROnPlateau) else []
                scheduler.step(*arguments)
            assert [float(group["lr"]) for group in optimizer.param_groups] == [
                float(base.param_groups[0]["lr"])
            ] * 2
        assert_same(params, by_hand)
        assert (losses[-1] > losses[0]) is bool(kwargs.get("maximize"))


@each_timing
@each_input
def test_groups_are_separate_optimizers(info, kwargs, device, timing):
    together, apart = make_params(device), make_params(device)
    rates, others = split(kwargs)
    groups = make_groups(together, rates)
    groups[1]["lr"] = 0.02
    optimizer = LayerwiseDecay(groups, info.optim_cls, decay_timing=timing, **others)
    train(together, optimizer, range(4))
    for group, changes in zip(make_groups(apart, rates), ({}, {"lr": 0.02}), strict=True):
        alone = LayerwiseDecay([group], info.optim_cls, decay_timing=timing, **{**others, **changes})
        train(group["params"], alone, range(4))
    assert_same(together, apart)


@each_timing
@each_class
def test_maximize_is_to_minimize_the_negative(info, timing):
    ways = []
    for maximize in (False, True):
        params = make_params()
        optimizer = make(info, timing, {"lr": 0.01, "maximize": maximize}, params)
        for step in range(4):
            optimizer.train()
            optimizer.zero_grad()
            (loss_of(params, step) * (-1 if maximize else 1)).backward()
            optimizer.step()
        ways.append(params)
    assert_same(*ways)


@each_timing
@each_class
def test_gradients_of_zero_leave_the_decay_alone(info, timing):
    params = make_params()
    before = [parameter.detach().clone() for parameter in params]
    optimizer = make(info, timing, {"lr": 0.01, "weight_decay": 0.0}, params)
    decaying_params = make_params()
    decaying = make(info, timing, {"lr": 0.01}, decaying_params)
    for members, each in ((params, optimizer), (decaying_params, decaying)):
        each.train()
        for parameter in members:
            parameter.grad = torch.zeros_like(parameter)
        each.step()
    assert_same(params, before)
    if timing != "l2":
        for i, (parameter, start) in enumerate(zip(decaying_params, before, strict=True)):
            torch.testing.assert_close(
                parameter.detach(), start * (1 - 0.01 * RATES[i // 2]), rtol=1e-14, atol=0
            )


@each_timing
@each_class
def test_without_gradients_a_step_does_nothing(info, timing):
    params = make_params()
    optimizer = make(info, timing, {"lr": 0.01}, params)
    optimizer.train()
    before = [parameter.detach().clone() for parameter in params]
    optimizer.step()
    assert_same(params, before)
    assert dict(optimizer.state) == {}


@each_timing
@each_class
def test_hooks(info, timing):
    """Hooks of this optimizer and of all optimizers run once, not for its base too."""
    params = make_params()
    optimizer = make(info, timing, {"lr": 0.01}, params)
    calls = []

    def hook(name):
        return lambda called, *_: calls.append((name, type(called)))

    handles = [
        optimizer.register_step_pre_hook(hook("pre")),
        optimizer.register_step_post_hook(hook("post")),
        register_optimizer_step_pre_hook(hook("all pre")),
        register_optimizer_step_post_hook(hook("all post")),
    ]
    train(params, optimizer, [0])
    for handle in handles:
        handle.remove()
    train(params, optimizer, [1])
    ours = LayerwiseDecay
    assert calls == [("all pre", ours), ("pre", ours), ("post", ours), ("all post", ours)]
    calls.clear()
    for name, register in (
        ("state pre", optimizer.register_state_dict_pre_hook),
        ("state post", optimizer.register_state_dict_post_hook),
        ("load pre", optimizer.register_load_state_dict_pre_hook),
        ("load post", optimizer.register_load_state_dict_post_hook),
    ):
        register(hook(name))
        register(hook(f"{name} first"), prepend=True)
    optimizer.load_state_dict(optimizer.state_dict())
    moments = ("state pre", "state post", "load pre", "load post")
    assert calls == [(f"{moment}{which}", ours) for moment in moments for which in (" first", "")]


# Ours come first, and name the value.
_OTHER_WORDS = {
    "params argument given to the optimizer should be an iterable of Tensors or dicts": (
        "params must be an iterable of tensors or groups, not a Parameter"
    ),
    "Invalid weight_decay value: -1": r"weight_decay is -1\.0, but must be finite and >= 0",
}


@each_timing
@pytest.mark.parametrize(
    ("info", "wrong"),
    [
        pytest.param(info, wrong, id=f"{info.name}-{wrong.optimizer_error_input.desc}")
        for info in INFOS
        for wrong in info.optim_error_inputs_func("cpu", torch.float32)
    ],
)
def test_what_torch_refuses_is_refused(info, wrong, timing):
    given = wrong.optimizer_error_input
    params = [nn.Parameter(torch.ones(1, 1))] if given.params is None else given.params
    assert wrong.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    expect = pytest.warns if issubclass(wrong.error_type, Warning) else pytest.raises
    with expect(wrong.error_type, match=_OTHER_WORDS.get(wrong.error_regex, wrong.error_regex)):
        LayerwiseDecay(params, info.optim_cls, decay_timing=timing, **given.kwargs)


@each_timing
@pytest.mark.parametrize("implementation", [SINGLE_TENSOR, {"foreach": True}])
@each_class
def test_complex_parameters_are_pairs_of_real_ones(info, implementation, timing):
    assert info.supports_complex
    params = make_params(dtype=torch.complex128)
    pairs = [nn.Parameter(torch.view_as_real(parameter.detach()).clone()) for parameter in params]
    for members in (params, pairs):
        train(members, make(info, timing, {"lr": 0.01, **implementation}, members), range(5))
    assert_close([torch.view_as_real(parameter) for parameter in params], pairs)


@each_timing
@each_class
def test_a_state_dict_of_an_older_torch_is_read(info, timing):
    """Without the settings that came later, and with step counts that were no tensors yet."""
    params = make_params()
    optimizer = make(info, timing, {"lr": 0.01}, params)
    train(params, optimizer, range(3))
    others = [nn.Parameter(parameter.detach().clone()) for parameter in params]
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in info.not_og_supported_flags:
            group.pop(flag, None)
    for state in old["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])
    resumed = make(info, timing, {"lr": 0.01}, others)
    resumed.load_state_dict(old)
    train(params, optimizer, range(3, 6))
    train(others, resumed, range(3, 6))
    assert_same(params, others)
