import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import aggregators
from tests.helpers import ravel, relative_error


def quadratics(num=3, dim=6):
    """Strongly convex ones, as batches of domains."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(num, dim, dim))
    hessians = factors @ factors.transpose(0, 2, 1) / dim + np.eye(dim)[None]
    return {"hessian": jnp.asarray(hessians), "centre": jnp.asarray(rng.normal(size=(num, dim)))}


def loss(params, batch):
    x = params["x"] - batch["centre"]
    return 0.5 * jnp.dot(x, batch["hessian"] @ x)


@pytest.mark.usefixtures("x64")
def test_what_it_adds_to_the_sum_of_gradients_raises_their_inner_products():
    domains, params = quadratics(), {"x": jnp.asarray(np.random.default_rng(1).normal(size=6))}
    rate = 1e-3
    step = aggregators.fish(loss, optax.sgd(rate), meta_lr=1.0)
    orders = np.array(list(itertools.permutations(range(3))))
    batches = jax.tree.map(lambda x: x[orders], domains)
    # One key for all: a fixed permutation of all orders is all orders.
    updates, _, _ = jax.jit(jax.vmap(step.update, (None, None, 0, None)))(
        params, step.init(params), batches, jax.random.key(0)
    )
    grads = jax.vmap(jax.grad(loss), (None, 0))(params, domains)
    extra = ravel(jax.tree.map(lambda u, g: u.mean(0) + rate * g.sum(0), updates, grads))
    exact = ravel(aggregators.inner_product_gradient(loss)(params, domains))
    cosine = extra @ exact / np.linalg.norm(extra) / np.linalg.norm(exact)
    assert cosine >= 0.9999
    ratio = np.linalg.norm(extra) / (rate**2 * np.linalg.norm(exact))
    assert abs(ratio / 1.5 - 1) < 0.01


@pytest.mark.usefixtures("x64")
def test_the_reference_is_the_gradient_of_the_mean_inner_product():
    domains, params = quadratics(), {"x": jnp.arange(6.0) / 6}

    def mean_product(params):
        grads = jax.vmap(jax.grad(loss), (None, 0))(params, domains)["x"]
        products = grads @ grads.T
        return (products.sum() - jnp.trace(products)) / 6

    found = aggregators.inner_product_gradient(loss)(params, domains)
    assert relative_error(found, jax.grad(mean_product)(params)) < 1e-12


@pytest.mark.usefixtures("x64")
def test_it_goes_part_of_the_way_of_inner_steps_in_the_order_drawn():
    domains, params = quadratics(), {"x": jnp.ones(6)}
    step = aggregators.fish(loss, optax.sgd(0.05, momentum=0.9), meta_lr=0.1)
    updates, state, losses = step.update(params, step.init(params), domains, jax.random.key(3))
    ends = []
    for order in itertools.permutations(range(3)):
        x, m, seen = np.ones(6), np.zeros(6), []
        for i in order:
            hessian, centre = np.asarray(domains["hessian"][i]), np.asarray(domains["centre"][i])
            seen.append(0.5 * (x - centre) @ hessian @ (x - centre))
            m = 0.9 * m + hessian @ (x - centre)
            x = x - 0.05 * m
        ends.append((0.1 * (x - 1), m, seen))
    errors = [np.abs(end[0] - np.asarray(updates["x"])).max() for end in ends]
    best = int(np.argmin(errors))
    assert errors[best] < 1e-12
    np.testing.assert_allclose(losses, ends[best][2], rtol=1e-12)
    np.testing.assert_allclose(state[0].trace["x"], ends[best][1], rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_orders_differ_between_keys_and_some_domains_may_stay_out():
    domains, params = quadratics(), {"x": jnp.ones(6)}
    step = aggregators.fish(loss, optax.sgd(0.05), num_domains=1, carry_state=False)
    keys = jax.random.split(jax.random.key(0), 32)
    updates, _, losses = jax.jit(jax.vmap(step.update, (None, None, None, 0)))(
        params, step.init(params), domains, keys
    )
    assert losses.shape == (32, 1)
    alone = -0.05 * 0.05 * jax.vmap(jax.grad(loss), (None, 0))(params, domains)["x"]
    distance = np.abs(np.asarray(updates["x"])[:, None] - np.asarray(alone)[None]).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-12
    assert set(distance.argmin(axis=1)) == {0, 1, 2}


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_domains must be at least 1"):
        aggregators.fish(loss, optax.sgd(0.1), num_domains=0)
    step = aggregators.fish(loss, optax.sgd(0.1), num_domains=4)
    params = {"x": jnp.ones(6)}
    with pytest.raises(ValueError, match="of the 3 domains"):
        step.update(params, step.init(params), quadratics(), jax.random.key(0))
