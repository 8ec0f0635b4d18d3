"""The small networks that learners have beside the one that adapts: perceptrons with SiLU.

Smooth, since second derivatives of these networks are part of a meta-gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import Batch
from metaopt.tasks._mlp import dense_layers

# The widths are those of the parameters.
_, apply_network = dense_layers("apply_network", (1, 1), "silu")


def silent_network(function: str, widths: tuple[int, ...]) -> Callable[[PRNGKeyArray], PyTree]:
    """`(key) -> params` of a network whose outputs start at 0.

    Only its last layer is 0, so that it has a gradient and, one step later, all layers have.
    """
    init, _ = dense_layers(function, widths, "silu")

    def init_silent(key):
        *others, last = init(key)
        return (*others, jax.tree.map(jnp.zeros_like, last))

    return init_silent


def set_network(
    function: str, num_features: int, hidden: tuple[int, ...]
) -> Callable[[PRNGKeyArray], PyTree]:
    """`(key) -> params` of a network for `embed_set`."""
    if num_features < 1 or not hidden:
        raise ValueError(
            f"{function}: num_features={num_features} must be at least 1, and hidden="
            f"{tuple(hidden)} have at least one width."
        )
    init, _ = dense_layers(function, (num_features, *hidden), "silu")
    return init


def embed_set(
    params: PyTree, features: Float[Array, "batch num_features"]
) -> Float[Array, " width"]:
    """The mean over the set of what the network makes of each example."""
    return apply_network(params, features).mean(axis=0)


def example_features(
    function: str, batch: Batch, num_features: int
) -> Float[Array, "batch num_features"]:
    """Flattened inputs beside their targets; classes as one-hot vectors."""
    inputs = batch.inputs.reshape(len(batch.inputs), -1)
    targets, left = batch.labels, num_features - inputs.shape[1]
    if not jnp.issubdtype(targets.dtype, jnp.inexact):
        targets = jax.nn.one_hot(targets, max(left, 0), dtype=inputs.dtype)
    targets = targets.reshape(len(targets), -1)
    if targets.shape[1] != left or left < 1:
        raise ValueError(
            f"{function}: num_features={num_features}, but an input has {inputs.shape[1]} entries; "
            "pass their number plus that of the entries of a target, or of the classes."
        )
    return jnp.concatenate([inputs, targets], axis=1)
