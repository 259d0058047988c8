"""`hf-lpwd audit`: what the Trainer, timm and this package decay, in 52 architectures."""

import json
from pathlib import Path

import pydantic
import pytest
import timm
import tiny_families
import torch
from tiny_models import TINY_MODELS
from torch import nn

from hf_lpwd.commands.audit import as_text, audit, main, name_pattern

#: Architecture -> pattern of a name -> does it decay in the Trainer, with timm, and here, if these differ;
#: "agree" has the numbers of the other parameters that decay and that do not. Looked through by hand.
GOLDEN = json.loads(Path(__file__).with_name("audit_golden.json").read_text())


TIMM = ("mixer_s32_224", "maxvit_tiny_rw_224", "efficientnet_b0", "volo_d1_224", "xcit_nano_12_p16_224")


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name)


BUILDERS = {
    **TINY_MODELS,
    **{name: lambda name=name: tiny_families.build(name) for name in tiny_families.FAMILIES},
    **{name: lambda name=name: on_meta(name) for name in ("mixer_s32_224", "maxvit_tiny_rw_224")},
    **{
        name: lambda name=name: on_meta(name)
        for name in ("efficientnet_b0", "volo_d1_224", "xcit_nano_12_p16_224")
    },
}


def summary(found):
    differing, agreed = {}, [0, 0]
    for name, about in found["parameters"].items():
        decays = ["mixed" if rate is None else rate > 0 for rate in about["rates"].values()]
        if len(set(decays)) > 1:
            differing[name_pattern(name)] = decays
        else:
            agreed[0 if decays[0] else 1] += 1
    return {"agree": agreed, **differing}


def test_there_is_a_table_of_fifty_architectures():
    assert list(GOLDEN) == list(BUILDERS)
    assert len(GOLDEN) >= 50


@pytest.mark.parametrize("name", GOLDEN)
def test_what_each_library_decays(name):
    assert summary(audit(BUILDERS[name]())) == GOLDEN[name]


def test_rates_are_the_measured_ones_for_each_optimizer_of_the_trainer():
    found = audit(BUILDERS["vit"](), 0.25, ["adamw_torch", "adafactor", "adagrad"])
    assert found["libraries"] == [
        "Trainer adamw_torch",
        "Trainer adafactor",
        "Trainer adagrad",
        "timm",
        "hf_lpwd",
    ]
    weight = found["parameters"]["vit.layers.0.mlp.fc1.weight"]
    # Adagrad's decay is an L2 penalty: no factor, and so no rate.
    assert list(weight["rates"].values()) == [0.25, 0.25, None, 0.25, 0.25]
    bias = found["parameters"]["vit.layers.0.mlp.fc1.bias"]
    assert list(bias["rates"].values()) == [0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_parameter_marked_as_not_decaying_is_honoured_and_reported():
    class Marked(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.blocks[0].weight._no_weight_decay = True

    found = audit(Marked())
    assert found["parameters"]["blocks.0.weight"]["kind"] == "marked with _no_weight_decay"
    assert list(found["parameters"]["blocks.0.weight"]["rates"].values()) == [0.05, 0.05, 0.0]


def test_a_model_of_billions_is_audited_from_its_configuration(capsys):
    assert main(["llama", "--config_overrides", "num_hidden_layers=4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["layers.0.mlp.up_proj.weight"]["elements"] == 11008 * 4096
    assert found["parameters"]["layers.0.input_layernorm.weight"]["rates"] == {
        "Trainer": 0.0,
        "timm": 0.0,
        "hf_lpwd": 0.0,
    }


class Parameter(pydantic.BaseModel, extra="forbid", strict=True):
    layer: str
    kind: str
    elements: int
    rates: dict[str, float | None]


class Audit(pydantic.BaseModel, extra="forbid", strict=True):
    libraries: list[str]
    parameters: dict[str, Parameter]


def test_the_json_has_its_schema(capsys):
    assert main(["timm/vit_tiny_patch16_224", "--optim", "adamw_torch", "adagrad", "--json"]) == 0
    found = Audit.model_validate_json(capsys.readouterr().out)
    assert found.libraries == ["Trainer adamw_torch", "Trainer adagrad", "timm", "hf_lpwd"]
    assert all(list(about.rates) == found.libraries for about in found.parameters.values())
    assert list(found.parameters) == [name for name, _ in on_meta("vit_tiny_patch16_224").named_parameters()]
    assert found.parameters["cls_token"].model_dump() == {
        "layer": "layer_0",
        "kind": "one-dimensional",
        "elements": 192,
        # Adagrad's decay is an L2 penalty, which has no rate.
        "rates": {"Trainer adamw_torch": 0.05, "Trainer adagrad": None, "timm": 0.0, "hf_lpwd": 0.0},
    }


def test_the_text_begins_with_the_differences(capsys):
    assert main(["timm/vit_tiny_patch16_224"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "They differ on 2 parameters:"
    assert lines[2].split() == ["cls_token", "one-dimensional", "layer_0", "1", "192", "0.05", "-", "-"]
    assert lines[4] == "They agree on 150 parameters:"


def test_bad_input_is_one_line(capsys):
    assert main(["vitt"]) == 2
    assert "did you mean 'vit'?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["vit", "--weight_decay", "0"])
    assert capsys.readouterr().err == (
        "hf-lpwd audit: error: weight_decay is 0.0, but must be above 0 to be measured\n"
    )
    assert main(["vit", "--optim", "adamw_torch_typo"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_agrees_everywhere_says_so():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))

    assert as_text(audit(Plain())).startswith("They agree on 2 parameters:")
    assert torch.is_grad_enabled()


if __name__ == "__main__":
    print(json.dumps({name: summary(audit(build())) for name, build in BUILDERS.items()}, indent=1))
