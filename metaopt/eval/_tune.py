"""Baselines and the choice of their learning rate on a grid.

Every contender is a function from a learning rate to an optax optimizer; all are tuned on the same
grid, with the same schedule, on seeds that no report uses.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from metaopt.core import Scalar, TaskFamily
from metaopt.eval._curves import learning_curve

Metric = Literal["mean", "final"]


class Baseline(NamedTuple):
    """A contender of a comparison: hand-written or learned.

    Attributes:
        name: what reports call it.
        make: `(learning_rate) -> optax optimizer`; the learning rate is traced.
        learning_rate: a fixed learning rate, for a contender that is not tuned (any number where
            `make` ignores it); None tunes it.
    """

    name: str
    make: Callable[[Scalar], optax.GradientTransformation]
    learning_rate: float | None = None


class TuneResult(NamedTuple):
    """A learning rate and how it was chosen.

    Attributes:
        best: the chosen learning rate.
        at_edge: whether it is an end of the grid: the optimum may lie outside, widen the grid.
        grid: the learning rates tried.
        scores: mean over seeds of the normalised loss at each of them; lower is better.
        failure_rate: fraction of seeds that failed at each of them.
    """

    best: float
    at_edge: bool
    grid: tuple[float, ...]
    scores: np.ndarray
    failure_rate: np.ndarray


def log_grid(low: int, high: int, *, per_decade: int = 2) -> tuple[float, ...]:
    """Learning rates from 10^low to 10^high, both included, evenly spaced in the logarithm.

    Args:
        low: exponent of the smallest.
        high: exponent of the largest.
        per_decade: values per factor of ten: 2 for half-decades, 4 for quarter-decades.

    Returns:
        Increasing learning rates.

    Raises:
        ValueError: if the range is empty or `per_decade < 1`.
    """
    if low > high or per_decade < 1:
        raise ValueError(
            "log_grid: need low <= high and per_decade >= 1, got "
            f"low={low}, high={high}, per_decade={per_decade}."
        )
    exponents = range(low * per_decade, high * per_decade + 1)
    return tuple(10 ** (k / per_decade) for k in exponents)


def cosine(learning_rate: Scalar, num_steps: int, *, warmup_steps: int = 0) -> optax.Schedule:
    """Cosine decay to 0 with an optional linear warm-up from 0 (arXiv:1608.03983, one period).

    A contender with its own direction gets the same schedule as the baselines by
    `optax.chain(direction, optax.scale_by_learning_rate(cosine(learning_rate, num_steps)))`.

    Args:
        learning_rate: the peak. Traced.
        num_steps: steps until 0, warm-up included. Static.
        warmup_steps: steps of the warm-up. Static.

    Returns:
        An optax schedule.

    Raises:
        ValueError: unless `0 <= warmup_steps < num_steps`.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(
            f"cosine: need 0 <= warmup_steps < num_steps, got warmup_steps={warmup_steps}, "
            f"num_steps={num_steps}."
        )
    # Of height 1 and then scaled: optax's warm-up compares its peak with 0, a tracer cannot.
    if warmup_steps:
        shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps, num_steps)
    else:
        shape = optax.cosine_decay_schedule(1.0, num_steps)
    return lambda count: learning_rate * shape(count)


def baselines(
    num_steps: int, *, warmup_steps: int = 0, weight_decay: float = 1e-4
) -> tuple[Baseline, ...]:
    """The standard set: SGD with momentum 0.9, Adam, AdamW, all with the `cosine` schedule.

    Adam and AdamW have optax's defaults, b1 = 0.9, b2 = 0.999, eps = 1e-8. For an untuned member
    use `baseline._replace(name="adam, 1e-3", learning_rate=1e-3)`.

    Args:
        num_steps: inner steps of the schedule. Static.
        warmup_steps: as in `cosine`. Static.
        weight_decay: AdamW's decoupled weight decay, multiplied by the learning rate.

    Returns:
        Three contenders: `sgd_momentum`, `adam`, `adamw`.

    Raises:
        ValueError: as in `cosine`.
    """
    cosine(1.0, num_steps, warmup_steps=warmup_steps)

    def scheduled(optimizer, **settings):
        def make(learning_rate):
            schedule = cosine(learning_rate, num_steps, warmup_steps=warmup_steps)
            return optimizer(schedule, **settings)

        return make

    return (
        Baseline("sgd_momentum", scheduled(optax.sgd, momentum=0.9)),
        Baseline("adam", scheduled(optax.adam)),
        Baseline("adamw", scheduled(optax.adamw, weight_decay=weight_decay)),
    )


def tune(
    make_optimizer: Callable[[Scalar], optax.GradientTransformation],
    family: TaskFamily,
    data: Any,
    key: PRNGKeyArray,
    *,
    num_steps: int,
    grid: Sequence[float] = log_grid(-4, 1),
    num_seeds: int = 5,
    num_eval_batches: int = 16,
    metric: Metric = "mean",
) -> TuneResult:
    """Chooses a learning rate; all of grid × seeds is one program.

    Host-side orchestration like a training driver: it compiles by itself, once. The seeds of `key`
    are tuning seeds; report on others, by `learning_curve` with another key.

    Args:
        make_optimizer: `(learning_rate) -> optax optimizer`; the learning rate is traced.
        family: where tasks come from.
        data: the family's pool, or a `Split` of which only `inner` counts.
        key: randomness of tasks, initial parameters and batches, shared by the whole grid.
        num_steps: inner steps. Static.
        grid: increasing positive learning rates.
        num_seeds: tuning seeds. Static.
        num_eval_batches: batches of the final loss. Static.
        metric: the normalised training loss averaged over the run (`"mean"`) or, over many batches,
            at its end (`"final"`).

    Returns:
        The choice. Diverged runs count with the normaliser's worst value.

    Raises:
        ValueError: if the grid is empty, unsorted or not positive, or `metric` is unknown.
    """
    check_grid("tune", grid)
    if metric not in get_args(Metric):
        raise ValueError(f"tune: metric={metric!r} is unknown; choose from {get_args(Metric)}.")

    @jax.jit
    def sweep(grid, data, key):
        def one(learning_rate):
            curves = learning_curve(
                family,
                make_optimizer(learning_rate),
                data,
                key,
                num_steps=num_steps,
                num_seeds=num_seeds,
                num_eval_batches=num_eval_batches,
            )
            losses = curves.normalised
            return losses.train if metric == "mean" else losses.final[:, None], curves.failed

        return jax.vmap(one)(grid)

    losses, failed = jax.device_get(sweep(jnp.asarray(grid), data, key))
    # In float64: the default normaliser's worst value is the largest finite float32.
    scores = np.asarray(losses, np.float64).mean(axis=(1, 2))
    best = int(np.argmin(scores))
    is_end = len(grid) > 1 and best in (0, len(grid) - 1)
    return TuneResult(float(grid[best]), is_end, tuple(grid), scores, failed.mean(axis=1))


def check_grid(name: str, grid: Sequence[float]) -> None:
    """Raises ValueError, on behalf of `name`, unless the grid is positive and increasing."""
    values = np.asarray(grid, np.float64)
    if values.ndim != 1 or values.size == 0 or values[0] <= 0 or np.any(np.diff(values) <= 0):
        raise ValueError(
            f"{name}: grid={grid} must hold increasing positive learning rates; "
            "try log_grid(-4, 1)."
        )
