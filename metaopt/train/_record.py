"""Results files: what a script found, and what it takes to find it again."""

import dataclasses
import os
import pathlib
import platform
import subprocess
import time
from importlib.metadata import version
from typing import Any

from metaopt.train._run_folder import write_json

_FOLDER = pathlib.Path(__file__).parents[1]
_PACKAGES = ("metaopt", "jax", "jaxlib", "optax")


def _provenance() -> dict[str, Any]:
    """The code, of a checkout with its commit, and the machine."""

    def git(*arguments):
        command = ["git", "-C", str(_FOLDER), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # An installed package may lie within a checkout of something else.
    own = git("ls-files", "--error-unmatch", "__init__.py") is not None
    return {
        "commit": git("rev-parse", "HEAD") if own else None,
        "uncommitted_changes": bool(git("status", "--porcelain", "--", ".")) if own else None,
        "versions": {"python": platform.python_version(), **{x: version(x) for x in _PACKAGES}},
        "cpu_count": os.cpu_count(),
    }


class Record:
    """The results file of a script, begun before its work: files change, and clocks run.

    Commit and times are of this run of the script; parts that it keeps from an earlier one are
    older.
    """

    def __init__(self, config: Any):
        """Notes settings, commit and time.

        Args:
            config: the settings of the script, a dataclass; `out` is the file. Paths among them say
                nothing about results, and are left out.

        Raises:
            TypeError: if it is no dataclass, or has no path `out`.
        """
        out = getattr(config, "out", None)
        if not (dataclasses.is_dataclass(config) and isinstance(out, pathlib.Path)):
            raise TypeError(
                f"Record: config must be a dataclass with a path `out`, got {config!r}; a script's "
                "settings say where its results go."
            )
        self._file = out
        settings = dataclasses.asdict(config)  # pyright: ignore[reportArgumentType]
        self._begin = {
            "config": {k: v for k, v in settings.items() if not isinstance(v, pathlib.PurePath)},
            **_provenance(),
        }
        self._clocks = time.perf_counter(), time.process_time()

    def write(self, found: dict[str, Any]) -> dict[str, Any]:
        """Writes what was found, as often as there is more of it; an older file is replaced.

        Args:
            found: entries of the file, what JSON can hold.

        Returns:
            The contents: `config`; `commit` and `uncommitted_changes` of metaopt, None if it is not
            a checkout; `versions`; `cpu_count`; `seconds` and `process_seconds` since the
            beginning; and `found`, which may replace some of these.
        """
        seconds, process_seconds = self._clocks
        contents = {
            **self._begin,
            "seconds": round(time.perf_counter() - seconds, 1),
            "process_seconds": round(time.process_time() - process_seconds, 1),
            **found,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, contents)
        return contents
