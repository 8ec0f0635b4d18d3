import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.estimators import (
    forward,
    forward_gradient,
    local_guess,
    local_value_and_grad,
    random_guess,
)
from tests.helpers import ravel, relative_error
from tests.optimizers import networks

THETA = {"a": np.array([0.3, -0.7]), "b": [np.array([0.5, 0.2, -0.4])]}
V = {"a": np.array([1.0, 2.0]), "b": [np.array([-1.0, 0.5, 3.0])]}


def loss(theta, data, key):
    return jnp.sum(jnp.sin(theta["a"])) * jnp.sum(theta["b"][0] ** 3) + jnp.sum(theta["a"] ** 4)


def slopes():
    """∇L in NumPy."""
    a, b = THETA["a"], THETA["b"][0]
    return np.cos(a) * np.sum(b**3) + 4 * a**3, np.sum(np.sin(a)) * 3 * b**2


def estimate_of(estimator, theta=None, data=(), keys=None):
    """One estimate, or one for each key."""
    theta = jax.tree.map(jnp.asarray, THETA if theta is None else theta)

    def estimate(key):
        key_init, key = jax.random.split(key)
        return estimator.estimate(theta, estimator.init(theta, data, key_init), data, key)[0]

    if keys is None:
        return jax.jit(estimate)(jax.random.key(0))
    return jax.jit(jax.vmap(estimate))(keys)


@pytest.mark.parametrize(
    ("normalisation", "factor"),
    [
        ("unnormalised", lambda c, v: c),
        ("projection", lambda c, v: c / (v @ v)),
        ("sign", lambda c, v: np.sign(c)),
    ],
)
@pytest.mark.parametrize("by_block", [False, True])
def test_repeats_numpy_for_the_whole_and_block_by_block(x64, normalisation, factor, by_block):
    estimator = forward_gradient(
        loss,
        guess=lambda theta, data, key: jax.tree.map(jnp.asarray, V),
        normalisation=normalisation,
        by_block=by_block,
    )
    g, v = slopes(), (V["a"], V["b"][0])
    if by_block:
        expected = np.concatenate([factor(x @ y, y) * y for x, y in zip(g, v, strict=True)])
    else:
        g, v = np.concatenate(g), np.concatenate(v)
        expected = factor(g @ v, v) * v
    found = estimate_of(estimator)
    np.testing.assert_allclose(ravel(found.grad), expected, rtol=1e-12)
    np.testing.assert_allclose(found.loss, loss(jax.tree.map(jnp.asarray, THETA), (), None))


def test_a_guess_that_is_right_up_to_its_length_gives_the_gradient(x64):
    def guess(theta, data, key):
        return optax.tree.scale(-3.0, jax.grad(loss)(theta, data, key))

    estimate = estimate_of(forward_gradient(loss, guess=guess))
    np.testing.assert_allclose(ravel(estimate.grad), np.concatenate(slopes()), rtol=1e-12)


def test_random_guesses_have_the_error_and_the_angle_of_theory():
    dim, count = 200, 20_000
    slope = jnp.sin(1.0 + jnp.arange(dim))
    estimator = forward_gradient(
        lambda theta, data, key: jnp.sum(slope * theta),
        guess=random_guess(directions="normal"),
        normalisation="unnormalised",
    )

    @jax.jit
    def sample(keys):
        def one(key):
            g = estimator.estimate(jnp.zeros(dim), (), (), key)[0].grad
            return g, (g @ slope) ** 2 / (g @ g) / (slope @ slope)

        grads, cosines = jax.lax.map(one, keys, batch_size=1000)
        return grads.mean(axis=0), cosines.mean()

    mean, cosine = sample(jax.random.split(jax.random.key(0), count))
    error = float(jnp.linalg.norm(mean - slope) / jnp.linalg.norm(slope))
    assert abs(error / np.sqrt((dim + 1) / count) - 1) <= 0.15
    assert abs(float(cosine) * dim - 1) <= 0.1


def test_along_random_signs_it_is_forward_with_one_direction(x64):
    """The same estimate from the same signs, drawn where the other one draws them."""
    theta = jnp.array([0.3, -0.7, 0.2])

    def smooth(theta, data, key):
        return jnp.sum(jnp.sin(theta)) * theta[0]

    ours = forward_gradient(smooth, guess=random_guess(), normalisation="unnormalised")
    theirs = forward(smooth, num_directions=1, num_tasks=1)
    found = {
        name: np.asarray(estimate_of(e, theta, keys=jax.random.split(jax.random.key(0), 16)).grad)
        for name, e in {"ours": ours, "theirs": theirs}.items()
    }
    exact = np.asarray(jax.grad(smooth)(theta, (), None))
    for grads in found.values():
        signs = np.sign(grads)
        # Every one of them is (∇L · v) v for a vector of signs v, whatever the sign of the slope.
        np.testing.assert_allclose(grads, (signs @ exact)[:, None] * signs, rtol=1e-10)


def blocks(num_blocks=3, act=jnp.tanh):
    def apply(layer, x):
        return act(x @ layer["w"] + layer["b"][None])

    def head(layer, x):
        return x @ layer["w"] + layer["b"][None]

    return [apply] * num_blocks + [head], [head] * num_blocks


def test_local_gradients_see_their_own_block_and_the_last_one_the_truth(x64):
    block_fns, head_fns = blocks(2)
    layers = networks.dense((3, 4, 4, 2), jax.random.key(0))
    heads = networks.dense((4, 2, 2), jax.random.key(1))
    heads = [heads[0], {"w": heads[0]["w"] + 1, "b": heads[0]["b"]}]
    x, y = np.random.default_rng(0).normal(size=(5, 3)), jnp.array([0, 1, 1, 0, 1])
    losses, (block_grads, head_grads) = jax.jit(
        local_value_and_grad(block_fns, head_fns, networks.cross_entropy)
    )(layers, heads, (x, y))

    def whole(layers):
        return networks.cross_entropy(networks.apply(layers, x), y)

    value, truth = jax.value_and_grad(whole)(layers)
    np.testing.assert_allclose(losses[-1], value, rtol=1e-12)
    assert relative_error(block_grads[-1], truth[-1]) < 1e-10

    # The second block and its head, on the outputs of the first as data.
    inputs = jnp.tanh(x @ layers[0]["w"] + layers[0]["b"][None])

    def second(parts):
        block, head = parts
        return networks.cross_entropy(networks.apply([block, head], inputs), y)

    value, (of_block, of_head) = jax.value_and_grad(second)((layers[1], heads[1]))
    np.testing.assert_allclose(losses[1], value, rtol=1e-12)
    assert relative_error(block_grads[1], of_block) < 1e-10
    assert relative_error(head_grads[1], of_head) < 1e-10


@pytest.mark.slow
def test_guesses_of_local_losses_train_as_backpropagation_does_and_random_ones_do_not():
    train, test = networks.digits()
    block_fns, head_fns = blocks(act=jax.nn.relu)
    layers = networks.dense((64, 128, 128, 128, 10), jax.random.key(0))
    start_heads = [networks.dense((128, 10), k)[0] for k in jax.random.split(jax.random.key(1), 3)]

    def meta_loss(theta, data, key):
        _, (x, y) = data
        return networks.cross_entropy(networks.apply(theta, x, jax.nn.relu), y)

    local = local_value_and_grad(block_fns, head_fns, networks.cross_entropy)
    guess = local_guess(block_fns, head_fns, networks.cross_entropy)
    estimators = {
        "local": forward_gradient(meta_loss, guess=guess, by_block=True),
        "random": forward_gradient(
            meta_loss, guess=random_guess(directions="normal"), normalisation="unnormalised"
        ),
    }

    def run(kind, learning_rate, train, test):
        def draw(heads, key):
            rows = jax.random.randint(key, (64,), 0, len(train[1]))
            return heads, jax.tree.map(lambda x: x[rows], train)

        def gradient(layers, data, key):
            if kind == "exact":
                return jax.grad(meta_loss)(layers, data, key)
            return estimators[kind].estimate(layers, (), data, key)[0].grad

        def step(carry, key):
            layers, heads = carry
            key_rows, key = jax.random.split(key)
            data = draw(heads, key_rows)
            if kind == "local":
                heads = optax.tree.add_scale(heads, -0.05, local(layers, *data)[1][1])
            g = gradient(layers, data, key)
            return (optax.tree.add_scale(layers, -learning_rate, g), heads), None

        def cosine(key):
            key_rows, key = jax.random.split(key)
            data = draw(heads, key_rows)
            exact, g = jax.grad(meta_loss)(end, data, None), gradient(end, data, key)
            return optax.tree.vdot(g, exact) / optax.tree.norm(g) / optax.tree.norm(exact)

        key_steps, key_cosines = jax.random.split(jax.random.key(2))
        steps = jax.random.split(key_steps, 1500)
        (end, heads), _ = jax.lax.scan(step, (layers, start_heads), steps)
        hits = jnp.argmax(networks.apply(end, test[0], jax.nn.relu), axis=1) == test[1]
        cosines = jax.lax.map(cosine, jax.random.split(key_cosines, 50))
        return hits.mean(), cosines.mean()

    @jax.jit
    def all_of_them(train, test):
        rates = {"exact": 0.05, "local": 0.05, "random": 2e-4}
        return {kind: run(kind, rate, train, test) for kind, rate in rates.items()}

    found = all_of_them(train, test)
    found = jax.tree.map(float, found)
    assert found["local"][0] >= found["exact"][0] - 0.015
    assert found["local"][1] >= 0.4
    assert found["random"][0] <= 0.6
    assert found["random"][1] < 0.02


def test_a_draw_that_is_not_finite_contributes_nothing():
    estimator = forward_gradient(
        lambda theta, data, key: jnp.sum(theta / data), guess=lambda theta, data, key: theta
    )
    found = estimate_of(estimator, jnp.ones(2), jnp.zeros(2))
    assert (found.grad == 0).all()
    assert found.info.nonfinite == 1
    nothing = forward_gradient(loss, guess=lambda theta, data, key: optax.tree.zeros_like(theta))
    assert (ravel(estimate_of(nothing).grad) == 0).all()


def test_what_does_not_fit_is_refused():
    estimator = forward_gradient(loss, guess=lambda theta, data, key: theta["a"])
    with pytest.raises(ValueError, match="guess must return a tree like theta"):
        estimate_of(estimator)
    several = forward_gradient(lambda theta, data, key: theta, guess=random_guess())
    with pytest.raises(ValueError, match=r"meta_loss must return a scalar, .* \(2,\)"):
        estimate_of(several, jnp.ones(2))
    with pytest.raises(ValueError, match="2 head_fns for 2 block_fns"):
        local_guess([len, len], [len, len], len)
