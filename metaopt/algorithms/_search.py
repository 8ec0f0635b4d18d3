"""Search by a strategy as inner training: what a learned evolution strategy is meta-trained on.

    population, s <- ask(s);    f_i = L(x_i);    s <- tell(s, population, f);    ℓ_t = min of all f

One step is one generation, on one batch and one key for all candidates. A step reports the best
loss so far, normalised by the family, so that a horizon of T with `objective="last"` is the best of
T generations, and with "mean" also rewards speed. Any family will do: parameters are any tree. Any
estimator for functions without derivatives applies; that of the original is
`metaopt.estimators.population_es`. Lange et al. 2022, arXiv:2211.11260, §4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Params, StepInfo, System, TaskFamily, TaskParams, checked
from metaopt.learned import LearnedStrategy


class SearchState(NamedTuple):
    """One search.

    Attributes:
        task_params: the task.
        strategy: the state of the strategy.
        best_params: the best candidate so far, at first the start, which is not evaluated.
        best_loss: its loss.
    """

    task_params: TaskParams
    strategy: Any
    best_params: Params
    best_loss: Float[Array, ""]


@checked
def search(family: TaskFamily, learned: LearnedStrategy) -> System:
    """The search for the minimum of a task from `family`; `theta` is the strategy's.

    A strategy that is not learned is one without meta-parameters:
    `LearnedStrategy(lambda key: (), lambda theta: strategy)`; or its settings may be theta.

    Args:
        family: where tasks come from; every trajectory draws a new one, and starts from `init`.
        learned: the strategy.

    Returns:
        A system that never ends by itself; a step costs one population of losses and no gradient.
    """

    def init(theta, data, key, *, num_steps=None):
        del data, num_steps
        key_task, key_params, key_strategy = jax.random.split(key, 3)
        task_params = family.sample(key_task)
        params = family.init(task_params, key_params)
        state = learned.strategy(theta).init(params, key_strategy)
        best_loss = jnp.full((), jnp.inf, jnp.result_type(float))
        return SearchState(task_params, state, params, best_loss)

    def step(theta, state, data, key):
        key_ask, key_batch, key_loss, key_tell = jax.random.split(key, 4)
        strategy, task_params = learned.strategy(theta), state.task_params
        population, inner = strategy.ask(state.strategy, key_ask)
        batch = family.batch(data, task_params, key_batch)
        # Candidates share the batch and its noise, so that their ranks compare them alone.
        losses, _ = jax.vmap(family.loss, in_axes=(0, None, None, None))(
            population, task_params, batch, key_loss
        )
        losses = losses.astype(state.best_loss.dtype)
        inner = strategy.tell(inner, population, losses, key_tell)

        comparable = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        index = jnp.argmin(comparable)
        better = comparable[index] < state.best_loss
        best_loss = jnp.where(better, comparable[index], state.best_loss)
        best_params = jax.tree.map(
            lambda best, candidates: jnp.where(better, candidates[index], best),
            state.best_params,
            population,
        )
        info = StepInfo(family.normalise(best_loss, task_params), jnp.array(False))
        return SearchState(task_params, inner, best_params, best_loss), info

    return System(init, step)
