"""The meta-step: everything between two versions of theta, as one function to compile.

    (ĝ_f, s_f) = estimate_f(θ, s_f, data_f)      for each family f, in turn
    ĝ          = mean over families of ĝ_f
    θ, o       = outer_opt(ĝ, o, θ)              skipped if ĝ is not to be trusted

An outer update is skipped, and θ and the outer optimizer's state stay as they are, when ĝ or the
new θ is not finite, when the update would turn a finite number of the optimizer's state into one
that is not, or when more than half of the tasks' contributions were not finite.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metaopt import tree
from metaopt.core import Estimate, Estimator

_MOST = 0.5


class TrainState(NamedTuple):
    """All that a run needs to continue bit for bit.

    Attributes:
        theta: meta-parameters.
        outer_state: the outer optimizer's state.
        estimator_states: state of each family's estimator, by its name.
        key: the run's key; step t uses `fold_in(key, t)`.
        step: outer steps taken.
        best_theta: theta with the best score on the probe so far.
        best_score: its score; inf before the first probe.
    """

    theta: PyTree
    outer_state: PyTree
    estimator_states: dict[str, Any]
    key: PRNGKeyArray
    step: Int[Array, ""]
    best_theta: PyTree
    best_score: Float[Array, ""]


def init_state(
    estimators: Mapping[str, Estimator],
    theta: PyTree,
    data: Mapping[str, PyTree],
    key: PRNGKeyArray,
    *,
    outer_opt: optax.GradientTransformation,
) -> TrainState:
    """The state of a run at step 0.

    Args:
        estimators: one estimator per family, by name.
        theta: initial meta-parameters. Copied: a run never consumes its caller's arrays.
        data: a pool per family, by the same names.
        key: the run's key.
        outer_opt: the optimizer of theta.

    Returns:
        A state whose `best_theta` is `theta`.
    """
    key_run, *keys = jax.random.split(key, 1 + len(estimators))
    states = {
        name: estimator.init(theta, data[name], key_family)
        for (name, estimator), key_family in zip(estimators.items(), keys, strict=True)
    }
    copies = [jax.tree.map(lambda x: jnp.array(x, copy=True), theta) for _ in range(2)]
    return TrainState(
        theta=copies[0],
        outer_state=outer_opt.init(copies[0]),
        estimator_states=states,
        key=key_run,
        step=jnp.zeros((), jnp.int32),
        best_theta=copies[1],
        best_score=jnp.array(jnp.inf),
    )


def meta_step(
    estimators: Mapping[str, Estimator], outer_opt: optax.GradientTransformation
) -> Callable[[TrainState, Mapping[str, PyTree]], tuple[TrainState, dict[str, Array]]]:
    """Makes the function that a driver compiles and repeats.

    Args:
        estimators: one estimator per family, by name; their gradients are averaged.
        outer_opt: any optax chain: clipping, schedules and masks included. Given `value=`, the
            mean meta-loss.

    Returns:
        `(state, data) -> (state, metrics)`, pure. Metrics are scalars: `loss`, `loss/<family>`,
        `grad_norm`, `update_norm`, `skipped`, and the means over families of `nonfinite`,
        `frozen` and `spread` (see `metaopt.core.EstimateInfo`), and the sum of `inner_steps`.
    """
    outer_opt = optax.with_extra_args_support(outer_opt)

    def step(state, data):
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(estimators))
        estimates, states = {}, {}
        for (name, estimator), key in zip(estimators.items(), keys, strict=True):
            estimates[name], states[name] = estimator.estimate(
                state.theta, state.estimator_states[name], data[name], key
            )
        grad = jax.tree.map(
            lambda *gs: sum(g / len(gs) for g in gs), *[e.grad for e in estimates.values()]
        )
        metrics = _summarise(estimates)

        updates, outer_state = outer_opt.update(
            grad, state.outer_state, state.theta, value=metrics["loss"]
        )
        theta = optax.apply_updates(state.theta, updates)
        trusted = tree.all_finite((grad, theta)) & (metrics["nonfinite"] <= _MOST)
        trusted &= _stays_finite(outer_state, state.outer_state)
        theta, outer_state = tree.where(
            trusted, (theta, outer_state), (state.theta, state.outer_state)
        )
        metrics |= {
            "grad_norm": optax.tree.norm(grad),
            "update_norm": jnp.where(trusted, optax.tree.norm(updates), 0),
            "skipped": 1.0 - trusted,
        }
        state = state._replace(
            theta=theta, outer_state=outer_state, estimator_states=states, step=state.step + 1
        )
        return state, metrics

    return step


def keep_best(state: TrainState, score: Float[Array, ""]) -> TrainState:
    """Keeps theta as the best one if its score on the probe is lower than any before."""
    better = score < state.best_score
    return state._replace(
        best_theta=tree.where(better, state.theta, state.best_theta),
        best_score=jnp.where(better, score, state.best_score),
    )


def _stays_finite(new: PyTree, old: PyTree) -> Array:
    """Whether no finite number of a state became one that is not; some begin as inf on purpose."""
    spoilt = [
        jnp.any(~jnp.isfinite(n) & jnp.isfinite(o))
        for n, o in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
        if jnp.issubdtype(jnp.result_type(n), jnp.inexact)
    ]
    return ~jnp.any(jnp.stack(spoilt)) if spoilt else jnp.array(True)


def _summarise(estimates: Mapping[str, Estimate]) -> dict[str, Array]:
    infos = [estimate.info for estimate in estimates.values()]
    losses = {f"loss/{name}": estimate.loss for name, estimate in estimates.items()}
    means = {
        name: jnp.mean(jnp.stack([getattr(info, name) for info in infos]))
        for name in ("nonfinite", "frozen", "spread")
    }
    steps = jnp.sum(jnp.stack([info.inner_steps for info in infos]))
    loss = jnp.mean(jnp.stack(list(losses.values())))
    return {"loss": loss, **losses, **means, "inner_steps": steps}
