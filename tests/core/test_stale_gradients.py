"""`pwd` must not step with gradients from before its decay: that would be `wd`, or something in between."""

import weakref

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from small_optimizers import assert_same, loss_of, make, train_steps, weights
from torch import nn

from hf_lpwd.optimizer import LayerwiseDecay

BASES = pytest.mark.parametrize(
    ("optimizer_cls", "kwargs"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adafactor, {}),
    ],
)
STALE = r"the gradient of 0\.weight was there before optimizer\.train\(\) decayed them"


def clip(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def accumulate(model):
    loss_of(model, 1).backward()


def nothing(model):
    pass


@BASES
@pytest.mark.parametrize("between", [nothing, clip, accumulate])
def test_a_step_with_gradients_from_before_the_decay_is_an_error_and_can_be_repeated(
    optimizer_cls, kwargs, between
):
    model, optimizer = make(optimizer_cls=optimizer_cls, **kwargs)
    loss_of(model, 0).backward()
    optimizer.train()
    between(model)
    decayed = weights(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=STALE):
            optimizer.step()
        assert_same(weights(model), decayed)
    train_steps(model, optimizer, range(3))
    other, plain = make(optimizer_cls=optimizer_cls, **kwargs)
    train_steps(other, plain, range(3))
    assert_same(weights(model), weights(other))


def test_under_a_gradient_scaler():
    model, optimizer = make()
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerated = AcceleratedOptimizer(optimizer, scaler=scaler)
    scaler.scale(loss_of(model, 0)).backward()
    accelerated.train()
    with pytest.raises(RuntimeError, match=STALE):
        accelerated.step()


class Loop:
    """Lightning's automatic and manual optimization: what it calls, in its order."""

    def __init__(self, model, optimizer, accumulate=1):
        self.model, self.optimizer, self.accumulate = model, optimizer, accumulate

    def closure(self, batch):
        loss = loss_of(self.model, batch)
        if batch % self.accumulate == 0:
            self.optimizer.zero_grad()
        (loss / self.accumulate).backward()
        clip(self.model)

    def automatic(self, batches, on_batch_start=lambda: None):
        for batch in batches:
            on_batch_start()
            if (batch + 1) % self.accumulate:
                self.closure(batch)
            else:
                self.optimizer.step(lambda batch=batch: self.closure(batch))

    def manual(self, batches, on_batch_start=lambda: None):
        for batch in batches:
            on_batch_start()
            self.closure(batch)
            self.optimizer.step(lambda: None)


def lightning_by_hand(accumulate):
    model, optimizer = make()
    loop = Loop(model, optimizer, accumulate)
    for batch in range(6):
        optimizer.train()
        loop.closure(batch)
        if (batch + 1) % accumulate == 0:
            optimizer.step()
    return weights(model)


@pytest.mark.parametrize(("protocol", "accumulate"), [("automatic", 1), ("automatic", 2), ("manual", 1)])
def test_lightning_with_train_at_the_start_of_each_batch(protocol, accumulate):
    model, optimizer = make()
    getattr(Loop(model, optimizer, accumulate), protocol)(range(6), optimizer.train)
    assert_same(weights(model), lightning_by_hand(accumulate))


@pytest.mark.parametrize(("protocol", "accumulate"), [("automatic", 1), ("automatic", 2), ("manual", 1)])
def test_lightning_s_wrapper_of_the_optimizer_is_no_other_optimizer(protocol, accumulate):
    """LightningOptimizer and Fabric's wrapper have its class and its attributes, and are another object."""
    model, optimizer = make()
    wrapper = object.__new__(type("LightningLayerwiseDecay", (LayerwiseDecay,), {}))
    wrapper.__dict__.update(optimizer.__dict__)
    getattr(Loop(model, optimizer, accumulate), protocol)(range(6), wrapper.train)
    assert_same(weights(model), lightning_by_hand(accumulate))


def test_lightning_s_automatic_optimization_needs_no_call():
    model, optimizer = make()
    Loop(model, optimizer).automatic(range(6))
    assert_same(weights(model), lightning_by_hand(1))


@pytest.mark.parametrize(("protocol", "accumulate"), [("automatic", 2), ("manual", 1)])
def test_lightning_without_the_call_is_refused_where_it_would_be_another_method(protocol, accumulate):
    model, optimizer = make()
    with pytest.raises(RuntimeError, match=STALE):
        getattr(Loop(model, optimizer, accumulate), protocol)(range(6))


REMOVALS = {
    "after, by the optimizer": (nothing, lambda optimizer, model: optimizer.zero_grad()),
    "after, to 0": (nothing, lambda optimizer, model: optimizer.zero_grad(set_to_none=False)),
    "after, by the model": (nothing, lambda optimizer, model: model.zero_grad()),
    "after, to 0 by the model": (nothing, lambda optimizer, model: model.zero_grad(set_to_none=False)),
    "before, to 0": (lambda model: model.zero_grad(set_to_none=False), lambda optimizer, model: None),
}


@BASES
@pytest.mark.parametrize("where", REMOVALS)
def test_gradients_may_be_removed_before_train_or_after_it(where, optimizer_cls, kwargs):
    model, optimizer = make(optimizer_cls=optimizer_cls, **kwargs)
    before, after = REMOVALS[where]
    for step in range(4):
        before(model)
        optimizer.train()
        after(optimizer, model)
        loss_of(model, step).backward()
        optimizer.step()
    other, plain = make(optimizer_cls=optimizer_cls, **kwargs)
    train_steps(other, plain, range(4))
    assert_same(weights(model), weights(other))


def test_a_parameter_that_the_forward_pass_does_not_use_keeps_its_gradient_of_0():
    model, optimizer = make(optimizer_cls=torch.optim.SGD)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.train()
    decayed = weights(model)
    model[2].bias.square().sum().backward()
    optimizer.step()
    assert_same(weights(model)[:3], decayed[:3])
    assert not torch.equal(model[2].bias, decayed[3])


def test_gradients_that_are_never_removed_add_up_as_in_any_optimizer():
    model, optimizer = make(optimizer_cls=torch.optim.SGD)
    expected, total = make(optimizer_cls=torch.optim.SGD)
    sums = [torch.zeros_like(parameter) for parameter in expected.parameters()]
    for step in range(3):
        optimizer.train()
        loss_of(model, step).backward()
        optimizer.step()
        total.zero_grad()
        total.train()
        loss_of(expected, step).backward()
        for parameter, gradients in zip(expected.parameters(), sums, strict=True):
            parameter.grad = gradients.add_(parameter.grad).clone()
        total.step()
    assert_same(weights(model), weights(expected))


def test_the_gradients_of_one_step_are_not_those_of_the_next():
    model, optimizer = make()
    train_steps(model, optimizer, [0])
    optimizer.train()
    with pytest.raises(RuntimeError, match=STALE):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
def test_sparse_gradients():
    embedding = nn.Embedding(6, 3, sparse=True)
    optimizer = LayerwiseDecay(embedding.parameters(), torch.optim.SGD, weight_decay=0.5, lr=0.1)
    embedding(torch.tensor([1, 2])).square().sum().backward()
    optimizer.train()
    with pytest.raises(RuntimeError, match="the gradient of group 0 parameter 0 was there before"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    embedding(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()


def test_no_gradient_is_kept_in_memory():
    model, optimizer = make()
    loss_of(model, 0).backward()
    gone = [weakref.ref(parameter.grad) for parameter in model.parameters()]
    optimizer.train()
    model.zero_grad()
    assert [reference() for reference in gone] == [None] * 4


@pytest.mark.parametrize("timing", ["l2", "wd", "rwd"])
def test_other_timings_take_any_gradient(timing):
    model, optimizer = make(timing)
    loss_of(model, 0).backward()
    optimizer.train()
    optimizer.step(lambda: None)
    other, plain = make(timing)
    train_steps(other, plain, [0])
    assert_same(weights(model), weights(other))


def make_two(shared):
    """Two optimizers, of one weight or of a weight each."""
    first = nn.Parameter(torch.ones(2, dtype=torch.float64))
    second = first if shared else nn.Parameter(torch.ones(2, dtype=torch.float64))
    return [
        (weight, LayerwiseDecay([("trunk", weight)], torch.optim.SGD, lr=0.1, weight_decay=0.5))
        for weight in (first, second)
    ]


def test_a_weight_that_two_optimizers_decay_before_a_step_is_an_error():
    (weight, first), (_, second) = make_two(shared=True)
    first.train()
    second.train()
    weight.sum().backward()
    second.step()
    with pytest.raises(RuntimeError, match=r"^trunk was decayed by another LayerwiseDecay between"):
        first.step()


def test_an_optimizer_that_was_interrupted_before_its_step_does_not_hinder_another():
    (weight, first), (_, second) = make_two(shared=True)
    first.train()
    second.train()
    weight.sum().backward()
    second.step()
    torch.testing.assert_close(weight.data, torch.full_like(weight, 0.95 * 0.95 - 0.1), rtol=1e-15, atol=0)


def test_two_optimizers_of_one_weight_may_take_turns():
    for weight, optimizer in make_two(shared=True):
        optimizer.zero_grad()
        optimizer.train()
        weight.sum().backward()
        optimizer.step()
    expected = 0.95 * (0.95 - 0.1) - 0.1
    torch.testing.assert_close(weight.data, torch.full_like(weight, expected), rtol=1e-15, atol=0)


def test_two_optimizers_of_different_weights_share_a_forward_pass():
    (weight, first), (other, second) = make_two(shared=False)
    first.train()
    second.train()
    (weight + other).sum().backward()
    first.step()
    second.step()
    for each in (weight, other):
        torch.testing.assert_close(each.data, torch.full_like(each, 0.95 - 0.1), rtol=1e-15, atol=0)
