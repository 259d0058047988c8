"""Records are checked on reading: what was edited or cut is named with file and key, never a traceback."""

import copy
import csv
import gzip
import json
from pathlib import Path

import pytest
from study_records import failed_record, made_record, made_study, write_records

from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.answer import answers
from hf_lpwd.study.record import record_id
from hf_lpwd.study.records import load_records, pack_records
from hf_lpwd.study.report import write_report
from hf_lpwd.study.tables import robustness_table, summary_table


def paths(value, so_far=()):
    """The path of every value in a JSON object; of a list, of its first element."""
    yield so_far
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:1] if isinstance(value, list) else [])
    )
    for key, item in items:
        yield from paths(item, (*so_far, key))


def edited(record, path, new):
    """A copy of a record with one value replaced, or removed where `new` is `DELETE`."""
    changed = copy.deepcopy(record)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if new is DELETE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return changed


DELETE = object()
EDITS = [DELETE, None, "x", [], {}, True, -1, 1e300, [[1]], {"x": [None]}, 10**400]


def refusal(folder):
    """The message of a refusal to read records, None where they are read and analysed."""
    try:
        records = load_records(str(folder))
    except BadInputError as error:
        return str(error)
    study = analyse(records)
    for task in study.results:
        summary_table(study, task).csv()
        robustness_table(study, task).csv()
    answers(study)
    return None


def test_no_edit_of_a_record_is_a_traceback(tmp_path):
    """Every key of a record, with eleven edits each: read and analysed, or refused with file and key."""
    good = [made_record(timing, seed=seed) for timing in ("wd", "pwd") for seed in (0, 1)]
    path = tmp_path / "victim.json"
    write_records(good[1:], tmp_path)
    victim = good[0] | {"test_accuracy_after_epochs": [0.5, 0.6]}
    edits = [(place, new) for place in list(paths(victim))[1:] for new in EDITS]
    refused = 0
    for place, new in edits:
        path.write_text(json.dumps(edited(victim, place, new)))
        message = refusal(tmp_path)
        if message is not None:
            assert message.startswith(str(path))
            # The settings are guarded as a whole, by the hash that names the record.
            assert place[0] in message
            refused += 1
    assert 0.8 * len(edits) < refused < len(edits)


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (("metrics", "test", "accuracy"), 1.5, "test.accuracy: Input should be less than or equal to 1, n"),
        (("metrics", "validation"), DELETE, "metrics.validation is missing, which a completed run has"),
        (("layers", 0, "rate"), "0.1", "layers.0.rate: Input should be a valid number, not '0.1'"),
        (("epochs", 1, "step"), DELETE, "epochs.1.step: Field required"),
        (("weight_norms", "norms", "layer_0"), [1.0], "weight_norms: 'layer_0' has 1 values for 3 steps"),
        (("settings", "weight_decay"), 0.2, "the id is not that of the settings"),
        (("statu",), "completed", "statu: Extra inputs are not permitted"),
        (("format",), 99, "format: Input should be less than or equal to"),
    ],
)  # fmt: skip
def test_a_misfit_is_named(place, new, message, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(edited(made_record(), place, new)))
    with pytest.raises(BadInputError) as error:
        load_records(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path / 'a.json'}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ('{"format": 1', "cannot be read"),
        ("[]", "should be a valid dictionary"),
        ('{"format": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_cut_is_named(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInputError, match=r"a\.json") as error:
        load_records(str(tmp_path))
    assert message in str(error.value)


def test_all_misfits_are_counted_and_a_copied_record_is_no_second_run(tmp_path):
    record = made_record()
    write_records([record, record, *[edited(record, ("status",), "done")] * 4], tmp_path)
    with pytest.raises(BadInputError) as error:
        load_records(str(tmp_path))
    assert f"{tmp_path / '001.json'} holds the same run as {tmp_path / '000.json'}" in str(error.value)
    assert str(error.value).endswith("; and 2 more misfits")


def test_a_packed_study_is_the_same_bytes_and_reads_as_the_folder(tmp_path, capsys):
    records = [*made_study(2), failed_record(seed=7)]
    write_records(records, tmp_path / "runs")
    write_records(records[::-1], tmp_path / "other")
    packed = tmp_path / "study.jsonl.gz"
    assert main(["study", "pack", str(tmp_path / "runs"), str(packed)]) == 0
    assert capsys.readouterr().out == f"{len(records)} records in {packed}\n"
    pack_records([str(tmp_path / "other")], str(tmp_path / "other.jsonl.gz"))
    assert packed.read_bytes() == (tmp_path / "other.jsonl.gz").read_bytes()
    assert load_records(str(packed)) == load_records(str(tmp_path / "runs"))
    pages = [write_report(str(path), str(tmp_path / path.stem)) for path in (packed, tmp_path / "runs")]
    assert len({Path(page).read_bytes() for page in pages}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "cannot be read"),
        (gzip.compress(b"{}\n" * 100, mtime=0)[:-5], "cannot be read"),
        (gzip.compress(b"\n\n{}\n", mtime=0), "line 3: format: Field required"),
        (gzip.compress(b"\xff\xfe", mtime=0), "cannot be read"),
    ],
    ids=["no gzip", "cut", "no record", "no text"],
)
def test_a_damaged_pack_is_named(content, message, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(BadInputError, match=r"a\.jsonl\.gz") as error:
        load_records(str(tmp_path / "a.jsonl.gz"))
    assert message in str(error.value)


def test_pack_refuses_another_ending(tmp_path, capsys):
    write_records([made_record()], tmp_path / "runs")
    assert main(["study", "pack", str(tmp_path / "runs"), str(tmp_path / "study.zip")]) == 2
    assert "must end in .jsonl or .jsonl.gz" in capsys.readouterr().err


def test_the_id_is_the_hash_that_format_1_has():
    assert record_id({"seed": 3, "weight_decay": 0.1}) == "8cd67e68e47370e4"


FORMAT_1 = Path(__file__).parent / "data" / "format1.jsonl.gz"


def test_records_of_format_1_stay_readable(tmp_path):
    """Four runs that the first release's sweep made: two completed, one diverged, one was refused."""
    records = load_records(str(FORMAT_1))
    assert [(r.format, r.method, r.settings.learning_rate, r.outcome) for r in records] == [
        (1, "no decay", 0.01, "completed"),
        (1, "no decay", 1e30, "diverged"),
        (1, "wd linear", 0.01, "completed"),
        (1, "wd linear", 1e30, "failed"),
    ]
    # It said "completed", with the accuracy of a model whose weights are no numbers.
    assert records[1].status == "completed"
    assert records[1].score("test") == 0.10027855153203342
    for out in ("a", "b"):
        write_report(str(FORMAT_1), str(tmp_path / out))
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(names) > 10
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    summary = list(csv.DictReader((tmp_path / "a" / "tables" / "summary.csv").read_text().splitlines()))
    assert [(row["method"], row["mean rate"], row["test, %"], row["remarks"]) for row in summary] == [
        (
            "wd linear", "0.249758", "16.43454",
            "1 of 2 runs failed; the best learning rate is the lowest of the grid",
        ),
        (
            "no decay", "0.0", "15.877437",
            "1 of 2 runs diverged; the best learning rate is the lowest of the grid",
        ),
    ]  # fmt: skip
