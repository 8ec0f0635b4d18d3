import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import core, tasks, unroll
from metaopt.algorithms import search
from metaopt.learned import LearnedStrategy, isotropic_es, les, random_search
from tests.tasks.rows import images, small_mlp


def fixed(strategy):
    return LearnedStrategy(lambda key: (), lambda theta: strategy)


@pytest.mark.compiles
def test_a_search_repeats_asking_evaluating_and_telling():
    family = tasks.black_box(dim=3, functions=("rastrigin",))
    learned = les(population_size=5)
    theta = learned.init(jax.random.key(0))
    system = search(family, learned)
    state = system.init(theta, (), jax.random.key(1))
    step = jax.jit(system.step)

    strategy, task = learned.strategy(theta), state.task_params
    inner, best = state.strategy, np.inf
    for t in range(3):
        state, info = step(theta, state, (), jax.random.key(10 + t))
        key_ask, _, key_loss, key_tell = jax.random.split(jax.random.key(10 + t), 4)
        population, inner = strategy.ask(inner, key_ask)
        losses = jax.vmap(lambda x: family.loss(x, task, (), key_loss)[0])(population)  # noqa: B023
        inner = strategy.tell(inner, population, losses, key_tell)
        if losses.min() < best:
            best, where = losses.min(), population[losses.argmin()]
        np.testing.assert_allclose(state.best_loss, best, rtol=1e-5)
        np.testing.assert_allclose(state.best_params, where, rtol=1e-5)
        np.testing.assert_allclose(state.strategy.mean, inner.mean, rtol=1e-4)
        np.testing.assert_allclose(info.loss, family.normalise(best, task), rtol=1e-4)


@pytest.mark.compiles
def test_the_best_loss_never_rises_and_is_that_of_the_best_parameters():
    family = small_mlp()
    system = search(family, fixed(isotropic_es(population_size=4, sigma=0.1)))
    run = unroll.unroll(system, num_steps=6)
    state = system.init((), images(), jax.random.key(0))
    end, info = jax.jit(run)((), state, images(), jax.random.key(1))
    assert (np.diff(info.loss) <= 0).all()
    assert info.loss[-1] < info.loss[0]
    assert jax.tree.structure(end.best_params) == jax.tree.structure(state.best_params)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), end.best_params, state.best_params)
    assert all(jax.tree.leaves(moved))


def test_candidates_without_a_number_are_never_the_best():
    def loss(params, task_params, batch, key):
        return jnp.where(params[0] < 0, jnp.nan, params[0]), ()

    family = core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros(1),
        batch=lambda data, task_params, key: (),
        loss=loss,
    )
    system = search(family, fixed(random_search(population_size=8)))
    state = system.init((), (), jax.random.key(0))
    state, info = jax.jit(system.step)((), state, (), jax.random.key(1))
    assert np.isfinite(info.loss)
    assert state.best_params[0] == state.best_loss >= 0


@pytest.mark.compiles
def test_settings_of_a_strategy_can_be_theta():
    learned = LearnedStrategy(
        lambda key: jnp.array([1.0, 0.9]),
        lambda theta: isotropic_es(population_size=6, sigma=theta[0], decay=theta[1]),
    )
    system = search(tasks.black_box(dim=4, functions=("sphere",), rotate=False), learned)
    final = unroll.meta_loss(system, horizon=40, objective="last")
    thetas = jnp.array([[1.0, 0.9], [1.0, 0.5], [1e-3, 1.0]])
    keys = jax.random.split(jax.random.key(0), 10)
    of_keys = jax.vmap(final, in_axes=(None, None, 0))
    losses = jax.jit(jax.vmap(of_keys, in_axes=(0, None, None)))(thetas, (), keys).mean(axis=1)
    assert losses[0] < losses[1] - 1
    assert losses[0] < losses[2] - 1
