import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt import learned

NUM_STEPS = 500


def train(opt, num_steps=NUM_STEPS):
    """Losses of a small regression."""
    key_inputs, key_weights, key_start = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(key_inputs, (64, 8))
    targets = jnp.tanh(inputs @ jax.random.normal(key_weights, (8, 3)))
    start = {"w": 0.1 * jax.random.normal(key_start, (8, 3)), "b": jnp.zeros(3)}

    def loss(params):
        return jnp.mean((jnp.tanh(inputs @ params["w"] + params["b"][None]) - targets) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = opt.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    opt = optax.with_extra_args_support(opt)
    return jax.jit(lambda p: jax.lax.scan(step, (p, opt.init(p)), length=num_steps)[1])(start)


def test_some_weights_ship():
    assert learned.pretrained_names()


@pytest.mark.parametrize("name", learned.pretrained_names())
def test_shipped_weights_train_a_model_without_tuning(name):
    values = train(metaopt.pretrained(name, num_steps=NUM_STEPS))
    assert values[-1] < 0.1 * values[0]


@pytest.mark.compiles
@pytest.mark.parametrize("name", learned.pretrained_names())
def test_the_learning_rate_scales_the_first_step(name):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    grads = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([1.0, -2.0])}
    steps = []
    for rate in (0.001, 0.003):
        opt = metaopt.pretrained(name, learning_rate=rate, num_steps=10)
        steps.append(opt.update(grads, opt.init(params), params)[0])
    for small, large in zip(*map(jax.tree.leaves, steps), strict=True):
        np.testing.assert_allclose(large, 3 * small, rtol=1e-5)


@pytest.mark.parametrize("name", learned.pretrained_names())
def test_a_card_says_what_the_weights_are(name):
    card = learned.pretrained_card(name)
    headings = re.findall(r"^## (.*)$", card, flags=re.MULTILINE)
    assert headings == ["Use", "Trained on", "Evaluated", "Good for", "Bad at"]
    assert name in card.splitlines()[0]
    assert re.search(r"python experiments/\w+\.py", card)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="name='adma' is unknown; choose from"):
        metaopt.pretrained("adma")
    with pytest.raises(ValueError, match="pretrained_card: name='adma' is unknown"):
        learned.pretrained_card("adma")
