"""Learning curves: training from scratch with one fixed optimizer, over seeds, in one scan.

    s_0 = init,    (ℓ_t, s_{t+1}) = step(s_t, batch_t),    t = 0 … T-1

ℓ_t is the minibatch loss before update t, as the optimizer sees it. Each seed draws its own task,
initial parameters and batches; hold a task fixed with `family._replace(sample=lambda key: task)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from metaopt.core import LearnedOptimizer, Params, Split, TaskFamily, training


class NormalisedLosses(NamedTuple):
    """Losses through `family.normalise`, finite even after divergence: what aggregates use."""

    train: Float[Array, "*grid seeds steps"]
    final: Float[Array, "*grid seeds"]
    validation: Float[Array, "*grid seeds evals"]


class Curves(NamedTuple):
    """What training from scratch looks like. The seed axis is first.

    Attributes:
        train_loss: minibatch loss before each update; NaN and inf stay as they are.
        initial_loss: training loss of the initial parameters over many batches.
        final_loss: training loss of the final parameters over the same batches.
        validation_loss: loss over many batches of the outer pool after every `eval_every` steps.
        validation_accuracy: the mean of `aux.accuracy` over those batches, or None for a family
            whose loss reports none.
        normalised: the losses through the family's normaliser.
        failed: whether a training loss was not finite or the final loss is above the initial one.
    """

    train_loss: Float[Array, "*grid seeds steps"]
    initial_loss: Float[Array, "*grid seeds"]
    final_loss: Float[Array, "*grid seeds"]
    validation_loss: Float[Array, "*grid seeds evals"]
    validation_accuracy: Float[Array, "*grid seeds evals"] | None
    normalised: NormalisedLosses
    failed: Bool[Array, "*grid seeds"]


def learning_curve(
    family: TaskFamily,
    optimizer: optax.GradientTransformation,
    data: Any,
    key: PRNGKeyArray,
    *,
    num_steps: int,
    num_seeds: int = 5,
    eval_every: int | None = None,
    num_eval_batches: int = 16,
    eval_params: Callable[[Any, Params], Params] | None = None,
) -> Curves:
    """Trains tasks of a family from scratch and records their losses.

    A pure function: `vmap` it over a learning rate to run a whole grid in one program,
    `jax.vmap(lambda lr: learning_curve(family, make(lr), data, key, num_steps=T))(grid)`; all
    grid values then see the same tasks, initial parameters and batches.

    Args:
        family: where tasks come from.
        optimizer: any optax optimizer, its hyperparameters possibly traced; `update` is given
            `value=`, the training loss.
        data: the family's pool. Of a `Split`, `inner` is trained on and `outer` is the validation
            pool; otherwise one pool serves both.
        key: randomness. A shorter run with the same key is a prefix of a longer one.
        num_steps: inner steps. Static.
        num_seeds: runs, vectorised. Static.
        eval_every: inner steps between validations; by default there is one, at the end. Static.
        num_eval_batches: batches of every measurement that is not the curve itself. Static.
        eval_params: `(opt_state, params) -> params`, where those measurements are taken, for an
            optimizer that trains at one point and answers with another (an average). Static.

    Returns:
        The curves, in the dtype of the family's loss.

    Raises:
        ValueError: if a count is below 1 or `num_steps` is not a multiple of `eval_every`.
    """
    eval_every = num_steps if eval_every is None else eval_every
    counts = {
        "num_steps": num_steps,
        "num_seeds": num_seeds,
        "eval_every": eval_every,
        "num_eval_batches": num_eval_batches,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"learning_curve: {name} must be at least 1, got {count}.")
    if num_steps % eval_every:
        raise ValueError(
            f"learning_curve: num_steps={num_steps} is not a multiple of eval_every={eval_every}; "
            f"try num_steps={num_steps - num_steps % eval_every or eval_every}."
        )
    steps = jnp.arange(num_steps).reshape(-1, eval_every)

    def one_seed(key):
        return _run(family, optimizer, data, key, steps, num_eval_batches, eval_params)

    return jax.vmap(one_seed)(jax.random.split(key, num_seeds))


def _run(family, optimizer, data, key, steps, num_eval_batches, eval_params) -> Curves:
    """One run; `steps` has one row per validation."""
    # The system reports the raw loss, so that divergence can be seen.
    raw = family._replace(normalise=lambda loss, task_params: loss)
    system = training(raw, LearnedOptimizer(lambda key: (), lambda theta, num_steps: optimizer))
    pools = data if isinstance(data, Split) else Split(data, data)
    key_init, key_steps, key_train, key_validation = jax.random.split(key, 4)

    def measure(state, pool, key):
        if eval_params is not None:
            state = state._replace(params=eval_params(state.opt_state, state.params))

        # One batch after the other, to spare memory; every measurement uses the same ones.
        def one_batch(index):
            return _evaluate(family, state, pool, jax.random.fold_in(key, index))

        losses, accuracies = jax.lax.map(one_batch, jnp.arange(num_eval_batches))
        return losses.mean(), None if accuracies is None else accuracies.mean()

    def one_step(state, step):
        state, info = system.step((), state, data, jax.random.fold_in(key_steps, step))
        return state, info.loss

    def one_row(state, row):
        state, losses = jax.lax.scan(one_step, state, row)
        return state, (losses, measure(state, pools.outer, key_validation))

    state = system.init((), data, key_init, num_steps=steps.size)
    initial_loss, _ = measure(state, pools.inner, key_train)
    state, (losses, (validation_loss, accuracy)) = jax.lax.scan(one_row, state, steps)
    train_loss = losses.reshape(steps.size)
    final_loss, _ = measure(state, pools.inner, key_train)

    def normalise(loss):
        return family.normalise(loss, state.task_params)

    return Curves(
        train_loss,
        initial_loss,
        final_loss,
        validation_loss,
        accuracy,
        NormalisedLosses(
            jax.vmap(normalise)(train_loss),
            normalise(final_loss),
            jax.vmap(normalise)(validation_loss),
        ),
        # Negated, so that a NaN counts as a failure.
        failed=~(jnp.all(jnp.isfinite(train_loss)) & (final_loss <= initial_loss)),
    )


def _evaluate(family, state, pool, key):
    key_batch, key_loss = jax.random.split(key)
    batch = family.batch(pool, state.task_params, key_batch)
    loss, aux = family.loss(state.params, state.task_params, batch, key_loss)
    return loss, getattr(aux, "accuracy", None)
