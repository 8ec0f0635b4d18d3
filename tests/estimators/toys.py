"""Small systems whose meta-gradients are known in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import StepInfo, System

A = jnp.array([[0.9, 0.2], [0.0, 0.95]])
B = jnp.array([[0.5, 0.1], [0.3, 1.0]])
C = jnp.array([1.0, -2.0])


class Counter(NamedTuple):
    total: jax.Array
    time: jax.Array


def counter(loss_at=None) -> System:
    """s ← s + θ; the loss is s after the step, or only after step number `loss_at`.

    The gradient of a trajectory's summed loss is 1 + 2 + … + T, or `loss_at` alone.
    """

    def init(theta, data, key, *, num_steps=None):
        return Counter(jnp.zeros_like(theta), jnp.array(0))

    def step(theta, state, data, key):
        state = Counter(state.total + theta, state.time + 1)
        loss = state.total
        if loss_at is not None:
            loss = jnp.where(state.time == loss_at, loss, 0.0)
        return state, StepInfo(loss, jnp.array(False))

    return System(init, step)


def linear(noise=0.0) -> System:
    """s ← A s + B θ + noise, loss c·s: later losses see θ through powers of A."""

    def init(theta, data, key, *, num_steps=None):
        return jnp.zeros(2, theta.dtype)

    def step(theta, state, data, key):
        state = A @ state + B @ theta + noise * jax.random.normal(key, (2,))
        return state, StepInfo(C @ state, jnp.array(False))

    return System(init, step)


def linear_gradient(num_steps, weights=None) -> jax.Array:
    """Gradient of Σ_t weights_t c·s_t with respect to θ; the mean over the steps by default."""
    weights = jnp.full(num_steps, 1 / num_steps) if weights is None else weights
    sensitivity, gradient = jnp.zeros((2, 2)), jnp.zeros(2)
    for weight in weights:
        sensitivity = A @ sensitivity + B
        gradient = gradient + weight * C @ sensitivity
    return gradient


def nonlinear() -> System:
    """s ← tanh(A s + B θ), loss |s − 1|²: smooth, with a curved meta-loss."""

    def init(theta, data, key, *, num_steps=None):
        return jnp.full(2, 0.1, theta.dtype)

    def step(theta, state, data, key):
        state = jnp.tanh(A @ state + B @ theta)
        return state, StepInfo(jnp.sum((state - 1) ** 2), jnp.array(False))

    return System(init, step)


def logistic_map() -> System:
    """s ← θ s (1 − s): chaotic at θ = 4, with the Lyapunov exponent log 2; the loss is s."""

    def init(theta, data, key, *, num_steps=None):
        return jax.random.uniform(key, theta.shape, theta.dtype, 0.1, 0.9)

    def step(theta, state, data, key):
        return theta * state * (1 - state), StepInfo(state, jnp.array(False))

    return System(init, step)


def fragile() -> System:
    """Like `linear`, but a task drawn with probability ½ is NaN from its first step."""

    def init(theta, data, key, *, num_steps=None):
        return jnp.zeros(2, theta.dtype), jax.random.bernoulli(key)

    def step(theta, state, data, key):
        position, breaks = state
        position = jnp.where(breaks, jnp.nan, A @ position + B @ theta)
        return (position, breaks), StepInfo(C @ position, jnp.array(False))

    return System(init, step)


def summed_windows(estimator, theta, key, *, num_windows, num_samples):
    """Samples of Σ over consecutive windows of the estimate, `[num_samples, *theta.shape]`."""

    def one(key):
        key_init, key_run = jax.random.split(key)
        state = estimator.init(theta, (), key_init)

        def window(state, index):
            key = jax.random.fold_in(key_run, index)
            estimate, state = estimator.estimate(theta, state, (), key)
            return state, estimate.grad

        _, grads = jax.lax.scan(window, state, jnp.arange(num_windows))
        return grads.sum(axis=0)

    return jax.jit(jax.vmap(one))(jax.random.split(key, num_samples))
