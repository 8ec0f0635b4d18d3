import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import celo2, celo2_mixed, scale_by_celo2
from tests import helpers
from tests.learned import reference, unrolled
from tests.learned.test_celo2 import orthogonal_direction, theta_from

SHAPES = {"embed": (6, 4), "matrix": (4, 3), "bias": (3,), "scalar": ()}


@pytest.fixture
def theta():
    return celo2().init(jax.random.key(0))


@pytest.fixture
def params():
    return unrolled.params_like(jax.random.key(1), SHAPES)


def gradients(num_steps):
    return unrolled.params_like(jax.random.key(2), {n: (num_steps, *s) for n, s in SHAPES.items()})


def trajectory(opt, params, grads):
    """Updates of a sequence of gradients, step axis first, and the parameters between them."""

    def step(carry, grads):
        params, state = carry
        updates, state = opt.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        return (new, state), (updates, params)

    return jax.jit(lambda grads: jax.lax.scan(step, (params, opt.init(params)), grads)[1])(grads)


def raw_adam(grads, *, corrected, b1=0.9, b2=0.95):
    """The equations, in NumPy."""
    m = r = 0.0
    for t, g in enumerate(np.asarray(grads, np.float64), start=1):
        m, r = b1 * m + (1 - b1) * g, b2 * r + (1 - b2) * g**2
        c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1, 1)
        yield (m / c1) / np.sqrt(r / c2 + 1e-8)


@pytest.mark.parametrize("corrected", [False, True])
def test_matrices_follow_the_orthogonalised_rule_and_the_rest_adam(theta, params, corrected):
    # A warm-up, weight decays and a predicate at once: each must find its way to its tensors.
    schedule = optax.linear_schedule(0.0, 0.1, 2)
    learned = celo2_mixed(
        schedule,
        is_vector=lambda path, param: param.ndim < 2 or "embed" in path,
        weight_decay=0.2,
        vector_weight_decay=0.3,
        bias_correction=corrected,
    )
    grads = gradients(4)
    updates, before = trajectory(learned.optimizer(theta), params, grads)
    rates = np.array([0.0, 0.05, 0.1, 0.1])

    direction = scale_by_celo2(theta, orthogonalise=True)
    update, state = jax.jit(direction.update), direction.init({"matrix": params["matrix"]})
    for t, rate in enumerate(rates):
        p = {"matrix": before["matrix"][t]}
        y, state = update({"matrix": grads["matrix"][t]}, state, p)
        expected = -rate * (y["matrix"] + 0.2 * p["matrix"])
        np.testing.assert_allclose(updates["matrix"][t], expected, rtol=1e-3, atol=1e-5)
    for name in ("embed", "bias", "scalar"):
        for t, y in enumerate(raw_adam(grads[name], corrected=corrected)):
            expected = -20 * rates[t] * (y + 0.3 * np.asarray(before[name][t], np.float64))
            np.testing.assert_allclose(updates[name][t], expected, rtol=2e-5, atol=1e-6)


def test_with_bias_correction_the_rest_is_optax_adam(theta, params):
    grads = gradients(3)
    updates, _ = trajectory(celo2_mixed(0.01, bias_correction=True).optimizer(theta), params, grads)
    adam = optax.adam(0.2, b2=0.95, eps=0.0, eps_root=1e-8)
    expected, _ = trajectory(adam, params, grads)
    for name in ("bias", "scalar"):
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5)


def test_a_matrix_step_has_the_size_of_the_rate_and_singular_values_by_newton_schulz(
    theta,
):
    params = unrolled.params_like(jax.random.key(1), {"matrix": (8, 6)})
    grads = unrolled.params_like(jax.random.key(2), {"matrix": (1, 8, 6)})
    updates, _ = trajectory(celo2_mixed(0.5).optimizer(theta), params, grads)
    plain, _ = trajectory(celo2_mixed(0.5, orthogonalise=False).optimizer(theta), params, grads)
    for step in (updates, plain):
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(step["matrix"]))), 0.5, rtol=1e-4)
    expected = -0.5 * orthogonal_direction(np.asarray(plain["matrix"][0], np.float64) / -0.5)
    np.testing.assert_allclose(updates["matrix"][0], expected, atol=1e-4)


def test_without_orthogonalising_and_without_vectors_it_is_the_base_rule():
    archive = reference.load("celo2_base_loud")
    learned = celo2_mixed(0.1, is_vector=lambda path, param: False, orthogonalise=False)
    opt = learned.optimizer(theta_from(archive))
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    errors, _ = reference.errors(archive, update, opt.init, rolling=True)
    assert errors.max() < 1e-5


def test_theta_is_that_of_the_base_rule(theta):
    mixed = celo2_mixed().init(jax.random.key(0))
    assert helpers.relative_error(mixed, theta) == 0
    assert jax.tree.structure(mixed) == jax.tree.structure(theta)


def test_keeps_dtypes_and_accumulates_in_float32(theta):
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    opt = celo2_mixed().optimizer(theta)
    updates, state = jax.jit(opt.update)(grads, opt.init(params), params)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.bfloat16] * 2
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_meta_gradients_are_finite_on_awkward_inputs(theta):
    learned = celo2_mixed()
    params = unrolled.params_like(jax.random.key(1), {"matrix": (4, 3), "bias": (3,)})
    # What Adam trains is not clipped, so its squares have to be finite.
    cases = jax.tree.map(
        lambda g: jnp.clip(g, -1e15, 1e15),
        unrolled.awkward_gradients(params, 20, jax.random.key(3)),
    )
    grad = jax.jit(
        jax.vmap(
            jax.value_and_grad(
                lambda theta, p, g: unrolled.final_loss(learned, theta, g, p), argnums=(0, 1)
            ),
            in_axes=(None, None, 0),
        )
    )
    losses, grads = grad(theta, params, cases)
    assert np.isfinite(losses).all()
    assert np.isfinite(helpers.ravel(grads)).all()


@pytest.mark.slow
def test_meta_gradients_match_central_differences(x64):
    # Also by the learning rate and the decays, which may be learned as well as the network.
    settings = {"hidden_size": 2, "hidden_layers": 1}
    theta = {"network": celo2_mixed(**settings).init(jax.random.key(0)), "rate": jnp.array(0.1),
             "decays": jnp.array([0.9, 0.95])}  # fmt: skip
    params = unrolled.params_like(jax.random.key(1), {"w": (3, 2), "b": (2,)}, jnp.float64)
    grads = {n: jnp.stack([0.02 * p, 0.05 * p + 0.01]) for n, p in params.items()}

    def meta_loss(theta):
        b1, b2 = theta["decays"]
        learned = celo2_mixed(theta["rate"], b1=b1, b2=b2, **settings)
        return unrolled.final_loss(learned, theta["network"], grads, params)

    actual = helpers.ravel(jax.jit(jax.grad(meta_loss))(theta))
    expected = helpers.central_differences(meta_loss, theta, step=1e-6)
    assert helpers.relative_error(actual, expected) < 1e-6


def test_rejects_bad_settings(theta):
    with pytest.raises(ValueError, match="hidden_size=0"):
        celo2_mixed(hidden_size=0)
    with pytest.raises(ValueError, match="norm_axes=0"):
        celo2_mixed(norm_axes=0)
    opt = celo2_mixed().optimizer(theta)
    params = {"b": jnp.ones(2)}  # no matrix at all
    with pytest.raises(ValueError, match="update got no params"):
        opt.update(params, opt.init(params))
