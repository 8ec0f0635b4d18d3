"""Few-shot classification by an embedding and a linear head: what most learners of features adapt.

    logits(x) = embed(body, x) W + b

Nearest class means, logistic regression on frozen features and gradient steps on everything differ
in how they find (body, W, b); they share this family, and so can be compared on the same episodes.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Params, TaskFamily, checked
from metaopt.tasks._few_shot import episode_draws, few_shot

Embed = Callable[[Params, Any], Float[Array, "n features"]]


class LinearHead(NamedTuple):
    """A linear classifier of features.

    Attributes:
        w: weights.
        b: biases.
    """

    w: Float[Array, "features ways"]
    b: Float[Array, " ways"]


class Embedded(NamedTuple):
    """Parameters of a classifier of embedded inputs.

    Attributes:
        body: parameters of the embedding.
        head: the classifier of its features.
    """

    body: Params
    head: LinearHead


@checked
def few_shot_embedding(
    init: Callable[[PRNGKeyArray], Params],
    embed: Embed,
    *,
    pool_shape: tuple[int, ...],
    num_ways: int = 5,
    num_shots: int = 1,
    num_queries: int = 15,
) -> TaskFamily:
    """N-way K-shot classification by a linear head on the features of an embedding.

    Args:
        init: `(key) -> body`.
        embed: `(body, inputs) -> features` of shape [batch, features].
        pool_shape: as in `few_shot`. Static.
        num_ways: classes N of a task. Static.
        num_shots: support examples K of each. Static.
        num_queries: query examples Q of each. Static.

    Returns:
        A family as of `few_shot`, with `params` of type `Embedded`; the head starts at LeCun's
        scale.

    Raises:
        ValueError: as in `few_shot`.
    """
    sample, batch = episode_draws(
        "few_shot_embedding",
        pool_shape,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
    )

    def init_both(key):
        key_body, key_head = jax.random.split(key)
        body = init(key_body)
        width = jax.eval_shape(embed, body, jnp.zeros((1, *pool_shape[2:]))).shape[-1]
        return Embedded(body, linear_head(width, num_ways, key_head))

    family = few_shot(
        init_both,
        lambda params, inputs: head_logits(params.head, embed(params.body, inputs)),
        pool_shape=pool_shape,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
    )
    # Drawn as there; errors speak on behalf of this function.
    return family._replace(sample=sample, batch=batch)


def linear_head(num_features: int, num_classes: int, key: PRNGKeyArray) -> LinearHead:
    """A head at LeCun's scale."""
    w = jax.nn.initializers.lecun_normal()(key, (num_features, num_classes))
    return LinearHead(w, jnp.zeros(num_classes))


def head_logits(
    head: LinearHead, features: Float[Array, "n features"]
) -> Float[Array, "n classes"]:
    """What a head says of features."""
    return features @ head.w + head.b[None]


@checked
def unit_features(embed: Embed) -> Embed:
    """An embedding whose features have Euclidean norm 1; a feature vector 0 stays 0.

    Args:
        embed: `(body, inputs) -> features`.

    Returns:
        The same with normalised rows, differentiable also at 0.
    """

    def embed_on_sphere(params, inputs):
        features = embed(params, inputs)
        square = jnp.sum(features**2, axis=-1, keepdims=True)
        return features * jax.lax.rsqrt(square + jnp.finfo(features.dtype).tiny ** 0.5)

    return embed_on_sphere


@checked
def mlp_embedding(
    in_shape: Sequence[int], *, widths: Sequence[int] = (256, 128, 64)
) -> tuple[Callable[[PRNGKeyArray], list[dict[str, Array]]], Embed]:
    """A perceptron with a rectifier after every layer, the last one included.

    Args:
        in_shape: of one input, which is flattened. Static.
        widths: of the layers; the last one is the number of features. Static.

    Returns:
        `(init, embed)` for `few_shot_embedding`: a body is a list of `{"w": [in, out], "b": [out]}`
        at He's scale. A part of the list embeds what comes before it.

    Raises:
        ValueError: if there is no width, or a size is below 1.
    """
    sizes = (math.prod(in_shape), *widths)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"mlp_embedding: in_shape={tuple(in_shape)} and widths={tuple(widths)} must be "
            "positive, with one width at least."
        )

    def init(key):
        he, keys = jax.nn.initializers.he_normal(), jax.random.split(key, len(widths))
        shapes = zip(keys, pairwise(sizes), strict=True)
        return [{"w": he(k, shape), "b": jnp.zeros(shape[1])} for k, shape in shapes]

    def embed(body, inputs):
        features = inputs.reshape(len(inputs), -1)
        for layer in body:
            features = jax.nn.relu(features @ layer["w"] + layer["b"][None])
        return features

    return init, embed
