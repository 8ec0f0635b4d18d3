"""Layers that learn from losses of their own outputs: forward-forward, and one pass with labels.

    layer l:      hₗ = fₗ(Wₗ, xₗ),    xₗ = hₗ₋₁ / |hₗ₋₁| as a constant,    ∂ loss(hₗ) / ∂Wₗ alone
    goodness:     G = Σ h² − θ,       loss = mean softplus(−G) of positive + mean softplus(G) of
                                      negative examples
    label nodes:  logits = h · h_c / τ for the nodes c of classes,    loss = their cross-entropy

Goodness of inputs that carry a right or a wrong label: Hinton 2022, arXiv:2212.13345. On graphs,
and with a node for every class, linked to the nodes known to be of that class, in the place of
negative examples: Park et al. 2024 (ICLR), arXiv:2403.11004. Label nodes begin with zeros here,
with random features in the published program. Layers whose loss is that of a predicting head are
`local_value_and_grad`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.estimators._shared import check_count, check_positive


@checked
def layerwise_outputs(layer_fns: Sequence[Callable], *, normalise: bool = True) -> Callable:
    """What every layer of a stack says, each a constant to the next one.

    Args:
        layer_fns: for each layer, `(layer_params, inputs) -> outputs`, activation included, with
            features on the last axis; on a graph they close over its (traced) adjacency. Static.
        normalise: whether a layer sees inputs of length 1, so that it cannot read off them how
            loud the layer before it was. Static.

    Returns:
        `(params, inputs) -> outputs`, a list, for a sequence of parameters.

    Raises:
        ValueError: if there is no layer.
    """
    if not layer_fns:
        raise ValueError("layerwise_outputs: layer_fns is empty; give at least one layer.")

    def outputs(params: Sequence[PyTree], inputs: Float[Array, "..."]) -> list:
        found, x = [], inputs
        for apply, layer in zip(layer_fns, params, strict=True):
            x = jax.lax.stop_gradient(x)
            x = apply(layer, _directions(x) if normalise else x)
            found.append(x)
        return found

    return outputs


@checked
def layerwise_value_and_grad(
    layer_fns: Sequence[Callable], layer_loss: Callable, *, normalise: bool = True
) -> Callable:
    """One loss for every layer, and its gradient by the parameters of that layer alone.

    Args:
        layer_fns: as in `layerwise_outputs`. Static.
        layer_loss: `(outputs, targets) -> scalar`, such as `goodness_loss` or `label_node_loss`.
        normalise: as there. Static.

    Returns:
        `(params, inputs, targets) -> (losses, grads)`, in the place of `jax.value_and_grad`.

    Raises:
        ValueError: if there is no layer.
    """
    outputs = layerwise_outputs(layer_fns, normalise=normalise)

    def total(params, inputs, targets):
        losses = jnp.stack([layer_loss(h, targets) for h in outputs(params, inputs)])
        return jnp.sum(losses), losses

    def value_and_grad(
        params: Sequence[PyTree], inputs: Float[Array, "..."], targets: PyTree
    ) -> tuple[Float[Array, " layers"], PyTree]:
        grads, losses = jax.grad(total, has_aux=True)(params, inputs, targets)
        return losses, grads

    return value_and_grad


@checked
def goodness_loss(
    outputs: Float[Array, "*examples units"],
    targets: Float[Array, "*examples"],
    *,
    threshold: Scalar = 2.0,
) -> Float[Array, ""]:
    """Large outputs for positive examples, small ones for negative ones.

    To predict, take the label with which a row has the largest mean square, summed over layers.

    Args:
        outputs: of one layer.
        targets: 1 for positive, −1 for negative examples, 0 for those that do not count.
        threshold: θ, in units of a sum of squares. Traced.

    Returns:
        The sum of the mean losses of positive and of negative examples.
    """
    losses = jax.nn.softplus(-targets * (jnp.sum(outputs**2, axis=-1) - threshold))
    return _mean_where(losses, targets > 0) + _mean_where(losses, targets < 0)


@checked
def label_node_logits(
    outputs: Float[Array, "nodes units"], *, num_classes: int, temperature: Scalar = 1.0
) -> Float[Array, "real_nodes classes"]:
    """How near nodes are to those of the classes, the last `num_classes` ones.

    To predict, take the largest probability, summed over layers.

    Args:
        outputs: of one layer, for a graph of `add_label_nodes`.
        num_classes: how many nodes stand for classes. Static.
        temperature: τ. Traced.

    Returns:
        Logits of the other nodes.

    Raises:
        ValueError: if `num_classes` is below 1 or `temperature` not positive.
    """
    check_count("label_node_logits", num_classes=num_classes)
    check_positive("label_node_logits", temperature=temperature)
    return outputs[:-num_classes] @ outputs[-num_classes:].T / temperature


@checked
def label_node_loss(
    outputs: Float[Array, "nodes units"],
    labels: Int[Array, " real_nodes"],
    *,
    num_classes: int,
    temperature: Scalar = 1.0,
) -> Float[Array, ""]:
    """The cross-entropy of nodes with a label, against the nodes of the classes.

    Args:
        outputs: as in `label_node_logits`.
        labels: classes; −1 for nodes without a label.
        num_classes: as there. Static.
        temperature: as there. Traced.

    Returns:
        The mean over nodes with a label.

    Raises:
        ValueError: as there.
    """
    logits = label_node_logits(outputs, num_classes=num_classes, temperature=temperature)
    log_probs = jax.nn.log_softmax(logits)
    known = labels >= 0
    chosen = jnp.take_along_axis(log_probs, jnp.where(known, labels, 0)[:, None], axis=1)
    return -_mean_where(chosen[:, 0], known)


@checked
def add_label_nodes(
    features: Float[Array, "nodes features"],
    adjacency: Float[Array, "nodes nodes"],
    labels: Int[Array, " nodes"],
    *,
    num_classes: int,
) -> tuple[Float[Array, "more_nodes features"], Float[Array, "more_nodes more_nodes"]]:
    """A graph with one node more for every class, linked to and from the nodes of that class.

    Args:
        features: of nodes.
        adjacency: of the graph, before any normalisation of it.
        labels: classes; −1 for nodes without a label, which are linked to none.
        num_classes: how many there are. Static.

    Returns:
        Features, zero for the new nodes, which are the last ones, and the adjacency.

    Raises:
        ValueError: if `num_classes` is below 1.
    """
    check_count("add_label_nodes", num_classes=num_classes)
    # A row of zeros for −1.
    links = jax.nn.one_hot(labels, num_classes, dtype=adjacency.dtype)
    nothing = jnp.zeros((num_classes, num_classes), adjacency.dtype)
    whole = jnp.block([[adjacency, links], [links.T, nothing]])
    none = jnp.zeros((num_classes, features.shape[1]), features.dtype)
    return jnp.concatenate([features, none]), whole


def _directions(x):
    """Rows of length 1, and zero for zero; squares of large numbers do not overflow."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
    return x / jnp.where(length > 0, length, 1)


def _mean_where(x, counts):
    """The mean of those that count, 0 if none does."""
    return jnp.sum(jnp.where(counts, x, 0)) / jnp.maximum(jnp.sum(counts), 1)
