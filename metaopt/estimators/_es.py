"""Evolution strategies with antithetic pairs over whole trajectories (ES).

    g = 1/(2Nσ²) · Σᵢ [L(θ + eᵢ) − L(θ − eᵢ)] eᵢ,    eᵢ ~ N(0, σ² I)

Salimans et al. 2017, arXiv:1703.03864, §2.1, without rank shaping by default. `sign` and `ranks`
replace the differences by something robust to heavy tails, no longer unbiased: `_transforms.py`.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Estimator, MetaLoss, Scalar, System, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import (
    antithetic,
    as_episode_loss,
    average,
    check_positive,
    check_tasks,
    finite_or_zero,
    map_tasks,
    perturbation,
)
from metaopt.estimators._transforms import check_transforms, transform_all, transform_pair
from metaopt.unroll import Horizon, Objective, as_horizon, sample_length


@checked
def es(
    problem: System | MetaLoss,
    *,
    sigma: Scalar = 0.01,
    horizon: int | Horizon | None = None,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    objective: Objective = "mean",
    clip: Scalar | None = None,
    sign: Scalar | None = None,
    ranks: Scalar | None = None,
) -> Estimator:
    """Estimates the gradient of the σ-smoothed meta-loss, without bias.

    Args:
        problem: a System, or a pure `meta_loss(theta, data, key) -> scalar`, which need not be
            differentiable.
        sigma: perturbation scale σ, in units of `theta`. Traced.
        horizon: inner steps of a trajectory, for a System: an int or a `Horizon`, of which one
            length is drawn for all tasks. Static.
        num_tasks: tasks N, one antithetic pair each. Static.
        tasks_at_once: how many of them are vectorised at a time, a divisor of `num_tasks`; fewer
            need less memory, and on CPUs run faster where all do not fit the cache. None: all.
            Static.
        objective: of a System's trajectory: "mean", "last" or "min". Static.
        clip: differences are clipped to ±clip. Traced; None: not clipped.
        sign: the constant c of `sign(difference) · c`. Traced; None: the difference itself.
        ranks: the constant c that multiplies differences of centred ranks, which replace those of
            the losses. Traced; None: not ranked. Excludes `sign`.

    Returns:
        An estimator without state whose `grad` has the structure, shapes and dtypes of `theta`.

    Raises:
        ValueError: for a non-positive `sigma`, `clip`, `sign` or `ranks`, the last two together,
            `num_tasks < 1`, a System without a horizon or a function with one.
        TypeError: if `theta` has leaves that are not floating-point.
    """
    check_positive("es", sigma=sigma, **({} if clip is None else {"clip": clip}))
    check_transforms("es", sign, ranks)
    check_tasks("es", num_tasks, tasks_at_once)
    episode_loss = as_episode_loss("es", problem, horizon=horizon, objective=objective)
    lengths = None if horizon is None else as_horizon(horizon, name="es")

    def init(theta, data, key):
        del data, key
        return ()

    def one_task(theta, data, key, length):
        key_eps, key_loss = jax.random.split(key)
        eps = perturbation(theta, sigma, key_eps)
        # Both arms see the same inner randomness, so that it cancels.
        losses, info = jax.vmap(episode_loss, in_axes=(0, None, None, None))(
            antithetic(theta, eps), data, key_loss, length
        )
        slope, finite = finite_or_zero(_transform(losses[0] - losses[1], clip, sign, ranks))
        grad = optax.tree.scale(slope / (2 * sigma**2), eps)
        return grad, losses, finite, info.frozen, jnp.abs(slope)

    def estimate(theta, state, data, key):
        key_length, key_tasks = jax.random.split(key)
        length = None if lengths is None else sample_length(lengths, key_length)
        outputs = map_tasks(
            lambda _, key: one_task(theta, data, key, length),
            (),
            key_tasks,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        steps = 0 if length is None else 2 * num_tasks * length
        outputs = transform_all(outputs, ranks)
        return average(theta, *outputs, inner_steps=steps), state

    return checked_estimator("es", init, estimate)


def _transform(difference, clip, sign, ranks=None):
    if clip is not None:
        difference = jnp.clip(difference, -clip, clip)
    return transform_pair(difference, sign, ranks)
