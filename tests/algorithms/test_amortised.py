import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, tasks
from metaopt.algorithms import AmortisedTheta, Encoded, amortised

SENSORS = np.array([[1.0, 0.0, 1.0], [0.0, 2.0, -1.0]])


def seen_through_sensors() -> core.TaskFamily:
    """A field of three values, `field + code`, of which two sums are measured."""

    def loss(params, task_params, batch, key):
        return jnp.sum((SENSORS @ (params.field + params.code) - batch) ** 2), ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: Encoded(jnp.zeros(3), jnp.zeros(3)),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


def test_agrees_with_the_closed_form_of_linear_fields(x64):
    rng = np.random.default_rng(0)
    encoder, field = rng.normal(size=(3, 2)), rng.normal(size=3)
    support, query = rng.normal(size=2), rng.normal(size=2)
    learner = amortised(
        seen_through_sensors(),
        lambda key: jnp.asarray(encoder),
        lambda encoder, task_params, support: encoder @ support,
        num_tasks=2,
    )
    theta = learner.init(jax.random.key(0))
    np.testing.assert_array_equal(theta.encoder, encoder)
    theta = AmortisedTheta(theta.encoder, jnp.asarray(field))
    data = core.Split(jnp.asarray(support), jnp.asarray(query))
    estimate, _ = jax.jit(learner.estimator.estimate)(theta, (), data, jax.random.key(1))

    residual = SENSORS @ (field + encoder @ support) - query
    np.testing.assert_allclose(estimate.loss, residual @ residual, rtol=1e-10)
    slope = 2 * SENSORS.T @ residual
    np.testing.assert_allclose(estimate.grad.field, slope, rtol=1e-10)
    np.testing.assert_allclose(estimate.grad.encoder, np.outer(slope, support), rtol=1e-10)


def test_steps_on_the_code_agree_with_the_closed_form(x64):
    """f + z moves by P = I - 2 a S'S towards the support set, and f itself stays."""
    rng = np.random.default_rng(1)
    encoder, field = rng.normal(size=(3, 2)), rng.normal(size=3)
    support, query = rng.normal(size=2), rng.normal(size=2)
    rate, num_steps = 0.05, 3
    learner = amortised(
        seen_through_sensors(),
        lambda key: jnp.asarray(encoder),
        lambda encoder, task_params, support: encoder @ support,
        inner_opt=optax.sgd(rate),
        num_steps=num_steps,
        num_tasks=2,
    )
    theta = AmortisedTheta(jnp.asarray(encoder), jnp.asarray(field))
    data = core.Split(jnp.asarray(support), jnp.asarray(query))
    params = learner.adapt(theta, (), data.inner, jax.random.key(0))
    estimate, _ = jax.jit(learner.estimator.estimate)(theta, (), data, jax.random.key(1))

    code = encoder @ support
    for _ in range(num_steps):
        code = code - 2 * rate * SENSORS.T @ (SENSORS @ (field + code) - support)
    np.testing.assert_array_equal(params.field, field)
    np.testing.assert_allclose(params.code, code, rtol=1e-10)
    residual = SENSORS @ (field + code) - query
    np.testing.assert_allclose(estimate.loss, residual @ residual, rtol=1e-10)
    contraction = np.linalg.matrix_power(np.eye(3) - 2 * rate * SENSORS.T @ SENSORS, num_steps)
    slope = contraction @ (2 * SENSORS.T @ residual)
    np.testing.assert_allclose(estimate.grad.field, slope, rtol=1e-10)
    np.testing.assert_allclose(estimate.grad.encoder, np.outer(slope, support), rtol=1e-10)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="amortised: num_steps must be at least 1"):
        amortised(
            seen_through_sensors(),
            lambda key: (),
            lambda *_: (),
            inner_opt=optax.sgd(0.1),
            num_steps=0,
        )
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1"):
        amortised(seen_through_sensors(), lambda key: (), lambda *_: (), num_tasks=0)
    plain = amortised(tasks.quadratic(dim=2), lambda key: (), lambda *_: ())
    with pytest.raises(ValueError, match="amortised: the family's params are a"):
        plain.init(jax.random.key(0))
