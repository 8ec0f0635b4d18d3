"""Celo's scheduler over the steps of any optax optimizer; over Adam's, it is Celo-Adam.

    u_t <- 0.1 exp(w_t) · u_t,    w from Celo's LSTM of clock and loss (`_scheduler`)

Celo, 2025, arXiv:2501.12670.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._celo import step_factor
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import shared_dtype
from metaopt.learned._loss_features import LossHistory, loss_history
from metaopt.learned._recurrent import LSTMState
from metaopt.learned._scheduled import (
    check_sizes,
    need_params_and_loss,
    need_steps,
    shared_inputs,
)
from metaopt.learned._scheduler import NUM_SHARED_INPUTS, schedule, scheduler_init, start


class CeloScheduledState(NamedTuple):
    """Steps taken, averages of the loss, the LSTM's one row, and the optimizer's own state."""

    count: Int[Array, ""]
    losses: LossHistory
    lstm: LSTMState
    inner: Any


@checked
def celo_scheduled(
    inner_opt: optax.GradientTransformation,
    *,
    hidden_size: int = 64,
    loss_horizon: Scalar | None = None,
) -> LearnedOptimizer:
    """A learned schedule for an optimizer that is not learned, such as `optax.adam(1e-2)`.

    Args:
        inner_opt: any complete optax optimizer; `theta` multiplies its learning rate, by about 0.1
            before meta-training.
        hidden_size: units of the LSTM. Static.
        loss_horizon: as in `velo`. Traced.

    Returns:
        A learned optimizer that needs `num_steps`, the parameters and `value=`, the training loss.
        `theta` is the scheduler of `celo` without controls.

    Raises:
        ValueError: if `hidden_size` is below 1; in `optimizer` and `update`, if what it needs is
            missing.
    """
    check_sizes("celo_scheduled", hidden_size=hidden_size)
    inner_opt = optax.with_extra_args_support(inner_opt)

    def init_theta(key):
        return scheduler_init(
            key, num_inputs=NUM_SHARED_INPUTS, hidden_size=hidden_size, bank_size=0
        )

    def optimizer(theta, *, num_steps=None):
        num_steps = need_steps("celo_scheduled", num_steps)
        horizon = num_steps if loss_horizon is None else loss_horizon

        def init(params):
            dtype = shared_dtype(params)
            lstm = start(theta, 1, dtype)
            count = jnp.zeros((), jnp.int32)
            return CeloScheduledState(count, loss_history(dtype), lstm, inner_opt.init(params))

        def update(updates, state, params=None, *, value=None, **extra):
            need_params_and_loss("celo_scheduled", params, value)
            updates, inner = inner_opt.update(updates, state.inner, params, value=value, **extra)
            inputs, losses = shared_inputs(
                state.losses, value, state.count, num_steps=num_steps, horizon=horizon
            )
            _, head, lstm = schedule(theta, state.lstm, inputs[None])
            factor = step_factor(head)[0]
            updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
            count = jnp.asarray(optax.safe_increment(state.count))
            return updates, CeloScheduledState(count, losses, lstm, inner)

        return optax.GradientTransformationExtraArgs(init, update)

    return checked_optimizer("celo_scheduled", init_theta, optimizer)
