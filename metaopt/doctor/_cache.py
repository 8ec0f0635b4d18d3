"""The persistent compilation cache."""

import os
import sys
from pathlib import Path

from metaopt.doctor._guard import backend_is_running


def enable_compilation_cache(directory: str | os.PathLike | None = None) -> str:
    """Keeps compiled programs on disk, so that the next process loads instead of compiling.

    Every program is stored, however small: compiling a meta-gradient costs seconds, loading one
    milliseconds. The variables of jax are set where they are unset, so child processes share the
    directory. Nothing is ever deleted: remove the directory to start afresh.

    Args:
        directory: where to; a path or a URL that jax understands. Default:
            `JAX_COMPILATION_CACHE_DIR` if set, else `~/.cache/metaopt/jax` (or under
            `XDG_CACHE_HOME`).

    Returns:
        The directory; or "", and there is no cache, if it cannot be written to or the user has
        set `JAX_ENABLE_COMPILATION_CACHE` to false.
    """
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "no", "off"):
        return ""
    directory = os.fspath(
        directory or os.environ.get("JAX_COMPILATION_CACHE_DIR") or _default_directory()
    )
    if "://" not in directory:
        directory = os.path.abspath(directory)
        if not _is_writable(directory):
            directory = ""
    _configure("jax_compilation_cache_dir", directory)
    for name, value in (
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if name.upper() not in os.environ:
            _configure(name, value)
    if backend_is_running():
        # jax decides once, at its first compilation, whether there is a cache.
        from jax.experimental.compilation_cache import compilation_cache

        compilation_cache.reset_cache()
    return directory


def _default_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "metaopt" / "jax"


def _is_writable(directory: str) -> bool:
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def _configure(name: str, value) -> None:
    """Sets a jax option for child processes, and for this one whether or not jax is imported."""
    os.environ[name.upper()] = str(value)
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(name, value)
