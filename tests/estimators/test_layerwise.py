import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.neighbors import kneighbors_graph

from metaopt.estimators import (
    add_label_nodes,
    goodness_loss,
    label_node_logits,
    label_node_loss,
    layerwise_outputs,
    layerwise_value_and_grad,
)
from tests.optimizers import networks


def layer(params, x):
    return jnp.tanh(x @ params["w"])


def two_layers(seed=0, widths=(3, 4, 2)):
    rng = np.random.default_rng(seed)
    return [{"w": rng.normal(size=shape)} for shape in zip(widths[:-1], widths[1:], strict=True)]


def test_every_layer_has_the_gradient_of_its_own_loss_on_constant_inputs(x64):
    params, x = two_layers(), np.random.default_rng(1).normal(size=(5, 3))
    x[2] = 0
    targets = jnp.array([1.0, -1.0, 1.0, 0.0, -1.0])
    losses, grads = jax.jit(layerwise_value_and_grad([layer, layer], goodness_loss))(
        params, x, targets
    )
    for weights, loss, grad in zip(params, losses, grads, strict=True):
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(length > 0, length, 1)
        h = np.tanh(x @ weights["w"])
        goodness = np.sum(h**2, axis=1) - 2
        expected = np.mean(np.log1p(np.exp(-goodness[[0, 2]]))) + np.mean(
            np.log1p(np.exp(goodness[[1, 4]]))
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        slope = np.array([-0.5, 0.5, -0.5, 0, 0.5]) / (1 + np.exp(np.asarray(targets) * goodness))
        by_h = 2 * h * slope[:, None]
        np.testing.assert_allclose(grad["w"], x.T @ (by_h * (1 - h**2)), rtol=1e-10)
        x = h


def test_outputs_without_normalisation_are_those_of_the_network(x64):
    params, x = two_layers(), np.random.default_rng(1).normal(size=(5, 3))
    first, second = layerwise_outputs([layer, layer], normalise=False)(params, x)
    np.testing.assert_allclose(first, np.tanh(x @ params[0]["w"]), rtol=1e-12)
    np.testing.assert_allclose(second, np.tanh(np.asarray(first) @ params[1]["w"]), rtol=1e-12)


def test_label_nodes_are_linked_to_the_nodes_of_their_class_alone(x64):
    rng = np.random.default_rng(0)
    features, adjacency = rng.normal(size=(4, 2)), rng.integers(0, 2, size=(4, 4)).astype(float)
    labels = jnp.array([1, -1, 0, 1])
    more, whole = add_label_nodes(features, adjacency, labels, num_classes=3)
    np.testing.assert_array_equal(more[:4], features)
    assert not np.asarray(more[4:]).any()
    links = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    expected = np.block([[adjacency, links], [links.T, np.zeros((3, 3))]])
    np.testing.assert_array_equal(whole, expected)

    outputs = rng.normal(size=(7, 5))
    logits = outputs[:4] @ outputs[4:].T / 0.5
    found = label_node_logits(outputs, num_classes=3, temperature=0.5)
    np.testing.assert_allclose(found, logits, rtol=1e-12)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = label_node_loss(outputs, labels, num_classes=3, temperature=0.5)
    expected = -(log_probs[0, 1] + log_probs[2, 0] + log_probs[3, 1]) / 3
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_nothing_that_counts_is_a_loss_of_zero_and_large_inputs_are_finite():
    no_labels = jnp.full(2, -1)
    assert label_node_loss(jnp.ones((3, 2)), no_labels, num_classes=1) == 0
    assert goodness_loss(jnp.ones((3, 2)), jnp.zeros(3)) == 0
    params = jax.tree.map(jnp.float32, two_layers())
    x = jnp.array([[1e30, -1e30, 0.0], [0.0, 0.0, 0.0]])
    losses, grads = jax.jit(layerwise_value_and_grad([layer, layer], goodness_loss))(
        params, x, jnp.array([1.0, -1.0])
    )
    assert isinstance(grads, list)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(g["w"]).all() for g in grads)


def graph_of_digits(num_labels=200):
    """Neighbours among all digits, and labels, -1 where they are not told."""
    (x, y), (other_x, other_y) = networks.digits()
    x, y = np.concatenate([x, other_x]), np.concatenate([y, other_y])
    links = kneighbors_graph(x, 8).toarray()
    told = np.where(np.arange(len(y)) < num_labels, y, -1)
    return x, np.maximum(links, links.T).astype(np.float32), y, told


def spread(adjacency):
    """D^(-1/2) (A + I) D^(-1/2), as graph convolutions have it."""
    whole = adjacency + jnp.eye(len(adjacency))
    scale = jax.lax.rsqrt(whole.sum(axis=1))
    return scale[:, None] * whole * scale[None]


@pytest.mark.slow
def test_graphs_with_label_nodes_are_read_as_well_as_by_backpropagation():
    """1797 digits of which 200 have a label; two graph convolutions of 64 units."""
    x, adjacency, labels, told = graph_of_digits()
    opt, num_steps = optax.adam(1e-2), 300
    key_local, key_whole = jax.random.split(jax.random.key(0))

    def train(start, gradient):
        def step(carry, _):
            params, state = carry
            updates, state = opt.update(gradient(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (start, opt.init(start)), length=num_steps)[0][0]

    def by_layer(x, adjacency, told):
        inputs, whole = add_label_nodes(x, adjacency, told, num_classes=10)
        # Averaged before it is multiplied: that of the first layer never changes.
        matrix = spread(whole)
        layers = [lambda p, x: jax.nn.relu((matrix @ x) @ p["w"] + p["b"][None])] * 2

        def loss(outputs, labels):
            return label_node_loss(outputs, labels, num_classes=10)

        value_and_grad = layerwise_value_and_grad(layers, loss)
        start = networks.dense((64, 64, 64), key_local)
        params = train(start, lambda params: value_and_grad(params, inputs, told)[1])
        outputs = layerwise_outputs(layers)(params, inputs)
        probs = [jax.nn.softmax(label_node_logits(h, num_classes=10)) for h in outputs]
        return probs[0], sum(probs)

    def by_backpropagation(x, adjacency, told):
        matrix = spread(adjacency)
        near = matrix @ x

        def logits(params):
            hidden = jax.nn.relu(near @ params[0]["w"] + params[0]["b"][None])
            return (matrix @ hidden) @ params[1]["w"] + params[1]["b"][None]

        start = networks.dense((64, 64, 10), key_whole)
        rows = jnp.arange(200)
        gradient = jax.grad(lambda p: networks.cross_entropy(logits(p)[rows], told[rows]))
        return logits(train(start, gradient))

    @jax.jit
    def accuracies(x, adjacency, told, labels):
        found = [*by_layer(x, adjacency, told), by_backpropagation(x, adjacency, told)]
        return [jnp.mean(jnp.argmax(scores, axis=1)[200:] == labels[200:]) for scores in found]

    first, both, exact = map(float, accuracies(x, adjacency, told, labels))
    assert both >= exact - 0.02, (first, both, exact)
    assert exact >= 0.9


@pytest.mark.compiles
def test_forward_forward_learns_which_of_two_inputs_goes_together(x64):
    """Positive inputs have two equal halves; goodness tells them from others, layer by layer."""
    rng = np.random.default_rng(0)
    half, other = rng.normal(size=(2, 64, 2))
    inputs = np.concatenate([np.hstack([half, half]), np.hstack([half, other])])
    targets = jnp.repeat(jnp.array([1.0, -1.0]), 64)
    layers = [lambda p, x: jax.nn.relu(x @ p["w"] + p["b"][None])] * 2
    value_and_grad = layerwise_value_and_grad(layers, goodness_loss)
    start = networks.dense((4, 16, 16), jax.random.key(0))
    opt = optax.adam(3e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            losses, grads = value_and_grad(params, inputs, targets)
            updates, state = opt.update(grads, state)
            return (optax.apply_updates(params, updates), state), losses

        return jax.lax.scan(step, (params, opt.init(params)), length=200)[1]

    losses = np.asarray(train(start))
    assert (losses[-1] <= 0.6 * losses[0]).all(), losses[[0, -1]]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="layer_fns is empty"):
        layerwise_value_and_grad([], goodness_loss)
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 1, got 0"):
        label_node_logits(jnp.ones((3, 2)), num_classes=0)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        label_node_logits(jnp.ones((3, 2)), num_classes=1, temperature=0.0)
