"""Checkpoints of models that were changed after their class had made them."""

import pytest
import torch
from safetensors.torch import save_file
from small_trainers import assert_same, make_model, make_trainer, trained, weights
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MarianConfig,
    MarianMTModel,
    Trainer,
    ViTForImageClassification,
)

from hf_lpwd.load_weights import load_weights, weight_files
from hf_lpwd.trainer import LPWDTrainerMixin
from hf_lpwd.training_args import LPWDTrainingArguments


class WithArguments(ViTForImageClassification):
    def __init__(self, config, width):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, width)


def with_another_head():
    model = make_model()
    model.classifier = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3))
    return model


def truncated():
    model = make_model(num_hidden_layers=3)
    model.vit.layers = model.vit.layers[:2]
    return model


def in_two_precisions():
    model = make_model()
    model.vit.bfloat16()
    return model


def frozen_with_an_addition():
    model = make_model()
    model.vit.embeddings.requires_grad_(False)
    model.extra = nn.Linear(4, 4)
    return model


def with_arguments():
    config = make_model().config
    torch.manual_seed(0)
    return WithArguments(config, 5)


def tied():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2}
    return BertForMaskedLM(BertConfig(**sizes, vocab_size=20, max_position_embeddings=16))


def with_constants():
    """Marian's sinusoids are not saved."""
    torch.manual_seed(0)
    sizes = {"d_model": 8, "vocab_size": 20, "max_position_embeddings": 16, "pad_token_id": 0}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 8}
    return MarianMTModel(MarianConfig(**sizes, decoder_start_token_id=0))


MODELS = (
    *(with_another_head, truncated, in_two_precisions, frozen_with_an_addition, with_arguments, tied),
    with_constants,
)


@pytest.mark.parametrize("make", MODELS)
def test_weights_return_in_place_and_exactly(tmp_path, make):
    saved = make()
    saved.save_pretrained(tmp_path)
    model = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in (model._keys_to_ignore_on_save or ()):
                parameter.add_(1.0)
    before = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
    load_weights(model, str(tmp_path))
    for (name, value), (same, parameter, trains) in zip(saved.named_parameters(), before, strict=True):
        assert name == same
        assert model.get_parameter(name) is parameter
        assert parameter.requires_grad is trains
        assert parameter.dtype == value.dtype
        assert torch.equal(parameter, value)
    if make is tied:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_other_weights_in_the_folder_are_not_read(tmp_path):
    """A callback may write the moving average beside the model; it won, as the later name."""
    saved = make_model()
    saved.save_pretrained(tmp_path / "whole")
    saved.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        zeros = {name: torch.zeros_like(p) for name, p in saved.state_dict().items()}
        save_file(zeros, folder / "model_ema.safetensors", metadata={"format": "pt"})
        model = make_model()
        model.classifier.reset_parameters()
        load_weights(model, str(folder))
        assert_same(weights(model), weights(saved))
    assert len(weight_files(str(tmp_path / "parts"))) > 1


def test_a_trainer_that_loads_without_a_model_is_called_without_one(tmp_path):
    """As sentence-transformers'; its own loading swallows what it raises."""

    class Theirs(Trainer):
        def _load_from_checkpoint(self, checkpoint_path):
            self.loaded = checkpoint_path

    class Mine(LPWDTrainerMixin, Theirs):
        pass

    trainer = Mine(nn.Linear(2, 2), LPWDTrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    trainer._load_from_checkpoint("checkpoint-1")
    assert trainer.loaded == "checkpoint-1"


def test_a_best_checkpoint_that_is_gone_is_what_it_is_for_the_stock_trainer(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-2")
    before = weights(trainer.model)
    trainer._load_best_model()
    assert "Could not locate the best model at" in caplog.text
    assert_same(before, weights(trainer.model))


def test_what_is_missing_or_of_another_shape_is_named_and_nothing_changes(tmp_path):
    make_model().save_pretrained(tmp_path)
    for model, message in (
        (with_another_head(), f"{tmp_path} lacks weights of this model: classifier.0.bias, "),
        (with_arguments(), r"has classifier.\w+ in the shape \(3,( 16)?\), this model in \(5,( 16)?\)"),
    ):
        before, parameters = weights(model), list(model.parameters())
        with pytest.raises(ValueError, match=message):
            load_weights(model, str(tmp_path))
        assert_same(before, weights(model))
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]


def test_a_changed_model_resumes_and_returns_to_its_best(tmp_path):
    """With `load_best_model_at_end` the run failed after all its training."""
    flags = {"save_strategy": "steps", "save_steps": 10, "weight_decay": 0.05}
    best = {"eval_strategy": "steps", "eval_steps": 10, "load_best_model_at_end": True}

    def trainer(**more):
        made = make_trainer(tmp_path, **flags, **more)
        made.model = made.model_wrapped = with_another_head()
        return made

    through = trained(trainer())
    assert_same(through, trained(trainer(), resume_from_checkpoint=str(tmp_path / "checkpoint-10")))
    last = trainer(**best)
    found = trained(last)
    other = with_another_head()
    load_weights(other, last.state.best_model_checkpoint)
    assert_same(found, weights(other))
