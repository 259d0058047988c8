"""The usual names of splits, as folders, files, and values of a column."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from hf_lpwd.messages import counted
from hf_lpwd.vision.data.facts import list_names

logger = logging.getLogger(__name__)

#: Role of a split -> the names that it usually has, in lower case, the most usual one first.
ROLES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "eval"),
}
#: Columns of tables that say the split of a row, in lower case.
_COLUMNS = ("split", "subset", "partition", "set", "data_set", "data set", "usage")
#: Columns of tables that number the parts of a cross-validation, in lower case.
_FOLDS = re.compile(r"(k|cv)?[_ -]?folds?([_ -]?(id|idx|index|no|number))?")
#: Words that the name of a split may have besides.
_FILLER = "(?:data|set|split|images?|imgs?|x)+"


def role_of(name: str) -> str | None:
    """Returns the role of a split or folder of this name; None if it is none of the usual names.

    Example:
        >>> [role_of(name) for name in ("Training", "val2017", "test_set", "dataset-train", "test tube")]
        ['train', 'validation', 'test', 'train', None]
    """
    role, others = _role_and_others(name)
    return None if others else role


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Returns the roles of folders whose names differ only in the word of a split; of others, nothing.

    Example:
        >>> roles_of(["pets-train", "pets-val"]), roles_of(["bullet train", "test tube"])
        ({'pets-train': 'train', 'pets-val': 'validation'}, {})
    """
    parsed = {name: _role_and_others(name) for name in names}
    roles = {name: role for name, (role, _) in parsed.items() if role is not None}
    [common, *differing] = {parsed[name][1] for name in roles} or {frozenset()}
    alike = common and not differing and all(common <= others for _, others in parsed.values())
    return roles if alike and "train" in roles.values() and len(set(roles.values())) > 1 else {}


def _role_and_others(name: str) -> tuple[str | None, frozenset[str]]:
    """The role that one word of a name says, and the other words, without those that say nothing."""
    words = [word.lower() for word in re.findall(r"[^\W\d_][^\W\d_A-Z]+|[^\W\d_a-z]+|[^\W\d_]", name)]
    kept = [short for word in words if (short := re.sub(f"{_FILLER}$", "", word))]
    roles = [role for role, names in ROLES.items() for word in kept if word in names]
    if len(roles) != 1:
        return None, frozenset(kept)
    return roles[0], frozenset(word for word in kept if word not in ROLES[roles[0]])


def split_column(rows: Mapping[str, Iterable[Any]]) -> tuple[str, dict[str, str]] | None:
    """Returns which column of a table says the split of each row, and the split of each of its values.

    None if there is none.

    Example:
        >>> split_column({"split": ["val", "train", "holdout"], "label": [0, 1, 0]})
        ('split', {'holdout': 'holdout', 'train': 'train', 'val': 'val'})
        >>> split_column({"Usage": ["Training", "PublicTest"]}), split_column({"is_valid": [True, False]})
        (('Usage', {'PublicTest': 'test', 'Training': 'Training'}), \
('is_valid', {'False': 'train', 'True': 'validation'}))
    """
    warn_of_folds(rows)
    for column in rows:
        splits = _splits_of(column, sorted(set(map(str, rows[column]))))
        roles = [role_of(split) for split in splits.values()]
        # A single value of another word is a held-out part; several are not about splits.
        if "train" in roles and (len({*roles} - {None}) > 1 or len(roles) == 2):
            return column, splits
        if "train" in roles and len(roles) > 2:
            logger.warning("%s", _not_read(column, splits))
    return None


def warn_of_folds(rows: Mapping[str, Iterable[Any]]) -> None:
    """Warns of columns that number the parts of a cross-validation, which nothing here reads."""
    for column in filter(_is_fold, rows):
        values = sorted(set(map(str, rows[column])), key=lambda value: (len(value), value))
        if len(values) > 1:
            instead = "for one fold as validation, give a column split of train and validation"
            logger.warning("%s; %s", _not_read(column, values), instead)


def _not_read(column: str, values: Iterable[str]) -> str:
    return f"The column {column} is not read as splits: its values are {list_names(values, 5)}"


def _is_fold(column: str) -> bool:
    return _FOLDS.fullmatch(column.lower()) is not None


def _splits_of(column: str, values: Sequence[str]) -> dict[str, str]:
    says = re.fullmatch(r"is_?(\w+)", column.lower())
    role = role_of(says[1]) if says else None
    if role is not None and {value.lower() for value in values} <= {"0", "1", "false", "true"}:
        other = "test" if role == "train" else "train"
        return {value: role if value.lower() in ("1", "true") else other for value in values}
    if column.lower() not in _COLUMNS:
        return {}
    return {value: value if role_of(value) else _role_and_others(value)[0] or value for value in values}


def by_column(splits: DatasetDict) -> tuple[DatasetDict, str | None]:
    """Divides a dataset of one split by the column that says the split of each row, if there is one.

    Also returns a sentence that says so, or that such a column of a dataset of several splits is not used.
    """
    if len(splits) > 1:
        return splits, _other_splits(splits)
    [data] = splits.values()
    columns = _columns_that_may_say(data)
    found = split_column(columns)
    if found is None:
        return splits, None
    column, named = found
    names = np.array([named[str(value)] for value in columns[column]])
    parts = {name: data.select(np.flatnonzero(names == name)) for name in dict.fromkeys(names.tolist())}
    return type(splits)(parts), column_note(column, named)


def _other_splits(splits: DatasetDict) -> str | None:
    """Warns and says that a column puts rows into other splits than those that the dataset has."""
    differing: Counter[str] = Counter()
    for name, data in splits.items():
        columns = _columns_that_may_say(data)
        if role_of(name) == "train":
            warn_of_folds(columns)
        for column, values in columns.items():
            if column.lower() not in _COLUMNS:
                continue
            named = _splits_of(column, sorted(set(map(str, values))))
            roles = {value: role_of(split) for value, split in named.items()}
            differing[column] += sum(roles.get(str(value)) not in (None, role_of(name)) for value in values)
    if not +differing:
        return None
    said = ", ".join(f"{column} for {counted(count, 'row')}" for column, count in (+differing).items())
    note = f"The splits are {list_names(splits)}, not those of a column, which differ: {said}"
    logger.warning("%s", note)
    return note


def _columns_that_may_say(data: Dataset) -> dict[str, list[Any]]:
    """Returns the columns whose names are those of splits or folds, of class labels the names."""
    found = {}
    for name, feature in data.features.items():
        if not _may_say(name) or not isinstance(feature, (Value, ClassLabel)):
            continue
        values = data.select_columns([name])[:][name]
        if isinstance(feature, ClassLabel):
            values = [value if value is None or value < 0 else feature.int2str(value) for value in values]
        found[name] = values
    return found


def _may_say(column: str) -> bool:
    return column.lower() in _COLUMNS or column.lower().startswith("is") or _is_fold(column)


def column_note(column: str, splits: Mapping[str, str]) -> str:
    """Says which column holds the splits, and which of its values are read as another word.

    Example:
        >>> column_note("Usage", {"PublicTest": "test", "Training": "Training"})
        'The splits are those of the column Usage (PublicTest: test)'
    """
    renamed = ", ".join(f"{value}: {split}" for value, split in splits.items() if value != split)
    return f"The splits are those of the column {column}" + (f" ({renamed})" if renamed else "")
