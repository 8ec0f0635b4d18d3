"""Celo: VeLO's network, a single one, under a small scheduler that sees only clock and loss.

    (a, s, -) = network(features of an entry)
    p <- p - factor · step_mult · a · √(mean(p²) + 1e-9) · exp(exp_mult · s)

    phase 1:  factor = 1,              the network is meta-trained
    phase 2:  factor = 0.1 exp(w),     w from the scheduler, which alone is meta-trained

The scheduler's inputs (`_scheduler`) are the same for all tensors, and so is w. With more than one
network in the bank, their weights are W = mean_b(softmax(u)_b W_b).

Celo, 2025, arXiv:2501.12670. Differs from it: see `_entry_network`, `_loss_features`, `_scheduler`.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._scheduled import Scheduling, check_sizes, scheduled, scheduled_init
from metaopt.learned._scheduler import NUM_SHARED_INPUTS

Phase = Literal[1, 2]


@checked
def celo(
    *,
    phase: Phase = 2,
    hidden_size: int = 64,
    bank_size: int = 1,
    network_size: int = 4,
    loss_horizon: Scalar | None = None,
    step_mult: Scalar = 1e-3,
    exp_mult: Scalar = 1e-3,
) -> LearnedOptimizer:
    """A learned rule for steps and a learned schedule for their size, meta-trained in this order.

    `theta` is the same in both phases; `train_only(outer_opt, celo_trainable(phase))` leaves what a
    phase does not train as it is. Memory: four numbers per parameter, seven below two axes.

    Args:
        phase: whether the scheduler's factor is applied (2) or not (1). Static.
        hidden_size: units of the LSTM. Static.
        bank_size: networks in the bank. Static.
        network_size: width of their two hidden layers. Static.
        loss_horizon: as in `velo`. Traced.
        step_mult: multiplies steps. Traced.
        exp_mult: multiplies the second output before the exponential. Traced.

    Returns:
        A learned optimizer that needs `num_steps`, the parameters and `value=`, the training loss.
        `theta` is laid out as that of `velo`, with 18 inputs in place of 30.

    Raises:
        ValueError: if `phase` is not 1 or 2, or a size is below 1; in `optimizer` and `update`, if
            what it needs is missing.
    """
    check_phase("celo", phase)
    check_sizes("celo", hidden_size=hidden_size, bank_size=bank_size, network_size=network_size)

    def mix(controls, bank):
        shares = jax.nn.softmax(controls, axis=-1) / bank_size
        return jax.tree.map(lambda w: jnp.tensordot(shares, w, axes=1, precision="highest"), bank)

    return scheduled(
        "celo",
        lambda key: scheduled_init(
            key,
            num_inputs=NUM_SHARED_INPUTS,
            hidden_size=hidden_size,
            bank_size=bank_size,
            network_size=network_size,
        ),
        Scheduling(inputs=None, mix=mix, factor=step_factor if phase == 2 else jnp.ones_like),
        loss_horizon=loss_horizon,
        step_mult=step_mult,
        exp_mult=exp_mult,
        param_scale=True,
    )


@checked
def celo_trainable(phase: Phase) -> dict[str, bool]:
    """Which parts of Celo's `theta` a phase trains, as a prefix of that tree, for `train_only`.

    Args:
        phase: 1 or 2. Static.

    Returns:
        `{"scheduler": bool, "network": bool}`.

    Raises:
        ValueError: if `phase` is not 1 or 2.
    """
    check_phase("celo_trainable", phase)
    return {"scheduler": phase == 2, "network": phase == 1}


def check_phase(name: str, phase: int) -> None:
    """Raises unless it is 1 or 2."""
    if phase not in get_args(Phase):
        raise ValueError(f"{name}: phase={phase!r} is unknown; choose from {get_args(Phase)}.")


def step_factor(head: jax.Array) -> jax.Array:
    """Positive, and 0.1 where the head is 0."""
    return 0.1 * jnp.exp(head)
