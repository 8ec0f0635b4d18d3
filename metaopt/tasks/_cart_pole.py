"""A pole on a cart that is pushed to the left or right.

    θ'' = (g sin θ − cos θ · u) / (ℓ (4/3 − m cos² θ / M)),    u = (F + m ℓ θ'² sin θ) / M
    x'' = u − m ℓ θ'' cos θ / M

with the pole's mass m and half-length ℓ, and the mass M of both. Barto, Sutton and Anderson 1983,
doi:10.1109/TSMC.1983.6313077, without friction: Euler steps of 0.02 s, forces of ±10 N, a reward of
1 a step, the end at 12 degrees or 2.4 m. A task is a length of the pole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar, checked
from metaopt.data._check import ordered
from metaopt.tasks._environment import Environment

_GRAVITY, _CART, _POLE, _FORCE, _STEP = 9.8, 1.0, 0.1, 10.0, 0.02
_MAX_POSITION, _MAX_ANGLE = 2.4, 12 * jnp.pi / 180


class CartPoleTask(NamedTuple):
    """What distinguishes tasks.

    Attributes:
        half_length: of the pole, in metres.
    """

    half_length: Float[Array, ""]


@checked
def cart_pole(*, half_length: tuple[Scalar, Scalar] = (0.5, 0.5)) -> Environment:
    """Balances a pole by pushing its cart to the left (action 0) or right (1).

    Args:
        half_length: bounds between which a task's half-length is uniform, in metres; (0.5, 0.5)
            is the published pole. Traced.

    Returns:
        An environment whose state and observation are position, velocity, angle and angular
        velocity, at first uniform in ±0.05.

    Raises:
        ValueError: if the bounds are not positive and in order.
    """
    shortest, longest = half_length
    ordered("cart_pole", shortest=shortest, longest=longest)

    def sample(key):
        share = jax.random.uniform(key)
        return CartPoleTask(shortest + (longest - shortest) * share)

    def step(state, task_params, action, key):
        del key
        x, x_dot, angle, angle_dot = state
        length, mass = task_params.half_length, _CART + _POLE
        force = jnp.where(action == 1, _FORCE, -_FORCE)
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        push = (force + _POLE * length * angle_dot**2 * sin) / mass
        angle_acc = (_GRAVITY * sin - cos * push) / (length * (4 / 3 - _POLE * cos**2 / mass))
        x_acc = push - _POLE * length * angle_acc * cos / mass
        state = state + _STEP * jnp.stack([x_dot, x_acc, angle_dot, angle_acc])
        done = (jnp.abs(state[0]) > _MAX_POSITION) | (jnp.abs(state[2]) > _MAX_ANGLE)
        return state, jnp.ones((), state.dtype), done

    return Environment(
        sample=sample,
        reset=lambda task_params, key: jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05),
        observe=lambda state, task_params: state,
        step=step,
        observation_size=4,
        action_size=2,
    )
