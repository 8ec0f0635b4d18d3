import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.estimators import activity_value_and_grad, forward_gradient, random_guess
from tests.helpers import ravel, relative_error, standard_errors
from tests.optimizers import networks


def hidden(layer, x):
    return jnp.tanh(x @ layer["w"] + layer["b"][None])


def output(layer, x):
    return x @ layer["w"] + layer["b"][None]


def squares(outputs, targets):
    """A loss for each example."""
    return jnp.sum((outputs - targets) ** 2, axis=1)


def problem(widths=(3, 4, 3, 2), num_examples=5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_examples, widths[0]))
    targets = rng.normal(size=(num_examples, widths[-1]))
    return networks.dense(widths, jax.random.key(0)), (x, targets)


def exact(params, batch):
    def loss(params):
        return jnp.mean(squares(networks.apply(params, batch[0]), batch[1]))

    return jax.value_and_grad(loss)(params)


@pytest.mark.compiles
@pytest.mark.parametrize("directions", ["rademacher", "normal"])
def test_estimates_are_unbiased_and_exact_for_the_last_layer(x64, directions):
    params, batch = problem()
    value_and_grad = activity_value_and_grad(
        [hidden, hidden, output], squares, directions=directions
    )
    keys = jax.random.split(jax.random.key(1), 4000)
    losses, grads = jax.jit(jax.vmap(value_and_grad, (None, None, 0)))(params, batch, keys)
    value, expected = exact(params, batch)
    np.testing.assert_allclose(losses, np.full(4000, value), rtol=1e-12)
    last = jax.tree.map(lambda g: g[7], grads[-1])
    assert relative_error(last, expected[-1]) < 1e-10
    samples = np.concatenate(
        [np.asarray(g).reshape(4000, -1) for g in jax.tree.leaves(grads[:-1])], axis=1
    )
    assert standard_errors(samples, ravel(expected[:-1])) < 5
    assert standard_errors(samples, 1.3 * ravel(expected[:-1])) > 5


def test_one_draw_is_the_outer_product_of_inputs_and_guessed_errors(x64):
    """One hidden layer of linear units: (c v)ᵀ x, with c = δ · v for every example."""
    params, (x, targets) = problem((3, 4, 2))
    _, (first, _) = activity_value_and_grad([output, output], squares)(
        params, (x, targets), jax.random.key(1)
    )
    h = x @ np.asarray(params[0]["w"])
    delta = 2 * (h @ np.asarray(params[1]["w"]) - targets) @ np.asarray(params[1]["w"]).T
    v = np.asarray(jax.random.rademacher(jax.random.split(jax.random.key(1), 1)[0], (5, 4)))
    c = np.sum(delta * v, axis=1, keepdims=True)
    np.testing.assert_allclose(first["w"], x.T @ (c * v) / 5, rtol=1e-10)
    np.testing.assert_allclose(first["b"], (c * v).mean(axis=0), rtol=1e-10)


@pytest.mark.slow
def test_the_variance_is_that_of_theory_and_far_below_that_of_directions_along_weights(x64):
    num_examples, width, count = 32, 20, 4000
    rng = np.random.default_rng(0)
    x, delta = rng.normal(size=(num_examples, 10)), rng.normal(size=(num_examples, width))
    params = [jnp.zeros((10, width)), jnp.zeros(())]
    layers = [lambda w, x: x @ w, lambda p, x: x + p]

    def losses(outputs, slopes):
        return jnp.sum(outputs * slopes, axis=1)

    by_activity = activity_value_and_grad(layers, losses)
    by_weight = forward_gradient(
        lambda w, data, key: jnp.mean(losses(data[0] @ w, data[1])),
        guess=random_guess(),
        normalisation="unnormalised",
    )

    gradient = x.T @ delta / num_examples

    @jax.jit
    def squared_errors(x, delta, keys):
        """Of each draw from the exact gradient; their mean is the variance, over all entries."""

        def one(key):
            key, other = jax.random.split(key)
            activity = by_activity(params, (x, delta), key)[1][0]
            weight = by_weight.estimate(params[0], (), (x, delta), other)[0].grad
            return [jnp.sum((g - gradient) ** 2) for g in (activity, weight)]

        return jax.lax.map(one, keys, batch_size=100)

    found = squared_errors(x, delta, jax.random.split(jax.random.key(0), count))
    squared = np.sum(x**2, axis=1) * np.sum(delta**2, axis=1)
    per_width = squared.sum() / num_examples**2
    expected = [(width - 1) * per_width, (gradient.size - 1) * np.sum(gradient**2)]
    biased = [width * per_width, 1.2 * expected[1]]
    for samples, variance, wrong in zip(found, expected, biased, strict=True):
        assert standard_errors(samples, variance) < 4
        assert standard_errors(samples, wrong) > 4
    assert expected[0] <= 0.2 * expected[1]


@pytest.mark.compiles
def test_on_a_network_the_variance_is_below_a_fiftieth_of_that_of_directions_along_weights():
    (x, y), _ = networks.digits()
    params = networks.dense((64, 64, 64, 10), jax.random.key(0), gain=1.0)
    batch = (jnp.asarray(x[:64]), jnp.asarray(y[:64]))

    def losses(outputs, labels):
        log_probs = jax.nn.log_softmax(outputs)
        return -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]

    def whole(params, batch, key):
        return jnp.mean(losses(networks.apply(params, batch[0]), batch[1]))

    by_activity = activity_value_and_grad([hidden, hidden, output], losses)
    by_weight = forward_gradient(whole, guess=random_guess(), normalisation="unnormalised")

    @jax.jit
    def variances(batch, keys):
        """Of the gradients of hidden layers."""

        def one(key):
            key, other = jax.random.split(key)
            activity = by_activity(params, batch, key)[1]
            return activity[:-1], by_weight.estimate(params, (), batch, other)[0].grad[:-1]

        samples = jax.vmap(one)(keys)
        return [sum(jnp.sum(jnp.var(x, axis=0)) for x in jax.tree.leaves(s)) for s in samples]

    activity, weight = map(float, variances(batch, jax.random.split(jax.random.key(1), 30)))
    assert activity <= 0.02 * weight, (activity, weight)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1 layer_fns; without a hidden layer"):
        activity_value_and_grad([output], squares)
    params, batch = problem((3, 4, 2))
    averaged = activity_value_and_grad([hidden, output], lambda *x: jnp.mean(squares(*x)))
    with pytest.raises(ValueError, match=r"one loss for every example, \(5,\); got \(\)"):
        averaged(params, batch, jax.random.key(0))
