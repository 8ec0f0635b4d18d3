"""A learned optimizer whose updates decay to zero over the training.

    u_t <- ½ (1 + cos(π t / T)) · u_t,    T the planned number of steps

Loshchilov and Hutter 2017, arXiv:1608.03983, one period. For meta-training a rule under the
schedule that it will be used with: at a constant step size there is a noise floor that the schedule
removes.
"""

import jax.numpy as jnp
import optax

from metaopt.core import LearnedOptimizer, checked


@checked
def cosine_decayed(learned: LearnedOptimizer) -> LearnedOptimizer:
    """The same learned optimizer, its updates multiplied by a cosine that ends at zero.

    Args:
        learned: any learned optimizer; `theta` is its own.

    Returns:
        A learned optimizer whose `optimizer` needs `num_steps`, static or traced, and raises a
        ValueError without it.
    """

    def optimizer(theta, *, num_steps=None):
        if num_steps is None:
            raise ValueError(
                "cosine_decayed: num_steps=None, but the decay spans the training; pass "
                "optimizer(theta, num_steps=...)."
            )

        def factor(count):
            progress = jnp.clip(count / num_steps, 0, 1)
            return 0.5 * (1 + jnp.cos(jnp.pi * progress))

        return optax.chain(
            learned.optimizer(theta, num_steps=num_steps), optax.scale_by_schedule(factor)
        )

    return LearnedOptimizer(learned.init, optimizer)
