"""Files of settings, YAML or JSON: read into a dictionary, or refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from hf_lpwd.messages import BadInputError

#: Values in a file, with each alias (``*name``) written out.
MOST_VALUES = 100_000


def read_settings(path: str) -> dict[str, Any]:
    """Reads a YAML file of settings by name, or a JSON file that ends in .json; an empty file holds none.

    Raises:
        BadInputError: The file cannot be read, holds something else, names a setting twice, or aliases in it
            stand for more than `MOST_VALUES` values.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        if path.endswith(".json"):
            settings = json.loads(text)
        else:
            _check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
            settings = yaml.safe_load(text)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise BadInputError(f"{path} cannot be read: it is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from None
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise BadInputError(f"{path} must hold settings by name, not a {type(settings).__name__}")
    return settings


def _check_nodes(root: yaml.Node | None) -> None:
    if root is not None and _size(root, {}) > MOST_VALUES:
        raise ValueError("its aliases (*name) stand for too many values")
    if isinstance(root, yaml.MappingNode):
        names = [key.value for key, _ in root.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"it sets {twice} twice")


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Values of a node; infinite if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        children = (
            [child for part in pairs for child in part] if not isinstance(node, yaml.ScalarNode) else []
        )
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]
