import psutil
import pytest

from hf_lpwd.vision.data.sample import free_memory

GIB = 1024**3
V1_UNLIMITED = 9223372036854771712


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes the files of control groups; the machine has 100 GiB available."""
    memory = psutil.virtual_memory()._replace(available=100 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    def make(membership, groups):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(membership)
        for folder, files in groups.items():
            group = tmp_path / "sys/fs/cgroup" / folder
            group.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (group / name).write_text(f"{text}\n")
        return tmp_path

    return make


def v2(limit, used, inactive=0):
    statistics = f"anon 123\nfile 456\ninactive_file {inactive}\nactive_file 7"
    return {"memory.max": limit, "memory.current": used, "memory.stat": statistics}


def v1(limit, used, inactive=0):
    statistics = f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": statistics}


@pytest.mark.parametrize(
    ("membership", "groups", "expected"),
    [
        ("0::/\n", {"": v2(8 * GIB, 5 * GIB)}, 3 * GIB),
        # What the file cache holds gives way.
        ("0::/\n", {"": v2(8 * GIB, 8 * GIB, inactive=2 * GIB)}, 2 * GIB),
        ("0::/\n", {"": v2(GIB, 2 * GIB)}, 0),
        ("0::/\n", {"": v2("max", 5 * GIB)}, 100 * GIB),
        ("0::/\n", {"": v2(200 * GIB, 0)}, 100 * GIB),
        # The root of a machine's own tree has no such files.
        ("0::/\n", {"": {}}, 100 * GIB),
        # A group's limit holds for the groups in it.
        (
            "0::/slurm/job/step\n",
            {"slurm/job": v2(16 * GIB, 10 * GIB), "slurm/job/step": v2("max", 10 * GIB)},
            6 * GIB,
        ),
        # Of a container that sees its own group as the root, under the name that the machine has for it.
        ("0::/kubepods/pod1/abc\n", {"": v2(4 * GIB, GIB)}, 3 * GIB),
        (
            "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/\n",
            {"memory/docker/a": v1(7 * GIB, 5 * GIB, inactive=GIB), "memory": v1(V1_UNLIMITED, 9 * GIB)},
            3 * GIB,
        ),
        ("4:memory:/docker/a\n", {"memory": v1(2 * GIB, GIB)}, GIB),
        ("4:memory:/\n", {"memory": v1(V1_UNLIMITED, 9 * GIB)}, 100 * GIB),
        ("5:cpu:/docker/a\n", {"docker/a": v2(GIB, 0)}, 100 * GIB),
    ],
)
def test_the_smallest_of_what_is_left_counts(machine, membership, groups, expected):
    assert free_memory(machine(membership, groups)) == expected


def test_without_control_groups_it_is_what_psutil_says(tmp_path, monkeypatch):
    memory = psutil.virtual_memory()._replace(available=GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert free_memory(tmp_path) == GIB


def test_of_this_machine():
    assert 0 < free_memory() <= psutil.virtual_memory().total
