"""The decay settings as training arguments: their own class, and in front of other classes."""

import copy
import json
import pickle
from dataclasses import dataclass, field, fields

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from hf_lpwd.config import SETTINGS, LPWDConfig
from hf_lpwd.lpwd_arguments import LPWDArguments
from hf_lpwd.training_args import LPWDTrainingArguments

PATHS = {"output_dir": "unused", "use_cpu": True, "report_to": "none"}


def test_each_setting_has_the_default_and_the_help_of_the_config():
    of_config = {f.name: f for f in fields(LPWDConfig)}
    of_arguments = {f.name: f for f in fields(LPWDTrainingArguments)}
    own = {f.name for f in fields(LPWDArguments)}
    assert own == {*SETTINGS, "log_layers"} - {"weight_decay"}
    for name in SETTINGS:
        assert of_arguments[name].metadata["help"] == of_config[name].metadata["help"]
    assert LPWDConfig.from_args(LPWDTrainingArguments(**PATHS)) == LPWDConfig(0.0)


@dataclass
class Library(TrainingArguments):
    """As trl's SFTConfig: other defaults than its base, and a field of its own."""

    learning_rate: float = 2e-5
    max_grad_norm: float = 0.3
    packing: bool = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        self.seen = self.packing


def test_in_front_of_a_class_whose_defaults_stay():
    @dataclass
    class Arguments(LPWDArguments, Library):
        pass

    args = Arguments(**PATHS, decay_timing="rwd", weight_decay=0.1, packing=True)
    assert (args.learning_rate, args.max_grad_norm, args.seen) == (2e-5, 0.3, True)
    assert LPWDConfig.from_args(args) == LPWDConfig(0.1, decay_timing="rwd")
    with pytest.raises(ValueError, match="unknown decay_timing 'later'"):
        Arguments(**PATHS, decay_timing="later")
    parsed = HfArgumentParser(Arguments).parse_args_into_dataclasses(
        [
            "--output_dir",
            "unused",
            "--use_cpu",
            "True",
            "--decay_coupling",
            "independent",
            "--packing",
            "True",
        ]
    )[0]
    assert (parsed.decay_coupling, parsed.packing, parsed.learning_rate) == ("independent", True, 2e-5)


def test_behind_a_class_whose_defaults_stay():
    @dataclass
    class Arguments(Library, LPWDArguments):
        pass

    assert Arguments(**PATHS, layer_lr_decay=0.5).learning_rate == 2e-5


def test_classes_that_would_lose_fields_or_defaults_are_refused():
    with pytest.raises(TypeError, match=r"write class Mine\(LPWDArguments, Library\)"):

        class Mine(LPWDTrainingArguments, Library):
            pass

    with pytest.raises(TypeError, match=r"write class Mine\(LPWDArguments, Seq2SeqTrainingArguments\)"):

        @dataclass
        class Mine(LPWDTrainingArguments, Seq2SeqTrainingArguments):
            pass

    class Undecorated(LPWDArguments, Library):
        pass

    with pytest.raises(TypeError, match="Undecorated takes fields of several bases: write @dataclass above"):
        Undecorated(**PATHS)

    class NoNewFields(LPWDTrainingArguments):
        pass

    assert NoNewFields(**PATHS, decay_timing="wd").decay_timing == "wd"


def test_patterns_and_layers_as_text_or_dict():
    rates, rules = {"head": 0.1}, {r"layers\.(\d+)\..*": "block", ".*": "stem"}
    as_text = LPWDTrainingArguments(**PATHS, decay_by_pattern=json.dumps(rates), layer_map=json.dumps(rules))
    as_dict = LPWDTrainingArguments(**PATHS, decay_by_pattern=rates, layer_map=rules)
    for args in (as_text, as_dict):
        assert (args.decay_by_pattern, args.layer_map) == (rates, rules)
    assert json.loads(as_text.to_json_string())["layer_map"] == rules
    with pytest.raises(ValueError, match="decay_by_pattern is 'head', but must be a JSON object"):
        LPWDTrainingArguments(**PATHS, decay_by_pattern="head")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_the_token_that_a_pickle_leaves_out(copied):
    args = LPWDTrainingArguments(**PATHS, hub_token="hf_secret", weight_decay=0.1)
    same = copied(args)
    assert same is not args
    assert same == args
    assert same.hub_token == "hf_secret"


def test_a_pickle_has_no_token():
    @dataclass
    class Arguments(LPWDArguments, TrainingArguments):
        pass

    for cls in (LPWDTrainingArguments, Arguments):
        args = cls(**PATHS, hub_token="hf_secret")
        assert args.__getstate__()["hub_token"] is None
        assert args.hub_token == "hf_secret"
    assert pickle.loads(pickle.dumps(LPWDTrainingArguments(**PATHS, hub_token="hf_x"))).hub_token is None
