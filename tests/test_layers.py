"""Imports between the packages of metaopt go to strictly smaller layers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import metaopt

ROOT = Path(metaopt.__file__).parent

LAYERS = {
    "doctor": 0,
    "tree": 0,
    "core": 1,
    "data": 2,
    "unroll": 2,
    "implicit": 2,
    "tasks": 3,
    "estimators": 3,
    "learned": 3,
    "optimizers": 3,
    "aggregators": 3,
    "algorithms": 4,
    "incontext": 4,
    "eval": 4,
    "train": 5,
    "cli": 6,
}

# Only entry points look at the machine; everything below them is pure functions.
MAY_IMPORT_DOCTOR = {"eval", "train", "cli"}


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every metaopt module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "metaopt":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by absolute name"
            if node.module == "metaopt":
                for alias in node.names:
                    yield node.lineno, f"metaopt.{alias.name}"
            elif node.module and node.module.split(".")[0] == "metaopt":
                yield node.lineno, node.module


def violations(package: str, source: str) -> list[str]:
    """What a file of `package` imports although the layers forbid it."""
    found = []
    for line, name in imported_modules(source):
        parts = name.split(".")
        target = parts[1] if len(parts) > 1 else "metaopt"
        if target in (package, "__version__"):
            continue
        if target not in LAYERS:
            found.append(f"line {line}: {name} has no layer")
        elif LAYERS[target] >= LAYERS[package]:
            found.append(f"line {line}: {package} ({LAYERS[package]}) imports {name}")
        elif target == "doctor" and package not in MAY_IMPORT_DOCTOR:
            found.append(f"line {line}: {package} imports {name}, which is for entry points")
    return found


def test_every_package_has_a_layer():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    modules = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert packages | modules <= set(LAYERS)


def test_imports_go_to_strictly_smaller_layers():
    found = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        relative = path.relative_to(ROOT)
        found += [f"{relative}: {text}" for text in violations(relative.parts[0], path.read_text())]
    assert not found, "\n".join(found)


def test_the_top_level_imports_no_submodule_when_it_runs():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    eager = [node for node in tree.body if not isinstance(node, ast.If)]
    source = ast.unparse(ast.Module(eager, []))
    assert not list(imported_modules(source))


def test_planted_violations_are_caught():
    planted = {
        ("tree", "from metaopt.core import System"): "tree (0) imports metaopt.core",
        ("estimators", "import metaopt.learned"): "estimators (3) imports metaopt.learned",
        ("unroll", "from metaopt import data"): "unroll (2) imports metaopt.data",
        ("core", "def f():\n    from metaopt.train import meta_train"): "line 2: core (1)",
        ("learned", "from metaopt import doctor"): "entry points",
        ("cli", "import metaopt.surprise"): "no layer",
        ("data", "import metaopt"): "metaopt has no layer",
    }
    for (package, source), message in planted.items():
        (found,) = violations(package, source)
        assert message in found
    assert not violations("train", "import jax\nfrom metaopt import core, doctor\nimport os.path")
