import json
import logging
import re
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_lpwd.vision.model_args import ModelArguments
from hf_lpwd.vision.models import load_model_and_processor, load_processor, model_skeleton

NAMES = ["cat", "dog", "eel"]
TINY = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=16,image_size=8,patch_size=4"
)

STAGES = "depths=[1,1,1,1],hidden_sizes=[4,4,4,4]"


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a ViT of three other classes."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    return tmp_path


def test_pretrained_weights_and_processor_with_the_classes_of_the_data(checkpoint):
    model, processor = load_model_and_processor(ModelArguments(model_name_or_path=str(checkpoint)), NAMES)
    saved = AutoModelForImageClassification.from_pretrained(checkpoint)
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    assert model.config.label2id == {"cat": 0, "dog": 1, "eel": 2}
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]


def test_another_number_of_classes_has_to_be_asked_for(checkpoint):
    args = ModelArguments(model_name_or_path=str(checkpoint))
    with pytest.raises(ValueError, match="--ignore_mismatched_sizes starts a new one"):
        load_model_and_processor(args, [*NAMES, "fox"])
    args = ModelArguments(model_name_or_path=str(checkpoint), ignore_mismatched_sizes=True)
    model, _ = load_model_and_processor(args, [*NAMES, "fox"])
    assert model.classifier.out_features == 4


@pytest.mark.parametrize(
    ("model_type", "overrides", "side", "class_name"),
    [
        ("vit", TINY, 8, "ViTForImageClassification"),
        ("deit", TINY, 8, "DeiTForImageClassification"),
        ("convnext", f"{STAGES},image_size=32", 32, "ConvNextForImageClassification"),
        ("resnet", f"{STAGES},embedding_size=4,image_size=32", 32, "ResNetForImageClassification"),
        ("timm_wrapper", "architecture=resnet18,image_size=32", 32, "TimmWrapperForImageClassification"),
    ],
)
def test_from_scratch(model_type, overrides, side, class_name):
    args = ModelArguments(model_type=model_type, config_overrides=overrides)
    model, processor = load_model_and_processor(args, NAMES)
    assert type(model).__name__ == class_name
    assert dict(processor.size) == {"height": side, "width": side}
    logits = model.eval()(pixel_values=torch.zeros(2, 3, side, side)).logits
    assert logits.shape == (2, 3)


def test_numbers_in_overrides_have_the_type_of_the_configuration():
    args = ModelArguments(model_type="vit", config_overrides=f"{TINY},layer_norm_eps=1e-5,qkv_bias=false")
    model, _ = load_model_and_processor(args, NAMES)
    assert model.config.layer_norm_eps == 1e-5
    assert model.config.qkv_bias is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_name_or_path": "no/such-model"}, "no model 'no/such-model' in a folder here, in the cache"),
        ({"model_name_or_path": "./nothing"}, "no model './nothing' in a folder here"),
        ({"model_type": "vitt"}, "unknown image classification model_type 'vitt': did you mean 'vit'?"),
        ({"model_type": "bert"}, "unknown image classification model_type 'bert'"),
        (
            {"model_type": "vit", "config_overrides": "depth=3"},
            "config_overrides: unknown vit setting 'depth'",
        ),
        ({"model_type": "vit", "config_overrides": "image_size=big"}, "config_overrides: image_size='big': "),
        (
            {"model_type": "vit", "config_overrides": "hidden_size=7"},
            "no vit can be made with these settings",
        ),
    ],
)
def test_errors_name_the_value(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_model_and_processor(ModelArguments(**settings), NAMES)
    assert "\n" not in str(error.value)


def test_model_type_must_agree_with_the_checkpoint(checkpoint):
    args = ModelArguments(model_name_or_path=str(checkpoint), model_type="swin")
    with pytest.raises(ValueError, match=r"model_type is 'swin', but .* is of type 'vit'"):
        load_model_and_processor(args, NAMES)


@pytest.mark.parametrize("name", ["gpt2", "swin", "timm/vit_tiny_patch16_224.augreg_in21k", "resnet18"])
def test_skeletons_hold_no_weights(name):
    assert {parameter.device.type for parameter in model_skeleton(name).parameters()} == {"meta"}


def test_a_config_names_its_own_class(tmp_path):
    ViTConfig(architectures=["ViTModel"], num_hidden_layers=1).save_pretrained(tmp_path)
    assert type(model_skeleton(str(tmp_path))).__name__ == "ViTForImageClassification"


@pytest.mark.parametrize("model_type", ["convnext", "convnextv2", "resnet", "swin", "vit"])
def test_a_model_with_another_number_of_stages_can_be_loaded_again(tmp_path, model_type):
    depth = {"vit": "num_hidden_layers=2", "swin": "depths=[1,1],num_heads=[1,2],embed_dim=8,window_size=2"}
    overrides = depth.get(
        model_type, "depths=[1,1],hidden_sizes=[8,16]" + ",num_stages=2" * ("next" in model_type)
    )
    args = ModelArguments(model_type=model_type, config_overrides=f"{overrides},image_size=32")
    model, _ = load_model_and_processor(args, ["a", "b"])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert loaded.config.id2label == {0: "a", 1: "b"}
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images).logits, model.eval()(images).logits)


def test_a_model_is_explained_without_importing_what_trains():
    heavy = ("transformers.trainer_utils", "peft", "accelerate", "datasets", "evaluate", "sklearn")
    code = (
        "import sys; from hf_lpwd.cli import main\n"
        "assert main(['explain', 'resnet10t']) == 0\n"
        f"assert not [m for m in {heavy!r} if m in sys.modules]"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "stem" in answer.stdout


def written_by_timm(folder, model):
    save_for_hf(
        model, folder, safe_serialization=True, model_config={"label_names": OLD[: model.num_classes]}
    )


def written_by_older_timm(folder, model):
    written_by_timm(folder, model)
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]
    (folder / "config.json").write_text(json.dumps(config))


def written_by_transformers(folder, model):
    written_by_timm(folder / "first", model)
    config = AutoConfig.from_pretrained(folder / "first", num_labels=model.num_classes)
    config.model_args = None
    again = AutoModelForImageClassification.from_pretrained(folder / "first", config=config)
    again.save_pretrained(folder)
    AutoImageProcessor.from_pretrained(folder / "first").save_pretrained(folder)


OLD = [f"old {i}" for i in range(1000)]


def test_timms_processor_is_loaded_without_a_warning(tmp_path):
    written_by_timm(tmp_path, timm.create_model("test_resnet", num_classes=3))
    logger = logging.getLogger("transformers.models.auto.image_processing_auto")
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.Logger.warning_once.cache_clear()
    logger.addHandler(handler)
    try:
        processor = load_processor(str(tmp_path))
    finally:
        logger.removeHandler(handler)
    assert isinstance(processor, TimmWrapperImageProcessor)
    assert records == []


@pytest.mark.parametrize("write", [written_by_timm, written_by_older_timm, written_by_transformers])
@pytest.mark.parametrize("num_classes", [3, 1000])
def test_a_timm_checkpoint_gets_the_classes_of_the_data(tmp_path, write, num_classes):
    """https://github.com/huggingface/pytorch-image-models: `save_for_hf` of this and of older releases."""
    source = timm.create_model("test_vit", num_classes=num_classes)
    write(tmp_path / "old", source)
    args = {"model_name_or_path": str(tmp_path / "old")}
    if num_classes != 3:
        with pytest.raises(
            ValueError, match=r"the head of .*old has 1000 classes, the dataset 3: --ignore_mis"
        ):
            load_model_and_processor(ModelArguments(**args), NAMES)
        args["ignore_mismatched_sizes"] = True
    model, processor = load_model_and_processor(ModelArguments(**args), NAMES)
    saved = source.state_dict()
    for name, weight in model.timm_model.state_dict().items():
        if not name.startswith("head.") or num_classes == 3:
            assert torch.equal(weight, saved[name]), name
    assert model.timm_model.head.out_features == 3
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    assert again.config.label2id == {"cat": 0, "dog": 1, "eel": 2}
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "new")(Image.new("RGB", (170, 170), "teal"))
    images = torch.as_tensor(pixels["pixel_values"])
    assert torch.equal(images, processor(Image.new("RGB", (170, 170), "teal"))["pixel_values"])
    with torch.no_grad():
        assert torch.equal(again.eval()(images).logits, model.eval()(images).logits)


def test_only_a_head_is_replaced(checkpoint, tmp_path):
    config = AutoConfig.from_pretrained(checkpoint, image_size=16)
    config.save_pretrained(tmp_path / "config")
    args = ModelArguments(
        model_name_or_path=str(checkpoint),
        config_name=str(tmp_path / "config"),
        ignore_mismatched_sizes=True,
    )
    with pytest.raises(ValueError, match=r"position_embeddings is \[1, 5, 16\], the model's \[1, 17"):
        load_model_and_processor(args, NAMES)


@pytest.mark.parametrize(
    "key",
    ["num_labels=7", "id2label={0: a}", "label2id={a: 0}", "num_classes=7", "problem_type=regression"],
)
def test_the_classes_are_those_of_the_data_alone(key):
    args = ModelArguments(model_type="vit", config_overrides=f"{TINY},{key}")
    with pytest.raises(ValueError, match=f"config_overrides: {key.partition('=')[0]} is set by the dataset"):
        load_model_and_processor(args, NAMES)


def test_a_checkpoint_for_several_labels_an_image_learns_one(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint, problem_type="multi_label_classification")
    config.save_pretrained(checkpoint)
    model, _ = load_model_and_processor(ModelArguments(model_name_or_path=str(checkpoint)), NAMES)
    outputs = model(pixel_values=torch.zeros(2, 3, 8, 8), labels=torch.tensor([0, 2]))
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 2]))
    assert torch.equal(outputs.loss, expected)
