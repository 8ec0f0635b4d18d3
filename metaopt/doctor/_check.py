"""The checks and the report."""

import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metaopt.doctor._cache import enable_compilation_cache
from metaopt.doctor._canary import canary
from metaopt.doctor._guard import (
    FLAG,
    backend_is_running,
    flag_is_known,
    flag_is_on,
    guard_cpu,
    parse_version,
)

# The miscompiled results are wrong by 20 % or more. Accelerators multiply in reduced precision by
# default (about 1e-3), the CPU in float32 (about 1e-7).
_TOLERANCE = {"cpu": 1e-4}
_TOLERANCE_ACCELERATOR = 2e-2


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: True or False; None where there is nothing to judge.
        detail: what was found.
        remedy: what to do about it; empty where nothing needs doing.
    """

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def check() -> list[Finding]:
    """Looks at everything that decides whether metaopt runs well here; starts the backend.

    Returns:
        Versions against the lower bounds of the installed metaopt, devices, memory, the canary,
        float64, the compilation cache, and the data and logging packages.
    """
    was_running = backend_is_running()
    return [
        *_check_versions(),
        _check_devices(),
        *_check_memory(),
        _check_canary(was_running),
        _check_float64(),
        _check_cache(),
        _check_import("array_record.python.array_record_data_source", "TFDS records", "metaopt"),
        _check_import("tensorflow_datasets", "TFDS", "metaopt"),
        _check_import("tensorboardX", "TensorBoard", "metaopt[tensorboard]", optional=True),
    ]


def report(findings: Sequence[Finding]) -> int:
    """Prints one line per finding, with its remedy.

    Args:
        findings: what `check` returned.

    Returns:
        The exit code: 1 if any finding is bad, else 0.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    marks = {True: ("ok  ", "green"), False: ("FAIL", "bold red"), None: ("    ", "dim")}
    width = max((len(finding.name) for finding in findings), default=0)
    for finding in findings:
        mark, style = marks[finding.ok]
        line = Text.assemble((mark, style), f"  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            line.append(f"  -> {finding.remedy}", style="yellow")
        console.print(line, soft_wrap=True)
    return int(any(finding.ok is False for finding in findings))


def main() -> int:
    """Guards the process, checks it and prints the report: `metaopt doctor`.

    Returns:
        The exit code of `report`.
    """
    guard_cpu()
    enable_compilation_cache()
    return report(check())


def _check_versions() -> list[Finding]:
    current = ".".join(str(part) for part in sys.version_info[:3])
    findings = [
        Finding(
            "python",
            sys.version_info >= (3, 11),
            current,
            "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
        )
    ]
    try:
        requirements = importlib.metadata.requires("metaopt") or []
    except importlib.metadata.PackageNotFoundError:
        return [*findings, Finding("metaopt", False, "not installed", "pip install metaopt")]
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", requirement)
        if match:  # extras carry a marker and do not match
            findings.append(_check_version(*match.groups()))
    return findings


def _check_version(package: str, bound: str) -> Finding:
    remedy = f'pip install "{package}>={bound}"'
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, False, "not installed", remedy)
    ok = parse_version(version) >= parse_version(bound)
    return Finding(package, ok, f"{version} (needs {bound})", "" if ok else remedy)


def _check_devices() -> Finding:
    import jax

    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    detail = f"{len(devices)} x {jax.default_backend()} ({kinds})"
    if jax.default_backend() == "cpu" and Path("/dev/nvidiactl").exists():
        return Finding("devices", None, f"{detail}; a GPU is idle", 'pip install "jax[cuda13]"')
    return Finding("devices", True, detail)


def _check_memory() -> list[Finding]:
    import jax

    findings = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        findings.append(Finding("host memory", None, f"{total / 2**30:.1f} GiB"))
    stats = jax.local_devices()[0].memory_stats() or {}  # None on CPU
    if "bytes_limit" in stats:
        limit, used = stats["bytes_limit"] / 2**30, stats.get("bytes_in_use", 0) / 2**30
        findings.append(Finding("device memory", None, f"{limit:.1f} GiB, {used:.1f} in use"))
    return findings


def _check_canary(backend_was_running: bool) -> Finding:
    import jax

    backend = jax.default_backend()
    tolerance = _TOLERANCE.get(backend, _TOLERANCE_ACCELERATOR)
    error = canary()
    detail = f"relative error {error:.1e} on {backend} (at most {tolerance:.0e})"
    if error <= tolerance:
        return Finding("canary", True, detail)
    detail += ": this jaxlib computes wrong numbers"
    if backend != "cpu":
        return Finding("canary", False, detail, "install another jaxlib and report this to jax")
    if not flag_is_known():
        remedy = "pip install --upgrade jax jaxlib"
    elif flag_is_on(os.environ.get("XLA_FLAGS", "")) and not backend_was_running:
        remedy = "install another jaxlib: the flag that cures the known ones is set"
    else:
        remedy = f"export XLA_FLAGS='{FLAG}=', or call metaopt.doctor.guard_cpu() first"
    if backend_was_running:
        remedy += " (before anything computes: here a backend was running already)"
    return Finding("canary", False, detail, remedy)


def _check_float64() -> Finding:
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        resolved = jnp.asarray(1.0, jnp.float64) + jnp.asarray(1e-12, jnp.float64)
        ok = resolved.dtype == jnp.float64 and abs(float(resolved) - (1 + 1e-12)) < 1e-15
    if ok:
        return Finding("float64", True, "available under jax.enable_x64(True)")
    return Finding("float64", False, "not available", "run float64 checks with JAX_PLATFORMS=cpu")


def _check_cache() -> Finding:
    import jax

    options = jax.config.values
    directory = options["jax_compilation_cache_dir"]
    if not (directory and options["jax_enable_compilation_cache"]):
        remedy = "metaopt.doctor.enable_compilation_cache() saves compiling twice"
        return Finding("compilation cache", None, "off", remedy)
    if "://" in directory or not Path(directory).is_dir():
        return Finding("compilation cache", None, f"on: {directory}")
    sizes = [entry.stat().st_size for entry in os.scandir(directory)]
    detail = f"on: {directory} ({len(sizes)} files, {sum(sizes) / 2**20:.0f} MiB)"
    return Finding("compilation cache", None, detail)


def _check_import(module: str, name: str, requirement: str, *, optional: bool = False) -> Finding:
    """Imports for real: a package may be installed and yet miss one that it does not declare."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        remedy = f'pip install "{requirement}"'
        return Finding(name, None if optional else False, f"not readable: {error}", remedy)
    return Finding(name, True, "readable")
