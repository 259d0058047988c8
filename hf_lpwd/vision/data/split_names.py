"""The usual names of splits, as folders, files, and values of a column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import DatasetDict

#: Role of a split -> the names that it usually has, in lower case, the most usual one first.
ROLES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
#: Columns of tables that say the split of a row, in lower case.
_COLUMNS = ("split", "subset", "partition", "set", "data_set", "data set")


def role_of(name: str) -> str | None:
    """Returns the role of a split or folder of this name; None if it is none of the usual names.

    Example:
        >>> [role_of(name) for name in ("Training", "val2017", "test_set", "dog")]
        ['train', 'validation', 'test', None]
    """
    word = re.sub(r"[ _-]*(set|split|data|images?|imgs?)?[ _-]*\d*$", "", name.lower())
    return next((role for role, names in ROLES.items() if word in names), None)


def split_column(rows: Mapping[str, Iterable[Any]]) -> str | None:
    """Returns which column of a table says the split of each row; None if there is none.

    Example:
        >>> split_column({"split": ["val", "train", "train"], "label": [0, 1, 0]})
        'split'
    """
    for column in rows:
        if column.lower() in _COLUMNS:
            roles = {role_of(str(value)) for value in set(rows[column])}
            if "train" in roles and len(roles - {None}) > 1:
                return column
    return None


def by_column(splits: DatasetDict) -> tuple[DatasetDict, str | None]:
    """Divides the only split of a dataset by the column that says the split of each row, if there is one."""
    [data] = splits.values()
    texts = [
        name
        for name, feature in data.features.items()
        if name.lower() in _COLUMNS and getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    rows = data.select_columns(texts)[:] if texts else {}
    column = split_column(rows)
    if column is None:
        return splits, None
    names = np.array(list(map(str, rows[column])))
    parts = {name: data.select(np.flatnonzero(names == name)) for name in dict.fromkeys(names.tolist())}
    return type(splits)(parts), column
