"""The user's own rules -> layer indices."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hf_lpwd.layer_map import LayerMap, unwrap_name


def map_by_rules(sizes: Mapping[str, int], rules: Mapping[str, int | str]) -> LayerMap:
    """Applies rules to parameter names; see `layer_index_map`.

    Args:
        sizes: Parameter name -> number of scalars.
        rules: Name or regular expression -> index, ``"stem"``, ``"block"`` or ``"head"``.

    Raises:
        ValueError: A rule is wrong or matches nothing, or no rule reaches a parameter.
    """
    for rule, value in rules.items():
        is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not is_index and value not in ("stem", "block", "head"):
            raise ValueError(
                f"layers[{rule!r}] is {value!r}: it must be an index >= 0, 'stem', 'block' or 'head'"
            )
    matched = _first_matches({name: unwrap_name(name) for name in sizes}, rules)
    block_of = {
        name: _captured(rule, match) for name, (rule, match) in matched.items() if rules[rule] == "block"
    }
    number = {key: i for i, key in enumerate(sorted(set(block_of.values())), start=1)}
    given = [value for value in rules.values() if isinstance(value, int)]
    n = len(number) + 1 if number else max(given, default=0) + ("head" in rules.values())
    if n < 1:
        raise ValueError("layers gives every parameter index 0: there must be at least a stem and a head")
    for rule, value in rules.items():
        if isinstance(value, int) and value > n:
            raise ValueError(f"layers[{rule!r}] is {value}, but an index must be 0 (stem) to {n} (head)")
    indices, reasons = {}, {}
    for name, (rule, _) in matched.items():
        value = rules[rule]
        if value == "block":
            indices[name] = number[block_of[name]]
        else:
            indices[name] = {"stem": 0, "head": n}[value] if isinstance(value, str) else value
        reasons[name] = f"rule {rule!r}"
    return LayerMap(indices, {"": n}, dict.fromkeys(sizes, ""), reasons, dict(sizes))


def _first_matches(
    names: Mapping[str, str], rules: Mapping[str, int | str]
) -> dict[str, tuple[str, re.Match[str] | None]]:
    """Name -> the rule that decides on it, with its match if it is an expression.

    Args:
        names: Parameter name -> the same without wrappers' prefixes; a rule may match either.
        rules: As for `map_by_rules`.
    """
    matched: dict[str, tuple[str, re.Match[str] | None]] = {}
    for name, plain in names.items():
        for exact in (name, plain):
            if exact in rules:
                matched.setdefault(name, (exact, None))
    known = {*names, *names.values()}
    for rule in rules:
        if rule in known:
            continue
        try:
            expression = re.compile(rule)
        except re.error as error:
            raise ValueError(f"layers: {rule!r} is no regular expression: {error}") from None
        matches = {
            name: match
            for name, plain in names.items()
            if (match := expression.fullmatch(plain) or expression.fullmatch(name))
        }
        if not matches:
            raise ValueError(
                f"layers: {rule!r} matches no parameter; it has to match a whole name, such as "
                f"{next(iter(names))!r}"
            )
        for name, match in matches.items():
            matched.setdefault(name, (rule, match))
    for name in names:
        if name not in matched:
            raise ValueError(f"layers has no rule for parameter {name!r}: add one, or a last rule '.*'")
    return {name: matched[name] for name in names}


def _captured(rule: str, match: re.Match[str] | None) -> tuple[int, ...]:
    groups = match.groups() if match else ()
    if not groups or not all(text and text.isdecimal() for text in groups):
        raise ValueError(
            f"layers[{rule!r}] is 'block', so its groups have to capture the block's number, as in "
            r"'layers\.(\d+)\..*'"
            + (f"; in {match.string!r} they capture {groups}" if match and groups else "")
        )
    return tuple(map(int, groups))
