"""Is this machine fit to run metaopt?

    guard_cpu()                  before the first computation: switch off a miscompiling CPU fusion
    enable_compilation_cache()   keep compiled programs on disk
    canary()                     the worst error of programs that some jaxlibs compile wrongly
    check(), report(), main()    everything, one line per finding, with the remedy

Importing this package sets nothing and loads nothing, not even jax.
"""

from metaopt.doctor._cache import enable_compilation_cache
from metaopt.doctor._canary import canary
from metaopt.doctor._check import Finding, check, main, report
from metaopt.doctor._guard import guard_cpu

__all__ = [
    "Finding",
    "canary",
    "check",
    "enable_compilation_cache",
    "guard_cpu",
    "main",
    "report",
]
