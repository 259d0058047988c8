import csv
import io
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from hf_lpwd.vision.evaluation import (
    class_table,
    classes_csv,
    classes_text,
    confusion_csv,
    confusion_svg,
)

LABELS = np.array([0, 0, 0, 0, 1, 1, 3, 3, 3])
PREDICTIONS = np.array([0, 0, 1, 3, 1, 0, 3, 3, 3])
NAMES = ["cat", "$dog$", "<bird>", "fish, 鱼"]


@pytest.fixture
def matrix():
    return confusion_matrix(LABELS, PREDICTIONS, labels=range(4))


def test_rows_are_classes_and_columns_predictions(matrix):
    assert matrix.tolist() == [[2, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]]
    rows = list(csv.reader(io.StringIO(confusion_csv(matrix, NAMES))))
    assert rows[0] == ["class", *NAMES]
    assert rows[1] == ["cat", "2", "1", "0", "1"]
    assert rows[4] == ["fish, 鱼", "0", "0", "0", "3"]


def test_the_figures_of_each_class_are_those_of_scikit_learn(matrix):
    classes = class_table(matrix, NAMES)
    expected = precision_recall_fscore_support(LABELS, PREDICTIONS, labels=range(4), zero_division=np.nan)
    figures = classes[["precision", "recall", "f1", "images"]].to_numpy()
    np.testing.assert_allclose(figures.T, np.array(expected), rtol=1e-12)
    assert math.isnan(classes["recall"][2])
    assert classes["confused_with"].tolist() == ["$dog$", "cat", "", ""]
    table = list(csv.DictReader(io.StringIO(classes_csv(classes))))
    assert list(table[0].values()) == ["cat", "4", "3", "0.500000", "0.666667", "0.571429", "$dog$"]
    assert (table[2]["images"], table[2]["recall"], table[2]["f1"]) == ("0", "", "")


def test_the_table_for_a_terminal():
    matrix = np.array([[1200, 34, 0], [0, 7, 0], [0, 0, 0]])
    assert classes_text(class_table(matrix, ["cat", "a dog", "fox"])).splitlines() == [
        "class images  recall  precision     f1 most often taken for",
        "cat    1,234  0.9724     1.0000 0.9860 a dog",
        "a dog      7  1.0000     0.1707 0.2917",
        "fox        0       -          -      -",
    ]


@pytest.mark.parametrize(
    ("repeats", "names_shown", "counts_shown"), [(1, True, True), (6, True, False), (30, False, False)]
)
def test_the_figure_shows_names_as_they_are_and_counts_where_there_is_room(
    matrix, repeats, names_shown, counts_shown
):
    names = [f"{name} {i}" for i in range(repeats) for name in NAMES]
    svg = confusion_svg(np.kron(np.eye(repeats, dtype=int), matrix), names, "run_1 $x$ <y>")
    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "run_1 $x$ <y>" in texts
    assert all((texts.count(name) == 2) == names_shown for name in names)
    assert ("2" in texts and "3" in texts) == counts_shown
    assert svg == confusion_svg(np.kron(np.eye(repeats, dtype=int), matrix), names, "run_1 $x$ <y>")


def test_names_with_control_characters_are_shown_as_python_writes_them():
    matrix = np.array([[1, 0], [1, 0]])
    names, shown = ["c\nat\x1b[31m", "\x00dog"], [r"c\nat\x1b[31m", r"\x00dog"]
    svg = confusion_svg(matrix, names, "run\x1b[31m")
    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {*shown, r"run\x1b[31m"} <= set(texts)
    table = class_table(matrix, names)
    lines = classes_text(table).splitlines()
    assert [line.split()[0] for line in lines] == ["class", *shown]
    assert lines[2].endswith(f" {shown[0]}")
    rows = list(csv.DictReader(io.StringIO(classes_csv(table), newline="")))
    assert [row["class"] for row in rows] == names
