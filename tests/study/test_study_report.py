"""The report of made-up records: verdicts, tables, and a page that is safe from what runs are called."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from study_records import failed_record, made_record, made_study, write_records

from hf_lpwd.cli import main
from hf_lpwd.messages import BadInputError
from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.records import load_records
from hf_lpwd.study.report import sentence, write_report
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
    write_records([*records, failed_record("<img src=x onerror=alert(1)>", seed=9)], folder / "runs")
    assert main(["report", str(folder / "runs"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def by_name(context):
    return {result.name: result for result in context.methods}


def test_what_is_chosen_and_compared(study):
    (context,) = analyse(study)
    assert context.label == ""
    assert context.baseline == context.methods[0].name == "wd uniform"
    assert context.methods[1].name == "pwd linear"
    results = by_name(context)
    assert {result.setting.weight_decay for result in results.values()} == {0.1}
    planted = results["pwd linear"].comparison
    assert planted.verdict == "better"
    pairs = [
        results["pwd linear"].runs[s]["metrics"]["test"]["accuracy"]
        - results["wd uniform"].runs[s]["metrics"]["test"]["accuracy"]
        for s in range(5)
    ]
    assert planted.difference.value == pytest.approx(np.mean(pairs))
    others = [r.comparison.verdict for name, r in results.items() if name not in ("pwd linear", "wd uniform")]
    assert others == ["no difference found"] * 6
    assert results["wd linear"].mean_rate == pytest.approx(0.05)
    assert results["wd uniform"].comparison is None


def test_selection_reads_validation_and_the_report_test(study):
    records = [json.loads(json.dumps(record)) for record in study]
    for record in records:
        if record["settings"]["weight_decay"] == 1.0:
            record["metrics"]["test"]["accuracy"] = 0.99
        if record["settings"]["weight_decay"] == 0.01:
            record["metrics"]["validation"]["accuracy"] = 0.98
    (context,) = analyse(records)
    assert all(result.setting.weight_decay == 0.01 for result in context.methods)
    assert all(result.test.value < 0.75 for result in context.methods)


def test_robustness_is_over_the_test_grid_at_the_chosen_learning_rate(study):
    result = by_name(analyse(study)[0])["wd uniform"]
    worst = [
        min(
            r["metrics"]["test"]["accuracy"]
            for r in study
            if r["method"] == "wd uniform"
            and r["settings"]["seed"] == seed
            and r["settings"]["learning_rate"] == result.setting.learning_rate
        )
        for seed in range(5)
    ]
    assert result.robustness.worst.value == pytest.approx(np.mean(worst))


def test_tasks_are_kept_apart():
    records = made_study(2) + [
        made_record(seed=seed, dataset_name="other", decay=decay) for seed in (0, 1) for decay in (0.1, 1.0)
    ]
    contexts = analyse(records)
    assert [context.label for context in contexts] == ["dataset_name=None", "dataset_name=other"]
    assert [len(context.methods) for context in contexts] == [8, 1]


def test_the_papers_metric_stands_beside():
    records = [made_record(seed=seed) for seed in (0, 1)]
    for record in records:
        record["test_accuracy_after_epochs"] = [0.1, *[0.8] * 10]
    (context,) = analyse(records)
    assert context.methods[0].paper.value == pytest.approx(0.8)
    table = summary_table(context)
    assert table.columns[-1] == ("paper's metric, %", "percent")
    assert table.rows[0][-1].value == pytest.approx(0.8)


def test_notes():
    records = [made_record("wd", "uniform", seed=seed) for seed in (0, 1)]
    records += [made_record("wd", "linear", seed=0)]
    records[1]["versions"] = {"torch": "3"}
    records[2]["pairing"] = {"initial_weights": "others", "validation_rows": "rows 0"}
    for record in records:
        del record["metrics"]["test"]
    (context,) = analyse([*records, failed_record()])
    starts = [
        "1 of 4 runs failed",
        "There are 2 seeds;",
        "With fewer seeds than the others: wd linear.",
        "The data have no test split",
        "The runs were made with different versions",
        "Runs of one seed do not start from the same weights",
        "At the same weight_decay the methods decay by different amounts",
    ]
    assert len(context.notes) == len(starts)
    assert all(note.startswith(start) for note, start in zip(context.notes, starts, strict=True))
    assert analyse(made_study())[0].notes[0].startswith("At the same weight_decay")


def test_verdicts_in_words(study):
    context = analyse(study)[0]
    results = by_name(context)
    assert re.fullmatch(
        r"pwd linear: better than wd uniform: \+1\.\d\d points \(95% interval \+1\.\d\d to \+2\.\d\d\), "
        r"p < 0\.001 after Holm's correction, 5 seeds\.",
        sentence(context, results["pwd linear"])["text"],
    )
    assert re.fullmatch(
        r"l2 linear: no difference found to wd uniform: [+-]0\.\d\d points \(95% interval -0\.\d\d to "
        r"\+0\.\d\d\), p = \d\.\d{3} after Holm's correction, 5 seeds\. To see a true difference of "
        r"0\.1 points it would take about \d+ seeds\.",
        sentence(context, results["l2 linear"])["text"],
    )
    reverse = analyse(study, "pwd linear")[0]
    assert "wd uniform: worse than pwd linear" in sentence(reverse, by_name(reverse)["wd uniform"])["text"]
    single = analyse([made_record(), made_record("pwd")])[0]
    assert sentence(single, single.methods[1])["text"].endswith("one seed, which says nothing about chance.")


def test_files(report):
    names = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    tables = {
        f"tables/{n}.{e}" for n in ("summary", "differences", "robustness", "runs") for e in ("csv", "md")
    }
    drawn = ("differences", "decay", "grid", "layers", "opposing", "training")
    assert names == {"index.html"} | tables | {f"figures/{n}.{e}" for n in drawn for e in ("png", "svg")}
    for name in drawn:
        with Image.open(report / "figures" / f"{name}.png") as image:
            assert image.width >= 1000
        svg = (report / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<?xml")
        assert "<script" not in svg


def test_csv_is_in_the_units_of_its_headings(report, study):
    rows = list(csv.DictReader(io.StringIO((report / "tables" / "summary.csv").read_text())))
    (context,) = analyse(study)
    first = context.methods[0]
    assert rows[0]["method"] == "wd uniform"
    assert float(rows[0]["test, %"]) == pytest.approx(100.0 * first.test.value)
    assert float(rows[0]["test, % low"]) == pytest.approx(100.0 * first.test.low)
    runs = list(csv.DictReader(io.StringIO((report / "tables" / "runs.csv").read_text())))
    assert len(runs) == 241
    assert sum(run["status"] == "failed" for run in runs) == 1
    assert EVIL in {run["method"] for run in runs}


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
    assert len(page.named("img")) == 6
    assert all(attrs["scope"] in ("row", "col") for attrs in page.named("th"))
    assert len(page.named("table")) == len(page.named("caption")) == 4
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


def test_an_unknown_baseline_is_named(tmp_path):
    write_records([made_record()], tmp_path)
    with pytest.raises(BadInputError, match="unknown baseline 'wd unifrm': did you mean 'wd uniform'"):
        analyse(load_records(str(tmp_path)), "wd unifrm")


@pytest.mark.slow
def test_sorting_and_filtering_in_chromium(report, tmp_path):
    """The page's own script is driven by a second one, appended to a copy without the policy."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "this test needs Chromium"
    drive = """<script>
const heads = [...table.querySelectorAll("thead th")], seen = {};
const column = i => [...body.rows].filter(r => !r.hidden).map(r => r.cells[i].textContent);
heads[3].querySelector("button").click(); seen.up = column(3);
seen.sorted = heads[3].getAttribute("aria-sort");
heads[3].querySelector("button").click(); seen.down = column(3);
const input = document.getElementById("filter");
input.value = "PWD linear"; input.dispatchEvent(new Event("input"));
seen.filtered = column(0); seen.count = document.getElementById("count").textContent;
seen.overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.title = JSON.stringify(seen);
</script></body>"""
    text = (report / "index.html").read_text().replace("</body>", drive)
    copy = tmp_path / "page.html"
    copy.write_text(text)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    dom = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    seen = json.loads(
        re.search("<title>(.*?)</title>", dom).group(1).replace("&lt;", "<").replace("&gt;", ">")
    )
    seeds = [int(seed) for seed in seen["up"]]
    assert seeds == sorted(seeds)
    assert len(seeds) == 241
    assert [int(seed) for seed in seen["down"]] == sorted(seeds, reverse=True)
    assert seen["sorted"] == "ascending"
    assert seen["filtered"] == ["pwd linear"] * 30
    assert seen["count"] == "30 of 241 runs"
    # On a phone the tables scroll, not the page.
    assert seen["overflow"] is False
