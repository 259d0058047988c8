"""`measure_parameters` with all optimizers of other libraries: the factor is right, nothing stays changed.

`make test-optimizers` installs torchao and bitsandbytes beside the environment: transformers imports them,
slowly and with lines on standard error, wherever it finds them.
"""

import importlib
import inspect

import pytest
import torch
from unchanged import everything, make_model, train

from hf_lpwd.measured_decay import measure_parameters

LR, RATE = 0.1, 0.1
DECOUPLED = 1 - LR * RATE
#: No factor: the decay is an L2 penalty, which the update normalizes, or the update depends on it otherwise.
PENALTY = None
MODULES = {"torchao": "torchao.optim", "bitsandbytes": "bitsandbytes.optim"}
#: In place of `LR`: its factor at the sixth step, the first that RAdam makes.
RECTIFIED = 0.01731
# Of pytorch_optimizer, by what they do; the last scale the decay by what they estimate or draw.
PLAIN = """
    AdaBelief AdaBound AdaGC AdaMod AdaNorm AdaPNM AdaTAM Adai Adalite AdamC AdamMini AdamW AdamWSN AggMo
    Alice Ano AvaGrad BCOS CAME Conda DASH DiffGrad EXAdam EmoFact EmoLynx EmoNavi Fira FlashAdamW GaLore
    Grams Kate Kron LaProp Lamb Lion LoRARite Lookahead MARS NovoGrad OrthoGrad PCGrad PID PNM QHM RACS
    RAdam Ranger SCION SCIONLight SGD SGDSaI SGDW SOAP SPAM ScheduleFreeAdamW ScheduleFreeSGD
    ScheduleFreeWrapper SignSGD SimplifiedAdEMAMix StableAdamW StableSPAM TAM Tiger VSGD AdaGO AdaMuon
    Muon MuonClip NorMuon
"""
PENALIZING = """
    ADOPT AdEMAMix AdaDelta AdaMax AdaSmooth Adam AdamG Aida FOCUS MADGRAD NAdam Nero PAdam QHAdam RMSprop
    ROSE SWATS Shampoo Gravity
"""
OWN_SCALE = """
    AccSGD AdaFactor APOLLO ApolloDQN ASGD FAdam Magma Ranger21 SPlus SRMM TRAC DAdaptAdaGrad DAdaptAdam
    DAdaptAdan DAdaptLion
"""
FACTORS = {
    "pytorch_optimizer": {
        **dict.fromkeys(PLAIN.split(), DECOUPLED),
        **dict.fromkeys(PENALIZING.split(), PENALTY),
        **dict.fromkeys(OWN_SCALE.split(), ...),
        # Their update is not 0 where the gradient is, or the weights are what their state makes of them.
        **dict.fromkeys(["AdamS", "DualAdam", "FTRL", "Yogi"], PENALTY),
        "AdamP": 1 - 0.1 * LR * RATE,  # a tenth where the gradient is orthogonal to the weights
        "SGDP": 1 - 0.1 * LR * RATE,
        "Adan": 1 / (1 + LR * RATE),  # proximal
        "Fromage": (1 + LR**2) ** -0.5,  # no decay, but a division
        "GrokFastAdamW": 1 - LR * RATE / 3,  # divides its learning rate by 1 + its amplification
        "LARS": 1 - 1e-3 * LR,  # the trust ratio normalizes the rate away
        "ScalableShampoo": 1 - 1.9 * LR * RATE,  # the penalty passes through Nesterov's momentum of 0.9
        "ScheduleFreeRAdam": 1 - RECTIFIED * LR * RATE,
        # No `weight_decay`, or a step size that begins near 0.
        **dict.fromkeys(["A2Grad", "AdaShift", "Amos", "MSVAG", "SM3", "SaRA", "Prodigy", "DAdaptSGD"], 1.0),
    },
    "schedulefree": {
        **dict.fromkeys(
            [
                "AdamWScheduleFree",
                "AdamWScheduleFreeReference",
                "SGDScheduleFree",
                "SGDScheduleFreeReference",
            ],
            DECOUPLED,
        ),
        "AdamWScheduleFreePaper": 1 - (1 - 0.999**4) ** 0.5 * LR * RATE,  # at its fourth step
        "RAdamScheduleFree": 1 - RECTIFIED * LR * RATE,
    },
    "torchao": {
        **dict.fromkeys(["AdamW4bit", "AdamW8bit", "AdamWFp8", "_AdamW"], DECOUPLED),
        **dict.fromkeys(["Adam4bit", "Adam8bit", "AdamFp8"], PENALTY),
    },
    "bitsandbytes": {
        **{
            paged + kind + bits: DECOUPLED  # Adam's too
            for kind, paging in {"Adam": 1, "AdamW": 1, "Lion": 1, "LAMB": 0, "SGD": 0}.items()
            for paged in ("", "Paged")[: 1 + paging]
            for bits in ("", "32bit", "8bit")
        },
        **dict.fromkeys(["AdEMAMix", "AdEMAMix8bit", "PagedAdEMAMix", "PagedAdEMAMix8bit"], DECOUPLED),
        **{kind + bits: PENALTY for kind in ("Adagrad", "RMSprop") for bits in ("", "32bit", "8bit")},
        **dict.fromkeys(["LARS", "LARS32bit", "PytorchLARS"], 1 - 0.02 * LR),  # the trust ratio, at most 0.02
        "LARS8bit": DECOUPLED,
    },
}
#: Class -> why it cannot make such a step.
REFUSED = {
    "pytorch_optimizer": {
        **dict.fromkeys(["AliG", "FriendlySAM", "LookSAM", "SAM"], "requires closure"),
        "LBFGS": "missing 1 required positional argument: 'closure'",
        **dict.fromkeys(["AdaHessian", "SophiaH"], "does not require grad"),
        **dict.fromkeys(["AdaLOMO", "LOMO"], "NotImplementedError"),
        "SpectralSphere": "only supports 2D parameters",
        "SafeFP16Optimizer": "steps copies of the weights: measure the optimizer that it wraps",
    },
    "schedulefree": dict.fromkeys(
        ["AdamWScheduleFreeClosure", "RAdamScheduleFreeClosure", "SGDScheduleFreeClosure"],
        "missing 1 required positional argument: 'closure'",
    ),
    "torchao": {},
    # An error of its own on CPUs, in training too.
    "bitsandbytes": dict.fromkeys(
        ["AdEMAMix32bit", "PagedAdEMAMix32bit"], "doesn't match the broadcast shape"
    ),
}


def make_optimizer(library, name, model):
    cls = getattr(importlib.import_module(MODULES.get(library, library)), name)
    taken = inspect.signature(cls).parameters
    given = {"lr": LR, "weight_decay": RATE, "num_iterations": 100, "base_optimizer": torch.optim.AdamW}
    if library == "bitsandbytes":
        given["momentum"] = 0.9
    given = {key: value for key, value in given.items() if key in taken}
    if "optimizer" in taken:
        return cls(torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=RATE))
    if "model" in taken:
        return cls(model, **given)
    if "Muon" in name or name == "AdaGO":
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        return cls([{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}], **given)
    return cls(model.parameters(), **given)


def cases(table):
    return [(library, name) for library, of in table.items() for name in of]


@pytest.fixture
def library(request):
    pytest.importorskip(request.param)
    return request.param


# torchao compiles its step, in minutes, unless told not to.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), cases(FACTORS), indirect=["library"])
def test_the_factor_is_right_and_nothing_stays_changed(library, name):
    # From 4,096 elements on the states have 8 bits.
    model = make_model(width=512 if library in MODULES else 16)
    with torch.compiler.set_stance("force_eager"):
        optimizer = make_optimizer(library, name, model)
        train(model, optimizer, 3)
        before = everything(model, optimizer)
        weight = measure_parameters(optimizer, model)["0.weight"]
        assert everything(model, optimizer) == before
    expected = FACTORS[library][name]
    if expected is PENALTY:
        assert not weight.multiplies
    elif expected is not ...:
        assert weight.measured == pytest.approx(expected, abs=3e-7)
        assert weight.multiplies


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), cases(REFUSED), indirect=["library"])
def test_what_cannot_be_measured_says_why(library, name):
    model = make_model()
    optimizer = make_optimizer(library, name, model)
    before = everything(model, optimizer)
    with pytest.raises((RuntimeError, TypeError), match=REFUSED[library][name]):
        measure_parameters(optimizer, model)
    assert everything(model, optimizer) == before


@pytest.mark.filterwarnings("ignore:You are using weight_decay")
def test_settings_that_couple_the_decay_otherwise_are_what_is_promised():
    """`fixed_decay` of pytorch_optimizer and `decouple_lr` of optimi leave the learning rate out."""
    pytorch_optimizer, optimi = map(pytest.importorskip, ("pytorch_optimizer", "optimi"))
    model = make_model()
    settings = {"lr": LR, "weight_decay": 1e-3}
    fixed = pytorch_optimizer.AdaBelief(model.parameters(), **settings, fixed_decay=True)
    decoupled = optimi.AdamW(model.parameters(), **settings, decouple_lr=True)
    for optimizer in (fixed, decoupled):
        decay = measure_parameters(optimizer, model)["0.weight"]
        assert decay.promised == pytest.approx(0.999, abs=1e-12)
        assert decay.measured == pytest.approx(0.999, abs=2e-7)
        assert decay.agrees
        assert decay.measured_rate == pytest.approx(1e-3, rel=1e-3)
    penalty = pytorch_optimizer.AdaBelief(model.parameters(), lr=LR, weight_decay=RATE, weight_decouple=False)
    assert not measure_parameters(penalty, model)["0.weight"].multiplies


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("training", [True, False])
def test_a_schedule_free_optimizer_is_measured_in_either_mode_and_during_its_warmup(steps, training):
    schedulefree = pytest.importorskip("schedulefree")
    model = make_model()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=LR, weight_decay=RATE, warmup_steps=10)
    train(model, optimizer, steps)
    optimizer.train() if training else optimizer.eval()
    before = everything(model, optimizer)
    decay = measure_parameters(optimizer, model)["0.weight"]
    assert everything(model, optimizer) == before
    assert decay.lr == pytest.approx(LR * (steps + 1) / 10)
    assert decay.measured == pytest.approx(1 - LR * RATE * (steps + 1) / 10, abs=2e-7)
    assert decay.agrees


def test_an_optimizer_of_copies_in_main_memory_is_refused():
    torchao = pytest.importorskip("torchao.optim")
    model = make_model()
    # Its constructor needs a GPU.
    optimizer = object.__new__(torchao.CPUOffloadOptimizer)
    optimizer.d_param_groups = [{"params": list(model.parameters()), "lr": LR, "weight_decay": RATE}]
    optimizer.optim_dict = {}
    with pytest.raises(TypeError, match="CPUOffloadOptimizer steps copies of the weights"):
        measure_parameters(optimizer, model)


def test_bitsandbytes_goes_on_with_its_overrides():
    """It keeps them by the positions of parameters in the groups, for all optimizers."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = make_model(width=512)
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.register_module_override(model[2], "weight", {"optim_bits": 32})
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=LR, weight_decay=RATE)
    before = everything(model, optimizer)
    assert measure_parameters(optimizer, model)["2.weight"].agrees
    assert everything(model, optimizer) == before
    assert manager.index2config == {}
