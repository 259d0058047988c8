"""`measure_parameters`: the factor is the right one, and nothing stays changed."""

import threading

import optimi
import pytest
import timm.optim
import torch
from accelerate import Accelerator
from torch import nn
from unchanged import everything, make_model, train

from hf_lpwd import LayerwiseDecay
from hf_lpwd.measured_decay import measure_parameters

LR, RATE = 0.1, 0.1

# What a step with zero gradients multiplies the weights by; None where it is no multiplication.
DECOUPLED = 1 - LR * RATE
FACTORS = {
    "torch.SGD": DECOUPLED,
    "torch.Adam": None,  # the penalty is normalized away
    "torch.AdamW": DECOUPLED,
    "torch.NAdam": None,
    "torch.RAdam": DECOUPLED,  # its first steps are those of SGD
    "torch.Adagrad": None,
    "torch.RMSprop": None,
    "torch.Adadelta": None,
    "torch.Adamax": None,
    "torch.Adafactor": DECOUPLED,
    "timm.adabelief": DECOUPLED,
    "timm.adafactor": DECOUPLED,
    "timm.adafactorbv": DECOUPLED,
    "timm.adagrad": None,
    "timm.adam": None,
    "timm.adamax": None,
    "timm.adamc": DECOUPLED,
    "timm.adamuon": DECOUPLED,
    "timm.adamw": DECOUPLED,
    "timm.adamwlegacy": DECOUPLED,
    "timm.adan": 1 / (1 + LR * RATE),  # proximal
    "timm.adanw": DECOUPLED,
    "timm.adoptw": DECOUPLED,  # its first step only starts the state
    "timm.cadamw": DECOUPLED,
    "timm.clion": DECOUPLED,
    "timm.kron": DECOUPLED,
    "timm.lamb": 1 - LR,  # the trust ratio normalizes the rate away
    "timm.lambw": DECOUPLED,
    "timm.laprop": DECOUPLED,
    "timm.lars": DECOUPLED,
    "timm.lion": DECOUPLED,
    "timm.mars": DECOUPLED,
    "timm.momentum": DECOUPLED,
    "timm.muon": DECOUPLED,
    "timm.nadamw": DECOUPLED,
    "timm.nesterov": 1 - LR * RATE * 1.9,  # the penalty passes through Nesterov's momentum of 0.9
    "timm.nesterovw": DECOUPLED,
    "timm.novograd": DECOUPLED,
    "timm.radamw": DECOUPLED,
    "timm.rmsprop": None,
    "timm.rmsproptfw": DECOUPLED,
    "timm.sgdw": DECOUPLED,
    "optimi.Adam": None,
    "optimi.AdamW": DECOUPLED,
    "optimi.Adan": 1 / (1 + LR * RATE),
    "optimi.Lion": DECOUPLED,
    "optimi.Ranger": DECOUPLED,
    "optimi.SGD": DECOUPLED,
    "lpwd.l2.SGD": DECOUPLED,
    "lpwd.l2.AdamW": None,
    "lpwd.wd.SGD": DECOUPLED,
    "lpwd.wd.AdamW": DECOUPLED,
    "lpwd.rwd.SGD": DECOUPLED,
    "lpwd.rwd.AdamW": DECOUPLED,
    "lpwd.pwd.SGD": DECOUPLED,
    "lpwd.pwd.AdamW": DECOUPLED,
}


def make_optimizer(name, parameters):
    library, _, kind = name.partition(".")
    if library == "torch":
        return getattr(torch.optim, kind)(parameters, lr=LR, weight_decay=RATE)
    if library == "timm":
        return timm.optim.create_optimizer_v2(list(parameters), kind, lr=LR, weight_decay=RATE)
    if library == "optimi":
        return getattr(optimi, kind)(parameters, lr=LR, weight_decay=RATE)
    timing, _, base = kind.partition(".")
    return LayerwiseDecay(
        parameters, getattr(torch.optim, base), lr=LR, weight_decay=RATE, decay_timing=timing
    )


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", FACTORS)
def test_the_factor_is_right_and_nothing_stays_changed(name):
    model = make_model()
    optimizer = make_optimizer(name, model.parameters())
    train(model, optimizer, 3)
    if hasattr(optimizer, "train"):
        optimizer.train()
    before = everything(model, optimizer)
    gradients = [p.grad for p in model.parameters()]
    measured = measure_parameters(optimizer, model)
    assert everything(model, optimizer) == before
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))

    assert list(measured) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    weight = measured["0.weight"]
    assert (weight.lr, weight.weight_decay, weight.promised) == (LR, RATE, pytest.approx(DECOUPLED))
    if FACTORS[name] is None:
        assert not weight.multiplies
        assert not weight.agrees
        assert weight.decays
    else:
        assert weight.measured == pytest.approx(FACTORS[name], abs=2e-7)
        assert weight.multiplies
        assert weight.agrees == (FACTORS[name] == DECOUPLED)
        # Training on gives what it would have given: the state is not only equal, it is in use.
    other = make_model()
    twin = make_optimizer(name, other.parameters())
    torch.manual_seed(0)
    twin_before = everything(other, twin)
    measure_parameters(twin, other)
    assert everything(other, twin) == twin_before


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("timing", ["wd", "rwd", "pwd"])
def test_independent_rates_do_not_depend_on_the_learning_rate(timing, base):
    model = make_model()
    optimizer = LayerwiseDecay(
        model.parameters(),
        base,
        lr=1e-3,
        weight_decay=0.02,
        decay_timing=timing,
        decay_coupling="independent",
    )
    for decay in measure_parameters(optimizer, model).values():
        assert decay.promised == 0.98
        assert decay.measured == pytest.approx(0.98, abs=2e-7)
        assert decay.agrees


def test_rates_that_bfloat16_rounds_away_are_seen():
    model = make_model(dtype=torch.bfloat16)
    plain = measure_parameters(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=RATE), model)
    assert {name: decay.measured for name, decay in plain.items()} == dict.fromkeys(plain, 1.0)
    assert not any(decay.decays for decay in plain.values())
    with pytest.warns(UserWarning, match="rounds to 1"):
        ours = LayerwiseDecay(model.parameters(), lr=1e-3, weight_decay=RATE, decay_timing="wd")
    for decay in measure_parameters(ours, model).values():
        assert decay.measured == pytest.approx(1 - 1e-3 * RATE, abs=1e-12)
    assert all(group["decay_debt"] == 0.0 for group in ours.param_groups)


def test_a_warmup_that_starts_at_zero_is_measured_at_its_peak():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert measure_parameters(optimizer, model)["0.weight"].measured == pytest.approx(DECOUPLED, abs=2e-7)
    assert optimizer.param_groups[0]["lr"] == 0.0
    optimizer.step()
    scheduler.step()
    assert measure_parameters(optimizer, model)["0.weight"].lr == pytest.approx(LR / 10)


def test_what_cannot_be_copied_is_shared():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=RATE)
    optimizer.lock = threading.Lock()
    assert measure_parameters(optimizer, model)["0.weight"].agrees


def test_zero_weights_are_measured_at_one():
    model = nn.Linear(4, 4)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=RATE)
    assert measure_parameters(optimizer, model)["weight"].measured == pytest.approx(DECOUPLED, abs=2e-7)
    assert not model.weight.any()


def test_frozen_and_foreign_parameters_are_left_out():
    model, foreign = make_model(), nn.Linear(2, 2)
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([*model.parameters(), *foreign.parameters()], lr=LR, weight_decay=RATE)
    kept = foreign.weight.detach().clone()
    assert list(measure_parameters(optimizer, model)) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert torch.equal(foreign.weight, kept)
    with pytest.raises(ValueError, match="no trainable parameter of this model"):
        measure_parameters(torch.optim.SGD(foreign.parameters(), lr=LR), model)


def test_hooks_do_not_run():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    measure_parameters(optimizer, model)
    assert calls == []
    optimizer.step()
    assert calls == ["pre", "post"]


def test_groups_of_different_settings_and_tied_weights():
    model = make_model()
    groups = [
        {"params": [model[0].weight], "weight_decay": 0.5, "lr": 0.2},
        {"params": [*model[1].parameters(), *model[2].parameters(), model[0].bias], "weight_decay": 0.0},
    ]
    measured = measure_parameters(torch.optim.AdamW(groups, lr=LR), model)
    assert measured["0.weight"].measured == pytest.approx(0.9, abs=2e-7)
    assert [name for name, decay in measured.items() if decay.decays] == ["0.weight"]


def test_wrapped_models_and_optimizers():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=RATE)
    compiled = torch.compile(model)
    assert next(iter(measure_parameters(optimizer, compiled))) == "_orig_mod.0.weight"
    accelerator = Accelerator(cpu=True)
    prepared, wrapper = accelerator.prepare(model, optimizer)
    before = everything(model, optimizer)
    assert measure_parameters(wrapper, prepared)["0.weight"].agrees
    assert everything(model, optimizer) == before


def test_an_optimizer_that_cannot_make_such_a_step_is_named_and_nothing_changes():
    model = make_model()
    optimizer = torch.optim.LBFGS(model.parameters())
    before = everything(model, optimizer)
    with pytest.raises(RuntimeError, match="LBFGS cannot make a step with zero gradients: TypeError"):
        measure_parameters(optimizer, model)
    assert everything(model, optimizer) == before
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        measure_parameters(model, model)


def test_a_group_is_measured_in_chunks(monkeypatch):
    monkeypatch.setattr("hf_lpwd.zero_step.CHUNK_ELEMENTS", 100)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=RATE)
    held = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: held.append([p.numel() for g in self.param_groups for p in g["params"]]) or step(self),
    )
    measured = measure_parameters(optimizer, model)
    assert held == [[128], [16, 16, 16], [64, 4]]
    assert all(decay.agrees for decay in measured.values())


@pytest.mark.parametrize("after_the_decay", ["forward", "backward"])
def test_the_decay_that_waits_for_its_step_goes_on(after_the_decay):
    def run(measure):
        model = make_model()
        optimizer = LayerwiseDecay(model.parameters(), torch.optim.SGD, lr=LR, weight_decay=RATE)
        train(model, optimizer, 1)
        optimizer.zero_grad()
        optimizer.train()
        if measure and after_the_decay == "forward":
            measure_parameters(optimizer, model)
        model(torch.ones(5, 8)).square().sum().backward()
        if measure and after_the_decay == "backward":
            measure_parameters(optimizer, model)
        optimizer.train()
        optimizer.step()
        return list(model.parameters())

    assert all(map(torch.equal, run(measure=True), run(measure=False)))


def test_gradients_from_before_the_decay_are_refused_as_without_a_measurement():
    model = make_model()
    optimizer = LayerwiseDecay(model.parameters(), torch.optim.SGD, lr=LR, weight_decay=RATE)
    model(torch.ones(5, 8)).square().sum().backward()
    optimizer.train()
    measure_parameters(optimizer, model)
    with pytest.raises(RuntimeError, match="gradient"):
        optimizer.step()
