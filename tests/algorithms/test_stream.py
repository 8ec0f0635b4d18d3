import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core
from metaopt.algorithms import StreamLearner, continued, maml, memory_ratio, through_stream

SUM = StreamLearner(
    lambda theta: jnp.zeros_like(theta),
    lambda theta, memory, task_params, support, key: theta * memory + task_params * support,
    lambda theta, memory: memory,
)


def parabola() -> core.TaskFamily:
    """L = ½ (p - batch)²."""
    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros(()),
        batch=lambda data, task_params, key: data,
        loss=lambda params, task_params, batch, key: (0.5 * jnp.sum((params - batch) ** 2), ()),
    )


@pytest.mark.parametrize("remat", ["none", "nested"])
def test_a_learner_sees_every_set_once_and_in_order(x64, remat):
    stream, theta, task = jnp.array([2.0, -1.0, 0.5, 4.0]), jnp.array(0.3), jnp.array(2.0)
    adapt = through_stream(SUM, remat=remat)

    def final(theta):
        return adapt(theta, task, stream, jax.random.key(0))

    value, slope = jax.jit(jax.value_and_grad(final))(theta)
    expected, derivative = 0.0, 0.0
    for number in (2.0, -1.0, 0.5, 4.0):
        expected, derivative = 0.3 * expected + 2 * number, expected + 0.3 * derivative
    np.testing.assert_allclose([value, slope], [expected, derivative], rtol=1e-12)


def test_a_continued_learner_starts_where_the_last_set_left_it(x64):
    rate, stream = 0.1, np.array([3.0, -1.0, 2.0])
    learner = maml(parabola(), optax.sgd(rate), num_steps=2)
    run = jax.jit(through_stream(continued(learner)))
    params = run(jnp.array(0.5), (), jnp.asarray(stream), jax.random.key(0))
    expected = 0.5
    for target in stream:
        expected = target + (1 - rate) ** 2 * (expected - target)
    np.testing.assert_allclose(params, expected, rtol=1e-12)


def test_memory_is_counted_in_bytes_of_what_is_carried():
    stream = {"x": jnp.zeros((5, 8, 2)), "y": jnp.zeros((5, 8), jnp.int32)}
    theta = {"w": jnp.zeros((3, 10)), "b": jnp.zeros(10, jnp.bfloat16)}
    learner = continued(maml(parabola(), optax.sgd(0.1)))
    assert memory_ratio(learner, theta, stream) == (30 * 4 + 10 * 2) / (80 * 4 + 40 * 4)
    forgetful = learner._replace(start=lambda theta: ())
    assert memory_ratio(forgetful, theta, stream) == 0


def test_bad_streams_and_settings_are_refused():
    adapt = through_stream(SUM)
    with pytest.raises(ValueError, match=r"have \[2, 3\] support sets"):
        adapt(jnp.ones(()), (), (jnp.zeros(2), jnp.zeros(3)), jax.random.key(0))
    with pytest.raises(ValueError, match="remat='most' is unknown"):
        through_stream(SUM, remat="most")
    with pytest.raises(ValueError, match="value_and_grad="):
        through_stream(SUM, gradient="mixed")
