"""The tables of model_cards/REPLICATION.md that are from the tables of diagnostics.sh, of C1's settings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from page_tables import TOTAL_DECAY

#: The rates of C1, with which the diagnostics were made.
RATES = ("0.5291", "3.175", "18.52", "105.8")


def opposing_penalty(folder: Path) -> pd.DataFrame:
    """R_op in percent, mean over the steps: of all decayed parameters, of layers, of halves of training."""
    rows = []
    for rate, total in zip(RATES, TOTAL_DECAY, strict=True):
        table = pd.read_csv(folder / f"opposing-penalty-{rate}.csv")
        layers = [column for column in table if column.startswith("layer_")]
        values = [100.0 * table[column].mean() for column in ("all", layers[0], layers[-1])]
        half = len(table) // 2
        parts = [100.0 * table["all"][:half].mean(), 100.0 * table["all"][half:].mean()]
        rows.append((total, *(f"{value:.3f}" for value in (*values, *parts))))
    columns = ["all, %", "layer 0, the stem", "layer 7, the head", "first half of training", "second half"]
    return pd.DataFrame(rows, columns=["total decay", *columns])


def equivalence(folder: Path) -> pd.DataFrame:
    """Distance from AdamW's weights at the end, as a fraction of the distance that AdamW moved."""
    rows = []
    for rate, total in zip(RATES, TOTAL_DECAY, strict=True):
        end = pd.read_csv(folder / f"equivalence-{rate}.csv").iloc[-1]
        rows.append((total, *(f"{end[name]:.4f}" for name in ("rwd", "pwd", "wd, other batches"))))
    return pd.DataFrame(rows, columns=["total decay", "rwd", "pwd", "AdamW, other batches"])


def trained(run: str) -> str:
    """The method and total decay of a model of diagnostics.sh: `wd-18.52` is `wd 3.5`."""
    name, _, rate = run.partition("-")
    name = {"none": "no decay", "linear": "pwd linear matched"}.get(name, name)
    return f"{name} {dict(zip(RATES, TOTAL_DECAY, strict=True)).get(rate, '')}".strip()


def feature_norms(folder: Path) -> pd.DataFrame:
    """Ratio of the norm of a block's output to that of its input, by block, method and total decay."""
    table = pd.read_csv(folder / "feature_norms.csv")
    table["run"] = table["run"].map(lambda run: trained(Path(run).name))
    ratios = table.pivot(index="layer", columns="run", values="ratio")[list(dict.fromkeys(table["run"]))]
    return ratios.map("{:.3f}".format).reset_index()


def shrink(folder: Path) -> pd.DataFrame:
    """Validation accuracy in percent with the decayed weights of all layers multiplied by a factor."""
    columns = {}
    for path in sorted(folder.glob("shrink-*.csv")):
        table = pd.read_csv(path)
        columns["weights multiplied by"] = table.iloc[:, 0].map("{:g}".format)
        columns[trained(path.stem.removeprefix("shrink-"))] = (100.0 * table["all"]).map("{:.2f}".format)
    return pd.DataFrame(columns)
