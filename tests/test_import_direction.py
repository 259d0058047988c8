"""Imports go one way: core <- checkpoints <- vision <- study <- commands; in the core along its chain."""

import ast
from pathlib import Path

import hf_lpwd

PACKAGE = Path(hf_lpwd.__file__).parent
# Each module of the core may import modules of its own line and of lines above it.
CORE_CHAIN = [
    {
        "config",
        "layers",
        "layer_blocks",
        "layer_order",
        "layer_stacks",
        "layer_walk",
        "parameters",
        "schedules",
        "messages",
        "settings_file",
        "files",
    },
    {
        "exemptions",
        "plan",
        "plan_table",
        "decay_groups",
        "base_optimizer",
        "low_precision",
        "stale_gradients",
        "timings",
    },
    {"optimizer"},
    {"factory", "stock_state", "zero_step", "measured_decay", "measure"},
    {"lpwd_arguments"},
    {"training_args", "load_weights", "trainer_log", "trainer_optimizer", "trainer"},
]
# The same for the modules of the study: config -> runs -> records -> analysis -> report.
STUDY_CHAIN = [
    {"record", "methods", "stats", "callbacks", "checks"},
    {"records", "baselines"},
    {"plan"},
    {"config", "tasks"},
    {"quiet_run"},
    {"run"},
    {"sweep", "diagnose"},
    {"comparison"},
    {"compare", "results"},
    {"planning"},
    {"notes"},
    {"analysis"},
    {"answer", "plotting"},
    {"figures", "forest", "tables"},
    {"report"},
]
HIGHER = ["checkpoints", "vision", "study", "commands", "cli", "__main__"]


def modules():
    """Module name relative to the package ("layers", "vision.data") -> its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path
    return found


def imports(path):
    """The modules of this package that a file imports anywhere, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = modules()
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "hf_lpwd":
            continue
        while parts and ".".join(parts[1:]) not in known:
            parts.pop()
        found.add(".".join(parts[1:]))
    return found


def rank(module):
    floor = module.split(".")[0]
    if floor in HIGHER:
        return len(CORE_CHAIN) + HIGHER.index(floor)
    return next(i for i, line in enumerate(CORE_CHAIN) if floor in line)


def test_every_module_is_known():
    known = set().union(*CORE_CHAIN, HIGHER)
    assert {name.split(".")[0] for name in modules() if name} <= known


def test_no_module_imports_a_higher_one():
    faults = [
        f"{module} imports {imported}"
        for module, path in modules().items()
        if module
        for imported in imports(path)
        if imported and rank(imported) > rank(module)
    ]
    assert faults == []


def test_the_study_is_in_order():
    """No module of the study imports one of a later line; `over_seeds` is the card's and stands apart."""
    line_of = {name: i for i, line in enumerate(STUDY_CHAIN) for name in line}
    files = {name.removeprefix("study."): path for name, path in modules().items() if "study." in name}
    files = {name: path for name, path in files.items() if "." not in name and name != "over_seeds"}
    assert files.keys() == line_of.keys()
    faults = [
        f"{name} imports {imported}"
        for name, path in files.items()
        for imported in (one.removeprefix("study.") for one in imports(path) if one.startswith("study."))
        if line_of[imported] > line_of[name]
    ]
    assert faults == []


def test_the_package_itself_imports_lazily():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    at_import = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert at_import <= {"__future__", "importlib", "typing"}


def test_the_check_finds_imports(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import hf_lpwd.cli\n"
        "def f():\n"
        "    from hf_lpwd.vision import data\n"
        "    from hf_lpwd.layers import LayerMap\n"
    )
    found = imports(path)
    assert {"cli", "layers"} <= found
    assert any(name.startswith("vision") for name in found)
