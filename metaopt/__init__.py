"""metaopt: learned optimizers and meta-gradients in JAX.

Submodules load when they are first used; `import metaopt` itself loads nothing heavy and sets
nothing.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from metaopt import (
        aggregators,
        algorithms,
        core,
        data,
        doctor,
        estimators,
        eval,
        implicit,
        learned,
        optimizers,
        tasks,
        train,
        tree,
        unroll,
    )
    from metaopt.learned import pretrained

__all__ = [  # noqa: F822
    "aggregators",
    "algorithms",
    "core",
    "data",
    "doctor",
    "estimators",
    "eval",
    "implicit",
    "learned",
    "optimizers",
    "pretrained",
    "tasks",
    "train",
    "tree",
    "unroll",
]


def __getattr__(name):
    if name == "pretrained":
        return importlib.import_module("metaopt.learned").pretrained
    if name in __all__:
        return importlib.import_module(f"metaopt.{name}")
    raise AttributeError(f"module 'metaopt' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
