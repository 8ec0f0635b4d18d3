"""The recurrent scheduler of VeLO and Celo: one LSTM that sees every tensor, each step.

With X one row of inputs per tensor:

    Y      = D_own(X) + max over tensors relu(D_shared(X))
    (h, c) <- LSTM(Y, (h, c)),    u = D_controls(h),    w = D_step(h)

u mixes the networks of a bank and w scales the tensor's step. Inputs that all tensors share are a
clock, tanh(10 (t/N - a)) for nine parts a of the training, and nine features of the loss
(`_loss_features`).

Metz et al. 2022, arXiv:2211.09760, App. A. Published weights hold a third layer that reads X; its
output is not used, and `theta` here does without it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray, PyTree

from metaopt.learned._loss_features import NUM_LOSS_FEATURES
from metaopt.learned._recurrent import LSTMState, dense, dense_init, lstm, lstm_init

PARTS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
NUM_SHARED_INPUTS = len(PARTS) + NUM_LOSS_FEATURES


def scheduler_init(
    key: PRNGKeyArray, *, num_inputs: int, hidden_size: int, bank_size: int
) -> PyTree:
    """Weights; without a bank there are no controls. The LSTM starts at zero, learned as well."""
    key_own, key_shared, key_lstm, key_controls, key_step = jax.random.split(key, 5)
    theta = {
        "initial": {"hidden": jnp.zeros(hidden_size), "cell": jnp.zeros(hidden_size)},
        "own": dense_init(key_own, num_inputs, hidden_size),
        "shared": dense_init(key_shared, num_inputs, hidden_size),
        "lstm": lstm_init(key_lstm, hidden_size, hidden_size),
        "step": dense_init(key_step, hidden_size, 1),
    }
    if bank_size:
        theta["controls"] = dense_init(key_controls, hidden_size, bank_size)
    return theta


def start(theta: PyTree, num_tensors: int, dtype: DTypeLike) -> LSTMState:
    """The first state, the same for every tensor."""
    initial = (theta["initial"]["hidden"], theta["initial"]["cell"])
    rows = (jnp.broadcast_to(x.astype(dtype)[None], (num_tensors, x.size)) for x in initial)
    return LSTMState(*rows)


def clock(progress: Float[Array, ""]) -> Float[Array, "9"]:
    """Where the training is, from the fraction of its steps taken."""
    return jnp.tanh(10 * (progress - jnp.asarray(PARTS, progress.dtype)))


def schedule(
    theta: PyTree, state: LSTMState, inputs: Float[Array, "tensors inputs"]
) -> tuple[Float[Array, "tensors bank"] | None, Float[Array, "tensors"], LSTMState]:
    """One step: controls of the bank, if there is one, the step's scale, and the new state."""
    theta = jax.tree.map(lambda x: x.astype(inputs.dtype), theta)
    shared = jnp.max(jax.nn.relu(dense(theta["shared"], inputs)), axis=0, keepdims=True)
    hidden, state = lstm(theta["lstm"], state, dense(theta["own"], inputs) + shared)
    controls = dense(theta["controls"], hidden) if "controls" in theta else None
    return controls, dense(theta["step"], hidden)[:, 0], state
