"""`hf-lpwd explain` on models from their configuration alone."""

import json

import pytest

from hf_lpwd.cli import main


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


def test_all_settings(capsys):
    flags = ["--layer_lr_decay", "0.75", "--decay_by_pattern", '{"classifier": 0.2}', "--decay_timing", "rwd"]
    assert main(["explain", "vit", "--json", *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [row["lr_scale"] for row in plan["layers"]] == [0.75 ** (13 - i) for i in range(14)]
    assert plan["parameters"]["classifier.bias"]["rate"] == 0.2
    assert plan["settings"]["decay_timing"] == "rwd"
    assert plan["settings"]["weight_decay"] == 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer_lr_decay", "2"], "layer_lr_decay is 2.0, but must be above 0 and at most 1"),
        (["--decay_by_pattern", "head=1"], "decay_by_pattern is 'head=1', but must be a JSON object"),
        (["--decay_by_pattern", "[1]"], "decay_by_pattern is '[1]', but must be a JSON object"),
        (["--layer_map", '{"x": "stem"}'], "'x' matches no parameter"),
        (["--layer_schedule", "up"], "unknown layer_schedule 'up'"),
        (["--weight_decay", "nan"], "weight_decay is nan"),
        (["--log_layers", "False"], "unrecognized arguments: --log_layers"),
    ],
)
def test_bad_flags_end_in_one_line(flags, message, capsys):
    try:
        code = main(["explain", "vit", *flags])
    except SystemExit as end:
        code = end.code
    assert code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.startswith("hf-lpwd explain: error: ")
    assert line.count("\n") == 1
