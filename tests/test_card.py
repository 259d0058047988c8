import pytest

from hf_lpwd.cli import main
from hf_lpwd.vision.arguments import parse_args
from hf_lpwd.vision.card import model_card, public_command
from hf_lpwd.vision.finetune import prepare


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--token", "hf_abc", "--seed", "1"], "hf-lpwd train --token ... --seed 1"),
        (["--hub_token=hf_abc"], "hf-lpwd train --hub_token=..."),
        (["--hub-token", "hf_abc"], "hf-lpwd train --hub-token ..."),
        (["--output_dir", "my folder"], "hf-lpwd train --output_dir 'my folder'"),
    ],
)
def test_the_command_shows_no_token(argv, shown):
    assert public_command(argv) == shown


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Prepared, not trained: the digits run with rate 0.5 and two schedules' worth of settings."""
    argv = ["--output_dir", str(tmp_path_factory.mktemp("out")), "--weight_decay", "0.5", "--seed", "7"]
    return prepare(*parse_args([*argv, "--match_decay_budget", "--decay_timing", "rwd"]))


def test_the_text_says_what_was_done(run):
    metrics = {"validation": {"accuracy": 0.5, "f1_macro": 0.25, "loss": 1.0}}
    card = model_card(run, metrics, "digits", ["--seed", "7"])
    for line in (
        "| split | pictures | Accuracy | Macro F1 |",
        "| validation | 216 | 0.5000 | 0.2500 |",
        "One run, with seed 7; another seed would give another figure. The validation split chose the "
        "checkpoint.",
        "hf-lpwd train --seed 7",
        "| 0 | stem | 1984 | 768 | 0 |",
    ):
        assert line in card.content
    assert (
        "Rate 0.5, layer schedule: `linear`, scaled so that the mean over all decayed weights" in card.content
    )
    assert "after the update" in card.content
    assert "\n\n\n" not in card.content
    assert card.data.to_dict()["tags"] == ["image-classification", "vision", "lpwd", "weight-decay"]
    assert card.data.base_model is None
    assert card.data.datasets is None


def test_local_paths_stay_out_of_the_card(tmp_path):
    """A fine-tuned local model on a local data set is named without the path."""
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
    args = parse_args(["--model_name_or_path", str(first), "--output_dir", str(tmp_path / "second"), *argv])
    card = model_card(prepare(*args), {}, "second", [])
    assert "fine-tuned from `first`" in card.content
    assert "secret" not in str(card)
    assert card.data.base_model is None


def test_names_on_the_hub_are_metadata(run):
    from dataclasses import replace

    names = {"model_name_or_path": "google/vit", "dataset_name": "beans", "model_type": None}
    splits = replace(run.splits, name="beans")
    card = model_card(
        replace(run, settings={**run.settings, **names}, splits=splits), {"test": {"accuracy": 0.5}}, "b", []
    )
    assert (card.data.base_model, card.data.datasets) == ("google/vit", ["beans"])
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("beans", "test", 0.5)
