"""Samples of an estimator at a fixed theta, with what they cost.

A sample is what one trajectory of T steps gives: one estimate where the estimator sees whole
trajectories, the mean of T/K consecutive ones where it sees windows of K steps, after as many more
where its tasks start at different phases. Every sample starts anew, so samples are independent.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from metaopt.core import Estimator, Oracles
from metaopt.unroll import Episode


class Samples(NamedTuple):
    """Independent estimates of one gradient.

    Attributes:
        grads: `[samples, d]`, gradients as vectors, float64 on the host.
        loss: their meta-loss, averaged over samples.
        estimates_per_sample: windows of a trajectory; 1 for whole trajectories.
        seconds: median wall time of one estimate, compiled.
        compile_seconds: what tracing and compiling took; little where the cache was warm.
        temp_bytes: memory for intermediate values of one estimate; -1 where unknown.
        inner_steps: of one sample, over all tasks and arms.
        oracles: of one sample.
    """

    grads: np.ndarray
    loss: float
    estimates_per_sample: int
    seconds: float
    compile_seconds: float
    temp_bytes: int
    inner_steps: int
    oracles: Oracles


def sample_estimator(
    estimator: Estimator, theta: Any, data: Any, key: PRNGKeyArray, *, num_samples: int
) -> Samples:
    """Draws independent samples, see the module.

    Args:
        estimator: any estimator; its horizon should be a constant.
        theta: meta-parameters.
        data: the pool.
        key: of all samples.
        num_samples: samples.

    Returns:
        The samples and their cost.

    Raises:
        ValueError: if `num_samples < 1`.
    """
    if num_samples < 1:
        raise ValueError(f"sample_estimator: num_samples must be at least 1, got {num_samples}.")
    init = jax.jit(estimator.init)
    start = time.perf_counter()
    state = init(theta, data, jax.random.fold_in(key, num_samples))
    call = jax.jit(estimator.estimate).lower(theta, state, data, jax.random.clone(key)).compile()
    compile_seconds = time.perf_counter() - start
    _, after = call(theta, state, data, jax.random.clone(key))
    skipped, counted = _windows(state, after)

    grads, losses, seconds, infos = [], [], [], []
    for index in range(num_samples):
        key_init, key_run = jax.random.split(jax.random.fold_in(key, index))
        state = init(theta, data, key_init)
        window_grads = []
        for window in range(skipped + counted):
            key_window = jax.random.fold_in(key_run, window)
            start = time.perf_counter()
            estimate, state = jax.block_until_ready(call(theta, state, data, key_window))
            seconds.append(time.perf_counter() - start)
            if window >= skipped:
                flat, _ = ravel_pytree(estimate.grad)
                window_grads.append(np.asarray(flat.astype(float), np.float64))
                losses.append(float(estimate.loss))
                infos.append(estimate.info)
        grads.append(np.mean(window_grads, axis=0))
    steps, oracles = jax.tree.map(
        lambda x: counted * int(x), (infos[0].inner_steps, infos[0].oracles)
    )
    return Samples(
        grads=np.stack(grads),
        loss=float(np.mean(losses)),
        estimates_per_sample=counted,
        seconds=float(np.median(seconds)),
        compile_seconds=compile_seconds,
        temp_bytes=temporary_bytes(call),
        inner_steps=steps,
        oracles=oracles,
    )


def temporary_bytes(compiled: Any) -> int:
    """Memory for intermediate values of a compiled function; -1 where the backend does not tell."""
    memory = compiled.memory_analysis()
    return -1 if memory is None else int(memory.temp_size_in_bytes)


def _windows(state, after) -> tuple[int, int]:
    """Windows to skip at the start of a sample and windows to count, from the episodes' clocks."""

    def episodes_of(state):
        leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Episode))
        return [x for x in leaves if isinstance(x, Episode)]

    befores, afters = episodes_of(state), episodes_of(after)
    if not befores:
        return 0, 1
    (before, *_), (after, *_) = befores, afters
    truncation = int(jnp.max(after.clock - before.clock))
    longest = int(jnp.max(before.length))
    if truncation < 1 or longest == jnp.iinfo(jnp.int32).max:  # A system that ends by itself.
        return 0, 1
    counted = max(1, longest // truncation)
    return (counted if bool(jnp.any(before.clock > 0)) else 0), counted
