"""Physical systems whose output is affine in their parameters, and measurements of them.

    y(x; w) = T₀(x) + Σᵢ wᵢ Tᵢ(x) + noise

An environment is one vector w of physical parameters: charges, friction coefficients, stiffnesses.
The terms T are the same in all environments. Blanke and Lelarge 2024 (ICLR), arXiv:2312.00477, §3
and §6.1; the two systems are our own, the second in the spirit of their point charges.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Scalar, checked
from metaopt.data._check import at_least_one


class AffineSystem(NamedTuple):
    """A system; environments differ in its parameters alone.

    Attributes:
        terms: `(inputs [n, num_inputs]) -> [n, num_outputs, 1 + num_parameters]`, T₀ first.
        num_inputs: entries of x.
        num_parameters: entries of w.
        input_range: x is uniform in [-input_range, input_range] per entry.
        parameter_range: and so is w, in its own range.
    """

    terms: Callable[[Float[Array, "n inputs"]], Float[Array, "n outputs terms"]]
    num_inputs: int
    num_parameters: int
    input_range: Scalar = 1.0
    parameter_range: Scalar = 1.0


class EnvironmentPool(NamedTuple):
    """Measurements in several environments.

    Attributes:
        inputs: x, the environment axis first.
        labels: y, with noise.
        parameters: w, which no learner sees.
    """

    inputs: Float[Array, "environments points inputs"]
    labels: Float[Array, "environments points outputs"]
    parameters: Float[Array, "environments parameters"]


@checked
def oscillator() -> AffineSystem:
    """A forced pendulum: gravity, quadratic drag and a cubic spring are the parameters.

        y = w₁ sin x₁ + w₂ x₂|x₂| + w₃ x₁³/8 + cos 2x₂,    x in [-2, 2]², w in [-1.5, 1.5]³

    Returns:
        A system of two inputs (angle, velocity), three parameters and one output.
    """

    def terms(inputs):
        angle, velocity = inputs[:, 0], inputs[:, 1]
        return jnp.stack(
            [
                jnp.cos(2 * velocity),
                jnp.sin(angle),
                velocity * jnp.abs(velocity),
                angle**3 / 8,
            ],
            axis=-1,
        )[:, None, :]

    return AffineSystem(terms, 2, 3, input_range=2.0, parameter_range=1.5)


@checked
def point_charges() -> AffineSystem:
    """The plane electric field of four unknown charges around one that is known.

        y = E(x - 0) + Σᵢ wᵢ E(x - rᵢ),    E(d) = d / (|d|² + 1/4)^{3/2}

    The known charge is 1 at the origin, the others are at the corners (±1.5, ±1.5); x in [-1, 1]²,
    w in [-1, 1]⁴. Charges are smeared out over half a unit, so that the field stays bounded.

    Returns:
        A system of two inputs, four parameters and two outputs.
    """

    def terms(inputs):
        corners = [[1.5, 1.5], [1.5, -1.5], [-1.5, 1.5], [-1.5, -1.5]]
        positions = jnp.array([[0.0, 0.0], *corners], inputs.dtype)
        offset = inputs[:, :, None] - positions.T[None]
        return offset * (jnp.sum(offset**2, axis=1, keepdims=True) + 0.25) ** -1.5

    return AffineSystem(terms, 2, 4)


@checked
def environment_pool(
    system: AffineSystem,
    key: PRNGKeyArray,
    *,
    num_environments: int,
    num_points: int,
    noise: Scalar = 0.01,
) -> EnvironmentPool:
    """Measures a system at random points in random environments.

    Args:
        system: what is measured.
        key: consumed.
        num_environments: draws of the parameters. Static.
        num_points: measurements in each. Static.
        noise: standard deviation of the normal noise of every output. Traced.

    Returns:
        A pool for `metaopt.tasks.environments`, by way of `metaopt.tasks.episodes`.

    Raises:
        ValueError: if a size is below 1.
    """
    at_least_one("environment_pool", num_environments=num_environments, num_points=num_points)

    def one(key):
        key_parameters, key_inputs, key_noise = jax.random.split(key, 3)
        parameters = system.parameter_range * jax.random.uniform(
            key_parameters, (system.num_parameters,), minval=-1.0
        )
        inputs = system.input_range * jax.random.uniform(
            key_inputs, (num_points, system.num_inputs), minval=-1.0
        )
        terms = system.terms(inputs)
        exact = terms[..., 0] + terms[..., 1:] @ parameters
        labels = exact + noise * jax.random.normal(key_noise, exact.shape)
        return EnvironmentPool(inputs, labels, parameters)

    return jax.vmap(one)(jax.random.split(key, num_environments))
