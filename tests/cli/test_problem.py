import dataclasses

import jax
import numpy as np
import optax
import pytest

from metaopt.cli import _optimizers as optimizers
from metaopt.cli import _problem as problem_of
from metaopt.cli import _settings as settings
from metaopt.core import Split
from metaopt.data import Stream
from tests.data import tiny_tfds

TINY = settings.TaskSettings(batch_size=4, hidden=(4,))


@pytest.mark.compiles
@pytest.mark.parametrize(
    "name", [n for n in problem_of.task_names() if n.split("/")[0] not in problem_of.STREAMED]
)
def test_every_embedded_task_can_be_trained_on(name):
    hidden = (4, 4) if name.endswith("convnet") else (4,)
    problem = problem_of.make_problem(name, dataclasses.replace(TINY, hidden=hidden), 10)
    key_task, key_init, key_batch, key_loss = jax.random.split(jax.random.key(0), 4)
    family = problem.family

    @jax.jit
    def gradient(pool):
        task = family.sample(key_task)
        params = family.init(task, key_init)
        batch = family.batch(pool, task, key_batch)
        return jax.grad(lambda p: family.loss(p, task, batch, key_loss)[0])(params)

    norm = optax.tree.norm(gradient(problem.pools.train))
    assert np.isfinite(norm)
    assert norm > 0


def test_a_streamed_task_refreshes_its_pool_and_keeps_the_validation_pool(tmp_path):
    tiny_tfds.write("mnist", tmp_path, split_sizes={"train": 40, "test": 12})
    task = dataclasses.replace(TINY, data_dir=str(tmp_path), outer_loss="validation")
    problem = problem_of.make_problem("mnist/mlp", task, 10)
    source = problem_of.training_data(problem, task)
    assert isinstance(source, Stream)
    first, second = source.pool(0), source.pool(1)
    assert isinstance(first, Split)
    assert np.any(np.asarray(first.inner.inputs) != np.asarray(second.inner.inputs))
    np.testing.assert_array_equal(first.outer.inputs, second.outer.inputs)


def test_held_out_problems_are_shifted_as_they_say():
    chosen = settings.RunSettings(
        task=dataclasses.replace(TINY, names=("digits/mlp",), augment=("rescale",)),
        eval=settings.EvalSettings(horizon=10, held_out=("deeper", "wider", "tanh", "longer")),
    )
    plain, deeper, wider, tanh, longer = problem_of.held_out_problems(chosen)

    def shapes(problem):
        params = jax.eval_shape(lambda: problem.family.init((), jax.random.key(0)))
        return [layer["w"].shape for layer in params]

    assert shapes(plain) == [(64, 4), (4, 10)]
    assert shapes(deeper) == [(64, 8), (8, 4), (4, 10)]
    assert shapes(wider) == [(64, 16), (16, 10)]
    assert (plain.horizon, longer.horizon) == (10, 50)
    assert tanh.name == "digits/mlp, tanh"


def test_the_grid_has_its_ends_and_even_ratios():
    chosen = settings.EvalSettings(grid=(1e-3, 1e-1), grid_per_decade=4)
    grid = np.array(problem_of.make_grid(chosen))
    assert len(grid) == 9
    np.testing.assert_allclose(grid[[0, -1]], [1e-3, 1e-1])
    np.testing.assert_allclose(grid[1:] / grid[:-1], 10**0.25)


@pytest.mark.compiles
def test_sampled_families_follow_their_seed_and_keep_their_names_apart():
    task = dataclasses.replace(TINY, sampled=2, sampled_seed=3, sampled_seconds=2e-5)
    first = problem_of.sampled_problems(task, 10)
    again = problem_of.sampled_problems(task, 10)
    assert [p.name for p in first] == [p.name for p in again]
    assert len({p.name for p in first}) == 2
    shapes = [jax.eval_shape(p.family.sample, jax.random.key(0)) for p in (*first, *again)]
    assert shapes[:2] == shapes[2:]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pes", {"objective": "last"}, "pes has no estimator.objective"),
        ("pes", {"gradient": "first_order"}, "pes has no estimator.gradient"),
        ("backprop", {"sign": True}, "backprop has no estimator.sign"),
    ],
)
def test_settings_that_an_estimator_does_not_have_are_refused(name, changes, message):
    chosen = settings.RunSettings(estimator=settings.EstimatorSettings(name=name, **changes))
    problem = problem_of.make_problem("quadratic", TINY, 10)
    with pytest.raises(ValueError, match=message):
        problem_of.make_estimator(chosen, problem, optimizers.make_optimizer(chosen))


@pytest.mark.parametrize("name", problem_of.ESTIMATORS)
def test_every_estimator_is_made_with_its_settings(name):
    chosen = settings.RunSettings(
        estimator=settings.EstimatorSettings(
            name=name,
            truncation=2,
            horizon=(2, 4),
            num_tasks=2,
            sign=name in problem_of.SIGNED,
            objective="last" if name in problem_of.WHOLE else "mean",
            gradient="first_order" if name in problem_of.BACKPROPAGATION else "reverse",
        ),
        optimizer=settings.OptimizerSettings("sgd"),
    )
    problem = problem_of.make_problem("quadratic", TINY, 10)._replace(delay=1)
    optimizer = optimizers.make_optimizer(chosen)
    estimator = problem_of.make_estimator(chosen, problem, optimizer)
    theta = jax.eval_shape(optimizer.init, jax.random.key(0))
    state = jax.eval_shape(estimator.init, theta, (), jax.random.key(0))
    estimate, _ = jax.eval_shape(estimator.estimate, theta, state, (), jax.random.key(0))
    assert jax.tree.structure(estimate.grad) == jax.tree.structure(theta)
