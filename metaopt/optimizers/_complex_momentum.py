"""Momentum with a complex coefficient, for differentiable games.

    m ← β m + g,    w ← w − α Re(m),    β = |β| exp(i φ)

The phase φ turns gradients of the past against those of the present, which damps the rotation that
makes players with opposed losses circle each other; φ = 0 is momentum, φ = π negative momentum.
Lorraine et al. 2022 (AISTATS), arXiv:2102.08431, eq. 4; real step size α.
"""

from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from metaopt.core import Scalar, checked


class ComplexMomentumState(NamedTuple):
    """The buffer m as two trees like the parameters: optax states hold real numbers."""

    real: PyTree
    imaginary: PyTree


@checked
def scale_by_complex_momentum(
    *, decay: Scalar = 0.9, phase: Scalar = np.pi / 8
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by the real part of their complex running sum.

    Args:
        decay: modulus |β| of the momentum coefficient, in [0, 1). Traced.
        phase: its argument φ in radians; about π/8 where the players mostly agree, up to π/2 where
            they are opposed. Traced.

    Returns:
        A transformation whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """
    if not isinstance(decay, jax.core.Tracer) and not np.all((decay >= 0) & (decay < 1)):
        raise ValueError(
            f"scale_by_complex_momentum: decay must be in [0, 1), got {decay}; its argument is "
            "given by phase."
        )

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ComplexMomentumState(zeros, zeros)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        cosine, sine = decay * jnp.cos(phase), decay * jnp.sin(phase)

        def real_part(real, imaginary, g):
            return (cosine * real - sine * imaginary + g).astype(g.dtype)

        def imaginary_part(real, imaginary):
            return (sine * real + cosine * imaginary).astype(real.dtype)

        real = jax.tree.map(real_part, state.real, state.imaginary, updates)
        imaginary = jax.tree.map(imaginary_part, state.real, state.imaginary)
        return real, ComplexMomentumState(real, imaginary)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def complex_momentum(
    learning_rate: optax.ScalarOrSchedule, *, decay: Scalar = 0.9, phase: Scalar = np.pi / 8
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with complex momentum.

    Args:
        learning_rate: step size α, a scalar or a schedule. Traced.
        decay: as in `scale_by_complex_momentum`.
        phase: as there.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """
    return optax.with_extra_args_support(
        optax.chain(
            scale_by_complex_momentum(decay=decay, phase=phase),
            optax.scale_by_learning_rate(learning_rate),
        )
    )
