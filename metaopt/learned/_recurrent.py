"""The recurrent cell of rules with a memory of their own.

    (i, g, f, o) = x W_x + h W_h + b,    c <- σ(f + 1) c + σ(i) tanh(g),    h <- σ(o) tanh(c)

Hochreiter and Schmidhuber 1997, with the gates in the order of the published learned optimizers:
`w` is `[inputs + hidden, 4 hidden]`, input rows first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import checked


class LSTMState(NamedTuple):
    """What an LSTM cell carries."""

    hidden: Float[Array, "*batch hidden"]
    cell: Float[Array, "*batch hidden"]


def dense_init(key: PRNGKeyArray, fan_in: int, fan_out: int) -> PyTree:
    """A dense layer: normal of scale 1/√fan_in, truncated at two standard deviations; bias 0."""
    weights = jax.random.truncated_normal(key, -2, 2, (fan_in, fan_out)) * fan_in**-0.5
    return {"w": weights, "b": jnp.zeros(fan_out)}


def dense(theta: PyTree, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    """`inputs @ w + b`, in full float32 precision on accelerators too."""
    product = jnp.matmul(inputs, theta["w"], precision=jax.lax.Precision.HIGHEST)
    return product + jnp.broadcast_to(theta["b"], product.shape)


def lstm_init(key: PRNGKeyArray, num_inputs: int, hidden_size: int) -> PyTree:
    """Weights of a cell, `{"w": [num_inputs + hidden_size, 4 hidden_size], "b": ...}`."""
    return dense_init(key, num_inputs + hidden_size, 4 * hidden_size)


@checked
def lstm(
    theta: PyTree, state: LSTMState, inputs: Float[Array, "*batch inputs"]
) -> tuple[Float[Array, "*batch hidden"], LSTMState]:
    """One step of the cell: its output, which is the new hidden state, and its new state."""
    gates = dense(theta, jnp.concatenate([inputs, state.hidden], axis=-1))
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return hidden, LSTMState(hidden, cell)
