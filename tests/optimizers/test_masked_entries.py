from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.aggregators import aggregate, pcgrad
from metaopt.optimizers import masked_entries, topk_per_neuron_mask


def weights():
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(10, 4)), "k": rng.normal(size=(3, 3, 2, 5)), "b": np.ones(4)}


@pytest.mark.parametrize(("fraction", "count"), [(0.3, 3), (0.04, 1), (1.0, 10)])
def test_every_neuron_keeps_its_largest_inputs(x64, fraction, count):
    params = weights()
    mask = jax.jit(topk_per_neuron_mask)(params, fraction)
    for neuron in range(4):
        column = np.abs(params["w"][:, neuron])
        expected = np.isin(np.arange(10), np.argsort(-column)[:count])
        np.testing.assert_array_equal(mask["w"][:, neuron], expected)
    per_filter = np.asarray(mask["k"]).reshape(18, 5).sum(axis=0)
    np.testing.assert_array_equal(per_filter, max(1, round(fraction * 18)))
    assert np.asarray(mask["b"]).all()
    turned = topk_per_neuron_mask({"w": params["w"].T}, fraction, neuron_axis=0)
    np.testing.assert_array_equal(turned["w"], mask["w"].T)


def test_of_equal_weights_the_first_ones_are_taken():
    mask = topk_per_neuron_mask(jnp.zeros((4, 2)), 0.5)
    np.testing.assert_array_equal(
        mask, [[True, True], [True, True], [False, False], [False, False]]
    )


@pytest.mark.compiles
def test_entries_outside_stay_bit_for_bit_and_others_move_as_they_would_alone():
    params = {name: jnp.asarray(weights()[name], jnp.float32) for name in ("w", "b")}
    mask = topk_per_neuron_mask(params, 0.3)
    # Weight decay and momentum would move everything.
    opt = optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1))
    masked = masked_entries(opt, partial(topk_per_neuron_mask, fraction=0.3))

    def train(opt, cut):
        def step(carry, index):
            params, state = carry
            grads = jax.tree.map(lambda p: jnp.sin(p + index), params)
            grads = jax.tree.map(lambda g, m: jnp.where(m, g, 0) if cut else g, grads, mask)
            updates, state = opt.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, opt.init(params)), jnp.arange(5.0))[0][0]

    ours, alone = jax.jit(lambda: (train(masked, False), train(opt, True)))()
    for name, chosen in mask.items():
        np.testing.assert_array_equal(ours[name][~chosen], params[name][~chosen])
        np.testing.assert_allclose(ours[name][chosen], alone[name][chosen], rtol=1e-6)
        assert (ours[name][chosen] != params[name][chosen]).all()


@pytest.mark.compiles
def test_aggregators_see_the_chosen_entries_alone():
    params = {"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)}
    mask = {"w": jnp.array([[True], [False]]), "b": jnp.array(False)}
    # The tasks agree on the first weight, and conflict if one looks at the second, too.
    jacobian = {"w": jnp.array([[[1.0], [5.0]], [[2.0], [-5.0]]]), "b": jnp.full((2, 1), jnp.nan)}
    opt = masked_entries(optax.chain(aggregate(pcgrad()), optax.sgd(1.0)), mask)
    updates, _ = opt.update(jacobian, opt.init(params), params)
    plain = optax.chain(aggregate(pcgrad()), optax.sgd(1.0))
    expected, _ = plain.update({"w": jacobian["w"][:, :1]}, plain.init({"w": params["w"][:1]}))
    np.testing.assert_allclose(updates["w"], [[expected["w"][0, 0]], [0.0]], rtol=1e-6)
    assert updates["b"] == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        topk_per_neuron_mask(jnp.ones((2, 2)), 0.0)
    opt = masked_entries(optax.sgd(0.1), {"w": True})
    with pytest.raises(ValueError, match="mask must be a tree like the parameters"):
        opt.init({"w": jnp.ones(2), "b": jnp.ones(2)})
