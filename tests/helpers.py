"""Shared test tools: standard errors, central differences, trees as vectors."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def ravel(tree) -> np.ndarray:
    """All leaves of a tree as one float64 vector."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def standard_errors(samples, expected) -> float:
    """Largest deviation of the sample mean from `expected`, in standard errors of the mean.

    `samples` has the sample axis first; all coordinates are checked together, so compare with
    about 4 (one coordinate) to 5 (thousands).
    """
    samples = np.asarray(samples, np.float64)
    samples = samples.reshape(len(samples), -1)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    deviation = np.abs(samples.mean(axis=0) - np.asarray(expected, np.float64).ravel())
    return float(np.max(deviation / np.maximum(error, 1e-300)))


def central_differences(function, tree, step=1e-5) -> np.ndarray:
    """Gradient of a scalar function by central differences; call it in x64."""
    flat, unravel = ravel_pytree(tree)
    basis = step * jnp.eye(flat.size, dtype=flat.dtype)
    value = jax.jit(jax.vmap(lambda x: function(unravel(x))))
    high, low = value(flat[None] + basis), value(flat[None] - basis)
    return np.asarray((high - low) / (2 * step), np.float64)


def relative_error(actual, expected) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    actual, expected = ravel(actual), ravel(expected)
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def output_on_devices(script: str, count: int) -> str:
    """What a script prints in a process with forced host devices; it must end well."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
