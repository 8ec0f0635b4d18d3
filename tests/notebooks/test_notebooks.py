"""The notebooks: tours of public names, short, committed without outputs, and they run."""

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in ROOT.glob("*.ipynb"))
MAX_STATEMENTS = 60
COLAB = "https://colab.research.google.com/github/metaopt/metaopt/blob/main/notebooks"

# Sizes with which a notebook runs for the sake of running, by the name of the setting.
SMALL = {
    "quickstart": {"OUTER_STEPS": 2, "INNER_STEPS": 20, "TRUNCATION": 10, "FLAX_STEPS": 3},
    "learned_optimizers": {"STEPS": 3},
    "bring_your_own_task": {"HORIZON": 6, "TRUNCATION": 3, "NUM_SAMPLES": 2, "OUTER_STEPS": 2},
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / f"{name}.ipynb", as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parsed(notebook) -> ast.Module:
    """All code as one module; a magic, which is not Python, counts as one statement."""
    source = "\n".join(cell.source for cell in code_cells(notebook))
    return ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE))


def num_statements(tree: ast.Module) -> int:
    """Lines of code as if no statement were broken over several lines by the formatter."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree))


def foreign_names(tree: ast.Module) -> list[str]:
    """Uses of metaopt that are not in the `__all__` of the package they come from."""
    packages, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] == "metaopt"]
        elif isinstance(node, ast.ImportFrom):
            if node.module is None or node.module.split(".")[0] != "metaopt":
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if "._" in node.module or alias.name not in module.__all__:
                    found.append(f"{node.module}.{alias.name}")
                elif isinstance(getattr(module, alias.name), ModuleType):
                    packages[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            package = packages.get(node.value.id)
            if package is not None and node.attr not in package.__all__:
                found.append(f"{node.value.id}.{node.attr}")
    return found


def replaced(source: str, values: dict[str, int]) -> str:
    """The cell of settings with other values; every setting must be given one."""
    lines = [line.split(" = ") for line in source.splitlines() if line]
    assert {name for name, _ in lines} == set(values)
    return "\n".join(f"{name} = {values[name]}" for name, _ in lines)


def settings_cell(notebook):
    (cell,) = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    return cell


def test_every_notebook_has_small_settings():
    assert NAMES == sorted(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_is_valid_and_has_no_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("name", NAMES)
def test_is_short(name):
    assert num_statements(parsed(read(name))) < MAX_STATEMENTS


@pytest.mark.parametrize("name", NAMES)
def test_opens_in_colab_and_installs_itself_there_only(name):
    notebook = read(name)
    assert notebook.cells[0].cell_type == "markdown"
    assert f"({COLAB}/{name}.ipynb)" in notebook.cells[0].source
    first = code_cells(notebook)[0].source
    install = 'if "google.colab" in sys.modules:\n    %pip install -q metaopt\n'
    assert install in first
    assert first.endswith("\ndoctor.guard_cpu()")
    assert sum("%pip" in cell.source for cell in code_cells(notebook)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_uses_public_names_only(name):
    assert foreign_names(parsed(read(name))) == []


def test_what_the_checks_are_for_is_caught():
    planted = """
import metaopt.learned
from metaopt import eval, learned as rules, tree
from metaopt.learned._celo2 import newton_schulz
from metaopt.learned import map_leaves, celo2
eval._curves.learning_curve
rules.network_init
rules.mlp()
"""
    assert set(foreign_names(ast.parse(planted))) == {
        "metaopt.learned",
        "metaopt.learned._celo2.newton_schulz",
        "metaopt.learned.map_leaves",
        "eval._curves",
        "rules.network_init",
    }
    folded = "if a:\n    f(\n        1,\n        2,\n    )\n"
    assert num_statements(ast.parse(folded)) == 2
    with pytest.raises(AssertionError):
        replaced("A = 1\nB = 2", {"A": 0})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs(name, tmp_path, monkeypatch):
    # Figures are drawn inline only where no other backend is asked for.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = read(name)
    cell = settings_cell(notebook)
    cell.source = replaced(cell.source, SMALL[name])
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    # The last cell of each draws its result.
    assert any("image/png" in out.get("data", {}) for out in code_cells(notebook)[-1].outputs)
