"""What learners of embeddings share: their families, heads, losses and base classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metaopt.algorithms._learner import initial_params
from metaopt.core import Data, Params, TaskFamily
from metaopt.tasks import Embedded, LinearHead
from metaopt.tasks._few_shot_embedding import Embed, head_logits

Augment = Callable[[Array, PRNGKeyArray], Array]
MakeHead = Callable[..., LinearHead]


def num_ways_of(name: str, family: TaskFamily) -> int:
    """The classes of a task of a family made by `tasks.few_shot_embedding`; raises for others."""
    return len(_initial_shapes(name, family).head.b)


def num_features_of(name: str, family: TaskFamily) -> int:
    """The features that its heads take."""
    return len(_initial_shapes(name, family).head.w)


def initial_body(family: TaskFamily) -> Callable[[PRNGKeyArray], Params]:
    """`(key) -> ` parameters of the embedding alone."""
    init = initial_params(family)
    return lambda key: init(key).body


def adapt_head(embed: Embed, make_head: MakeHead, *, num_ways: int) -> Callable[..., Embedded]:
    """`(theta, task_params, support, key) -> Embedded`: theta and a head made of its features."""

    def adapt(theta, task_params, support, key):
        del task_params, key
        features = embed(theta, support.inputs)
        return Embedded(theta, make_head(features, support.labels, num_ways=num_ways))

    return adapt


def head_loss(
    head: LinearHead, features: Float[Array, "n features"], labels: Int[Array, " n"]
) -> Float[Array, ""]:
    """The mean cross-entropy of a head, in float32 or wider."""
    logits = head_logits(head, features)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def base_inputs(name: str, data: Data) -> Float[Array, "classes examples ..."]:
    """The examples of all classes in the data of few-shot families."""
    pool = getattr(getattr(data, "outer", None), "pool", None)
    if pool is None:
        raise ValueError(
            f"{name}: data is a {type(data).__name__}; pass metaopt.tasks.episodes(pool)."
        )
    return pool.inputs


def _initial_shapes(name: str, family: TaskFamily) -> Embedded:
    params = jax.eval_shape(lambda: initial_params(family)(jax.random.key(0)))
    if not isinstance(params, Embedded):
        raise ValueError(
            f"{name}: the family's params are a {type(params).__name__} without body and head; "
            "make it by metaopt.tasks.few_shot_embedding."
        )
    return params
