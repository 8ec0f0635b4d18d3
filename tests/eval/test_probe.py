import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.core import LearnedOptimizer, TaskFamily
from metaopt.eval import probe
from tests.eval.families import quadratic, sgd_losses

sgd = LearnedOptimizer(
    init=lambda key: jnp.array(0.1), optimizer=lambda theta, *, num_steps=None: optax.sgd(theta)
)


def test_probe_is_the_mean_loss_of_gradient_descent():
    curvatures, num_steps = (0.5, 2.0), 15
    function = probe(quadratic(*curvatures), sgd, num_steps=num_steps, num_tasks=3)
    rates = [0.1, 0.3]
    values = jax.jit(jax.vmap(function, in_axes=(0, None, None)))(
        jnp.array(rates), (), jax.random.key(0)
    )
    expected = [np.mean(sgd_losses(curvatures, rate, num_steps)[:-1]) for rate in rates]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_probe_averages_over_tasks():
    low, high, rate, num_steps = 0.5, 1.5, 0.4, 5
    family = quadratic(1.0)._replace(
        sample=lambda key: jax.random.uniform(key, (1,), minval=low, maxval=high)
    )
    value = jax.jit(probe(family, sgd, num_steps=num_steps, num_tasks=1000))(
        rate, (), jax.random.key(0)
    )
    curvatures = np.linspace(low, high, 10_001)
    losses = [np.mean(sgd_losses((c,), rate, num_steps)[:-1]) for c in curvatures]
    standard_error = np.std(losses) / np.sqrt(1000)
    assert abs(value - np.mean(losses)) < 4 * standard_error
    assert abs(value - 1.1 * np.mean(losses)) > 4 * standard_error  # the test has power


def test_the_optimizer_knows_the_horizon():
    linear = LearnedOptimizer(
        init=lambda key: jnp.array(1.0),
        optimizer=lambda theta, *, num_steps=None: optax.sgd(theta / num_steps),
    )
    value = probe(quadratic(1.0), linear, num_steps=4, num_tasks=1)(1.0, (), jax.random.key(0))
    np.testing.assert_allclose(value, np.mean(sgd_losses((1.0,), 0.25, 4)[:-1]), rtol=1e-6)


def breaking(where):
    """Constant loss 1 until step 3, in which the loss or the parameters become NaN."""

    def loss(params, task_params, batch, key):
        at_break = params >= 3 if where == "loss" else False
        return jnp.where(at_break, jnp.nan, 1.0), {}

    def update(updates, state, params=None, **extra):
        at_break = jnp.asarray(params) >= 2 if where == "params" else False
        return jnp.where(at_break, jnp.nan, jnp.ones_like(updates)), state

    family = TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.zeros(()),
        batch=lambda data, task_params, key: (),
        loss=loss,
        normalise=lambda loss, task_params: jnp.clip(jnp.nan_to_num(loss, nan=7.0), 0, 7.0),
    )
    # An infinity in the optimizer's state is not a divergence.
    counter = optax.GradientTransformationExtraArgs(lambda params: jnp.array(jnp.inf), update)
    return family, LearnedOptimizer(lambda key: (), lambda theta, *, num_steps=None: counter)


@pytest.mark.parametrize("where", ["loss", "params"])
def test_divergence_counts_with_the_normalisers_value_for_nan(where):
    family, learned = breaking(where)
    value = jax.jit(probe(family, learned, num_steps=10, num_tasks=2))((), (), jax.random.key(0))
    np.testing.assert_allclose(value, (3 * 1 + 7 * 7) / 10)


def test_probe_stays_finite_without_a_normaliser():
    function = jax.jit(probe(quadratic(1.0), sgd, num_steps=20, num_tasks=2))
    assert np.isfinite(function(jnp.array(1e9), (), jax.random.key(0)))
    assert np.isfinite(function(jnp.array(jnp.nan), (), jax.random.key(0)))


def test_half_precision_losses_are_averaged_in_float32():
    family = quadratic(1.0)._replace(
        loss=lambda params, task_params, batch, key: (jnp.sum(params).astype(jnp.bfloat16), {})
    )
    value = jax.jit(probe(family, sgd, num_steps=300, num_tasks=2))(0.0, (), jax.random.key(0))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="probe: num_tasks must be at least 1"):
        probe(quadratic(1.0), sgd, num_steps=1, num_tasks=0)
