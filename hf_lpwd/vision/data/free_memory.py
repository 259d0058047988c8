"""How much memory this process can still take, in a container too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

# Of each version of control groups: folder, limit, use, and the use's part that gives way (file cache).
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("", "memory.max", "memory.current", "inactive_file")


def free_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that are available: to the machine, or less where a control group sets a limit.

    Containers and batch systems limit memory by control groups, of which psutil knows nothing.

    Args:
        root: Where `proc` and `sys` are.
    """
    return min([psutil.virtual_memory().available, *_left_by_groups(root)])


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yields what each group that this process is in has left, the groups around it included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, *files = _V1 if controllers else _V2
        mount = root / "sys/fs/cgroup" / folder
        group = mount / path.lstrip("/")
        # In a container, the group may be mounted where its path says the whole tree is.
        for place in (group, *group.parents):
            if place.is_relative_to(mount):
                yield from _left(place, *files)


def _left(group: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    try:
        most, used = ((group / name).read_text().strip() for name in (limit, usage))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if most != "max":
        yield max(0, int(most) - int(used) + int(statistics.get(cache, 0)))
