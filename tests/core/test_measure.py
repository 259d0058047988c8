"""`measure_decay`: real faults of real libraries are found, and a correct optimizer passes."""

import json

import peft
import peft.optimizers
import pydantic
import pytest
import timm.optim
import torch
import transformers
from small_trainers import Images, make_model
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_lpwd import LayerwiseDecay, create_lpwd_optimizer
from hf_lpwd.config import LPWDConfig
from hf_lpwd.measure import assert_decays, measure_decay
from hf_lpwd.plan import plan_layers
from hf_lpwd.trainer_log import DecayReport

LR, RATE = 1e-2, 0.05


def stock_args(folder, **kwargs):
    settings = {
        "learning_rate": LR,
        "weight_decay": RATE,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return TrainingArguments(str(folder), **{**settings, **kwargs})


def vit():
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
        )
    )


def test_the_trainer_decays_tokens_and_positions_of_a_vit(tmp_path):
    model = vit()
    measured = measure_decay(Trainer(model=model, args=stock_args(tmp_path)).create_optimizer(), model)
    assert measured.optimizer == "AdamW"
    assert measured.findings == [
        "1 parameter (vit.embeddings.cls_token) is decayed, against the usual rule: one-dimensional",
        "1 parameter (vit.embeddings.position_embeddings) is decayed, against the usual rule: "
        "position, token or scale embedding",
    ]


def test_the_trainer_loses_weight_decay_beside_an_optimizer_class(tmp_path):
    model = vit()
    trainer = Trainer(
        model=model,
        args=stock_args(tmp_path, weight_decay=0.0),
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": LR, "weight_decay": RATE}),
    )
    measured = measure_decay(trainer.create_optimizer(), model)
    assert len(measured.findings) == 1
    assert measured.findings[0].startswith("nothing decays: 14 parameters (vit.embeddings.patch_embeddings.")
    with pytest.raises(AssertionError, match=r"decays at 0, not at 0\.05; .*, and 11 more"):
        assert_decays(trainer.optimizer, model, LPWDConfig(weight_decay=RATE, layer_schedule="uniform"))


def test_timm_loses_the_models_exemptions_behind_a_wrapper():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32)
    plain = timm.optim.create_optimizer_v2(model, "adamw", lr=LR, weight_decay=RATE)
    assert measure_decay(plain, model).findings == []
    wrapped = Wrapper(model)
    behind = timm.optim.create_optimizer_v2(wrapped, "adamw", lr=LR, weight_decay=RATE)
    reasons = [line.split(" usual rule: ")[1] for line in measure_decay(behind, wrapped).findings]
    assert reasons == ["one-dimensional", "named by the model's no_weight_decay()"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_plus_does_not_decay():
    model = peft.get_peft_model(vit(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    optimizer = peft.optimizers.create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=16, weight_decay=RATE
    )
    findings = measure_decay(optimizer, model).findings
    assert len(findings) == 1
    assert findings[0].startswith("nothing decays: 8 parameters")


def test_bfloat16_rounds_the_decay_to_nothing(tmp_path):
    model = vit().to(torch.bfloat16)
    optimizer = Trainer(model=model, args=stock_args(tmp_path, learning_rate=1e-4)).create_optimizer()
    findings = measure_decay(optimizer, model).findings
    assert len(findings) == 1
    assert findings[0].startswith("16 parameters")
    assert findings[0].endswith("are set to decay at 0.05, but one step leaves the weights as they are")


def test_a_rate_that_is_applied_twice_is_found():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                torch._foreach_mul_(group["params"], 1 - group["lr"] * group["weight_decay"])
            return super().step(closure)

    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    findings = measure_decay(Twice(model.parameters(), lr=0.1, weight_decay=0.5), model).findings
    assert findings == [
        "3 parameters (0.weight, 1.weight, 2.weight) are decayed twice: by 0.9025, not 0.95",
    ]


def test_l2_penalties_and_missing_parameters_are_named():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    adam = torch.optim.Adam([model[0].weight, model[1].weight], lr=0.1, weight_decay=0.5)
    missing, penalty = measure_decay(adam, model).findings
    assert missing == "1 parameter (2.weight) is trainable, but not in the optimizer"
    assert penalty.startswith("2 parameters (0.weight, 1.weight) are changed, but not by one factor")
    lamb = timm.optim.create_optimizer_v2(model, "lamb", lr=0.1, weight_decay=0.5)
    assert measure_decay(lamb, model).findings == [
        "3 parameters (0.weight, 1.weight, 2.weight) are decayed by 0.9, not 0.95"
    ]


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("timing", ["wd", "rwd", "pwd"])
def test_this_packages_optimizer_does_what_its_plan_says(timing, base):
    model = vit()
    config = LPWDConfig(weight_decay=RATE, decay_timing=timing)
    optimizer = create_lpwd_optimizer(model, base, lr=LR, weight_decay=RATE, decay_timing=timing)
    assert_decays(optimizer, model, config)
    measured = measure_decay(optimizer, model, plan=plan_layers(model, config))
    assert measured.findings == []
    assert [(row["layer"], row["set"], row["measured"]) for row in measured.rows()] == [
        (0, [], []),
        (1, [RATE / 3], [pytest.approx(RATE / 3, rel=1e-2)]),
        (2, [2 * RATE / 3], [pytest.approx(2 * RATE / 3, rel=1e-2)]),
        (3, [RATE], [pytest.approx(RATE, rel=1e-2)]),
    ]
    assert str(measured).endswith("- nothing: configured and measured agree")
    with pytest.raises(AssertionError, match=r"not at 0\.05"):
        assert_decays(optimizer, model, lambda name, parameter: RATE)


class Strict(pydantic.BaseModel, extra="forbid", strict=True):
    pass


class Parameter(Strict):
    lr: float
    weight_decay: float
    promised: float
    measured: float
    spread: float
    resolution: float
    agrees: bool


class Layer(Strict):
    stack: str
    layer: int
    modules: list[str]
    elements: int
    not_decayed: int
    set: list[float]
    measured: list[float]


class Measurement(Strict):
    optimizer: str
    findings: list[str]
    layers: list[Layer]
    parameters: dict[str, Parameter]
    missing: list[str]


def test_settings_in_a_dict_are_refused():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    optimizer = torch.optim.AdamW(model.parameters())
    for call in (lambda d: assert_decays(optimizer, model, d), lambda d: plan_layers(model, d)):
        with pytest.raises(TypeError, match=r"must be an LPWDConfig.* not \{'weight_decay': 0.1\}"):
            call({"weight_decay": 0.1})


def test_the_json_of_a_measurement_has_its_schema(tmp_path):
    model = vit()
    measured = measure_decay(Trainer(model=model, args=stock_args(tmp_path)).create_optimizer(), model)
    found = Measurement.model_validate_json(json.dumps(measured.to_dict()))
    assert found.optimizer == "AdamW"
    assert found.findings == measured.findings
    assert list(found.parameters) == [name for name, _ in model.named_parameters()]
    assert [layer.layer for layer in found.layers] == [0, 1, 2, 3]
    # The patch embedding, class token and position embeddings decay, its bias does not.
    assert (found.layers[0].elements, found.layers[0].not_decayed) == (8 * (3 * 16 + 1 + 1 + 5), 8)
    assert (found.layers[0].set, found.layers[0].measured) == ([RATE], [RATE])
    token = found.parameters["vit.embeddings.cls_token"]
    assert token.agrees
    assert token.promised == 1 - LR * RATE
    assert token.measured == pytest.approx(1 - LR * RATE, abs=2e-7)


@pytest.mark.parametrize("wrapped", [False, True])
def test_deepspeed_is_refused_with_the_reason(wrapped, capsys):
    """That of the real ones is asserted in tests/helpers/deepspeed_run.py."""

    class DeepSpeedZeroOptimizer:
        pass

    model, optimizer = vit(), DeepSpeedZeroOptimizer()
    if wrapped:
        optimizer = type("DeepSpeedOptimizerWrapper", (), {"optimizer": optimizer})()
    reason = (
        f"{type(optimizer).__name__} steps flat copies of the weights, which cannot be told apart: measure "
        "the optimizer before it is given to DeepSpeed"
    )
    with pytest.raises(TypeError) as refusal:
        measure_decay(optimizer, model)
    assert str(refusal.value) == reason
    report = DecayReport()
    state = transformers.TrainerState(is_world_process_zero=True)
    report.on_train_begin(None, state, None, optimizer=optimizer, model=model)
    assert capsys.readouterr().out == f"The decay was not measured: {reason}\n"


def test_the_callback_reports_once_and_training_stays_the_same(tmp_path, capsys):
    def train(callbacks):
        model = make_model()
        args = stock_args(tmp_path, warmup_steps=1, max_steps=3)
        trainer = Trainer(model=model, args=args, train_dataset=Images(), callbacks=callbacks)
        trainer.train()
        return trainer

    report = DecayReport()
    capsys.readouterr()
    with_report = train([report])
    printed = capsys.readouterr().out
    assert printed.count("What is odd about the decay of AdamW:") == 1
    assert {decay.lr for decay in report.measurement.parameters.values()} == {LR}
    assert with_report.state.log_history[0]["decay_findings"] == report.measurement.findings
    without = train([])
    weights = zip(with_report.model.parameters(), without.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_the_callback_says_why_nothing_was_measured(tmp_path, capsys):
    report = DecayReport()
    state = transformers.TrainerState(is_world_process_zero=True)
    model = vit()
    report.on_train_begin(None, state, None, optimizer=torch.optim.LBFGS(model.parameters()), model=model)
    assert capsys.readouterr().out.startswith("The decay was not measured: LBFGS cannot make a step")
    assert report.measurement is None
    assert isinstance(create_lpwd_optimizer(model, lr=LR, weight_decay=RATE), LayerwiseDecay)
