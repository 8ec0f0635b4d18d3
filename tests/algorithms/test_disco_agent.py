import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.algorithms import disco_agent


def dense(layer, x):
    return x @ np.asarray(layer["w"]) + np.asarray(layer["b"])


def by_hand(params, observation, num_actions):
    """Outputs, one action after the other."""
    x = observation
    for layer in params["torso"]:
        x = np.maximum(dense(layer, x), 0)
    flat, root = dense(params["flat"], x), dense(params["root"], x)
    rows = {"z": [], "next_policy": [], "value_bins": []}
    for action in np.eye(num_actions):
        gates = np.split(dense(params["model"], np.concatenate([action, np.tanh(root)])), 4)
        i, f, o = (1 / (1 + np.exp(-g)) for g in (gates[0], gates[2] + 1, gates[3]))
        hidden = o * np.tanh(f * root + i * np.tanh(gates[1]))
        for part, found in rows.items():
            first, last = params[part]
            found.append(dense(last, np.maximum(dense(first, hidden), 0)))
    return flat[:num_actions], flat[num_actions:], *(np.array(found) for found in rows.values())


def test_outputs_agree_with_numpy(x64):
    agent = disco_agent(3, 2, num_predictions=4, num_bins=5, hidden=(3, 2), model=3)
    params, observation = agent.init(jax.random.key(0)), np.array([0.5, -1.0, 2.0])
    outputs = jax.jit(agent.apply)(params, jnp.asarray(observation))
    for ours, theirs in zip(outputs, by_hand(params, observation, 2), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)
    assert [x.shape for x in outputs] == [(2,), (4,), (2, 4), (2, 2), (2, 5)]
    np.testing.assert_allclose(jax.nn.softmax(outputs.policy), 0.5, atol=0.05)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="disco_agent: num_bins=0"):
        disco_agent(1, 2, num_bins=0)
    with pytest.raises(ValueError, match="activation='rely' is unknown"):
        disco_agent(1, 2, activation="rely")
