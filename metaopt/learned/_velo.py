"""VeLO: for every tensor and step, an LSTM mixes the network that makes the tensor's step.

Besides clock and loss features, the scheduler (`_scheduler`) reads of every tensor p, and of its
accumulators before this step, momenta m and second moment r (`_entry_network`), both scaled by
ν = 1/√max(1e-9, mean(p²)):

    L(mean r), one-hot of the axes longer than 1, L(mean (m - mean m)²), L(mean (r - mean m)²)

with L(x) = ½ clip(ln(1e-8 + |10 x|), ±5); the last one does subtract the mean of the momenta. From
controls u and scale w that the scheduler gives, and a bank of B networks W_b (30 -> 4 -> 4 -> 3):

    W = mix_mult · mean_b(u_b W_b),    (a, s, -) = network_W(features of an entry)
    p <- p - w · step_mult · a · √(mean(p²) + 1e-9) · exp(exp_mult · s)

Metz et al. 2022, arXiv:2211.09760 ("HyperV2"). muVeLO (Thérien et al. 2024, arXiv:2406.00153) is
`velo(hidden_size=16, bank_size=8, mix_mult=1, param_scale=False)`. Differs from the paper: see
`_entry_network`, `_loss_features` and `_scheduler`; the options that it does not use are left out.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._entry_network import DECAYS
from metaopt.learned._features import mean, mean_square, working_dtype
from metaopt.learned._scheduled import Scheduling, check_sizes, scheduled, scheduled_init
from metaopt.learned._scheduler import NUM_SHARED_INPUTS

MAX_AXES = 4
NUM_INPUTS = NUM_SHARED_INPUTS + 1 + (MAX_AXES + 1) + 2 * len(DECAYS)


@checked
def velo(
    *,
    hidden_size: int = 128,
    bank_size: int = 64,
    network_size: int = 4,
    loss_horizon: Scalar | None = None,
    step_mult: Scalar = 1e-3,
    exp_mult: Scalar = 1e-3,
    mix_mult: Scalar = 100.0,
    param_scale: bool = True,
) -> LearnedOptimizer:
    """A recurrent optimizer without any hyperparameter but the number of steps.

    The released weights have `hidden_size=512, bank_size=256`. For trainings much longer than those
    of meta-training see `long_runs`. Memory: four numbers per parameter, seven below two axes.

    Args:
        hidden_size: units of the LSTM. Static.
        bank_size: networks in the bank. Static.
        network_size: width of their two hidden layers. Static.
        loss_horizon: the longest time scale of the loss features in steps; None: `num_steps`, as
            for the released weights. Traced.
        step_mult: multiplies steps. Traced.
        exp_mult: multiplies the second output before the exponential. Traced.
        mix_mult: multiplies the mixed weights. Traced.
        param_scale: whether a step is proportional to the tensor's root mean square. Static.

    Returns:
        A learned optimizer that needs `num_steps`, the parameters and `value=`, the training loss.
        `theta` (of 158,337 numbers) is, with H, B and h for the first three sizes,
        `{"scheduler": {"initial": {"hidden": (H,), "cell": (H,)}, "own": {"w": (30, H), "b"},
        "shared": {"w": (30, H), "b"}, "lstm": {"w": (2H, 4H), "b"}, "controls": {"w": (H, B), "b"},
        "step": {"w": (H, 1), "b"}}, "network": {"linear_0": {"w": (B, 30, h), "b": (B, h)},
        "linear_1": {"w": (B, h, h), "b"}, "linear_2": {"w": (B, h, 3), "b"}}}`.

    Raises:
        ValueError: if a size is below 1; in `optimizer` and `update`, if what it needs is missing.
    """
    check_sizes("velo", hidden_size=hidden_size, bank_size=bank_size, network_size=network_size)

    def mix(controls, bank):
        scale = mix_mult / bank_size
        return jax.tree.map(lambda w: scale * _weighted_sums(controls, w), bank)

    return scheduled(
        "velo",
        lambda key: scheduled_init(
            key,
            num_inputs=NUM_INPUTS,
            hidden_size=hidden_size,
            bank_size=bank_size,
            network_size=network_size,
        ),
        Scheduling(inputs=tensor_inputs, mix=mix, factor=lambda head: head),
        loss_horizon=loss_horizon,
        step_mult=step_mult,
        exp_mult=exp_mult,
        param_scale=param_scale,
    )


def tensor_inputs(params: PyTree, moments: PyTree) -> Float[Array, "tensors 12"]:
    """What the scheduler reads of each tensor, in the order of the leaves."""
    leaves, treedef = jax.tree.flatten(params)
    momenta, second = (treedef.flatten_up_to(x) for x in (moments.momenta, moments.second))
    rows = [_tensor_row(*tensor) for tensor in zip(leaves, momenta, second, strict=True)]
    dtype = jnp.result_type(*rows)
    return jnp.stack([row.astype(dtype) for row in rows])


def _tensor_row(param, momenta, second) -> Float[Array, "12"]:
    param = jnp.reshape(param, jnp.shape(param) or (1,)).astype(working_dtype(param))
    num_axes = param.ndim

    def deviations(planes, means):
        return planes - jnp.expand_dims(means, tuple(range(1, num_axes + 1)))

    scale = jax.lax.rsqrt(jnp.maximum(mean_square(param[None], num_axes), 1e-9))
    mean_m, mean_r = mean(momenta, num_axes), mean(second, num_axes)
    var_m = mean_square(deviations(momenta, mean_m), num_axes)
    var_r = mean_square(deviations(second, mean_r), num_axes)
    # The mean square about another point is the variance and the distance squared.
    about_m = var_r + jnp.square(mean_r - mean_m)
    axes = sum(size > 1 for size in param.shape)
    square = jnp.square(scale)
    return jnp.concatenate(
        [
            _log_size(scale * mean_r),
            jax.nn.one_hot(axes, MAX_AXES + 1, dtype=param.dtype),
            _log_size(square * var_m),
            _log_size(square * about_m),
        ]
    )


def _log_size(x: Array) -> Array:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10 * x)), -5, 5)


def _weighted_sums(weights: Array, bank: Array) -> Array:
    """`[tensors, B]` and `[B, ...]` give `[tensors, ...]`."""
    return jnp.tensordot(weights, bank, axes=1, precision=jax.lax.Precision.HIGHEST)
