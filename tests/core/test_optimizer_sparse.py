"""Sparse gradients: as dense ones where the base optimizer takes them, else refused before any change."""

import pytest
import torch
from small_optimizers import TIMINGS
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, NAdam, SparseAdam

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
    return model, LayerwiseDecay(groups, optimizer_cls, decay_timing=timing, lr=0.1, **kwargs)


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
        train(*make(optimizer_cls, timing, sparse=sparse, decay_coupling=coupling, **kwargs))
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
    optimizer = LayerwiseDecay(
        embedding.parameters(), SparseAdam, decay_timing=timing, weight_decay=0.5, lr=0.1
    )
    before = embedding.weight.detach().clone()
    optimizer.train()
    embedding(torch.tensor([1, 4])).sum().backward()
    optimizer.step()
    after = embedding.weight.detach()
    untouched = [0, 2, 3, 5]
    torch.testing.assert_close(after[untouched], before[untouched] * 0.95, rtol=1e-15, atol=0)
    moved = (before[1] - 0.1) * 0.95 if timing == "rwd" else before[1] * 0.95 - 0.1
    torch.testing.assert_close(after[1], moved, rtol=0, atol=1e-7)


@pytest.mark.parametrize("optimizer_cls", [SGD, Adagrad, SparseAdam], ids=lambda value: value.__name__)
def test_l2_would_make_them_dense(optimizer_cls):
    model, optimizer = make(optimizer_cls, "l2")
    model["head"].requires_grad_(False)
    backward(model)
    before = model["embedding"].weight.detach().clone()
    with pytest.raises(
        TypeError, match=r"^embedding\.weight has a sparse gradient, which decay_timing 'l2' would"
    ):
        optimizer.step()
    assert torch.equal(model["embedding"].weight, before)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.3]


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize(
    ("optimizer_cls", "kwargs", "sparse"),
    [(AdamW, {"fused": True}, True), (NAdam, {}, True), (SparseAdam, {}, False)],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_where_the_base_takes_none_its_own_error_is_shown(optimizer_cls, kwargs, sparse, timing):
    model, optimizer = make(optimizer_cls, timing, sparse=sparse, **kwargs)
    gradients_of = "dense|sparse" if optimizer_cls is SparseAdam else "sparse"
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.train()
    backward(model)
    with pytest.raises(RuntimeError, match=f"does not support ({gradients_of}) gradients"):
        optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in settings]
