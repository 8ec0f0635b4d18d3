"""Writes docs/api.md from `__all__` and the first lines of the docstrings: `make docs`."""

import ast
import importlib
import inspect
from pathlib import Path

import metaopt

ROOT = Path(metaopt.__file__).parent
TARGET = Path(__file__).parent / "api.md"

HEADER = """# API

Every public name, with the first line of its docstring; `help(...)` shows the rest. Settings come
after the `*`, by keyword. This page is written by `make docs`: do not edit it.
"""


def public_packages() -> list[str]:
    """Names of the packages of metaopt that have an `__init__`, and of its public modules."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    modules = {path.stem for path in ROOT.glob("*.py") if not path.stem.startswith("_")}
    return sorted(packages | modules)


def public_names(package: str) -> dict[str, object]:
    """The names in the package's `__all__`, in order, with what they stand for."""
    module = importlib.import_module(f"metaopt.{package}")
    return {name: getattr(module, name) for name in getattr(module, "__all__", ())}


def is_documentable(value: object) -> bool:
    """Whether a name can carry a docstring: functions, classes and modules; not type aliases."""
    return inspect.isroutine(value) or inspect.ismodule(value) or _is_own_class(value)


def describe(package: str, name: str, value: object) -> str:
    """One bullet of the page."""
    if not is_documentable(value):
        return f"- `{name}`: `{_definition(package, name)}`"
    first_line = (inspect.getdoc(value) or "").partition("\n")[0]
    return f"- `{name}{_arguments(value)}`: {first_line}"


def page() -> str:
    """The whole page."""
    sections = [HEADER]
    top = {name: getattr(metaopt, name) for name in metaopt.__all__}
    sections += _section("metaopt", {k: v for k, v in top.items() if not inspect.ismodule(v)})
    for package in public_packages():
        sections += _section(f"metaopt.{package}", public_names(package))
    return "\n".join(sections)


def _section(title: str, names: dict[str, object]) -> list[str]:
    if not names:
        return []
    module = importlib.import_module(title)
    first_line = (inspect.getdoc(module) or "").partition("\n")[0]
    package = title.partition(".")[2]
    lines = [describe(package, name, value) for name, value in names.items()]
    return [f"## {title}\n", f"{first_line}\n", "\n".join(lines) + "\n"]


def _is_own_class(value: object) -> bool:
    return inspect.isclass(value) and value.__module__.startswith("metaopt")


def _arguments(value: object) -> str:
    # Names only: reprs of annotations and defaults differ between versions of Python.
    if not inspect.isroutine(value):
        return ""
    words, after_star = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not after_star:
            words.append("*")
            after_star = True
        if parameter.kind is parameter.VAR_POSITIONAL:
            after_star = True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        words.append(stars.get(parameter.kind, "") + parameter.name)
    return f"({', '.join(words)})"


def _definition(package: str, name: str) -> str:
    """Source of the right-hand side of a module-level assignment, wherever in the package it is."""
    for path in sorted((ROOT / package).glob("*.py")) or [ROOT / f"{package}.py"]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return ast.unparse(node.value)
    return "constant"


if __name__ == "__main__":
    TARGET.write_text(page())
    print(f"wrote {TARGET}")
