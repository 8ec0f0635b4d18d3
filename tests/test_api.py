"""What is public is listed, documented and cheap to import."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metaopt

PATH = Path(__file__).parents[1] / "docs" / "make_api.py"
spec = importlib.util.spec_from_file_location("make_api", PATH)
make_api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_api)

PACKAGES = make_api.public_packages()

# Loaded by the module that needs them, when it needs them.
HEAVY = (
    "array_record",
    "flax",
    "lineax",
    "matplotlib",
    "orbax",
    "rich",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tyro",
)


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_top_level_names_resolve():
    assert sorted(metaopt.__all__) == sorted(set(metaopt.__all__))
    for name in metaopt.__all__:
        assert getattr(metaopt, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        metaopt.no_such_name  # noqa: B018


def test_every_package_declares_what_is_public():
    for package in PACKAGES:
        names = make_api.public_names(package)
        module = sys.modules[f"metaopt.{package}"]
        assert getattr(module, "__all__", None) is not None, f"metaopt.{package} has no __all__"
        assert len(names) == len(module.__all__), f"metaopt.{package}: __all__ repeats a name"
        assert list(names) == sorted(names), f"metaopt.{package}: sort __all__"
        assert not [name for name in names if name.startswith("_")]


def test_every_public_name_has_a_docstring():
    missing = [
        f"metaopt.{package}.{name}"
        for package in PACKAGES
        for name, value in make_api.public_names(package).items()
        if make_api.is_documentable(value) and not has_own_docstring(value)
    ]
    assert not missing, missing


def has_own_docstring(value):
    text = inspect.getdoc(value) or ""
    # A NamedTuple without a docstring is given its signature.
    return bool(text) and not (inspect.isclass(value) and text.startswith(f"{value.__name__}("))


def test_a_generated_docstring_does_not_count():
    class Bare(tuple):
        __doc__ = "Bare(x, y)"

    assert not has_own_docstring(Bare)
    assert has_own_docstring(metaopt.core.System)


def test_the_api_page_is_current():
    page = make_api.TARGET.read_text()
    assert page == make_api.page(), "docs/api.md is out of date: run `make docs`"


def test_the_api_page_lists_exactly_the_public_names():
    listed, package = set(), ""
    for line in make_api.TARGET.read_text().splitlines():
        if line.startswith("## "):
            package = line.removeprefix("## ")
        elif line.startswith("- "):
            name = re.match(r"- `(\w+)", line)[1]
            listed.add(f"{package}.{name}")
    public = {f"metaopt.{p}.{name}" for p in PACKAGES for name in make_api.public_names(p)}
    assert {name for name in listed if name.count(".") > 1} == public


def test_importing_metaopt_loads_nothing_heavy_and_sets_nothing():
    loaded, changed = run(
        "import json, os, sys; before = dict(os.environ); import metaopt;"
        "print(json.dumps([list(sys.modules), before != dict(os.environ)]))"
    )
    assert "metaopt" in loaded
    assert not set(HEAVY) & set(loaded)
    assert not changed


def test_the_functional_packages_load_nothing_heavy():
    """Importing the packages that hold mathematics needs jax and optax only."""
    names = [name for name in PACKAGES if name not in ("cli", "train", "eval", "implicit")]
    loaded = run(
        f"import importlib, json, sys; [importlib.import_module('metaopt.' + n) for n in {names}];"
        "print(json.dumps(list(sys.modules)))"
    )
    assert not set(HEAVY) & set(loaded)
