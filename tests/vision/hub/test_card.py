import json
import subprocess
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
from encoded_images import CLASSES, load_from_parquet, table
from hub_server import WRITE_TOKEN as TOKEN
from hub_server import Hub
from huggingface_hub import ModelCard, close_session, constants
from markdown_it import MarkdownIt

from hf_lpwd.cli import main
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.data.decoding import Scale
from hf_lpwd.vision.hub.card import card_facts, command_of, model_card, plain
from hf_lpwd.vision.prepare import prepare

METRICS = {"validation": {"accuracy": 0.5, "f1_macro": 0.25, "loss": 1.0}, "test": {"accuracy": 0.75}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run and its arguments, prepared, not trained: the digits with rate 0.5 and some more settings."""
    argv = ["--output_dir", str(tmp_path_factory.mktemp("out") / "digits"), "--weight_decay", "0.5"]
    argv += [
        "--learning_rate",
        "2e-3",
        "--seed",
        "7",
        "--match_decay_budget",
        "--decay_timing",
        "rwd",
        "--model_license",
        "mit",
    ]
    arguments = parse_args(argv)
    return prepare(*arguments), arguments


def words_of(command):
    """What a shell makes of a command."""
    code = f"printf '%s\\n' {command}"
    return subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_command_repeats_the_run(prepared, tmp_path):
    """Of the digits, all settings have been given by nobody."""
    run, args = prepared
    command = command_of(run, args)
    words = words_of(command)
    assert words[:2] == ["hf-lpwd", "train"]
    flags = words[2:]
    for flag in (
        "--weight_decay 0.5",
        "--decay_timing rwd",
        "--augmentation none",
        "--seed 7",
        "--warmup_steps 0.1",
    ):
        assert flag in " ".join(flags)
    again = prepare(*parse_args([*flags, "--output_dir", str(tmp_path / "again")]))
    assert again.settings == run.settings
    assert again.images["train"].transform.augmentation == "none"


def test_the_command_has_what_a_file_gave_and_what_the_data_chose(tmp_path):
    labels = CLASSES.names * 8
    load_from_parquet(tmp_path, {"train": table(labels, feature=CLASSES)})
    config = tmp_path / "run.yaml"
    config.write_text(
        f"dataset_name: {tmp_path}\nmixup_alpha: 0.2\neval_strategy: 'no'\nlr_scheduler_kwargs: "
        "{num_cycles: 2}\nlr_scheduler_type: cosine_with_restarts\nmodel_type: vit\nconfig_overrides: "
        "image_size=8,patch_size=4,hidden_size=16,num_hidden_layers=2,num_attention_heads=2\n"
    )
    arguments = parse_args(["--config", str(config), "--output_dir", str(tmp_path / "out"), "--token", TOKEN])
    run = prepare(*arguments)
    arguments[2].bf16 = True
    shown = " ".join(words_of(command_of(run, arguments)))
    for flag in (
        *(f"--dataset_name .../{tmp_path.name} ", "--augmentation crop_flip ", "--mixup_alpha 0.2 "),
        *("--eval_strategy no", "--bf16 True", "--lr_scheduler_type cosine_with_restarts "),
        *('--lr_scheduler_kwargs {"num_cycles": 2} ', "--learning_rate 5e-05 ", "--weight_decay 0.0 "),
    ):
        assert flag in f"{shown} "
    assert "hf_" not in shown
    assert str(tmp_path) not in shown


def test_a_card_says_that_nothing_decayed(prepared):
    run, args = prepared
    facts = card_facts(run, METRICS, args)
    assert "No weight was decayed" not in model_card(facts).content
    text = model_card({**facts, "mean_rate": 0.0}).content
    assert "No weight was decayed: the weight decay is 0.5, or every parameter" in text
    assert "is exempt.\n\n| layer | modules |" in text
    assert "Weight decay was applied" not in text


def test_a_card_says_what_was_measured_of_the_decay(prepared):
    run, args = prepared

    def text(findings):
        return model_card(card_facts(run, METRICS, args, findings)).content

    assert "Measured with one step" not in text(None)
    assert "before training: configured and measured decay agree.\n" in text([])
    odd = ["1 parameter (a_b) is <odd>", "nothing decays"]
    assert f"before training: {plain(odd[0])}; nothing decays.\n" in text(odd)
    assert "<odd>" not in text(odd)


def card_of(run, metrics, args):
    """The card, made from facts that were written and read."""
    return model_card(json.loads(json.dumps(card_facts(run, metrics, args))))


def render(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def test_the_text_says_what_was_done(prepared):
    run, args = prepared
    card = card_of(run, METRICS, args)
    for line in (
        'classify = pipeline("image-classification", model="digits")  # a folder, or a name on the Hub',
        "| split | images | Accuracy | Macro F1 |",
        "| validation | 216 | 0.5000 | 0.2500 |",
        "| test | 359 | 0.7500 |  |",
        "One run, with seed 7; results vary with the seed. The checkpoint was chosen on the validation "
        "split, which was held out from the training data. The test split was evaluated once, at the end.",
        "| layer | modules | parameters | decayed | rate | not decayed, and why |",
        "| 0 | stem | 1,984 | 768 | 0 | ",
        "| learning\\_rate | 0.002 |",
    ):
        assert line in card.content
    assert (
        "layer schedule: linear, scaled so that the mean rate over all decayed weights is 0.5. Rates are"
        in card.content
    )
    assert "after the update" in card.content
    assert "\n\n\n" not in card.content
    assert "None" not in card.content
    assert "8 bits" not in card.content
    assert render(card.text).count("<table>") == 4


def test_the_metadata_survives_reading(prepared):
    run, args = prepared
    card = card_of(run, METRICS, args)
    data = ModelCard(str(card)).data
    assert data.to_dict() == card.data.to_dict()
    assert data.license == "mit"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["image-classification", "vision", "lpwd", "weight-decay"]
    assert (data.base_model, data.datasets) == (None, None)
    assert [(r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("validation", "accuracy", 0.5),
        ("validation", "f1_macro", 0.25),
        ("test", "accuracy", 0.75),
    ]


def test_it_passes_the_hubs_check(prepared, monkeypatch):
    run, args = prepared
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        card_of(run, METRICS, args).validate()
        args = (*args[:2], copy(args[2]))
        args[2].model_license = "two words"
        with pytest.raises(ValueError, match="license is 'two words'"):
            card_of(run, METRICS, args).validate()
        assert hub.requests == ["POST /api/validate-yaml"] * 2
        close_session()


def test_names_cannot_break_the_text(prepared):
    run, args = prepared
    names = [
        "<script>alert(1)</script>",
        "a|b",
        "`c`",
        "[d](https://e.f)",
        "two\nlines",
        "![x](y)",
        "*g*",
        "&lt;",
    ]
    names += ["```", "---"]
    splits = replace(run.splits, class_names=names, name="/data/<b>|x|</b>")
    args = (args[0], replace(args[1], image_column_name="```\n# title\n````"), args[2])
    card = card_of(replace(run, splits=splits), METRICS, args)
    page = render(card.text)
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<a href" not in page.replace('<a href="https://openreview.net/forum?id=0GZ1Bq4Tfr">', "")
    assert page.count("<img") == 1
    assert "<em>" not in page
    assert page.count("<h1>") == 1
    shown = (
        ", ".join(names).replace("\n", "\\n").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    assert shown in page
    assert page.count("<table>") == 4
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize("text", ["a_b", "a*b*", "x|y", "<i>", "a\\b", "\\|", "C#", "~~no~~", "http://a.b"])
def test_plain_text_shows_as_itself_in_a_table(text):
    page = render(f"| h | k |\n|---|---|\n| {plain(text)} | end |\n")
    shown = text.replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>\n<td>end</td>" in page


def test_images_of_more_than_8_bits_are_a_limit(prepared):
    run, args = prepared
    facts = replace(run.splits.facts, images=replace(run.splits.facts.images, scale=Scale(4095)))
    card = card_of(replace(run, splits=replace(run.splits, facts=facts)), METRICS, args)
    assert "have more than 8 bits and were scaled to 8 bits" in card.content


def test_many_classes_are_cut_short(prepared):
    run, args = prepared
    splits = replace(run.splits, class_names=[f"c{i}" for i in range(53)])
    text = card_of(replace(run, splits=splits), METRICS, args).content
    assert "c48, c49 and 3 more.\n" in text
    assert "of 53 classes" in text
    assert "class\\_names" not in text


def test_several_devices_are_told(prepared):
    run, args = prepared
    facts = card_facts(run, METRICS, args)
    assert facts["settings"]["devices"] == 1
    assert "It ran on" not in model_card(facts).content
    text = model_card({**facts, "settings": {**facts["settings"], "devices": 2}}).content
    assert "\n\nIt ran on 2 devices; batch sizes are per device.\n\n| library" in text


def test_local_paths_stay_out_of_the_card(tmp_path):
    """A fine-tuned local model on a local dataset is named without the path."""
    first = tmp_path / "secret" / "first"
    argv = [
        "--max_train_samples",
        "40",
        "--max_steps",
        "1",
        "--disable_tqdm",
        "True",
        "--eval_strategy",
        "no",
    ]
    assert main(["train", "--output_dir", str(first), *argv]) == 0
    argv = ["--model_name_or_path", str(first), "--output_dir", str(tmp_path / "second"), *argv]
    args = parse_args(argv)
    card = card_of(prepare(*args), {}, args)
    assert "fine-tuned from first on" in card.content
    assert "--model_name_or_path .../first" in card.content
    assert "secret" not in str(card)
    assert card.data.base_model is None
    assert "chosen on the validation split" not in card.content


def test_names_on_the_hub_are_metadata(prepared):
    run, args = prepared
    names = {"model_name_or_path": "google/vit", "dataset_name": "beans", "model_type": None}
    run = replace(run, settings={**run.settings, **names}, splits=replace(run.splits, name="beans"))
    card = card_of(run, {"test": {"accuracy": 0.5}}, args)
    assert (card.data.base_model, card.data.datasets) == ("google/vit", ["beans"])
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("beans", "test", 0.5)
    files = replace(run, settings={**run.settings, "dataset_name": str(Path("data") / "*.parquet")})
    assert card_of(files, {}, args).data.datasets is None
