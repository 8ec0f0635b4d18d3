import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from metaopt.tasks._rnn_lm import recurrent_network
from tests.helpers import central_differences, relative_error
from tests.tasks.training import losses_of_adam

CELLS = ["vanilla", "gru", "lstm"]
# One cell by default: what is compiled for the others differs little.
GRU_FIRST = ["gru", *(pytest.param(c, marks=pytest.mark.slow) for c in ("vanilla", "lstm"))]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_logits(cell, params, tokens):
    """One window, one position at a time, with one matrix per gate."""
    params = jax.tree.map(np.asarray, params)
    size = params["cell"]["recurrent"].shape[0]
    count = params["cell"]["b"].size // size
    w, u, b = (np.split(params["cell"][name], count, axis=-1)
               for name in ("input", "recurrent", "b"))  # fmt: skip
    h, c, rows = np.zeros(size), np.zeros(size), []
    for token in tokens:
        e = params["embed"][token]
        x = [e @ w[i] + b[i] for i in range(count)]
        y = [h @ u[i] for i in range(count)]
        if cell == "vanilla":
            h = np.tanh(x[0] + y[0])
        elif cell == "gru":
            z, r = sigmoid(x[0] + y[0]), sigmoid(x[1] + y[1])
            h = z * h + (1 - z) * np.tanh(x[2] + r * y[2])
        else:
            forget, enter, leave = (sigmoid(x[i] + y[i]) for i in (0, 1, 3))
            c = forget * c + enter * np.tanh(x[2] + y[2])
            h = leave * np.tanh(c)
        rows.append(h @ params["head"]["w"] + params["head"]["b"])
    return np.stack(rows)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cell", CELLS)
def test_loss_and_accuracy_match_numpy(cell):
    family = tasks.rnn_lm(5, cell=cell, hidden=3, embed=2, length=6)
    params = jax.tree.map(lambda p: p + 0.1, family.init((), jax.random.key(0)))
    batch = jax.random.randint(jax.random.key(1), (4, 7), 0, 5)
    losses, hits = [], []
    for window in np.asarray(batch):
        logits = numpy_logits(cell, params, window[:-1])
        log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses.append(-log_probability[np.arange(6), window[1:]])
        hits.append(logits.argmax(1) == window[1:])
    loss, metrics = jax.jit(family.loss)(params, (), batch, jax.random.key(2))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(metrics.accuracy, np.mean(hits), rtol=1e-12)


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cell", GRU_FIRST)
def test_gradient_through_time_matches_central_differences(cell):
    family = tasks.rnn_lm(3, cell=cell, hidden=2, embed=2, length=4)
    params = family.init((), jax.random.key(0))
    batch = jax.random.randint(jax.random.key(1), (3, 5), 0, 3)
    key = jax.random.key(2)

    def loss(params):
        return family.loss(params, (), batch, jax.random.clone(key))[0]

    assert relative_error(jax.grad(loss)(params), central_differences(loss, params)) < 1e-6


def test_logits_depend_on_the_past_and_not_on_the_future():
    init, apply = recurrent_network(5, "gru", 4, 3)
    params = init(jax.random.key(0))
    tokens = jnp.arange(8)[None] % 5
    changed = tokens.at[0, 4].set(0)
    before, after = jax.jit(lambda x: (apply(params, x), apply(params, x)))(
        jnp.concatenate([tokens, changed])
    )[0]
    np.testing.assert_array_equal(before[:4], after[:4])
    assert (jnp.abs(before[4:] - after[4:]).max(axis=-1) > 1e-6).all()


def test_biases_start_at_zero_but_for_the_forget_gate():
    for cell, expected in [("gru", [0] * 9), ("lstm", [1] * 3 + [0] * 9)]:
        params = tasks.rnn_lm(5, cell=cell, hidden=3, embed=2).init((), jax.random.key(0))
        np.testing.assert_array_equal(params["cell"]["b"], expected)
        np.testing.assert_array_equal(params["head"]["b"], np.zeros(5))


@pytest.mark.compiles
@pytest.mark.parametrize("cell", GRU_FIRST)
def test_the_loss_starts_at_that_of_a_uniform_guess_and_adam_lowers_it(cell):
    text = data.text()
    family = tasks.rnn_lm(len(text.alphabet), cell=cell, hidden=16, embed=16, length=16)
    losses = losses_of_adam(family, text.train, num_steps=150)
    assert abs(losses[0] - math.log(70)) < 0.1
    # 3.0 is about the entropy of single characters.
    assert losses[-20:].mean() < 2.9


@pytest.mark.parametrize(
    ("vocab_size", "settings", "message"),
    [
        (1, {}, "vocab_size=1 is below 2"),
        (5, {"cell": "mamba"}, "cell='mamba' is unknown; choose from"),
        (5, {"hidden": 0}, "hidden=0 is below 1"),
        (5, {"embed": 0}, "embed=0 is below 1"),
        (5, {"length": 0}, "length=0 is below 1"),
        (5, {"batch_size": 0}, "batch_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(vocab_size, settings, message):
    with pytest.raises(ValueError, match=f"rnn_lm: {message}"):
        tasks.rnn_lm(vocab_size, **settings)


def test_data_that_is_no_text_is_refused():
    pool = data.Pool(jnp.ones((3, 2)), jnp.zeros(3))
    with pytest.raises(ValueError, match="rnn_lm: data is a Pool without tokens; pass a"):
        tasks.rnn_lm(5).batch(pool, (), jax.random.key(0))
