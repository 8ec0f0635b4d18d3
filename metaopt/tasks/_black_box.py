"""Analytic functions to be minimised without gradients, randomly rotated and shifted.

    f(x) = h(z),    z = Q (x − x*),    min f = f(x*) = 0

Q is Haar-distributed, x* uniform in [−4, 4] and the start uniform in [−5, 5], per coordinate. With
i from 0 to d − 1 and u = i / (d − 1):

    sphere            Σ z²
    ellipsoid         Σ 10^(6u) z²
    discus            10⁶ z_0² + Σ_{i>0} z²
    cigar             z_0² + 10⁶ Σ_{i>0} z²
    powers            Σ |z|^(2 + 4u)
    rosenbrock        Σ 100 (y_i² − y_{i+1})² + (y_i − 1)²,  y = z + 1
    rastrigin         Σ z² + 10 (1 − cos 2πz)
    ackley            20 (1 − exp(−0.2 |z|/√d)) + e − exp(mean cos 2πz)
    griewank          Σ y²/4000 + 1 − Π cos(y_i/√(i+1)),  y = 100 z
    schwefel          Σ s(y*) − s(y) + max(|y| − 500, 0)²/100,  s(y) = y sin √|y|,  y = y* + 100 z

with y* = 420.96875. Definitions as in the usual benchmarks (Hansen et al. 2009, RR-6829), without
their further distortions; terms that cancel at the minimum are written so that they vanish there
exactly, and derivatives are finite everywhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metaopt.core import TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._normalise import relative_log

HALF_WIDTH = 5.0
SHIFT = 4.0
SCHWEFEL_OPTIMUM = 420.96875


class BlackBoxTask(NamedTuple):
    """One function.

    Attributes:
        function: which of the family's functions.
        rotation: Q.
        optimum: x*.
        scale: a typical value: the mean over 64 random points of the domain.
    """

    function: Int[Array, ""]
    rotation: Float[Array, "dim dim"]
    optimum: Float[Array, " dim"]
    scale: Float[Array, ""]


def _sphere(z):
    return jnp.sum(z**2)


def _conditioned(z, exponents):
    return jnp.sum(10**exponents * z**2)


def _ellipsoid(z):
    return _conditioned(z, 6 * _unit(z))


def _discus(z):
    return _conditioned(z, 6.0 * (_unit(z) == 0))


def _cigar(z):
    return _conditioned(z, 6.0 * (_unit(z) > 0))


def _powers(z):
    return jnp.sum(jnp.abs(z) ** (2 + 4 * _unit(z)))


def _rosenbrock(z):
    # y² − y' with y = z + 1, multiplied out so that it is exact near z = 0.
    valley = z[:-1] ** 2 + 2 * z[:-1] - z[1:]
    return jnp.sum(100 * valley**2 + z[:-1] ** 2)


def _rastrigin(z):
    return jnp.sum(z**2 + 20 * jnp.sin(jnp.pi * z) ** 2)


def _ackley(z):
    mean = jnp.mean(z**2)
    # The root's derivative at 0 is infinite: 0 is put in its place.
    norm = jnp.where(mean > 0, jnp.sqrt(jnp.where(mean > 0, mean, 1)), 0)
    ripples = jnp.mean(jnp.sin(jnp.pi * z) ** 2)
    return -20 * jnp.expm1(-0.2 * norm) - jnp.e * jnp.expm1(-2 * ripples)


def _griewank(z):
    y = 100 * z
    return jnp.sum(y**2) / 4000 + 1 - jnp.prod(jnp.cos(y / jnp.sqrt(jnp.arange(1.0, len(z) + 1))))


def _schwefel(z):
    y = SCHWEFEL_OPTIMUM + 100 * z

    def s(y):
        size = jnp.abs(y)
        root = jnp.sqrt(jnp.where(size > 0, size, 1))
        return jnp.where(size > 0, y * jnp.sin(root), 0)

    outside = jax.nn.relu(jnp.abs(y) - 500)
    return jnp.sum(s(jnp.full_like(y, SCHWEFEL_OPTIMUM)) - s(y) + outside**2 / 100)


def _unit(z):
    """From 0 to 1 along the coordinates."""
    return jnp.arange(z.size, dtype=z.dtype) / max(z.size - 1, 1)


FUNCTIONS: dict[str, Callable[[Float[Array, " dim"]], Float[Array, ""]]] = {
    "sphere": _sphere,
    "ellipsoid": _ellipsoid,
    "discus": _discus,
    "cigar": _cigar,
    "powers": _powers,
    "rosenbrock": _rosenbrock,
    "rastrigin": _rastrigin,
    "ackley": _ackley,
    "griewank": _griewank,
    "schwefel": _schwefel,
}


@checked
def black_box(
    *, dim: int, functions: Sequence[str] = tuple(FUNCTIONS), rotate: bool = True
) -> TaskFamily:
    """Analytic functions; a task draws one of them, a rotation and an optimum.

    Deterministic: batches and keys change nothing. The normaliser is `relative_log` of the task's
    typical value, with a floor of 1e-8.

    Args:
        dim: number of variables. Static.
        functions: names of functions, drawn with equal probability; under `vmap` each task costs
            the evaluation of all of them. Static.
        rotate: whether axes are rotated; otherwise all but a few functions are separable. Static.

    Returns:
        A family with `params` of shape [dim], `data = ()` and empty `aux`. Losses are at least 0,
        up to rounding.

    Raises:
        ValueError: if `dim < 2`, a function is unknown, or none is given.
    """
    at_least_one("black_box", dim=dim)
    if dim < 2:
        raise ValueError(f"black_box: dim={dim} is below 2; several functions need two variables.")
    unknown = [name for name in functions if name not in FUNCTIONS]
    if unknown or not functions:
        raise ValueError(
            f"black_box: functions={functions!r} is empty or has unknown names; choose from "
            f"{tuple(FUNCTIONS)}."
        )
    branches = [FUNCTIONS[name] for name in functions]

    def value(x, function, rotation, optimum):
        return jax.lax.switch(function, branches, rotation @ (x - optimum))

    def sample(key):
        key_function, key_rotation, key_optimum, key_points = jax.random.split(key, 4)
        function = jax.random.randint(key_function, (), 0, len(branches))
        optimum = jax.random.uniform(key_optimum, (dim,), minval=-SHIFT, maxval=SHIFT)
        rotation = jnp.eye(dim, dtype=optimum.dtype)
        if rotate:
            q, r = jnp.linalg.qr(jax.random.normal(key_rotation, (dim, dim)))
            rotation = q * jnp.sign(jnp.diagonal(r))[None]
        points = _anywhere(key_points, (64, dim), optimum.dtype)
        values = jax.vmap(value, in_axes=(0, None, None, None))(points, function, rotation, optimum)
        return BlackBoxTask(function, rotation, optimum, jnp.mean(values))

    def init(task_params, key):
        return _anywhere(key, (dim,), task_params.optimum.dtype)

    def batch(data, task_params, key):
        del data, task_params, key
        return ()

    def loss(params, task_params, batch, key):
        del batch, key
        function, rotation, optimum, _ = task_params
        return value(params, function, rotation, optimum), ()

    normalise = relative_log(lambda task_params: task_params.scale, floor=1e-8)
    return TaskFamily(sample, init, batch, loss, normalise)


def _anywhere(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -HALF_WIDTH, HALF_WIDTH)
