"""How much memory a function of arrays needs, as the compiler plans it before anything runs.

    peak ≤ arguments + outputs − reused + temporary

The numbers are those of XLA's buffer assignment for the current default device. Temporary memory
is where rematerialisation shows; the plan does not count what other programs hold.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from metaopt.core import checked


class MemoryReport(NamedTuple):
    """Bytes that one compiled call needs.

    Attributes:
        temporary: scratch space, what a backward pass keeps included.
        arguments: the arguments.
        outputs: the results.
        peak: all of them together at once; buffers that outputs share with arguments count once.
    """

    temporary: int
    arguments: int
    outputs: int
    peak: int


@checked
def memory_report(function: Callable[..., Any], /, *args: Any) -> MemoryReport:
    """Compiles a function for its arguments and reports the memory that a call needs.

    Nothing is computed; compilation takes as long as it takes.

    Args:
        function: any function that `jax.jit` takes; jitted already or not.
        *args: its arguments, or `jax.ShapeDtypeStruct` in place of arrays.

    Returns:
        Bytes, as Python integers.

    Raises:
        RuntimeError: on a backend without such an account.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    stats = jitted.lower(*args).compile().memory_analysis()
    if stats is None:
        raise RuntimeError("memory_report: this backend does not say what its programs need.")
    sizes = [stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes]
    arguments, outputs, temporary = map(int, sizes)
    peak = arguments + outputs + temporary - int(stats.alias_size_in_bytes)
    return MemoryReport(temporary, arguments, outputs, peak)


@checked
def memory_table(functions: Mapping[str, Callable[..., Any]], /, *args: Any) -> str:
    """Compares several functions of the same arguments, in a table of plain text.

    Args:
        functions: what to compare, by name; ratios are those to the first one.
        *args: as in `memory_report`.

    Returns:
        One line per function: temporary and peak memory in MiB and how many times less temporary
        memory than the first one.

    Raises:
        ValueError: if there is no function.
    """
    if not functions:
        raise ValueError("memory_table: functions is empty; pass at least one function by name.")
    reports = {name: memory_report(function, *args) for name, function in functions.items()}
    first = next(iter(reports.values()))
    width = max(len("function"), *map(len, reports))
    lines = [f"{'function':{width}}  temporary MiB  peak MiB  times less"]
    for name, report in reports.items():
        ratio = first.temporary / max(report.temporary, 1)
        temporary, peak = report.temporary / 2**20, report.peak / 2**20
        lines.append(f"{name:{width}}  {temporary:13.3f}  {peak:8.3f}  {ratio:10.2f}")
    return "\n".join(lines)
