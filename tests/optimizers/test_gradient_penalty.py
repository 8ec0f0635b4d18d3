import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import gradient_penalty, sam_gradient
from tests.helpers import ravel, relative_error
from tests.optimizers import networks


def loss(params):
    """Neither quadratic nor separable."""
    return jnp.sum(jnp.sin(params["a"])) * jnp.sum(params["b"] ** 3) + jnp.sum(params["a"] ** 4)


PARAMS = {"a": np.array([0.3, -0.7]), "b": np.array([0.5, 0.2, -0.4])}


def direction(kind, gamma, eps, **extra):
    params = jax.tree.map(jnp.asarray, PARAMS)
    tx = gradient_penalty(kind=kind, gamma=gamma, eps=eps)
    extra = extra or {"grad_fn": lambda p, i: jax.grad(loss)(p)}
    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params, **extra)
    return ravel(updates)


def slope(a, b):
    """∇L in NumPy."""
    return np.concatenate([np.cos(a) * np.sum(b**3) + 4 * a**3, np.sum(np.sin(a)) * 3 * b**2])


def at(flat):
    return slope(flat[:2], flat[2:])


@pytest.mark.parametrize(
    ("kind", "difference"),
    [
        ("forward", lambda w, g, eps: (at(w + eps * g) - g) / eps),
        ("backward", lambda w, g, eps: (g - at(w - eps * g)) / eps),
        ("central", lambda w, g, eps: (at(w + eps * g) - at(w - eps * g)) / (2 * eps)),
    ],
)
def test_repeats_the_difference_in_numpy(x64, kind, difference):
    w = ravel(PARAMS)
    g = at(w)
    expected = g + 0.3 * difference(w, g, 0.2)
    np.testing.assert_allclose(direction(kind, 0.3, 0.2), expected, rtol=1e-12)


def test_the_exact_penalty_is_the_gradient_of_the_penalised_loss(x64):
    def penalised(params):
        return loss(params) + 0.3 / 2 * optax.tree.norm(jax.grad(loss)(params), squared=True)

    expected = ravel(jax.grad(penalised)(jax.tree.map(jnp.asarray, PARAMS)))
    np.testing.assert_allclose(direction("exact", 0.3, 0.2), expected, rtol=1e-10)
    # The same with Hessian-vector products of the caller's.
    given = direction(
        "exact",
        0.3,
        0.2,
        hvp_fn=lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,))[1],
    )
    np.testing.assert_allclose(given, expected, rtol=1e-10)


def test_with_gamma_equal_to_eps_it_is_the_gradient_at_the_point_uphill(x64):
    w = ravel(PARAMS)
    np.testing.assert_allclose(direction("forward", 0.2, 0.2), at(w + 0.2 * at(w)), rtol=1e-10)


def test_with_a_step_of_fixed_length_it_is_sharpness_aware_minimisation(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    step = 0.1 / np.linalg.norm(at(ravel(PARAMS)))
    expected = sam_gradient(jax.grad(loss), rho=0.1, eps=0.0)(params)
    assert relative_error(direction("forward", step, step), ravel(expected)) < 1e-10


def test_differences_converge_to_the_exact_product_at_first_and_second_order(x64):
    (inputs, labels), _ = networks.digits(np.float64)
    inputs, labels = inputs[:200], labels[:200]
    params = networks.dense((64, 32, 10), jax.random.key(0))
    steps = np.array([1e-1, 1e-2, 1e-3, 1e-4])

    def grad_fn(params, index=0):
        return jax.grad(lambda p: networks.cross_entropy(networks.apply(p, inputs), labels))(params)

    @jax.jit
    def errors(params):
        g = grad_fn(params)

        def product(kind, eps):
            tx = gradient_penalty(kind=kind, gamma=1.0, eps=eps)
            new, _ = tx.update(g, tx.init(params), params, grad_fn=grad_fn)
            return optax.tree.sub(new, g)

        exact = product("exact", 1.0)
        return {
            kind: jax.vmap(
                lambda eps: optax.tree.norm(optax.tree.sub(product(kind, eps), exact))  # noqa: B023
            )(jnp.asarray(steps))
            / optax.tree.norm(exact)
            for kind in ("forward", "central")
        }

    found = jax.tree.map(np.asarray, errors(params))
    orders = {
        kind: -np.polyfit(-np.log10(steps[:3]), np.log10(e[:3]), 1)[0] for kind, e in found.items()
    }
    assert abs(np.polyfit(np.log10(steps), np.log10(found["forward"]), 1)[0] - 1) <= 0.1
    # The last central difference is one of rounding.
    assert abs(orders["central"] - 2) <= 0.1
    assert found["forward"][1] <= 2e-2
    assert found["central"][1] < found["forward"][1] / 10


@pytest.mark.parametrize("kind", ["forward", "central"])
def test_a_missing_gradient_function_is_named(kind):
    tx = gradient_penalty(kind=kind)
    with pytest.raises(ValueError, match="gradient_penalty: update needs grad_fn="):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


def test_missing_parameters_and_steps_of_nothing_are_refused():
    tx = gradient_penalty()
    with pytest.raises(ValueError, match="gradient_penalty: update needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), grad_fn=lambda p, i: p)
    with pytest.raises(ValueError, match="eps must be finite and positive, got 0"):
        gradient_penalty(eps=0.0)
    with pytest.raises(ValueError, match="gamma must be finite and at least 0"):
        gradient_penalty(gamma=-1.0)
