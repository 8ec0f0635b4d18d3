"""A per-parameter MLP on Adafactor features beside a hand-written direction and weight decay.

The network of `adafac_mlp` has four outputs here: its own step, how much of a nominal direction d
to take, and how much to decay the parameters. For every entry,

    (a, s, s_n, s_d) = network(the features of `adafac_mlp`)
    p <- (1 - weight_decay · exp(e_2 s_d)) p - step_mult · a · exp(e_0 s)
                                             - nominal_step · exp(e_1 s_n) · d

Without control of the nominal term s_n is 1, without control of the decay s_d is 0. With momenta m
and second moment r, last meaning the slowest, d is one of

    "gradient"  g        "momentum"  last m            "mean_momentum"  mean of m
                         "adam"      last m/√(r + 1e-6)    "mean_adam"  mean of m/√(r + 1e-6)

Where the network is small, training is that of the nominal optimizer: stable before any
meta-training. Harrison, Metz and Sohl-Dickstein 2022, arXiv:2209.11208 ("MLPNomLOpt").
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._adafac_mlp import (
    NUM_FEATURES,
    AdafacMLPMoments,
    AdafacMLPState,
    accumulate,
    network_outputs,
    theta_init,
    zero_moments,
)
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import init_leaves, map_leaves
from metaopt.learned._network import hidden_sizes

Nominal = Literal["gradient", "momentum", "mean_momentum", "adam", "mean_adam"]


@checked
def adafac_nominal(
    *,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    step_mult: Scalar = 1e-3,
    nominal_step: Scalar = 1e-3,
    weight_decay: Scalar = 0.0,
    exp_mults: tuple[Scalar, Scalar, Scalar] = (1e-3, 1e-3, 1e-3),
    nominal: Nominal = "mean_adam",
    control_nominal: bool = True,
    control_decay: bool = True,
) -> LearnedOptimizer:
    """`adafac_mlp` beside a nominal direction and weight decay, both of learned strength.

    Args:
        hidden_size: width of the hidden layers. Static.
        hidden_layers: their number. Static.
        step_mult: multiplies the network's step. Traced.
        nominal_step: multiplies the nominal direction; 0 in the original unless set. Traced.
        weight_decay: multiplies the decay, per step. Traced.
        exp_mults: e_0, e_1, e_2, which multiply s, s_n and s_d before the exponentials. Traced.
        nominal: the direction. Static.
        control_nominal: whether the network controls the nominal term. Static.
        control_decay: whether it controls the decay. Static.

    Returns:
        A learned optimizer; `theta`, state and memory are those of `adafac_mlp`, except that the
        last layer has four outputs: 207 numbers in all.

    Raises:
        ValueError: if `hidden_size` or `hidden_layers` is below 1, or `nominal` is unknown; in
            `update`, if it is not given the parameters.
    """
    sizes = (NUM_FEATURES, *hidden_sizes("adafac_nominal", hidden_size, hidden_layers), 4)
    if nominal not in get_args(Nominal):
        raise ValueError(
            f"adafac_nominal: nominal={nominal!r} is unknown; choose from {get_args(Nominal)}."
        )

    def optimizer(theta, *, num_steps=None):
        del num_steps

        def init(params):
            return AdafacMLPState(jnp.zeros((), jnp.int32), init_leaves(zero_moments, params))

        def update(updates, state, params=None, **extra):
            del extra
            if params is None:
                raise ValueError(
                    "adafac_nominal: update got no params; pass update(grads, state, params)."
                )

            def step(grad, param, moments):
                own = jax.tree.map(lambda x: x.astype(grad.dtype), theta)
                moments = accumulate(own["decays"], moments, grad)
                a, s, s_nominal, s_decay = network_outputs(
                    own, grad, param, moments, state.count, num_outputs=4
                )
                scales = (
                    s,
                    s_nominal if control_nominal else jnp.ones_like(s),
                    s_decay if control_decay else jnp.zeros_like(s),
                )
                learned, taken, decayed = (
                    jnp.exp(mult * scale) for mult, scale in zip(exp_mults, scales, strict=True)
                )
                delta = step_mult * a * learned + weight_decay * decayed * param
                direction = _direction(nominal, grad, moments)
                return -delta - nominal_step * taken * direction, moments

            updates, moments = map_leaves(step, updates, params, state.moments)
            count = jnp.asarray(optax.safe_increment(state.count))
            return updates, AdafacMLPState(count, moments)

        return optax.GradientTransformationExtraArgs(init, update)

    return checked_optimizer("adafac_nominal", lambda key: theta_init(key, sizes), optimizer)


def _direction(nominal: Nominal, grad: Array, moments: AdafacMLPMoments) -> Array:
    if nominal == "gradient":
        return grad
    momenta = moments.momenta
    if nominal.endswith("adam"):
        momenta = momenta * jax.lax.rsqrt(moments.second + 1e-6)
    return jnp.mean(momenta, axis=0) if nominal.startswith("mean") else momenta[-1]
