import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from metaopt.tasks._transformer_lm import causal_network
from tests.helpers import central_differences, relative_error, standard_errors
from tests.tasks import transformer_numpy
from tests.tasks.training import losses_of_adam


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_loss_matches_numpy():
    family = tasks.transformer_lm(5, depth=2, width=6, heads=3, expansion=2, length=4)
    params = jax.tree.map(lambda p: p + 0.1, family.init((), jax.random.key(0)))
    batch = jax.random.randint(jax.random.key(1), (3, 5), 0, 5)
    plain = jax.tree.map(np.asarray, params)
    losses = []
    for window in np.asarray(batch):
        x = plain["embed"][window[:-1]] + plain["position"]
        x = transformer_numpy.blocks(x, plain, heads=3, causal=True)
        logits = x @ plain["head"]["w"] + plain["head"]["b"]
        log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses.append(-log_probability[np.arange(4), window[1:]])
    loss, _ = jax.jit(family.loss)(params, (), batch, jax.random.key(2))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-12)


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_gradient_matches_central_differences():
    family = tasks.transformer_lm(3, depth=1, width=4, heads=2, expansion=1, length=3)
    params = family.init((), jax.random.key(0))
    batch = jax.random.randint(jax.random.key(1), (2, 4), 0, 3)
    key = jax.random.key(2)

    def loss(params):
        return family.loss(params, (), batch, jax.random.clone(key))[0]

    assert relative_error(jax.grad(loss)(params), central_differences(loss, params)) < 1e-6


def test_logits_depend_on_the_past_and_not_on_the_future():
    init, apply = causal_network(5, depth=2, width=8, heads=2, expansion=2, length=8)
    params = init(jax.random.key(0))
    tokens = jnp.arange(8)[None] % 5
    changed = tokens.at[0, 4].set(0)
    before, after = jax.jit(apply)(params, jnp.concatenate([tokens, changed]))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert (jnp.abs(before[4:] - after[4:]).max(axis=-1) > 1e-6).all()


def test_initial_weights_have_the_stated_variances():
    family = tasks.transformer_lm(70, depth=2, width=64, expansion=4)
    params = family.init((), jax.random.key(0))
    block = params["blocks"][1]
    for weights, variance in [
        (params["embed"], 1),
        (block["qkv"], 1 / 64),
        (block["out"], 1 / (4 * 64)),
        (block["up"]["w"], 1 / 64),
        (block["down"]["w"], 1 / (4 * 256)),
        (params["head"]["w"], 0.1 / 64),
    ]:
        assert standard_errors(np.ravel(weights) ** 2, variance) < 4
        assert standard_errors(np.ravel(weights) ** 2, 1.3 * variance) > 4


@pytest.mark.compiles
def test_the_loss_starts_at_that_of_a_uniform_guess_and_adam_lowers_it():
    text = data.text()
    family = tasks.transformer_lm(len(text.alphabet), depth=1, width=16, length=16)
    losses = losses_of_adam(family, text.train, num_steps=150)
    assert abs(losses[0] - math.log(70)) < 0.15
    # 3.0 is about the entropy of single characters.
    assert losses[-20:].mean() < 2.8


@pytest.mark.parametrize(
    ("vocab_size", "settings", "message"),
    [
        (1, {}, "vocab_size=1 is below 2"),
        (5, {"depth": 0}, "depth=0 is below 1"),
        (5, {"heads": 0}, "heads=0 is below 1"),
        (5, {"expansion": 0}, "expansion=0 is below 1"),
        (5, {"width": 32, "heads": 3}, "width=32 is not a multiple of heads=3"),
        (5, {"length": 0}, "length=0 is below 1"),
        (5, {"batch_size": 0}, "batch_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(vocab_size, settings, message):
    with pytest.raises(ValueError, match=f"transformer_lm: {message}"):
        tasks.transformer_lm(vocab_size, **settings)


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="length=33 exceeds the 10 tokens"):
        tasks.transformer_lm(5).batch(data.TextPool(jnp.zeros(10, int)), (), jax.random.key(0))
