from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import aggregators
from tests.helpers import relative_error
from tests.optimizers.networks import apply as mlp
from tests.optimizers.networks import cross_entropy, dense, digits


def product(a, v):
    return a * v + 2 * a - v**2


def test_contributions_of_two_modalities_follow_the_formula():
    a, v = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    first, second = aggregators.shapley_outputs(product, (a, v))
    only_a, only_v = product(a, 0 * v), product(0 * a, v)
    np.testing.assert_allclose(first, 0.5 * (product(a, v) - only_v + only_a), rtol=1e-6)
    np.testing.assert_allclose(second, 0.5 * (product(a, v) - only_a + only_v), rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("count", [2, 3, 4])
def test_contributions_sum_to_the_output(count):
    inputs = jax.random.normal(jax.random.key(0), (count, 5))

    def network(*modalities):
        return jnp.tanh(sum(modalities)) + modalities[0] * modalities[-1] + 0.3

    total = sum(aggregators.shapley_outputs(network, tuple(inputs)))
    assert relative_error(total, network(*inputs)) < 1e-12


def test_an_additive_network_gives_every_modality_its_own_part():
    inputs = [jnp.array([1.0]), jnp.array([2.0]), jnp.array([3.0])]
    parts = aggregators.shapley_outputs(lambda a, b, c: a + b**2 + c**3, inputs)
    np.testing.assert_allclose(parts, [[1.0], [4.0], [27.0]], rtol=1e-6)


def test_padded_passes_may_go_elsewhere():
    inputs = [jnp.ones(1), jnp.ones(1)]
    parts = aggregators.shapley_outputs(
        lambda a, b: a + b, inputs, padded=lambda a, b: 10 * (a + b)
    )
    np.testing.assert_allclose(parts, [[1.0], [1.0]])
    parts = aggregators.shapley_outputs(lambda a, b: a + b, inputs, padded=lambda a, b: 10 * a + b)
    np.testing.assert_allclose(parts, [[5.5], [-3.5]])


def test_modulation_is_the_identity_whose_derivative_is_multiplied():
    x = jax.random.normal(jax.random.key(0), (7,))
    np.testing.assert_array_equal(aggregators.modulate(x, 0.3), x)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(aggregators.modulate(x, 0.3))))(x)
    np.testing.assert_allclose(slope, 0.3 * jnp.cos(x), rtol=1e-6)
    _, tangent = jax.jvp(lambda x: aggregators.modulate(x, 0.3), (x,), (x,))
    np.testing.assert_allclose(tangent, 0.3 * x, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_coefficients_follow_the_formula_and_averages_come_after_them():
    rng = np.random.default_rng(0)
    labels = jnp.array([0, 2, 1])
    controller = aggregators.agm(alpha=0.7)
    state, means = controller.init(2), np.zeros(2)
    for step in range(3):
        outputs = rng.normal(size=(2, 3, 3))
        chances = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
        s = -np.log(chances[:, np.arange(3), np.asarray(labels)]).mean(axis=1)
        expected = np.exp(0.7 * (np.exp(2 * (means.mean() - means)) - np.exp(2 * (s.mean() - s))))
        k, state = controller.update(state, tuple(map(jnp.asarray, outputs)), labels)
        np.testing.assert_allclose(k, expected, rtol=1e-6)
        means = (step * means + s) / (step + 1)
        np.testing.assert_allclose(state.mean_scores, means, rtol=1e-6)


def test_impossible_labels_give_finite_coefficients_without_a_derivative():
    controller = aggregators.agm()

    def total(scale):
        outputs = [scale * jnp.array([[1.0, -1.0]]), jnp.zeros((1, 2))]
        return jnp.sum(controller.update(controller.init(2), outputs, jnp.array([1]))[0])

    value, slope = jax.value_and_grad(total)(1e30)
    assert np.isfinite(value)
    assert slope == 0


def _train(alpha, seed, num_steps=1500):
    """Test accuracies of both halves of digits, jointly, left and right; alpha None: plain."""
    (pixels, labels), (test_pixels, test_labels) = digits()
    noise = np.random.default_rng(7)

    def halves(pixels):
        images = pixels.reshape(-1, 8, 8)
        left, right = images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32)
        right = right + 0.4 * noise.normal(size=right.shape).astype(right.dtype)
        return jnp.asarray(left), jnp.asarray(right)

    train, test = halves(pixels), halves(test_pixels)
    labels, test_labels = jnp.asarray(labels), jnp.asarray(test_labels)
    key_init, key_run = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(key_init, 3)
    params = {
        "left": dense((32, 64), keys[0]),
        "right": dense((32, 64), keys[1]),
        "fusion": dense((128, 64, 10), keys[2]),
    }

    def network(params):
        def function(left, right):
            hidden = [jax.nn.relu(mlp(params[s], x)) for s, x in (("left", left), ("right", right))]
            return mlp(params["fusion"], jnp.concatenate(hidden, axis=1), jax.nn.relu)

        return function

    controller = aggregators.agm(alpha=0.0 if alpha is None else alpha)

    def loss(params, state, batch, labels):
        outputs = aggregators.shapley_outputs(network(params), batch)
        k, state = controller.update(state, outputs, labels)
        if alpha is not None:
            outputs = [aggregators.modulate(x, k[i]) for i, x in enumerate(outputs)]
        return cross_entropy(sum(outputs), labels), state

    def step(carry, key):
        params, state = carry
        rows = jax.random.choice(key, len(labels), (64,), replace=False)
        batch = tuple(x[rows] for x in train)
        grads, state = jax.grad(loss, has_aux=True)(params, state, batch, labels[rows])
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state), None

    keys = jax.random.split(key_run, num_steps)
    (params, _), _ = jax.lax.scan(step, (params, controller.init(2)), keys)
    outputs = aggregators.shapley_outputs(network(params), test)
    guesses = [x.argmax(axis=1) for x in (sum(outputs), *outputs)]
    return jnp.stack([(g == test_labels).mean() for g in guesses]), params


@pytest.mark.slow
def test_the_weaker_half_of_digits_learns_more_at_little_cost():
    plain, modulated = jax.jit(partial(_train, None)), jax.jit(partial(_train, 1.0))
    joint = np.mean([plain(seed)[0] for seed in range(3)], axis=0)
    ours = np.mean([modulated(seed)[0] for seed in range(3)], axis=0)
    assert ours[2] >= joint[2] + 0.15, (joint, ours)
    assert ours[1] >= joint[1] + 0.1, (joint, ours)
    assert ours[0] >= joint[0] - 0.02, (joint, ours)


@pytest.mark.slow
def test_factors_of_one_leave_training_as_it_is_bit_for_bit():
    plain, ours = (jax.jit(lambda a=a: _train(a, 0, num_steps=20)[1])() for a in (None, 0.0))
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
        np.testing.assert_array_equal(x, y)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_modalities must be at least 2"):
        aggregators.agm().init(1)
    with pytest.raises(ValueError, match="modalities must be at least two"):
        aggregators.shapley_outputs(lambda a: a, (jnp.ones(2),))
