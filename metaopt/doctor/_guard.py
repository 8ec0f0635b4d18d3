"""The guard against a miscompiling fusion of XLA:CPU.

XLA:CPU hands some fused reductions to a library (YNN). From jaxlib 0.10.2 to 0.12.0.1 at least, a
product with a constant matrix followed by a reduction silently returns wrong numbers above a few
thousand rows. Setting the flag `--xla_cpu_experimental_ynn_fusion_type=` to the empty value turns
the fusion off, at no cost in speed that we could measure.
"""

import importlib.metadata
import os
import re
import sys

FLAG = "--xla_cpu_experimental_ynn_fusion_type"

# XLA aborts the process on a flag it does not know, so the flag is set only for releases that were
# run with it. A newer jaxlib may have dropped it: there the canary decides, and says what to do.
_KNOWN_FROM = (0, 8, 3)
_KNOWN_BEFORE = (0, 13)


def guard_cpu() -> bool:
    """Switches off the miscompiling CPU fusion by appending a flag to `XLA_FLAGS`.

    Call it before the first computation, and before the first call of `jax.devices()`; `import jax`
    may come earlier. Processes started later inherit the setting. Nothing is changed if the
    variable already names the flag (whatever its value), if it names a file of flags, if a
    backend is already running, or if the installed jaxlib is not known to accept the flag
    (known: 0.8.3 to 0.12.x).

    Returns:
        Whether the fusion is off: the flag was set here, or before, to the empty value. After a
        late call, False; `check` tells why.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if FLAG in flags:
        return flag_is_on(flags)
    if (flags and not flags.startswith("-")) or not flag_is_known() or backend_is_running():
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()
    return True


def flag_is_known() -> bool:
    """Whether the installed jaxlib is one that was run with the flag."""
    try:
        version = parse_version(importlib.metadata.version("jaxlib"))
    except importlib.metadata.PackageNotFoundError:
        return False
    return _KNOWN_FROM <= version < _KNOWN_BEFORE


def flag_is_on(flags: str) -> bool:
    """Whether a value of `XLA_FLAGS` switches the fusion off."""
    # XLA takes the last value where a flag is given twice.
    values = [word.partition("=")[2] for word in flags.split() if word.split("=")[0] == FLAG]
    return bool(values) and values[-1] == ""


def backend_is_running() -> bool:
    """Whether jax has started a backend; does not start one."""
    # jax has no public way to ask this without starting a backend.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


def parse_version(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.12.1.dev3" gives (0, 12, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
