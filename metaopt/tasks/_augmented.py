"""A random stack of augmentations, drawn on the host: the one of VeLO's task distribution.

    augmentation          probability   drawn with it
    rescale               5/7           level: global, tensor (2/5 each), parameter (1/5);
                                        range: 1e-3..1e3, 1e-2..1e2 or 0.1..10
    es_gradient           0.08          σ log-uniform in 1e-3..0.1; pairs in {1, 2, 4, 8, 16}
    reduced_batch         0.2           share uniform in 0.01..1
    bfloat16              0.2
    normalised_gradient   0.05
    random_directions     0.08          directions log-uniform in 1..1024; signs or not
    delayed_gradients     0.05          delay log-uniform in 1..8

applied in this order, each independently of the others. Metz et al. 2022, arXiv:2211.09760, and its
public code.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from metaopt.core import TaskFamily, checked
from metaopt.tasks._augment import bfloat16, reduced_batch, rescale
from metaopt.tasks._augment_gradients import es_gradient, normalised_gradient, random_directions

_PROBABILITIES = {
    "rescale": 5 / 7,
    "es_gradient": 0.08,
    "reduced_batch": 0.2,
    "bfloat16": 0.2,
    "normalised_gradient": 0.05,
    "random_directions": 0.08,
    "delayed_gradients": 0.05,
}
_LEVELS = ("global", "global", "tensor", "tensor", "parameter")
_RANGES = ((1e-3, 1e3), (1e-2, 1e2), (0.1, 10.0))


class Augmented(NamedTuple):
    """What `augmented` draws.

    Attributes:
        family: the augmented family.
        delay: steps by which gradients are late, for `metaopt.unroll.delayed_gradients`, which
            wraps the system that the family makes; 0: they are not.
        applied: the augmentations and what was drawn with them, in words.
    """

    family: TaskFamily
    delay: int
    applied: tuple[str, ...]


@checked
def augmented(
    family: TaskFamily,
    rng: np.random.Generator,
    *,
    probabilities: Mapping[str, float] | None = None,
    max_directions: int = 1024,
) -> Augmented:
    """Draws VeLO's augmentations of a family.

    The draw is static: another one is another program. What each augmentation draws per task
    stays traced.

    Args:
        family: the family to augment.
        rng: NumPy's generator; advanced by the same amount whatever is drawn.
        probabilities: replacements in the table above, by name. A family without batches, such as
            `quadratic`, needs `{"reduced_batch": 0}`.
        max_directions: the upper end of the number of directions, each of which costs as much as
            drawing the parameters once in every inner step.

    Returns:
        The family, with the delay that only its system can have.

    Raises:
        ValueError: if a probability is of an unknown augmentation or not between 0 and 1, or
            `max_directions < 1`.
    """
    chances = {**_PROBABILITIES, **(probabilities or {})}
    for name, chance in chances.items():
        if name not in _PROBABILITIES:
            raise ValueError(
                f"augmented: probabilities has {name!r}; choose from {tuple(_PROBABILITIES)}."
            )
        if not 0 <= chance <= 1:
            raise ValueError(f"augmented: the probability {chance} of {name!r} is not in [0, 1].")
    if max_directions < 1:
        raise ValueError(f"augmented: max_directions must be at least 1, got {max_directions}.")

    happens = {name: rng.random() < chances[name] for name in _PROBABILITIES}
    level = _LEVELS[rng.integers(len(_LEVELS))]
    low, high = _RANGES[rng.integers(len(_RANGES))]
    sigma, pairs = float(10 ** rng.uniform(-3, -1)), int(2 ** rng.integers(5))
    share = float(rng.uniform(0.01, 1.0))
    directions, sign = log_integer(rng, 1, max_directions), bool(rng.integers(2))
    delay = log_integer(rng, 1, 8)

    makers = {
        "rescale": (
            f"rescale({level}, {low:g}..{high:g})",
            lambda f: rescale(f, level=level, low=low, high=high),
        ),
        "es_gradient": (
            f"es_gradient(sigma={sigma:.3g}, num_pairs={pairs})",
            lambda f: es_gradient(f, sigma=sigma, num_pairs=pairs),
        ),
        "reduced_batch": (
            f"reduced_batch({share:.3g})",
            lambda f: reduced_batch(f, low=share, high=share),
        ),
        "bfloat16": ("bfloat16", bfloat16),
        "normalised_gradient": ("normalised_gradient", normalised_gradient),
        "random_directions": (
            f"random_directions({directions}{', sign' if sign else ''})",
            lambda f: random_directions(f, num_directions=directions, sign=sign),
        ),
    }
    applied = []
    for name, (words, make) in makers.items():
        if happens[name]:
            family = make(family)
            applied.append(words)
    if not happens["delayed_gradients"]:
        return Augmented(family, 0, tuple(applied))
    return Augmented(family, delay, (*applied, f"delayed_gradients({delay})"))


def log_integer(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer from `low` to `high`, log-uniform: ⌊exp(u)⌋ with u ~ U[ln low, ln (high + 1)]."""
    return min(int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))), high)
