"""The report of made-up records: verdicts, tables, and a page that is safe from what runs are called."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from study_records import failed_record, made_study, run_of, write_records

from hf_lpwd.cli import main
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.plan import PlannedRun, Question, store_plan
from hf_lpwd.study.report import write_report
from hf_lpwd.study.stats import Estimate
from hf_lpwd.study.tables import Table, shown, summary_table

EVIL = '<script>alert("x")</script> $x_1$ | =1+1'


@pytest.fixture(scope="module")
def study():
    return made_study(rates=(1e-3, 3e-3))


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    """The folder of a report of 240 runs, a method with an evil name, and a failed one with an evil error."""
    folder = tmp_path_factory.mktemp("report")
    records = [json.loads(json.dumps(record)) for record in study]
    for record in records:
        if record["method"] == "rwd linear":
            record["method"] = EVIL
    records.append(failed_record("<img src=x onerror=alert(1)>", seed=9))
    runs = [PlannedRun(id=r["id"], method=r["method"], settings=r["settings"]) for r in records]
    store_plan(str(folder / "runs"), [Question()], runs, register=True)
    write_records(records, folder / "runs")
    assert main(["report", str(folder / "runs"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_files(report):
    names = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    tables = {
        f"tables/{n}.{e}"
        for n in ("summary", "differences", "contrasts", "controls", "robustness", "runs")
        for e in ("csv", "md")
    }
    drawn = ("differences", "contrasts", "decay", "grid", "layers", "opposing", "training")
    figures = {f"figures/{n}.{e}" for n in drawn for e in ("png", "svg")}
    assert names == {"index.html", "report.md"} | tables | figures
    for name in drawn:
        with Image.open(report / "figures" / f"{name}.png") as image:
            assert image.width == 780
        svg = (report / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<?xml")
        assert "prefers-color-scheme:dark" in svg
        assert "#000000" not in svg
        assert "<script" not in svg


def test_markdown_tables_are_whole(report):
    for path in (report / "tables").glob("*.md"):
        lines = path.read_text().splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert "<" not in path.read_text()


def test_how_values_are_shown():
    assert shown(Estimate(0.5, 0.4, 0.6), "percent") == "50.00 (40.00 to 60.00)"
    assert shown(Estimate(0.5, math.nan, math.nan), "points") == "+50.00"
    assert (shown(None, "p"), shown(math.nan, "p"), shown(1e-9, "p")) == ("-", "-", "< 0.001")
    table = Table("t", "T", [("a", "text"), ("b", "percent")], [["x", Estimate(0.5, 0.25, 1.0)], ["y", None]])
    assert table.csv() == "a,b,b low,b high\nx,50.0,25.0,100.0\ny,,,\n"
    assert table.markdown() == "| a | b |\n| --- | --- |\n| x | 50.00 (25.00 to 100.00) |\n| y | - |\n"


class Page(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def named(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(report):
    return Page((report / "index.html").read_text(encoding="utf-8"))


def test_nothing_in_the_page_asks_another_host_or_runs_what_a_run_is_called(page, report):
    references = [
        (tag, value)
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert all(value.startswith(("data:", "#")) for _, value in references)
    assert len(page.named("script")) == 1
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    text = (report / "index.html").read_text()
    assert "&lt;script&gt;alert" in text
    assert "url(" not in text
    assert "default-src 'none'" in page.named("meta")[3]["content"]


def test_the_page_is_accessible(page):
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all(len(image["alt"]) > 60 for image in page.named("img"))
    assert len(page.named("img")) == 7
    assert all(attrs["scope"] in ("row", "col") for attrs in page.named("th"))
    assert len(page.named("table")) == len(page.named("caption")) == 6
    assert page.named("html") == [{"lang": "en"}]
    regions = [attrs for _, attrs in page.tags if attrs.get("role") == "region"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-labelledby"] for attrs in regions)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = {attrs["for"] for attrs in page.named("label")}
    assert {attrs["id"] for attrs in page.named("input")} == labels


def test_the_same_records_give_the_same_page(study, report, tmp_path):
    runs = report.parent / "runs"
    page = Path(write_report(str(runs), str(tmp_path)))
    assert page.read_bytes() == (report / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no record"),
        ({"a.json": "{"}, "a.json cannot be read"),
        ({"a.json": "[]"}, "a.json: Input should be a valid dictionary"),
        ({"a.json": json.dumps(failed_record())}, "none of the 1 runs has completed"),
    ],
)
def test_what_is_no_study_is_refused_in_one_line(files, message, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["study", "report", "nope.yaml"], "nope.yaml does not exist"),
        (["study", "report", "nope.yaml", "--runs", "none"], "nope.yaml does not exist"),
        (
            ["study", "report", "there.yaml"],
            "runs/there does not exist: hf-lpwd study run there.yaml writes the records",
        ),
        (["report", "nope"], "nope does not exist"),
        (["study", "pack", "nope", "a.jsonl"], "nope does not exist"),
        (["report", "there.yaml"], "there.yaml must be a folder of records"),
        (["report", "--output_dir", "X"], "unrecognized arguments: --output_dir: did you mean --out?"),
        (
            ["study", "report", "a", "--output_dir=X"],
            "unrecognized arguments: --output_dir=X: did you mean --out?",
        ),
        (["report", "a", "--xyz"], "unrecognized arguments: --xyz\n"),
        (["study", "report", "a", "b"], "unrecognized arguments: b\n"),
    ],
)
def test_paths_that_do_not_exist_and_unknown_flags(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("grid: {seed: [0]}")
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    command = " ".join(argv[: 1 + (argv[0] == "study")])
    assert error.startswith(f"hf-lpwd {command}: error: {message}")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def test_a_report_says_that_it_replaces_an_earlier_one(tmp_path, capsys):
    records = [run_of(method, seed, 0.7) for method in ("wd uniform", "pwd linear") for seed in (0, 1)]
    write_records([json.loads(r.model_dump_json(exclude_unset=True)) for r in records], tmp_path / "runs")
    argv = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    said = []
    for command in (argv, argv, ["study", "report", "a.yaml", "--runs", *argv[1:]]):
        assert main(command) == 0
        said.append(capsys.readouterr().out)
    page = tmp_path / "out" / "index.html"
    replaced = f"report in {page}, in place of the one that was there\n"
    assert said == [f"report in {page}\n", replaced, replaced]


def test_a_report_leaves_no_table_or_figure_of_an_earlier_one(tmp_path):
    """The earlier one is of two tasks, and has numbered and pooled tables; files of others stay."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    both = [
        run_of(method, seed, 0.7, dataset_name=data)
        for method in ("wd uniform", "pwd linear")
        for data in ("a", "b")
        for seed in (0, 1)
    ]
    for folder, chosen in ((runs, both), (tmp_path / "alone", both[:2] + both[4:6])):
        write_records([json.loads(r.model_dump_json(exclude_unset=True)) for r in chosen], folder)
    write_report(str(runs), str(out))
    assert (out / "tables" / "2-summary.csv").exists()
    assert (out / "figures" / "profile.svg").exists()
    mine = [out / "tables" / "mine.csv", out / "figures" / "summary-of-mine.svg", out / "figures" / "a.txt"]
    for file in mine:
        file.write_text("mine")
    write_report(str(tmp_path / "alone"), str(out))
    write_report(str(tmp_path / "alone"), str(tmp_path / "fresh"))
    left, fresh = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        for root in (out, tmp_path / "fresh")
    )
    assert left == fresh | {file.relative_to(out) for file in mine}


def test_selection_reads_validation_and_the_report_test():
    """The setting that is best on test is not the one that validation chooses."""
    records = [
        run_of("wd uniform", seed, test, validation, weight_decay=decay)
        for decay, validation, test in ((0.01, 0.8, 0.6), (0.1, 0.7, 0.9))
        for seed in range(5)
    ]
    (result,) = analyse(records).results["digits, default model"]
    assert result.setting.decay == 0.01
    assert result.test.value == pytest.approx(0.6)
    assert result.robustness.worst.value == pytest.approx(0.6)
    assert result.robustness.range.value == pytest.approx(0.3)


def test_the_papers_metric_stands_beside():
    after = {"test_accuracy_after_epochs": [0.1, *[0.8] * 10]}
    study = analyse([run_of("wd uniform", seed, 0.7, record=after) for seed in (0, 1)])
    frame = summary_table(study, "digits, default model").frame()
    assert frame["paper's metric, %"].tolist() == [80.0]
    assert frame["test, %"].tolist() == [70.0]


def test_notes_on_what_differs_between_runs():
    records = [run_of("wd uniform", seed, 0.7) for seed in (0, 1)]
    place = {"device": "cpu", "device_name": "EPYC", "threads": 1, "commit": "abc"}
    records += [
        run_of("wd linear", 0, 0.7, record={"versions": {"torch": "3"}, "environment": place}),
        run_of("wd linear", 1, 0.7, record={"environment": place | {"threads": 2}}),
    ]
    records[2] = records[2].model_copy(update={"pairing": {"initial_weights": "others"}})
    assert analyse(records).notes == [
        "The runs were made with different versions of python, torch.",
        "The runs differ in threads: 1, 2.",
        "Runs of one seed do not start from the same weights (seeds 0).",
    ]


def test_the_answer_comes_first(report):
    page = (report / "index.html").read_text()
    assert (
        page.index("Use pwd linear (decay 0.1, learning rate 0.00")
        < page.index("Forest plot")
        < page.index("<table")
    )
    assert "240 completed, 0 diverged, 1 failed" in page


@pytest.mark.slow
def test_in_chromium_nothing_overflows_and_tables_sort_and_filter(report):
    """At the width of a desk and of a telephone, light and dark."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "this test needs Chromium"
    over = (
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right"
        " > innerWidth + 1 && !(e.closest('.scroll') && innerWidth > 704)).length"
    )
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.goto((report / "index.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") == width
                assert page.evaluate(over) == 0
                page.close()
        page = browser.new_page()
        page.goto((report / "index.html").as_uri())
        column = "i => [...body.rows].filter(r => !r.hidden).map(r => r.cells[i].textContent)"
        button = page.locator("#runs thead th").nth(3).locator("button")
        button.click()
        seeds = [int(seed) for seed in page.evaluate(column, 3)]
        assert (len(seeds), seeds) == (241, sorted(seeds))
        button.click()
        assert [int(seed) for seed in page.evaluate(column, 3)] == seeds[::-1]
        page.fill("#filter", "PWD linear")
        assert page.evaluate(column, 0) == ["pwd linear"] * 30
        assert page.text_content("#count") == "30 of 241 runs"
        browser.close()
