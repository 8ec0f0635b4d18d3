import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import fraction, hyperparameters, positive, real
from tests import helpers

CURVATURES = np.array([0.3, 1.0, 2.5])
START = np.array([1.0, -2.0, 0.5])
NUM_STEPS = 7


def quadratic(params):
    return 0.5 * jnp.sum(CURVATURES * params**2)


def train(learned, theta, num_steps=NUM_STEPS):
    opt = learned.optimizer(theta, num_steps=num_steps)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(quadratic)(params)
        updates, state = opt.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.asarray(START)
    (params, _), _ = jax.lax.scan(step, (params, opt.init(params)), length=num_steps)
    return params


@pytest.mark.parametrize(
    ("make", "value"),
    [(positive, 1e-8), (positive, 3e3), (fraction, 0.9), (fraction, 0.9999), (real, -3.0)],
)
def test_starts_at_the_given_value(x64, make, value):
    learnable = make(value)
    actual = learnable.value(jnp.asarray(learnable.init), None)
    np.testing.assert_allclose(actual, value, rtol=1e-14)


def test_maps_are_the_documented_ones(x64):
    theta = jnp.asarray(0.7)
    np.testing.assert_allclose(positive(1.0).value(theta, None), np.exp(0.7), rtol=1e-15)
    np.testing.assert_allclose(fraction(0.5).value(theta, None), 1 / (1 + np.exp(-0.7)), rtol=1e-15)
    assert real(1.0).value(theta, None) == theta


def test_initial_theta_is_the_optax_rule(x64):
    settings = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-4}
    learned = hyperparameters(
        optax.adam,
        learning_rate=positive(0.1),
        b1=fraction(0.8),
        b2=fraction(0.95),
        eps=positive(1e-4),
        eps_root=1e-8,
    )
    plain = hyperparameters(lambda unused: optax.adam(**settings, eps_root=1e-8), unused=real(0.0))
    theta = learned.init(jax.random.key(0))
    assert sorted(theta) == ["b1", "b2", "eps", "learning_rate"]
    expected = train(plain, plain.init(jax.random.key(0)))
    np.testing.assert_allclose(train(learned, theta), expected, rtol=1e-12)


def test_learning_rate_gradient_in_closed_form(x64):
    """Gradient descent: p_T = (1 - αh)^T p_0, so dL/dα = -Σ T h² (1 - αh)^(2T - 1) p_0²."""
    rate = 0.2
    learned = hyperparameters(optax.sgd, learning_rate=positive(rate))
    grad = jax.grad(lambda theta: quadratic(train(learned, theta)))
    actual = grad(learned.init(jax.random.key(0)))["learning_rate"]
    shrink = 1 - rate * CURVATURES
    slope = -np.sum(NUM_STEPS * CURVATURES**2 * shrink ** (2 * NUM_STEPS - 1) * START**2)
    np.testing.assert_allclose(actual, rate * slope, rtol=1e-12)


def test_momentum_gradients_match_central_differences(x64):
    learned = hyperparameters(optax.sgd, learning_rate=positive(0.2), momentum=fraction(0.7))

    def meta_loss(theta):
        return quadratic(train(learned, theta))

    theta = learned.init(jax.random.key(0))
    actual = jax.jit(jax.grad(meta_loss))(theta)
    expected = helpers.central_differences(meta_loss, theta)
    assert helpers.relative_error(actual, expected) < 1e-8


def test_adam_needs_eps_root_where_a_weight_sees_only_zeros():
    def grad(**settings):
        learned = hyperparameters(
            optax.adam, learning_rate=positive(0.1), b2=fraction(0.9), **settings
        )

        def meta_loss(theta):
            opt = learned.optimizer(theta)
            params = jnp.array([1.0, 1.0])
            state = opt.init(params)
            for _ in range(2):
                updates, state = opt.update(params * jnp.array([1.0, 0.0]), state, params)
                params = optax.apply_updates(params, updates)
            return jnp.sum(params**2)

        return jax.jit(jax.grad(meta_loss))(learned.init(jax.random.key(0)))

    assert np.isnan(helpers.ravel(grad())).any()
    assert np.isfinite(helpers.ravel(grad(eps_root=1e-8))).all()


def test_vmaps_over_theta():
    learned = hyperparameters(optax.sgd, learning_rate=positive(0.1))
    rates = jnp.array([0.05, 0.2])
    actual = jax.vmap(lambda theta: train(learned, theta))({"learning_rate": jnp.log(rates)})
    expected = (1 - rates[:, None] * CURVATURES[None]) ** NUM_STEPS * START[None]
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-7)


def test_rejects_bad_settings():
    with pytest.raises(ValueError, match="hyperparameters: .* nothing to learn"):
        hyperparameters(optax.sgd, learning_rate=0.1)
    with pytest.raises(ValueError, match="positive: value=0.0"):
        positive(0.0)
    with pytest.raises(ValueError, match="fraction: value=1.0"):
        fraction(1.0)
