"""A run's folder: what it is, what it reported, what it learned.

settings.json       the settings and versions of the run; compared before anything is written
metrics.jsonl       a line per outer step and per probe, see `Metrics`
progress.json       where the run stands, for people who watch it
checkpoints/        see `Checkpoints`
theta.npz           the best theta on the probe, as plain named arrays
lock                held by the process that runs it
"""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from metaopt import tree

try:
    import fcntl
except ImportError:  # Only Unix has it.
    fcntl = None

_LOCK = "lock"


class RunFolderError(ValueError):
    """A folder that cannot take a run, or whose run has other settings."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, what is saved and what to do."""


def open_folder(directory: str | os.PathLike, settings: Mapping[str, Any]) -> pathlib.Path:
    """Makes a run's folder, or checks that an existing one belongs to the same settings.

    Args:
        directory: the run's folder.
        settings: anything JSON can hold.

    Returns:
        The folder's absolute path.

    Raises:
        RunFolderError: if the folder holds a run of other settings or other files, or cannot be
            written.
    """
    folder = pathlib.Path(directory).resolve()
    file = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _compare(folder, json.loads(file.read_text())["settings"], _plain(settings))
        elif {path.name for path in folder.iterdir()} - {file.name + ".partial"}:
            raise RunFolderError(
                f"{folder} is not empty and holds no run; choose another folder with --out."
            )
        else:
            write_json(file, {"settings": settings, "versions": _versions()})
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with --out."
        ) from error
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{file} is not valid JSON ({error}); restore or remove it.") from None
    return folder


def read_settings_file(folder: pathlib.Path) -> dict[str, Any]:
    """The settings stored in a run's folder.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    file = folder / "settings.json"
    try:
        settings = json.loads(file.read_bytes())["settings"]
    except FileNotFoundError:
        raise ValueError("settings.json is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"settings.json is damaged ({type(error).__name__}: {error})") from None
    if not isinstance(settings, dict):
        raise ValueError("settings.json holds no settings")
    return settings


def hold(folder: pathlib.Path) -> int | None:
    """Takes a run's lock, which the operating system frees when the process ends, however it ends.

    Args:
        folder: the run's folder.

    Returns:
        A file descriptor to close; None where there are no locks.

    Raises:
        RunFolderError: if another process runs there.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    for attempt in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            time.sleep(0.05 * attempt)  # Whoever asks `is_held` holds it for a moment.
        except OSError:
            os.close(descriptor)
            return None
    os.close(descriptor)
    raise RunFolderError(
        f"another process runs {folder}; wait for it or stop it, or choose another folder with "
        "--out."
    )


def is_held(folder: pathlib.Path) -> bool:
    """Whether a process of this machine runs there now."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def write_json(file: pathlib.Path, content: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(file)


def save_theta(file: str | os.PathLike, theta: PyTree) -> None:
    """Writes a theta as named arrays (`.npz`, no pickle); bfloat16 is stored as float32.

    Args:
        file: where to write; replaced at once, never half-written.
        theta: any pytree of arrays; the name of an array is its path in the tree.
    """
    tree.write_arrays(file, tree.named(theta))


def load_theta(file: str | os.PathLike, like: PyTree) -> PyTree:
    """Reads what `save_theta` wrote.

    Args:
        file: the `.npz` file.
        like: a theta of the expected structure, such as `learned.init(key)`.

    Returns:
        A theta with the structure and dtypes of `like`.

    Raises:
        ValueError: if names or shapes differ; the message lists the difference.
    """
    return tree.from_named(tree.read_arrays(file), like, what=f"load_theta: {file}")


def _plain(settings):
    return json.loads(json.dumps(settings))


def _compare(folder, old, new):
    if old == new:
        return
    old, new = _flatten(old), _flatten(new)
    names = sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))
    shown = ", ".join(f"{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    raise RunFolderError(
        f"{folder} holds a run of other settings ({shown}{more}); choose another folder with "
        "--out, or resume that run."
    )


def _flatten(content, prefix="") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {
        name: value
        for key, inner in content.items()
        for name, value in _flatten(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("metaopt", "jax", "jaxlib", "optax")}
