"""Recurrent language models: one recurrent layer between an embedding and a linear head.

    x = W e_t + b,    y = U h
    vanilla:  h' = tanh(x + y)
    gru:      z = σ(x_z + y_z),  r = σ(x_r + y_r),  n = tanh(x_n + r y_n),  h' = z h + (1 - z) n
    lstm:     c' = σ(x_f + y_f) c + σ(x_i + y_i) tanh(x_g + y_g),
              h' = σ(x_o + y_o) tanh(c')

Elman 1990, doi 10.1207/s15516709cog1402_1; Cho et al. 2014, arXiv:1406.1078; Hochreiter and
Schmidhuber 1997, doi 10.1162/neco.1997.9.8.1735, where b_f starts at 1 (Jozefowicz et al. 2015,
§3.2) and all other biases at 0. Differs from Cho et al.: r multiplies U_n h and not h, so that one
product serves a step.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from metaopt.core import TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._language import embed as embed_tokens
from metaopt.tasks._language import head_init, language_family

Cell = Literal["gru", "lstm", "vanilla"]


@checked
def rnn_lm(
    vocab_size: int,
    *,
    cell: Cell = "gru",
    hidden: int = 32,
    embed: int = 32,
    length: int = 32,
    batch_size: int = 16,
) -> TaskFamily:
    """A recurrent network that predicts the next token of windows of a text.

    The state starts at zero in every window. The normaliser is `clip_classification`.

    Args:
        vocab_size: number of tokens V, at least 2. Static.
        cell: above. Static.
        hidden: size of the state. Static.
        embed: size of the embedding. Static.
        length: predictions in a window, through all of which gradients pass. Static.
        batch_size: windows in a minibatch. Static.

    Returns:
        A family with `data` a `metaopt.data.TextPool`, batches int32 [batch_size, length + 1],
        `task_params = ()`, `params = {"embed": [V, embed], "cell": {"input": [embed, gates],
        "recurrent": [hidden, gates], "b": [gates]}, "head": {"w": [hidden, V], "b": [V]}}` with
        1, 3 or 4 times `hidden` gates, in the order above (lstm: f, i, g, o), and `aux` of type
        `Metrics`.

    Raises:
        ValueError: if a size is below 1, `vocab_size` is below 2 or `cell` is unknown; when
            traced, if `data` has no `tokens`, or fewer than a window.
    """
    at_least_one("rnn_lm", hidden=hidden, embed=embed)
    init, apply = recurrent_network(vocab_size, cell, hidden, embed)
    return language_family("rnn_lm", init, apply, vocab_size, length, batch_size)


def recurrent_network(vocab_size: int, cell: Cell, hidden: int, embed: int):
    """The pair `(key) -> params`, `(params, tokens [n, t]) -> logits [n, t, vocab_size]`."""
    if cell not in _CELLS:
        raise ValueError(f"rnn_lm: cell={cell!r} is unknown; choose from {get_args(Cell)}.")
    num_gates, advance = _CELLS[cell]
    weights = jax.nn.initializers.lecun_normal()

    def init(key):
        key_embed, key_input, key_recurrent, key_head = jax.random.split(key, 4)
        bias = jnp.zeros(num_gates * hidden)
        return {
            "embed": jax.random.normal(key_embed, (vocab_size, embed)),
            "cell": {
                "input": weights(key_input, (embed, num_gates * hidden)),
                "recurrent": weights(key_recurrent, (hidden, num_gates * hidden)),
                "b": bias.at[:hidden].set(1.0) if cell == "lstm" else bias,
            },
            "head": {
                "w": head_init(key_head, (hidden, vocab_size)),
                "b": jnp.zeros(vocab_size),
            },
        }

    def apply(params, tokens):
        weights = params["cell"]
        # One product for all positions; only what depends on the state is left to the scan.
        inputs = embed_tokens(params["embed"], tokens) @ weights["input"]
        inputs = jnp.moveaxis(inputs + weights["b"][None, None], 1, 0)
        start = jnp.zeros((len(tokens), hidden), inputs.dtype)

        def step(state, x):
            state = advance(state, x, state[0] @ weights["recurrent"])
            return state, state[0]

        _, states = jax.lax.scan(step, (start, start)[: 1 + (cell == "lstm")], inputs)
        return jnp.moveaxis(states, 0, 1) @ params["head"]["w"] + params["head"]["b"][None, None]

    return init, apply


def _vanilla(state, x, y):
    del state
    return (jnp.tanh(x + y),)


def _gru(state, x, y):
    (h,) = state
    size = h.shape[-1]
    update, reset = jnp.split(jax.nn.sigmoid(x[:, : 2 * size] + y[:, : 2 * size]), 2, axis=-1)
    new = jnp.tanh(x[:, 2 * size :] + reset * y[:, 2 * size :])
    return (update * h + (1 - update) * new,)


def _lstm(state, x, y):
    _, c = state
    forget, enter, new, leave = jnp.split(x + y, 4, axis=-1)
    c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(enter) * jnp.tanh(new)
    return jax.nn.sigmoid(leave) * jnp.tanh(c), c


_CELLS = {"vanilla": (1, _vanilla), "gru": (3, _gru), "lstm": (4, _lstm)}
