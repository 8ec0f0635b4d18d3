"""Contenders of the evaluation suite: hand-written optimizers, each with one knob.

    knob ∈ centre · 10^((i - (n-1)/2) / 2),    i = 0 … n-1

so that each gets n values, half a decade apart, around a centre of its own: a multiplier of 1 for
rules without a learning rate, else the one that its authors publish, raised because these runs are
short (10 times for the Adam family and Lion, 4 for Schedule-Free). All follow the same cosine
to 0, except Schedule-Free and DoG, which are constant by design.
"""

import hashlib
import importlib.resources
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from metaopt import learned
from metaopt.core import Params, Scalar
from metaopt.eval._tune import Baseline, cosine
from metaopt.optimizers import shampoo


class Contender(NamedTuple):
    """What the suite runs on every task, hand-written or learned.

    Attributes:
        name: what reports call it; results are stored under it, so it stands for one rule.
        make: `(value, num_steps) -> optax optimizer`; the value of the knob is traced.
        centre: middle of the knob's grid; the value itself where it is not tuned.
        is_tuned: whether each task chooses the knob on tuning seeds.
        eval_params: as in `learning_curve`.
        digest: tells apart contenders of one name, such as two thetas; see `theta_digest`.
    """

    name: str
    make: Callable[[Scalar, int], optax.GradientTransformation]
    centre: float = 1.0
    is_tuned: bool = True
    eval_params: Callable[[Any, Params], Params] | None = None
    digest: str = ""


def suite_baselines() -> tuple[Contender, ...]:
    """The hand-written contenders.

    Returns:
        `adamw` (weight decay 1e-4; the reference), `adam`, `nadamw`, `sgd_momentum`, `lion`, `muon`
        (with the update scale that makes Adam's learning rates apply, arXiv:2502.16982), `shampoo`,
        `schedule_free` (AdamW; measured at its average), `dog` (without averaging) and `prodigy`.
    """
    return (
        _decayed("adamw", optax.adamw, 10**-2.0),
        _decayed("adam", optax.adam, 10**-2.0),
        _decayed("nadamw", optax.nadamw, 10**-2.0),
        _decayed("sgd_momentum", optax.sgd, 0.1, momentum=0.9),
        _decayed("lion", optax.lion, 10**-3.0),
        _decayed("muon", optax.contrib.muon, 10**-2.0, consistent_rms=0.2),
        _decayed("shampoo", shampoo, 10**-2.0, every=20, max_size=128),
        Contender(
            "schedule_free",
            lambda value, num_steps: optax.contrib.schedule_free_adamw(
                value, warmup_steps=max(1, num_steps // 20), weight_decay=1e-4
            ),
            10**-2,
            eval_params=optax.contrib.schedule_free_eval_params,
        ),
        Contender("dog", lambda value, num_steps: optax.contrib.dog(value)),
        _decayed("prodigy", optax.contrib.prodigy, 1.0),
    )


def as_contender(baseline: Baseline | Contender) -> Contender:
    """A `Baseline` as a contender whose schedule does not know the number of steps.

    Args:
        baseline: with a fixed learning rate, or to be tuned around 10^-2.5. A contender stays.

    Returns:
        A contender.
    """
    if isinstance(baseline, Contender):
        return baseline
    rate = baseline.learning_rate
    return Contender(
        baseline.name,
        lambda value, num_steps: baseline.make(value),
        10**-2.5 if rate is None else rate,
        is_tuned=rate is None,
    )


def pretrained_contender(name: str, *, is_tuned: bool = True) -> Contender:
    """Weights that ship with metaopt, on the baselines' cosine unless they learned a decay.

    Args:
        name: one of `metaopt.learned.pretrained_names`.
        is_tuned: whether to try values around the recommended learning rate, or to take it as it
            is. A rule without a learning rate is never tuned.

    Returns:
        A contender, named `NAME`, or `NAME:default` where it has a learning rate and takes it.

    Raises:
        ValueError: if there are no weights of that name.
    """
    if name not in learned.pretrained_names():
        raise ValueError(
            f"pretrained_contender: name={name!r} is unknown; choose from "
            f"{list(learned.pretrained_names())}."
        )
    shipped = importlib.resources.files("metaopt.learned") / "weights" / f"{name}.npz"
    with importlib.resources.as_file(shipped) as file:
        header = learned.weights_info(file)
    rate, digest = header["settings"].get("learning_rate"), header["weights_sha256"][:12]
    if rate is None:
        return Contender(
            name,
            lambda value, num_steps: learned.pretrained(name, num_steps=num_steps),
            is_tuned=False,
            digest=digest,
        )

    has_decay = header["settings"].get("decay_power") is not None

    def make(value, num_steps):
        rate = value if has_decay else cosine(value, num_steps)
        return learned.pretrained(name, learning_rate=rate, num_steps=num_steps)

    return Contender(
        name if is_tuned else f"{name}:default", make, rate, is_tuned=is_tuned, digest=digest
    )


def theta_digest(theta: PyTree) -> str:
    """A short hash of a theta's structure and numbers, for `Contender.digest`.

    Args:
        theta: any pytree of arrays.

    Returns:
        Twelve hexadecimal digits.
    """
    leaves, structure = jax.tree.flatten(theta)
    total = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        values = np.asarray(leaf)
        total.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())
    return total.hexdigest()[:12]


def knob_values(contender: Contender, num_values: int) -> np.ndarray:
    """The grid of a contender's knob, or its one value."""
    if not contender.is_tuned:
        return np.array([contender.centre])
    exponents = (np.arange(num_values) - (num_values - 1) / 2) / 2
    return contender.centre * 10**exponents


def _decayed(name, optimizer, centre, **settings) -> Contender:
    def make(value, num_steps):
        return optimizer(cosine(value, num_steps), **settings)

    return Contender(name, make, centre)
