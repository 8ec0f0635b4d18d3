"""Which meta-gradient to use on a problem, and up to which horizon: measured.

For each estimator and horizon: bias against a reference gradient, variance, wall time, memory and
oracle counts. For each horizon: the Lyapunov exponent of inner training. For the longest: slices of
the meta-loss. The rules that turn them into advice are those of `recommend`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from metaopt import estimators as gradients
from metaopt.core import Estimator, Oracles, Scalar, System
from metaopt.eval._bias import Bias, bias, relative_noise
from metaopt.eval._lyapunov import lyapunov
from metaopt.eval._sampling import sample_estimator
from metaopt.eval._slices import loss_slice, roughness
from metaopt.unroll import meta_loss

EstimatorFactory = Callable[[int], Estimator]
Reference = Literal["auto", "backprop", "es"]

# Beyond this relative standard error the exact gradient is not known well enough to judge others.
_UNRELIABLE = 0.5
_MORE_SAMPLES = 4


class EstimatorDiagnosis(NamedTuple):
    """One estimator at one horizon. A sample is defined in `sample_estimator`.

    Attributes:
        name: the estimator's.
        horizon: inner steps of a trajectory.
        bias: how its samples compare with the reference, variance included.
        seconds: wall time of one sample.
        cost: relative variance times seconds: the relative variance of one second of samples.
        estimates_per_sample: windows of a trajectory.
        temp_bytes: memory for intermediate values; -1 where unknown.
        inner_steps: inner steps of one sample, over all tasks and arms.
        oracles: of one sample.
        loss: the meta-loss it reports.
    """

    name: str
    horizon: int
    bias: Bias
    seconds: float
    cost: float
    estimates_per_sample: int
    temp_bytes: int
    inner_steps: int
    oracles: Oracles
    loss: float


class HorizonDiagnosis(NamedTuple):
    """Inner training at one horizon.

    Attributes:
        horizon: inner steps T of a trajectory.
        reference: what estimates are compared with: "backprop", "es" (the gradient of the
            smoothed loss, where the exact one is not reliable) or "given".
        reference_noise: relative standard error of the reference; NaN for a given one.
        exact_noise: that of backpropagation over the same tasks; NaN where not taken or not finite.
        norm: Euclidean norm of the reference.
        exponent: Lyapunov exponent per inner step, averaged over tasks: the slope of `log_growth`
            over the second half of the trajectory, past the transient that optimizers start with.
        log_growth: `[T]`, logarithm of the growth of a difference of states until each step.
    """

    horizon: int
    reference: str
    reference_noise: float
    exact_noise: float
    norm: float
    exponent: float
    log_growth: np.ndarray


class Slice(NamedTuple):
    """The meta-loss of the longest horizon along a line.

    Attributes:
        direction: "random" or "gradient" (of the reference).
        width: the largest distance from theta.
        offsets: `[n]`, distances.
        losses: `[n]`.
        roughness: see `roughness`.
    """

    direction: str
    width: float
    offsets: np.ndarray
    losses: np.ndarray
    roughness: float


class Diagnosis(NamedTuple):
    """Everything `diagnose` measured.

    Attributes:
        estimators: a row for each horizon and estimator.
        horizons: a row for each horizon.
        slices: of the longest horizon.
        sigma: scale of smoothing.
        num_samples: samples of each estimator.
    """

    estimators: tuple[EstimatorDiagnosis, ...]
    horizons: tuple[HorizonDiagnosis, ...]
    slices: tuple[Slice, ...]
    sigma: float
    num_samples: int


def standard_estimators(
    system: System,
    names: Sequence[str],
    *,
    sigma: Scalar = 0.01,
    truncation: int | None = None,
    num_tasks: int = 8,
) -> dict[str, EstimatorFactory]:
    """Estimators with common settings, as `diagnose` takes them.

    Args:
        system: inner training.
        names: of unrolled estimators in `metaopt.estimators`.
        sigma: perturbation scale of those that perturb. Traced.
        truncation: inner steps per window, a divisor of the horizons; None: the largest divisor of
            each horizon that makes at least five windows. Static.
        num_tasks: tasks. Static.

    Returns:
        A factory `horizon -> Estimator` for each name.

    Raises:
        ValueError: for a name that is not one of these estimators.
    """
    perturbed = ("es", "truncated_es", "pes", "gpes", "nres", "combined")
    whole = ("backprop", "forward", "es", "combined")
    known = sorted({*perturbed, *whole, "truncated_backprop"})
    for name in names:
        if name not in known:
            raise ValueError(
                f"standard_estimators: {name!r} is unknown; choose from {', '.join(known)}."
            )

    def factory(name):
        def make(horizon):
            settings: dict[str, Any] = {"horizon": horizon, "num_tasks": num_tasks}
            if name in perturbed:
                settings["sigma"] = sigma
            if name not in whole:
                settings["truncation"] = truncation or _fifth(horizon)
            if name == "gpes":
                settings["share"] = 2 * settings["truncation"]
            return getattr(gradients, name)(system, **settings)

        return make

    return {name: factory(name) for name in names}


def diagnose(
    system: System,
    estimators: Mapping[str, Estimator | EstimatorFactory],
    theta: Any,
    data: Any,
    key: PRNGKeyArray,
    *,
    horizons: Sequence[int],
    num_samples: int = 32,
    sigma: float = 0.01,
    reference: Reference | Callable[[int], Any] = "auto",
    num_reference: int = 64,
    num_tasks: int = 8,
    num_points: int = 201,
    num_slice_tasks: int = 2,
    on_report: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Measures estimators of the gradient of the mean loss of whole trajectories.

    Args:
        system: inner training; `core.bilevel_training` makes one of a bilevel problem.
        estimators: by name: factories `horizon -> Estimator`, such as `standard_estimators` makes,
            or estimators that serve every horizon. Constant horizons.
        theta: meta-parameters.
        data: the pool.
        key: of everything random.
        horizons: inner steps of trajectories.
        num_samples: samples of each estimator; at least 4.
        sigma: smoothing of the reference "es", and the unit of the slices' widths 5σ and 50σ.
        reference: "backprop", "es", or "auto": backpropagation unless its mean is not finite or has
            a relative standard error above one half and that of ES is smaller. Or a function
            `horizon -> gradient`, for a gradient known otherwise.
        num_reference: estimates of `num_tasks` tasks each in the reference; four times as many
            where it falls back on ES.
        num_tasks: tasks of an estimate of the reference, and of the exponents.
        num_points: points of a slice; 0: no slices.
        num_slice_tasks: tasks whose mean a slice shows.
        on_report: called with a line of text before each step that takes time.

    Returns:
        The diagnosis; see `table`, `figure`, `to_json` and `recommend`.

    Raises:
        ValueError: for no estimator or horizon, counts too small, an unknown `reference`.
        TypeError: if `system` is not a System.
    """
    _check(system, estimators, horizons, num_samples, num_reference, reference)
    key_samples, key_reference, key_exponents, key_slices = jax.random.split(key, 4)
    rows, levels, slices = [], [], []
    exponents = _exponents(system, theta, data, key_exponents, max(horizons), num_tasks)
    for level, horizon in enumerate(sorted(horizons)):
        on_report(f"horizon {horizon}: reference gradient")
        target, source, exact_noise = _reference(
            system,
            theta,
            data,
            jax.random.fold_in(key_reference, level),
            horizon=horizon,
            choice=reference,
            sigma=sigma,
            num_reference=num_reference,
            num_tasks=num_tasks,
        )
        growth = exponents(horizon)
        levels.append(
            HorizonDiagnosis(
                horizon=horizon,
                reference=source,
                reference_noise=relative_noise(target),
                exact_noise=exact_noise,
                norm=float(np.linalg.norm(target.mean(axis=0))),
                exponent=_slope(growth),
                log_growth=growth,
            )
        )
        key_level = jax.random.fold_in(key_samples, level)
        for index, (name, make) in enumerate(estimators.items()):
            on_report(f"horizon {horizon}: {name}")
            estimator = make if isinstance(make, Estimator) else make(horizon)
            key_rows = jax.random.fold_in(key_level, index)
            samples = sample_estimator(estimator, theta, data, key_rows, num_samples=num_samples)
            rows.append(_row(name, horizon, samples, target))
    if num_points:
        on_report(f"horizon {horizon}: slices of the meta-loss")
        gradient = target.mean(axis=0)
        sizes = (num_points, num_slice_tasks)
        slices = _slices(system, theta, data, key_slices, horizon, gradient, sigma, *sizes)
    return Diagnosis(tuple(rows), tuple(levels), tuple(slices), float(sigma), num_samples)


def _row(name, horizon, samples, target) -> EstimatorDiagnosis:
    compared = bias(samples.grads, target)
    seconds = samples.seconds * samples.estimates_per_sample
    return EstimatorDiagnosis(
        name=name,
        horizon=horizon,
        bias=compared,
        seconds=seconds,
        cost=compared.variance * seconds,
        estimates_per_sample=samples.estimates_per_sample,
        temp_bytes=samples.temp_bytes,
        inner_steps=samples.inner_steps,
        oracles=samples.oracles,
        loss=samples.loss,
    )


def _reference(
    system, theta, data, key, *, horizon, choice, sigma, num_reference, num_tasks
) -> tuple[np.ndarray, str, float]:
    """Samples of the reference gradient, what it is, and the noise of the exact one."""
    if callable(choice):
        flat, _ = ravel_pytree(choice(horizon))
        return np.asarray(flat, np.float64)[None], "given", float("nan")
    key_exact, key_smooth = jax.random.split(key)
    settings: dict[str, Any] = {"horizon": horizon, "num_tasks": num_tasks}
    exact_noise = float("nan")
    if choice != "es":
        estimator = gradients.backprop(system, **settings)
        exact = sample_estimator(estimator, theta, data, key_exact, num_samples=num_reference).grads
        # A task whose gradient is not finite counts zero, so that it can only lower the mean.
        exact_noise = relative_noise(exact)
        if choice == "backprop" or exact_noise <= _UNRELIABLE:
            return exact, "backprop", exact_noise
    estimator = gradients.es(system, sigma=sigma, **settings)
    smooth = sample_estimator(
        estimator, theta, data, key_smooth, num_samples=_MORE_SAMPLES * num_reference
    ).grads
    if choice == "auto" and exact_noise <= relative_noise(smooth):
        return exact, "backprop", exact_noise
    return smooth, "es", exact_noise


def _exponents(system, theta, data, key, longest, num_tasks):
    """`horizon -> ` logarithm of the growth until each step, mean over tasks; compiled once."""

    @jax.jit
    def grow(theta, data, key, horizon):
        def one(key):
            return lyapunov(system, theta, data, key, num_steps=longest, horizon=horizon)

        return jnp.mean(jax.vmap(one)(jax.random.split(key, num_tasks)), axis=0)

    def of(horizon):
        rates = grow(theta, data, jax.random.clone(key), jnp.asarray(horizon, jnp.int32))
        return np.cumsum(np.asarray(rates, np.float64)[:horizon])

    return of


def _slices(
    system, theta, data, key, horizon, gradient, sigma, num_points, num_tasks
) -> list[Slice]:
    """The meta-loss along two directions, near and far."""
    one_task = meta_loss(system, horizon=horizon)
    flat, unravel = ravel_pytree(theta)
    key_direction, key_loss = jax.random.split(key)

    def average(theta, data, key):
        keys = jax.random.split(key, num_tasks)
        return jnp.mean(jax.vmap(one_task, in_axes=(None, None, 0))(theta, data, keys))

    @jax.jit
    def along(direction, offsets, data, key):
        return loss_slice(average, theta, unravel(direction), data, key, offsets=offsets)

    directions = {
        "random": jax.random.normal(key_direction, flat.shape, flat.dtype),
        "gradient": jnp.asarray(gradient, flat.dtype),
    }
    slices = []
    for name, direction in directions.items():
        for width in (5 * sigma, 50 * sigma):
            offsets = jnp.linspace(-width, width, num_points)
            losses = np.asarray(along(direction, offsets, data, jax.random.clone(key_loss)))
            slices.append(Slice(name, width, np.asarray(offsets), losses, roughness(losses)))
    return slices


def _slope(growth: np.ndarray) -> float:
    """Growth per step over the second half."""
    half = len(growth) // 2
    return float((growth[-1] - (growth[half - 1] if half else 0)) / (len(growth) - half))


def _fifth(horizon: int) -> int:
    """The largest divisor of a horizon that makes at least five windows, 1 if there is none."""
    return max([d for d in range(1, horizon // 5 + 1) if horizon % d == 0], default=1)


def _check(system, estimators, horizons, num_samples, num_reference, reference):
    if not isinstance(system, System):
        raise TypeError(
            f"diagnose: needs a System, got a {type(system).__name__}; metaopt.core.training and "
            "bilevel_training make one of a family or a bilevel problem."
        )
    if not estimators or not horizons:
        raise ValueError("diagnose: give at least one estimator and one horizon.")
    if min(horizons) < 1:
        raise ValueError(f"diagnose: horizons={tuple(horizons)} must be at least 1.")
    for name, count in {"num_samples": num_samples, "num_reference": num_reference}.items():
        if count < 4:
            raise ValueError(
                f"diagnose: {name} must be at least 4 for standard errors, got {count}."
            )
    if not callable(reference) and reference not in ("auto", "backprop", "es"):
        raise ValueError(
            f"diagnose: reference={reference!r} is unknown; choose auto, backprop, es, or pass a "
            "function of the horizon."
        )
