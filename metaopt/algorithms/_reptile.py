"""Reptile: the initialisation moves towards the parameters that tasks adapt to.

    φᵢ = K inner steps from θ on task i,    pseudo-gradient = θ − mean over tasks of φᵢ

Nichol et al. 2018, arXiv:1803.02999, Alg. 2. No query set, and no derivative but inner gradients.
The pseudo-gradient goes through any outer rule: `optax.sgd(1.0)` moves θ to the mean of φ, a
smaller rate part of the way (the paper's, annealed to 0). One step of gradient descent is joint
training, α times the mean gradient at θ; more steps also make gradients of different batches of one
task agree (the paper's §5). The inner optimizer begins anew in every task.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt import tree
from metaopt.algorithms._learner import (
    MetaLearner,
    initial_params,
    inner_loop,
    sample_episode,
)
from metaopt.core import TaskFamily, checked
from metaopt.data._pool import num_examples
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._shared import (
    average,
    check_count,
    check_tasks,
    map_tasks,
)
from metaopt.unroll import Loop


@checked
def reptile(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    batch_size: int | None = None,
    num_tasks: int = 5,
    tasks_at_once: int | None = None,
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation, moved towards what inner training makes of it.

    Args:
        family: the tasks. `theta` has the structure of its `params`.
        inner_opt: any optax optimizer; `optax.adam(1e-3, b1=0.0)` is the paper's on images.
        num_steps: inner steps K. Static.
        batch_size: examples that an inner step takes from the support set, drawn anew for each
            step and without replacement; None: all of them. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        loop: as in `metaopt.unroll.unroll`. Static.

    Returns:
        A learner; `theta` is `family.init` of any task. An estimate's `grad` is θ − mean φ, and its
        `loss` the normalised inner loss that the last step followed. A task whose φ is not finite
        contributes zero.

    Raises:
        ValueError: for counts below 1; when traced, if the support set has fewer than `batch_size`
            examples.
    """
    check_tasks("reptile", num_tasks, tasks_at_once)
    if batch_size is not None:
        check_count("reptile", batch_size=batch_size)

    def loss(params, theta, task_params, support, key):
        del theta
        if batch_size is None:
            return family.loss(params, task_params, support, key)
        key_rows, key_loss = jax.random.split(key)
        batch = _rows(support, key_rows, batch_size)
        return family.loss(params, task_params, batch, key_loss)

    run = inner_loop("reptile", loss, lambda theta: inner_opt, num_steps=num_steps, loop=loop)

    def one_task(theta, data, key):
        key_episode, key_adapt = jax.random.split(key)
        task_params, support, _ = sample_episode(family, data, key_episode)
        params, losses = run(theta, task_params, support, key_adapt)
        moved = jax.tree.map(jnp.subtract, theta, params)
        finite = tree.all_finite(moved)
        moved = tree.where(finite, moved, jax.tree.map(jnp.zeros_like, moved))
        return moved, family.normalise(losses[-1], task_params), finite

    def init(theta, data, key):
        del data, key
        return ()

    def estimate(theta, state, data, key):
        moved, losses, finite = map_tasks(
            lambda _, key: one_task(theta, data, key),
            (),
            key,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        estimate = average(
            theta,
            moved,
            losses,
            finite,
            frozen=jnp.zeros(num_tasks, bool),
            spread=jnp.zeros(num_tasks),
            inner_steps=num_tasks * num_steps,
        )
        return estimate, state

    def adapted(theta, task_params, support, key):
        return run(theta, task_params, support, key)[0]

    return MetaLearner(
        initial_params(family), adapted, checked_estimator("reptile", init, estimate)
    )


def _rows(support, key, batch_size):
    """Some examples of a support set."""
    size = num_examples("reptile", support)
    if batch_size > size:
        raise ValueError(
            f"reptile: batch_size={batch_size} is more than the {size} examples of the support "
            "set; use fewer, or None for all."
        )
    index = jax.random.permutation(key, size)[:batch_size]
    return jax.tree.map(lambda x: x[index], support)
