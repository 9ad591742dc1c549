"""The package as a whole: what it exports, what importing it costs, which way imports run."""

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import edgestitch

PACKAGE = Path(edgestitch.__file__).parent
PLANNING = [
    "accuracy",
    "artifact",
    "baseline",
    "catalog",
    "complexity",
    "compose",
    "coschedule",
    "cut",
    "device",
    "errors",
    "estimate",
    "family",
    "journal",
    "mixing",
    "nvml",
    "peers",
    "power",
    "profile",
    "progress",
    "recipe",
    "remote",
    "residency",
    "rules",
    "schedule",
    "sensors",
    "sysfs",
    "shipped",
    "topology",
    "zoo",
]


def python(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs code in a process of its own, with `folder` as home and working directory."""
    return subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env={
            **os.environ,
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": str(PACKAGE.parent),
        },
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("name", edgestitch.__all__)
def test_what_is_exported_is_there(name):
    assert getattr(edgestitch, name) is not None


def test_what_needs_torch_is_exported_as_well():
    assert edgestitch.data.preprocess.__module__ == "edgestitch.data"


def test_an_unknown_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="module 'edgestitch' has no attribute 'nothing'"):
        _ = edgestitch.nothing


def test_planning_imports_nothing_heavy(tmp_path):
    modules = ", ".join(f"edgestitch.{name}" for name in PLANNING)
    code = f"import json, sys, edgestitch, {modules}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(python(code, tmp_path).stdout)
    heavy = {"torch", "timm", "torchvision", "fvcore", "scipy.stats", "scipy.optimize", "pynvml"}
    assert not heavy & set(loaded)


def test_importing_writes_no_file_and_prints_nothing(tmp_path):
    modules = [name for name in modules_of_the_package() if not name.endswith("__main__")]
    done = python("\n".join(f"import {name}" for name in modules), tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.rglob("*")) == []


# --- one direction ---------------------------------------------------------------------------


def modules_of_the_package() -> dict[str, Path]:
    """Name and file of each module; a package's `__init__` is the package."""
    modules = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__")] = file
    return modules


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes at any depth, but for those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from statements(node)


def imported(module: str, file: Path) -> Iterator[str]:
    """The names that a module imports, absolute; those that are no modules among them."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in statements(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join((*(parents if node.level else ()), *filter(None, [node.module])))
            yield from (f"{source}.{alias.name}" for alias in node.names)
            yield source


def import_graph() -> dict[str, set[str]]:
    """Which modules of the package each one imports; the package's own `__init__` left out."""
    modules = {n: f for n, f in modules_of_the_package().items() if n != "edgestitch"}
    return {
        module: {name for name in imported(module, file) if name in modules and name != module}
        for module, file in modules.items()
    }


def test_imports_run_one_way():
    graph = import_graph()
    assert "edgestitch.topology" in graph["edgestitch.family"]
    assert "edgestitch.anchor" in graph["edgestitch.network"]
    assert "edgestitch.compose" in graph["edgestitch.measure"]
    tuple(TopologicalSorter(graph).static_order())


def test_the_planning_half_imports_only_itself():
    graph = import_graph()
    planning = {f"edgestitch.{name}" for name in PLANNING}
    assert all(graph[module] <= planning for module in planning)


def test_a_wheel_finds_its_data(tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    shown = subprocess.run(
        [sys.executable, "-m", "edgestitch", "show", "fashion-vit", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    topologies = json.loads(shown.stdout)["topologies"]
    assert all(topology["gmacs"] and topology["top1"] for topology in topologies)
    packaged = tmp_path / "site" / "edgestitch" / "_data" / "calibrate"
    assert {path.name for path in packaged.iterdir()} == {
        path.name for path in (root / "calibrate").iterdir()
    }
