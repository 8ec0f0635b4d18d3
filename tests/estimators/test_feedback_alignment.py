import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.estimators import dfa_value_and_grad, random_feedback
from tests.helpers import relative_error
from tests.optimizers import networks


def hidden(layer, x):
    return jnp.tanh(x @ layer["w"] + layer["b"][None])


def output(layer, x):
    return x @ layer["w"] + layer["b"][None]


def test_with_one_hidden_layer_it_is_the_closed_form(x64):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(5, 3)), np.array([0, 1, 1, 0, 1])
    params = [
        {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)},
        {"w": rng.normal(size=(4, 2)), "b": rng.normal(size=2)},
    ]
    (matrix,) = random_feedback(2, [4], jax.random.key(0))
    loss, grads = jax.jit(dfa_value_and_grad([hidden, output], networks.cross_entropy))(
        params, (matrix,), (x, labels)
    )

    h = np.tanh(x @ params[0]["w"] + params[0]["b"])
    logits = h @ params[1]["w"] + params[1]["b"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    e = (p - np.eye(2)[labels]) / 5
    delta = (e @ np.asarray(matrix)) * (1 - h**2)
    expected = [{"w": x.T @ delta, "b": delta.sum(axis=0)}, {"w": h.T @ e, "b": e.sum(axis=0)}]
    assert relative_error(grads, expected) < 1e-10
    np.testing.assert_allclose(loss, -np.log(p[np.arange(5), labels]).mean(), rtol=1e-12)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_fed_back_through_the_weights_themselves_it_is_backpropagation(x64):
    """Linear layers: the product of the weights behind a layer takes the place of B."""
    rng = np.random.default_rng(1)
    x, targets = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    params = tuple(
        {"w": rng.normal(size=s), "b": rng.normal(size=s[1])} for s in ((3, 4), (4, 6), (6, 2))
    )

    def loss_fn(outputs, targets):
        return jnp.mean((outputs - targets) ** 2)

    def whole(params):
        return loss_fn(networks.apply(params, x, lambda x: x), targets)

    second = params[2]["w"].T
    feedback = (second @ params[1]["w"].T, second)
    value_and_grad = dfa_value_and_grad([output] * 3, loss_fn)
    loss, grads = value_and_grad(params, feedback, (x, targets))
    value, expected = jax.value_and_grad(whole)(params)
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    assert relative_error(grads, expected) < 1e-10
    assert isinstance(grads, tuple)


def test_images_between_layers_keep_their_shape(x64):
    def first(scale, x):
        return jnp.tanh(scale * x)

    def last(w, x):
        return x.reshape(len(x), -1) @ w

    x = np.random.default_rng(0).normal(size=(2, 2, 3))
    value_and_grad = dfa_value_and_grad([first, last], lambda outputs, y: jnp.sum(outputs * y))
    matrix, y = np.arange(12.0).reshape(2, 6), np.ones((2, 2))
    _, (slope, _) = value_and_grad([jnp.array(0.5), jnp.ones((6, 2))], [matrix], (x, y))
    signal = (y @ matrix).reshape(2, 2, 3)
    np.testing.assert_allclose(slope, np.sum(signal * (1 - np.tanh(0.5 * x) ** 2) * x), rtol=1e-12)


def test_feedback_matrices_are_slices_with_the_variance_asked_for():
    narrow, wide = random_feedback(10, [100, 400], jax.random.key(0))
    np.testing.assert_allclose(narrow / wide[:, :100], 2.0, rtol=1e-5)
    assert abs(float(wide.std()) * 4000**0.5 - 1) < 0.05
    (unit,) = random_feedback(10, [400], jax.random.key(0), variance=0.25)
    assert abs(float(unit.std()) / 0.5 - 1) < 0.05


@pytest.mark.slow
def test_it_trains_as_well_as_backpropagation_and_weights_turn_towards_the_feedback():
    train, test = networks.digits()
    start = networks.dense((64, 128, 128, 10), jax.random.key(0), gain=1.0)
    feedback = random_feedback(10, [128, 128], jax.random.key(1), variance=0.1)
    by_feedback = dfa_value_and_grad([hidden, hidden, output], networks.cross_entropy)

    def exact(params, batch):
        def loss(params):
            return networks.cross_entropy(networks.apply(params, batch[0]), batch[1])

        return jax.grad(loss)(params)

    def last_layer(params, batch):
        *others, last = exact(params, batch)
        return [*optax.tree.zeros_like(others), last]

    def alignment(params, batch):
        """Cosines of what reaches the hidden layers, seen through their biases' gradients."""
        h1 = hidden(params[0], batch[0])
        h2 = hidden(params[1], h1)

        def from_first(h):
            return from_second(hidden(params[1], h))

        def from_second(h):
            return networks.cross_entropy(output(params[2], h), batch[1])

        p = jax.nn.softmax(output(params[2], h2))
        e = p - jax.nn.one_hot(batch[1], 10)
        signals = [(e @ matrix).ravel() for matrix in feedback]
        truths = [jax.grad(from_first)(h1).ravel(), jax.grad(from_second)(h2).ravel()]
        return jnp.stack(
            [
                a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)
                for a, b in zip(signals, truths, strict=True)
            ]
        )

    def run(gradient, train, test):
        def step(params, key):
            rows = jax.random.randint(key, (64,), 0, len(train[1]))
            batch = jax.tree.map(lambda x: x[rows], train)
            found = alignment(params, batch)
            return optax.tree.add_scale(params, -0.1, gradient(params, batch)), found

        keys = jax.random.split(jax.random.key(2), 2000)
        params, found = jax.lax.scan(step, start, keys)
        hits = jnp.argmax(networks.apply(params, test[0]), axis=1) == test[1]
        return hits.mean(), found

    @jax.jit
    def all_of_them(train, test):
        gradients = {
            "exact": exact,
            "dfa": lambda params, batch: by_feedback(params, feedback, batch)[1],
            "last": last_layer,
        }
        return {name: run(gradient, train, test) for name, gradient in gradients.items()}

    found = all_of_them(train, test)
    exact_run, dfa, last = (found[name] for name in ("exact", "dfa", "last"))
    assert dfa[0] >= exact_run[0] - 0.02
    assert dfa[0] >= last[0] + 0.015
    late = np.asarray(dfa[1][1500:]).mean(axis=0)
    assert (late >= 0.4).all()
    assert (late > np.asarray(dfa[1][:100]).mean(axis=0)).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1 layer_fns"):
        dfa_value_and_grad([output], networks.cross_entropy)
    value_and_grad = dfa_value_and_grad([hidden, output], networks.cross_entropy)
    with pytest.raises(ValueError, match="2 params and 0 feedback matrices for 2 layers"):
        value_and_grad([{}, {}], [], (jnp.ones((1, 2)), jnp.ones(1)))
    with pytest.raises(ValueError, match="must be at least 1"):
        random_feedback(2, [], jax.random.key(0))
    with pytest.raises(ValueError, match="variance must be positive and finite, got 0"):
        random_feedback(2, [3], jax.random.key(0), variance=0.0)
