"""The experiments of a checkout: which there are, and how to run one.

A script is described by its docstring alone, so that listing imports nothing: the first line says
what it shows, `Hardware:` what it takes, and `results/<name>.json` beside it what it gave.
"""

import ast
import json
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

from metaopt.cli._settings import known

_CHECKOUT = pathlib.Path(__file__).parents[2]
_HARDWARE = re.compile(r"^Hardware:(.*?)(?=^\w+:|^$|\Z)", re.MULTILINE | re.DOTALL)
_TIME = re.compile(r"(?:(?:about|under|over|up to|half) )?[\w.]+ (?:second|minute|hour)s?\b")


class Experiment(NamedTuple):
    """One script.

    Attributes:
        name: of the file, without its suffix.
        title: the first line of the docstring.
        time: what the header says that it takes; None if it does not.
        has_results: whether `results/<name>.json` is there.
        path: the script.
    """

    name: str
    title: str
    time: str | None
    has_results: bool
    path: pathlib.Path


def find_experiments(folder: pathlib.Path | None) -> list[Experiment]:
    """The scripts of a folder, by name.

    Args:
        folder: where they are. None: `experiments` in the working directory or, if there is none,
            in the checkout that holds this file.

    Raises:
        ValueError: if the folder is not there or holds no script.
    """
    if folder is None:
        here = pathlib.Path("experiments")
        folder = here if here.is_dir() else _CHECKOUT / here
    paths = sorted(folder.glob("*.py"))
    if not paths:
        raise ValueError(
            f"{folder} holds no experiments; they come with a checkout of the repository, not with "
            "the installed package: go there, or name its folder with --folder."
        )
    return [_describe(path) for path in paths]


def list_experiments(folder: pathlib.Path | None, *, as_json: bool) -> None:
    """Prints a table, or JSON with the fields of `Experiment`."""
    found = find_experiments(folder)
    if as_json:
        print(json.dumps([experiment._asdict() for experiment in found], default=str, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what it shows", "time", "results", box=None, header_style="bold")
    for experiment in found:
        results = "yes" if experiment.has_results else "no"
        table.add_row(experiment.name, experiment.title, experiment.time or "-", results)
    Console().print(table)


def run_experiment(name: str, options: list[str], *, folder: pathlib.Path | None) -> int:
    """Runs a script in a process of its own, with its own options; returns its exit status."""
    paths = {experiment.name: experiment.path for experiment in find_experiments(folder)}
    path = paths[known("experiment", name, paths)]
    sys.stdout.flush()
    return subprocess.run([sys.executable, str(path), *options], check=False).returncode


def _describe(path: pathlib.Path) -> Experiment:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    hardware = _HARDWARE.search(text)
    time = _TIME.search(" ".join(hardware[1].split())) if hardware else None
    title = text.partition("\n")[0]
    has_results = (path.parent / "results" / f"{path.stem}.json").exists()
    return Experiment(path.stem, title, time[0] if time else None, has_results, path)
