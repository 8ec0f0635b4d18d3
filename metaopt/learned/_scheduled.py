"""The optimizer that VeLO and Celo are two settings of: a network per tensor, chosen by an LSTM.

Every step the scheduler (`_scheduler`) reads a row of inputs per tensor; what it says mixes the
weights of the tensor's network (`_entry_network`) from a bank and scales its step:

    (a, s) = network(features of an entry)
    p <- p - factor · step_mult · a · ρ · exp(exp_mult · s)

with ρ = √(mean(p²) + 1e-9) over the tensor, or 1. The scheduler reads accumulators from before this
step, the network those that this step's gradient, clipped to ±1000, has updated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from metaopt.core import LearnedOptimizer, Scalar
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._entry_network import (
    NUM_FEATURES,
    EntryMoments,
    accumulate,
    entry_outputs,
    zero_moments,
)
from metaopt.learned._features import (
    clip_gradient,
    init_leaves,
    map_leaves,
    mean_square,
    shared_dtype,
)
from metaopt.learned._loss_features import LossHistory, loss_features, loss_history
from metaopt.learned._network import network_init
from metaopt.learned._recurrent import LSTMState
from metaopt.learned._scheduler import clock, schedule, scheduler_init, start

SECOND_DECAY = 0.999
EPS, NORM_EPS = 1e-6, 1e-5


class ScheduledState(NamedTuple):
    """What VeLO and Celo carry.

    Attributes:
        count: steps taken.
        losses: averages of the training loss.
        lstm: one row per tensor, in the order of the tree's leaves (Celo: one row for all).
        moments: accumulators, trees like the parameters.
    """

    count: Int[Array, ""]
    losses: LossHistory
    lstm: LSTMState
    moments: EntryMoments


class Scheduling(NamedTuple):
    """What VeLO and Celo do differently.

    Attributes:
        inputs: `(params, moments) -> ` rows of inputs, one per tensor, after the shared ones; None:
            the shared ones are all, and one row serves every tensor.
        mix: `(controls, bank) -> ` networks, one per row of the controls.
        factor: `(head) -> ` what steps are multiplied by.
    """

    inputs: Callable[[PyTree, EntryMoments], Float[Array, "tensors inputs"]] | None
    mix: Callable[[Float[Array, "rows bank"], PyTree], PyTree]
    factor: Callable[[Float[Array, "rows"]], Float[Array, "rows"]]


def scheduled_init(
    key: PRNGKeyArray, *, num_inputs: int, hidden_size: int, bank_size: int, network_size: int
) -> PyTree:
    """`{"scheduler": ..., "network": ...}`; arrays of the latter have a leading bank axis."""
    key_scheduler, key_network = jax.random.split(key)
    sizes = (NUM_FEATURES, network_size, network_size, 3)
    return {
        "scheduler": scheduler_init(
            key_scheduler, num_inputs=num_inputs, hidden_size=hidden_size, bank_size=bank_size
        ),
        "network": jax.vmap(lambda key: network_init(key, sizes))(
            jax.random.split(key_network, bank_size)
        ),
    }


def check_sizes(name: str, **sizes: int) -> None:
    """Raises unless all are positive."""
    for setting, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {setting}={size} is below 1; use a positive number.")


def need_steps(name: str, num_steps: Any) -> Any:
    """The planned number of steps; raises where it is missing."""
    if num_steps is None:
        raise ValueError(
            f"{name}: num_steps=None, but what it does depends on how much of the training is "
            "left; pass optimizer(theta, num_steps=...)."
        )
    return num_steps


def need_params_and_loss(name: str, params, value) -> None:
    """Raises where `update` lacks the parameters or the loss."""
    if params is None or value is None:
        missing = "params" if params is None else "value, the training loss"
        raise ValueError(
            f"{name}: update got no {missing}; pass update(grads, state, params, value=loss)."
        )


def shared_inputs(losses, value, count, *, num_steps, horizon):
    """Clock and loss features, and the history with this loss."""
    features, losses = loss_features(losses, value, count, horizon=horizon)
    dtype = features.dtype
    progress = count.astype(dtype) / jnp.asarray(num_steps, dtype)
    return jnp.concatenate([clock(progress), features]), losses


def scheduled(
    name: str,
    init: Callable[[PRNGKeyArray], PyTree],
    scheduling: Scheduling,
    *,
    loss_horizon: Scalar | None,
    step_mult: Scalar,
    exp_mult: Scalar,
    param_scale: bool,
) -> LearnedOptimizer:
    """Puts the parts together; arguments as in `velo`."""

    def optimizer(theta, *, num_steps=None):
        num_steps = need_steps(name, num_steps)
        horizon = num_steps if loss_horizon is None else loss_horizon

        def init(params):
            num_rows = 1 if scheduling.inputs is None else len(jax.tree.leaves(params))
            dtype = shared_dtype(params)
            return ScheduledState(
                jnp.zeros((), jnp.int32),
                loss_history(dtype),
                start(theta["scheduler"], num_rows, dtype),
                init_leaves(zero_moments, params),
            )

        def update(updates, state, params=None, *, value=None, **extra):
            del extra
            need_params_and_loss(name, params, value)
            if not jax.tree.leaves(updates):
                return updates, state
            inputs, losses = shared_inputs(
                state.losses, value, state.count, num_steps=num_steps, horizon=horizon
            )
            inputs = inputs[None]
            if scheduling.inputs is not None:
                own = scheduling.inputs(params, state.moments).astype(inputs.dtype)
                shared = jnp.broadcast_to(inputs, (len(own), inputs.shape[1]))
                inputs = jnp.concatenate([shared, own], axis=1)
            controls, head, lstm = schedule(theta["scheduler"], state.lstm, inputs)
            chosen = per_tensor(updates, (mix(controls), scheduling.factor(head)))
            updates, moments = map_leaves(step, updates, params, state.moments, chosen)
            count = jnp.asarray(optax.safe_increment(state.count))
            return updates, ScheduledState(count, losses, lstm, moments)

        def mix(controls):
            bank = jax.tree.map(lambda x: x.astype(controls.dtype), theta["network"])
            return scheduling.mix(controls, bank)

        def step(grad, param, moments, chosen):
            network, factor = chosen
            grad = clip_gradient(grad)
            moments = accumulate(moments, grad, second_decay=SECOND_DECAY)
            direction, log_scale = entry_outputs(
                network, grad, param, moments,
                eps=EPS, norm_eps=NORM_EPS, num_axes=grad.ndim,
                num_outputs=2, full_below_two_axes=True,
            )  # fmt: skip
            scale = factor.astype(grad.dtype) * step_mult
            if param_scale:
                scale = scale * jnp.sqrt(mean_square(param[None], param.ndim)[0] + 1e-9)
            return -scale * direction * jnp.exp(exp_mult * log_scale), moments

        return optax.GradientTransformationExtraArgs(init, update)

    return checked_optimizer(name, init, optimizer)


def per_tensor(tree: PyTree, rows: PyTree) -> PyTree:
    """A tree like `tree` whose leaves are the rows in order; a single row is everyone's."""
    treedef = jax.tree.structure(tree)
    num_rows = len(jax.tree.leaves(rows)[0])
    picked = [jax.tree.map(lambda x, i=i: x[i], rows) for i in range(num_rows)]
    return treedef.unflatten(picked if num_rows > 1 else picked * treedef.num_leaves)
