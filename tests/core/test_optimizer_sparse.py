"""Sparse gradients: as dense ones where the base optimizer takes them, else refused before any change."""

import copy

import pytest
import torch
from small_optimizers import TIMINGS, assert_same
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, SparseAdam

from hf_lpwd.factory import create_lpwd_optimizer
from hf_lpwd.optimizer import LayerwiseDecay

DECAYS = ["wd", "rwd", "pwd"]


def make_model(sparse=True):
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 3, sparse=sparse)
    return nn.ModuleDict({"embedding": embedding, "head": nn.Linear(3, 2)}).double()


def make(optimizer_cls, timing, rates=(0.5, 0.3), sparse=True, **kwargs):
    """A model and its optimizer: the head in a group before that of the embedding."""
    model = make_model(sparse)
    names = ["head.weight", "head.bias", "embedding.weight"]
    groups = [
        {"params": [(name, model.get_parameter(name)) for name in part], "weight_decay": rate}
        for part, rate in zip((names[:2], names[2:]), rates, strict=True)
    ]
    return model, LayerwiseDecay(groups, optimizer_cls, timing=timing, lr=0.1, **kwargs)


def backward(model, step=0):
    """Row `step` twice, so that its gradients have to be added, and the next row."""
    model["head"](model["embedding"](torch.tensor([step, step, step + 1]))).square().sum().backward()


def train(model, optimizer, steps=4):
    for step in range(steps):
        optimizer.train()
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize("coupling", ["lr", "independent"])
@pytest.mark.parametrize("timing", DECAYS)
@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs"),
    [
        (SGD, {}),
        (SGD, {"foreach": True}),
        (SGD, {"momentum": 0.9, "nesterov": True}),
        (SGD, {"momentum": 0.9, "fused": True}),
        (Adagrad, {}),
        (Adagrad, {"foreach": True}),
        (Adagrad, {"fused": True}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
def test_they_do_what_dense_ones_do(optimizer_cls, kwargs, timing, coupling):
    """`fused` too, for which torch has no kernel that knows them."""
    ways = [
        train(*make(optimizer_cls, timing, sparse=sparse, coupling=coupling, **kwargs))
        for sparse in (False, True)
    ]
    assert_close(*ways)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize("optimizer_cls", [SGD, Adagrad], ids=lambda value: value.__name__)
def test_l2_may_leave_the_embedding_undecayed(optimizer_cls):
    ways = [train(*make(optimizer_cls, "l2", (0.5, 0.0), sparse=sparse)) for sparse in (False, True)]
    assert_close(*ways)


@pytest.mark.parametrize("timing", DECAYS)
def test_under_the_factory_s_default_kernel(timing):
    """The fused one where there is one, which the user did not ask for."""
    ways = []
    for sparse in (False, True):
        model = make_model(sparse)
        layers = {"embedding.weight": 0, "head.*": 1}
        optimizer = create_lpwd_optimizer(
            model, SGD, lr=0.1, weight_decay=0.5, decay_timing=timing, layer_map=layers, decay_all=True
        )
        assert optimizer.param_groups[0]["fused"]
        ways.append(train(model, optimizer))
        assert optimizer.param_groups[0]["fused"]
    assert_close(*ways)


@pytest.mark.parametrize("timing", DECAYS)
def test_sparse_adam_decays_all_rows_and_moves_those_with_a_gradient(timing):
    embedding = make_model()["embedding"]
    optimizer = LayerwiseDecay(embedding.parameters(), SparseAdam, timing=timing, weight_decay=0.5, lr=0.1)
    before = embedding.weight.detach().clone()
    optimizer.train()
    embedding(torch.tensor([1, 4])).sum().backward()
    optimizer.step()
    after = embedding.weight.detach()
    untouched = [0, 2, 3, 5]
    torch.testing.assert_close(after[untouched], before[untouched] * 0.95, rtol=1e-15, atol=0)
    moved = (before[1] - 0.1) * 0.95 if timing == "rwd" else before[1] * 0.95 - 0.1
    torch.testing.assert_close(after[1], moved, rtol=0, atol=1e-7)


def assert_refused(model, optimizer, message):
    """The step raises, and weights, gradients, groups and state are as before."""
    optimizer.train()
    backward(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = [parameter.grad for parameter in model.parameters()]
    groups = [dict(group) for group in optimizer.param_groups]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(TypeError, match=message):
        optimizer.step()
    assert_same([parameter.detach() for parameter in model.parameters()], before)
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert [dict(group) for group in optimizer.param_groups] == groups
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer_cls", [SGD, Adagrad, SparseAdam], ids=lambda value: value.__name__)
def test_l2_would_make_them_dense(optimizer_cls):
    model, optimizer = make(optimizer_cls, "l2")
    if optimizer_cls is SparseAdam:
        model["head"].requires_grad_(False)
    assert_refused(
        model,
        optimizer,
        r"embedding\.weight has a sparse gradient, which timing 'l2' would make dense: use 'wd', 'rwd' or "
        r"'pwd', or set its weight_decay to 0",
    )


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs"),
    [(Adam, {}), (AdamW, {}), (AdamW, {"fused": True}), (NAdam, {}), (torch.optim.RMSprop, {})],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
def test_most_bases_take_none(optimizer_cls, kwargs, timing):
    model, optimizer = make(optimizer_cls, timing, **kwargs)
    assert_refused(
        model,
        optimizer,
        rf"embedding\.weight has a sparse gradient, which {optimizer_cls.__name__} does not take: use SGD or "
        r"Adagrad, or sparse=False",
    )


@pytest.mark.parametrize("timing", TIMINGS)
def test_sparse_adam_takes_no_dense_ones(timing):
    model, optimizer = make(SparseAdam, timing, rates=(0.5, 0.0))
    assert_refused(
        model,
        optimizer,
        r"head\.weight has a dense gradient, but SparseAdam takes sparse ones only: use SGD or Adagrad",
    )


def test_without_names_the_place_is_named():
    model = make_model()
    optimizer = LayerwiseDecay(model.parameters(), AdamW, timing="rwd", weight_decay=0.5, lr=0.1)
    assert_refused(model, optimizer, "group 0 parameter 0 has a sparse gradient, which AdamW does not take")
