"""What learned strategies see of a population: features of fitness that ignore its scale.

    [f_i < best so far,   rank_i / (N − 1) − ½,   (f_i − mean) / standard deviation]

Lange et al. 2022, arXiv:2211.11260, §3. A positive factor or a constant on all fitness changes
nothing as long as the first feature does not flip. Differs from the authors' later code: equal
candidates share their mean rank, so that their order never matters; the z-score is taken after
division by the largest deviation, so that it does not fade where fitness varies by less than 1e-4;
fitness that is not finite counts as the worst of its generation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def fitness_features(fitness: Float[Array, " n"], best: Float[Array, ""]) -> Float[Array, "n 3"]:
    """The three features of every candidate; `best` is the lowest fitness of earlier generations.

    All are finite: candidates that are equal have rank and z-score 0.
    """
    better = (fitness < best).astype(fitness.dtype)
    fitness = finite_fitness(fitness)
    return jnp.stack([better, centred_ranks(fitness), z_score(fitness)], axis=1)


def finite_fitness(fitness: Float[Array, " n"]) -> Float[Array, " n"]:
    """The worst finite fitness in place of what is not finite; 0 if nothing is."""
    finite = jnp.isfinite(fitness)
    worst = jnp.max(jnp.where(finite, fitness, -jnp.inf))
    return jnp.where(finite, fitness, jnp.where(jnp.isfinite(worst), worst, 0))


def lowest(best: Float[Array, ""], fitness: Float[Array, " n"]) -> Float[Array, ""]:
    """The lowest finite fitness so far."""
    return jnp.minimum(best, jnp.min(jnp.where(jnp.isfinite(fitness), fitness, jnp.inf)))


def centred_ranks(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Ranks spread evenly over [−½, ½], the lowest value first; equal values share their mean."""
    # Nothing is compared with itself: where a compiler computes a value twice, in two fused loops,
    # it may differ from itself by rounding.
    others = ~jnp.eye(values.size, dtype=bool)
    below = jnp.sum((values[None, :] < values[:, None]) & others, axis=1)
    equal = jnp.sum((values[None, :] == values[:, None]) & others, axis=1)
    return (below + 0.5 * equal).astype(values.dtype) / (values.size - 1) - 0.5


def z_score(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Zero mean and unit variance; 0 where all values are equal."""
    away = values - jnp.mean(values)
    largest = jnp.max(jnp.abs(away))
    scaled = away / jnp.where(largest > 0, largest, 1)
    # One of the squares is 1, unless all are 0.
    return scaled * jax.lax.rsqrt(jnp.where(largest > 0, jnp.mean(jnp.square(scaled)), 1))


def to_unit_range(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """The affine map onto [−1, 1]; 0 where all values are equal."""
    low, high = jnp.min(values), jnp.max(values)
    width = jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, 2 * (values - low) / width - 1, 0)
