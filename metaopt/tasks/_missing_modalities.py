"""Support sets of which some modalities are missing, and query sets of all of them.

    x_S = Σ over the modalities m in S of (mask_m ∘ x),    S random for every support example
    L(θ) = mean over tasks of L_query(φ; x),    φ = steps on L_support(·; x_S)

What is learned from partial inputs is judged on full ones: with `metaopt.algorithms.maml` and one
step, to first or second order, this is the meta-learning of Konwer et al. 2023 (ICCV),
arXiv:2302.04308, §3; without their adversarial detector of missing modalities. One modality is
always there; the others are, each by itself, with a probability.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from metaopt.core import Scalar, TaskFamily, checked
from metaopt.tasks._few_shot import Query, Support


@checked
def missing_modalities(
    family: TaskFamily,
    masks: Float[np.ndarray, "modalities ..."],
    *,
    probability: Scalar = 0.5,
) -> TaskFamily:
    """Leaves modalities out of support sets, by zeros in their place.

    Args:
        family: its data are made by `metaopt.tasks.episodes`, which tells the two sets apart; its
            batches have `inputs`, the example axis first.
        masks: for every modality the entries of an input that belong to it: zeros and ones in the
            shape of an input or one that broadcasts to it, as [modalities, 1, 1, channels]. Static.
        probability: that a modality is there besides the one that always is. Traced.

    Returns:
        The family with other support sets.

    Raises:
        ValueError: if `masks` are not zeros and ones with an entry in each; when traced, if the
            data are not made by `metaopt.tasks.episodes`.
    """
    masks = np.asarray(masks)
    flat = masks.reshape(len(masks), -1) if masks.ndim > 1 else masks[..., None]
    if masks.ndim < 2 or not np.isin(flat, (0, 1)).all() or not flat.any(axis=1).all():
        raise ValueError(
            f"missing_modalities: masks of shape {masks.shape} must be zeros and ones, with an "
            "entry of one for every modality."
        )

    def batch(data, task_params, key):
        if not isinstance(data, Support | Query):
            raise ValueError(
                f"missing_modalities: data is a {type(data).__name__}; pass "
                "metaopt.tasks.episodes(...), whose two sides say which set is meant."
            )
        if isinstance(data, Query):
            return family.batch(data, task_params, key)
        key_batch, key_always, key_others = jax.random.split(key, 3)
        drawn = family.batch(data, task_params, key_batch)
        shape = (len(drawn.inputs), len(masks))
        always = jax.nn.one_hot(jax.random.randint(key_always, shape[:1], 0, shape[1]), shape[1])
        others = jax.random.bernoulli(key_others, probability, shape)
        present = jnp.maximum(always, others).astype(drawn.inputs.dtype)
        seen = jnp.tensordot(present, jnp.asarray(masks, present.dtype), axes=1)
        return drawn._replace(inputs=drawn.inputs * jnp.minimum(seen, 1))

    return family._replace(batch=batch)
