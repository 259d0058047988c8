import json

import pytest
from tiny_models import partitioned
from torch import nn

from hf_lpwd.cli import main
from hf_lpwd.explain import explain


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)


def test_rows_and_parameters():
    explanation = explain(Tiny(), weight_decay=0.3)
    assert [(row.layer, row.rate, row.parameters, row.decayed) for row in explanation.layers] == [
        (0, 0.0, 9, 6),
        (1, pytest.approx(0.1, abs=1e-15), 12, 9),
        (2, pytest.approx(0.2, abs=1e-15), 12, 9),
        (3, pytest.approx(0.3, abs=1e-15), 14, 6),
    ]
    assert explanation.layers[3].not_decayed == {
        "normalization": ["norm.weight"],
        "bias": ["norm.bias", "head.bias"],
    }
    assert explanation.layers[1].modules == ["block blocks.0"]
    about = explanation.parameters["blocks.1.weight"]
    assert about["rate"] == pytest.approx(0.2, abs=1e-15)
    assert {key: about[key] for key in ("stack", "layer", "not_decayed", "shape")} == {
        "stack": "",
        "layer": 2,
        "not_decayed": None,
        "shape": [3, 3],
    }
    assert explanation.parameters["head.bias"]["rate"] == 0.0


def test_its_text_is_a_table():
    lines = str(explain(Tiny(), weight_decay=0.3)).splitlines()
    assert lines[0].split() == [
        "layer",
        "blocks",
        "parameters",
        "decayed",
        "rate",
        "not",
        "decayed,",
        "and",
        "why",
    ]
    assert lines[2].split() == ["1", "block", "blocks.0", "12", "9", "0.1", "1", "bias"]
    assert lines[-1] == "47 parameters, 30 of them decayed, at a mean rate of 0.15"


def test_frozen_parameters_do_not_decay():
    model = Tiny()
    model.blocks[0].requires_grad_(False)
    row = explain(model, weight_decay=0.3).layers[1]
    assert (row.decayed, row.not_decayed) == (0, {"frozen": ["blocks.0.weight", "blocks.0.bias"]})


def test_the_same_schedule_and_budget_as_the_optimizer():
    from hf_lpwd import create_lpwd_optimizer

    model = Tiny()
    settings = {"weight_decay": 0.3, "schedule": "power:3", "match_budget": True}
    optimizer = create_lpwd_optimizer(model, lr=0.1, **settings)
    rate_of = {
        name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]
    }
    explanation = explain(model, **settings)
    assert {name: about["rate"] for name, about in explanation.parameters.items()} == rate_of
    decayed = sum(row.decayed for row in explanation.layers)
    assert sum(row.rate * row.decayed for row in explanation.layers) / decayed == pytest.approx(
        0.3, abs=1e-15
    )


def test_partitioned_weights_count_as_whole_ones():
    settings = {"weight_decay": 0.3, "match_budget": True}
    explanation = explain(partitioned(Tiny()), **settings)
    assert explanation == explain(Tiny(), **settings)
    assert explanation.parameters["blocks.1.weight"]["shape"] == [3, 3]
    assert [row.parameters for row in explanation.layers] == [9, 12, 12, 14]


@pytest.mark.parametrize(
    ("model", "n", "first", "last"),
    [
        ("vit", 13, "block vit.layers.0", "block vit.layers.11"),
        ("bert", 13, "block encoder.layer.0", "block encoder.layer.11"),
        ("vit_small_patch16_224", 13, "block blocks.0", "block blocks.11"),
        ("timm/resnet18.a1_in1k", 9, "block layer1.0", "block layer4.1"),
        ("deit", 13, "block deit.layers.0", "block deit.layers.11"),
    ],
)
def test_from_a_configuration_alone(model, n, first, last, capsys):
    assert main(["explain", model, "--json", "--weight_decay", "0.1"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [row["layer"] for row in layers] == list(range(n + 1))
    assert [row["rate"] for row in layers] == pytest.approx([0.1 * i / n for i in range(n + 1)], abs=1e-15)
    assert layers[1]["modules"] == [first]
    assert last in layers[n - 1]["modules"]


def test_a_folder_and_a_configuration_file(tmp_path, capsys):
    from transformers import ViTConfig

    ViTConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        assert main(["explain", name, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["layers"]) == 4
