"""Few-shot classification by the usual four convolutional blocks, batch statistics made explicit.

    block:  x ← relu(max over 2 x 2 of (scale (w * x - mean) / sqrt(variance + ε) + shift))

after which a linear head. Whose mean and variance decides what a learner may know:

    "transductive"  those of the batch itself: query images are classified together, and their
                    statistics leak what the other queries are (Finn et al. 2017,
                    arXiv:1703.03400, public code; Bronskill et al. 2020, arXiv:2003.03284, §3);
    "support"       those of the support set, for support and query set alike;
    "running"       numbers kept in `params`, which `running_statistics` takes from many episodes.

The network is that of Vinyals et al. 2016, arXiv:1606.04080, §4.1.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import Data, Params, Split, TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._convolution import convolve
from metaopt.tasks._few_shot import SupportedBatch, few_shot_family

BatchStatistics = Literal["transductive", "support", "running"]
_EPSILON = 1e-5


@checked
def few_shot_convnet(
    pool_shape: tuple[int, ...],
    *,
    num_ways: int = 5,
    num_shots: int = 1,
    num_queries: int = 15,
    channels: Sequence[int] = (32, 32, 32, 32),
    statistics: BatchStatistics = "transductive",
) -> TaskFamily:
    """N-way K-shot classification of images by convolutions with batch normalisation.

    Args:
        pool_shape: shape of the pool's inputs, [classes, examples, height, width, channels].
            Static.
        num_ways: as in `few_shot`. Static.
        num_shots: as in `few_shot`. Static.
        num_queries: as in `few_shot`. Static.
        channels: output channels of the blocks, each of which halves the image. Static.
        statistics: whose means and variances normalise a batch, see the module. Static.

    Returns:
        A family as `few_shot` makes it, with `params = {"blocks": ({"w": [3, 3, in, out],
        "scale": [out], "shift": [out]}, ...), "head": {"w": [features, num_ways],
        "b": [num_ways]}}`. With "support", the query batch is a `SupportedBatch`. With "running",
        `params` has besides these `"statistics": ({"mean": [out], "variance": [out]}, ...)`, which
        gradients leave alone; 0 and 1 at first.

    Raises:
        ValueError: as in `few_shot`; or if `pool_shape` does not have five sizes, `channels` is
            empty or has a number below 1, the blocks are too many for the image, or `statistics`
            is unknown.
    """
    name = "few_shot_convnet"
    _check(name, pool_shape, channels, statistics)
    size = (pool_shape[2] >> len(channels)) * (pool_shape[3] >> len(channels)) * channels[-1]
    initializers = jax.nn.initializers

    def init(key):
        key_head, *keys = jax.random.split(key, len(channels) + 1)
        blocks, fan_in = [], pool_shape[-1]
        for block_key, fan_out in zip(keys, channels, strict=True):
            kernel = initializers.he_normal()(block_key, (3, 3, fan_in, fan_out))
            blocks.append({"w": kernel, "scale": jnp.ones(fan_out), "shift": jnp.zeros(fan_out)})
            fan_in = fan_out
        head = initializers.lecun_normal()(key_head, (size, num_ways))
        params = {"blocks": tuple(blocks), "head": {"w": head, "b": jnp.zeros(num_ways)}}
        if statistics == "running":
            unit = [{"mean": jnp.zeros(count), "variance": jnp.ones(count)} for count in channels]
            params["statistics"] = tuple(unit)
        return params

    def logits_of(params, batch):
        features, _ = _embed(params, batch)
        return features @ params["head"]["w"] + params["head"]["b"][None]

    return few_shot_family(
        name,
        init,
        logits_of,
        pool_shape,
        num_ways=num_ways,
        num_shots=num_shots,
        num_queries=num_queries,
        with_context=statistics == "support",
    )


@checked
def running_statistics(
    family: TaskFamily, *, num_episodes: int = 100
) -> Callable[[Params, Data, PRNGKeyArray], Params]:
    """Makes the function that measures batch statistics on episodes of base classes.

    Args:
        family: by `few_shot_convnet`, with other statistics than "running": the one that `params`
            was trained in.
        num_episodes: episodes whose query sets are averaged over. Static.

    Returns:
        `(params, data, key) -> params` for the family with `statistics="running"`: the means over
        episodes of the means and variances that a query set gives, with `data` from `episodes`.

    Raises:
        ValueError: if `num_episodes < 1`; when traced, if `params` has statistics already.
    """
    at_least_one("running_statistics", num_episodes=num_episodes)

    def measure(params, data, key):
        if "statistics" in params:
            raise ValueError(
                "running_statistics: params has statistics already; pass those of a family with "
                "statistics='transductive' or 'support'."
            )
        queries = data.outer if isinstance(data, Split) else data

        def of_episode(key):
            key_task, key_batch = jax.random.split(key)
            batch = family.batch(queries, family.sample(key_task), key_batch)
            return batch_statistics(params, batch)

        episodes = jax.vmap(of_episode)(jax.random.split(key, num_episodes))
        return {**params, "statistics": jax.tree.map(lambda x: x.mean(axis=0), episodes)}

    return measure


def batch_statistics(params: Params, batch: Any) -> tuple:
    """The mean and variance that normalise each block."""
    return _embed(params, batch)[1]


def _embed(params: Any, batch: Any) -> tuple[Float[Array, "n features"], tuple]:
    """Features of the inputs, and the statistics that normalised each block."""
    images, num_context = batch.inputs, 0
    if isinstance(batch, SupportedBatch):
        images, num_context = jnp.concatenate([batch.context, images]), len(batch.context)
    used = []
    for index, block in enumerate(params["blocks"]):
        images = convolve(images, block["w"], stride=1)
        if "statistics" in params:
            known = jax.lax.stop_gradient(params["statistics"][index])
        else:
            reference = images[:num_context] if num_context else images
            known = {"mean": reference.mean((0, 1, 2)), "variance": reference.var((0, 1, 2))}
        used.append(known)
        factor = block["scale"] * jax.lax.rsqrt(known["variance"] + _EPSILON)
        offset = block["shift"] - known["mean"] * factor
        images = images * factor[None, None, None] + offset[None, None, None]
        images = jax.nn.relu(_halve(images))
    images = images[num_context:]
    return images.reshape(len(images), -1), tuple(used)


def _halve(images: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """The largest of every 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
    images = jnp.maximum(images[:, 0:height:2, :width], images[:, 1:height:2, :width])
    return jnp.maximum(images[:, :, 0::2], images[:, :, 1::2])


def _check(name, pool_shape, channels, statistics):
    if len(pool_shape) != 5:
        raise ValueError(
            f"{name}: pool_shape={tuple(pool_shape)} is not "
            "(classes, examples, height, width, channels)."
        )
    if not channels or any(count < 1 for count in channels):
        raise ValueError(
            f"{name}: channels={tuple(channels)} must hold positive numbers, at least one."
        )
    if min(pool_shape[2:4]) >> len(channels) == 0:
        raise ValueError(
            f"{name}: {len(channels)} blocks leave nothing of images of {pool_shape[2]} x "
            f"{pool_shape[3]} pixels; pass fewer channels="
        )
    if statistics not in get_args(BatchStatistics):
        raise ValueError(
            f"{name}: statistics={statistics!r} is unknown; "
            f"choose from {get_args(BatchStatistics)}."
        )
