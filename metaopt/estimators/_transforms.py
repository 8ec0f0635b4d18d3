"""Transforms of antithetic loss differences: signs and centred ranks.

    sign:   d_i ← c · sign(d_i)
    ranks:  d_i ← c · (u_i⁺ − u_i⁻),    u = rank/(2N − 1) − ½ ∈ [−½, ½] among the 2N losses

Both keep only the order of the losses: robust to heavy tails, invariant to the loss's scale, and no
longer unbiased. The sign looks at each pair alone (the meta-training of VeLO, Metz et al. 2022,
arXiv:2211.09760); ranks compare the losses of all tasks, so they suit tasks whose losses have one
scale (fitness shaping: Wierstra et al. 2014, arXiv:1106.4487, §3.1; centred: Salimans et al. 2017,
arXiv:1703.03864, §2.1). Losses that are equal share their mean rank, so a pair that ties adds zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar
from metaopt.estimators._shared import check_positive


def check_transforms(name: str, sign: Scalar | None, ranks: Scalar | None) -> None:
    """Raises ValueError unless at most one of the two is given, and it is positive."""
    if sign is not None and ranks is not None:
        raise ValueError(f"{name}: sign={sign} and ranks={ranks} exclude each other; give one.")
    check_positive(name, **{k: v for k, v in (("sign", sign), ("ranks", ranks)) if v is not None})


def transform_pair(
    difference: Float[Array, "..."], sign: Scalar | None, ranks: Scalar | None
) -> Float[Array, "..."]:
    """A pair's own part: its sign; for ranks, which need all pairs, 1 where it is finite."""
    if sign is not None:
        return sign * jnp.sign(difference)
    if ranks is not None:
        return jnp.where(jnp.isfinite(difference), jnp.ones_like(difference), difference)
    return difference


def transform_all(outputs: tuple, ranks: Scalar | None) -> tuple:
    """The part of all pairs: contributions times differences of ranks.

    Args:
        outputs: contributions of tasks as `average` takes them, but with the losses of both arms,
            `[tasks, 2]`, for which their means are put.
        ranks: the constant c, or None: nothing is multiplied.
    """
    grads, losses, *others = outputs
    if ranks is not None:
        ranked = centred_ranks(losses.ravel()).reshape(losses.shape)
        weights = ranks * (ranked[:, 0] - ranked[:, 1])
        grads = jax.tree.map(lambda g: g * weights.reshape(-1, *[1] * (g.ndim - 1)), grads)
    return (grads, jnp.mean(losses, axis=1), *others)


def centred_ranks(losses: Float[Array, "n"]) -> Float[Array, "n"]:
    """Ranks spread evenly over [−½, ½]; equal losses share their mean rank."""
    this, other = losses[:, None], losses[None, :]
    below = jnp.sum(other < this, axis=1)
    ties = jnp.sum(other == this, axis=1) - 1
    return (below + 0.5 * ties).astype(losses.dtype) / (losses.size - 1) - 0.5
