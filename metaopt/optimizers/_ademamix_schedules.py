"""Warm-up schedules of AdEMAMix for the weight and the decay of its slow momentum.

    α(t) = α min(t/T, 1)
    β3(t) = exp( ln β1 ln β3 / ((1-s) ln β3 + s ln β1) ),   s = min(t/T, 1),   t = 1, 2, ...

The second is a half-life that grows linearly from that of β1 to that of β3. The rule itself is
`optax.contrib.ademamix`, which takes them as `alpha` and `b3`. Pagliardini et al. 2024,
arXiv:2409.03137, §3; T is the whole training there. The authors' JAX file starts at t = 0, their
PyTorch one and the paper at t = 1, as here.

In float32, β3 = 0.9999 leaves 1-β3 with a relative error of up to 3e-4. Where β3 is learned, learn
its half-life -ln 2 / ln β3. Where a meta-gradient passes through the rule, wrap it in
`metaopt.unroll.differentiable`, or give it `eps_root`.
"""

import jax.numpy as jnp
import optax

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known


@checked
def ademamix_alpha_schedule(*, num_steps: Scalar, alpha: Scalar = 5.0) -> optax.Schedule:
    """The weight of the slow momentum, which grows linearly.

    Args:
        num_steps: T, steps until it is `alpha`. Traced.
        alpha: the weight in the end. Traced.

    Returns:
        A schedule: the number of steps taken so far, from 0, to the weight of the next one.

    Raises:
        ValueError: if `num_steps` is not positive.
    """
    _refuse_steps("ademamix_alpha_schedule", num_steps)

    def schedule(count):
        return alpha * _share(count, num_steps)

    return schedule


@checked
def ademamix_b3_schedule(
    *, num_steps: Scalar, b1: Scalar = 0.9, b3: Scalar = 0.9999
) -> optax.Schedule:
    """The decay of the slow momentum, whose half-life grows linearly.

    Args:
        num_steps: T, steps until it is `b3`. Traced.
        b1: the decay it starts from, that of the fast momentum. Traced.
        b3: the decay in the end. Traced.

    Returns:
        A schedule: the number of steps taken so far, from 0, to the decay of the next one.

    Raises:
        ValueError: if `num_steps` is not positive, or a decay is not between 0 and 1.
    """
    _refuse_steps("ademamix_b3_schedule", num_steps)
    for name, decay in {"b1": b1, "b3": b3}.items():
        if known(decay) and not 0 < decay < 1:
            raise ValueError(
                f"ademamix_b3_schedule: {name} must be in (0, 1), got {decay}; use a number as "
                "`b3` of the rule for no schedule."
            )

    def schedule(count):
        share = _share(count, num_steps)
        low, high = jnp.log(b1), jnp.log(b3)
        return jnp.exp(low * high / ((1 - share) * high + share * low))

    return schedule


def _share(count, num_steps):
    # In the precision in force, which a quotient of integers would not be in.
    return jnp.minimum((jnp.asarray(count, float) + 1) / num_steps, 1.0)


def _refuse_steps(function, num_steps):
    if known(num_steps) and not num_steps > 0:
        raise ValueError(
            f"{function}: num_steps must be positive, got {num_steps}; use a number in the place "
            "of a schedule for no warm-up."
        )
