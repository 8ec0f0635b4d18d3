"""Batch normalisation for every inner step: which leaves it is, and its statistics.

    sₖ = mean over episodes of the mean and variance, in every block, of the query set in φₖ,
    k = 0, ..., K

A network that adapts is another one after every step, and so are the statistics of its features.
Antoniou et al. 2019 (ICLR), arXiv:1810.09502, §4, "per-step batch normalisation running statistics"
and "weights and biases". Differs from the public code, which averages exponentially in training and
then classifies with the statistics of the batch all the same: here they are measured after
training, with adaptation as it was trained, and used by a family with `statistics="running"`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from metaopt.algorithms._maml_plus_plus import MAMLPlusPlusTheta, descent, first_step
from metaopt.core import Data, Params, Split, TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._few_shot_convnet import batch_statistics

_NAMES = ("scale", "shift", "statistics")


def batch_norm_leaves(params: Params) -> PyTree[bool]:
    """Marks batch normalisation in parameters of `metaopt.tasks.few_shot_convnet`.

    Args:
        params: of the family, or any tree of dictionaries.

    Returns:
        The same tree, True for what is under "scale", "shift" or "statistics": `per_step=` of
        `maml_plus_plus`.
    """

    def marked(path, x):
        del x
        return any(getattr(entry, "key", None) in _NAMES for entry in path)

    return jax.tree.map_with_path(marked, params)


@checked
def step_statistics(
    family: TaskFamily, *, num_steps: int = 5, num_episodes: int = 100
) -> Callable[[MAMLPlusPlusTheta, Data, PRNGKeyArray], MAMLPlusPlusTheta]:
    """Makes the function that measures batch statistics after every number of inner steps.

    Args:
        family: by `metaopt.tasks.few_shot_convnet`, with other statistics than "running": the one
            that theta was trained in, by `maml_plus_plus(per_step=batch_norm_leaves)`.
        num_steps: inner steps K. Static.
        num_episodes: episodes that are averaged over. Static.

    Returns:
        `(theta, data, key) -> theta` for the same learner on the family with
        `statistics="running"`, with data from `metaopt.tasks.episodes`. Without a step these are
        the `metaopt.tasks.running_statistics`.

    Raises:
        ValueError: for counts below 1; when called, if theta has statistics already.
    """
    at_least_one("step_statistics", num_steps=num_steps, num_episodes=num_episodes)

    def of_episode(theta, data, key) -> Any:
        """Statistics of the query set, the step axis first."""
        key_task, key_batch = jax.random.split(key)
        key_batch, key_query, key_loss = jax.random.split(key_batch, 3)
        task_params = family.sample(key_task)
        support = family.batch(data.inner, task_params, key_batch)
        query = family.batch(data.outer, task_params, key_query)
        opt = descent(theta, batch_norm_leaves)

        def loss(params):
            return family.loss(params, task_params, support, key_loss)[0]

        def step(params, index):
            found = batch_statistics(params, query)
            updates, _ = opt.update(jax.grad(loss)(params), index)
            return optax.apply_updates(params, updates), found

        start = first_step(theta, batch_norm_leaves)
        params, found = jax.lax.scan(step, start, jnp.arange(num_steps))
        last = batch_statistics(params, query)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), found, last)

    def measure(theta, data, key):
        if "statistics" in theta.params:
            raise ValueError(
                "step_statistics: theta has statistics already; pass that of a family with "
                "statistics='transductive' or 'support'."
            )
        pools = data if isinstance(data, Split) else Split(data, data)
        keys = jax.random.split(key, num_episodes)
        found = jax.vmap(of_episode, (None, None, 0))(theta, pools, keys)
        means = jax.tree.map(lambda x: x.mean(axis=0), found)
        no_rates = jax.tree.map(lambda x: optax.MaskedNode(), means)
        return MAMLPlusPlusTheta(
            {**theta.params, "statistics": means}, {**theta.log_rates, "statistics": no_rates}
        )

    return measure
