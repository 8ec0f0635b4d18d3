"""Progressive gradient flow: N:M masks that come on by and by.

    mask decay       w · (mask + (1 − mask) βₜ),    β = max(0, 1 − c t)  or  exp(−c t)
    structure decay  w · mask of (m−1):m, m/2:m, m/4:m, ..., n:m, for equally many steps each

with t counted from the end of a dense beginning, and β = 0 in the last part of the training.
Bambhaniya et al. 2024, arXiv:2402.04744; decaying masks: Kao et al. 2022, arXiv:2209.07617.
Gradients pass to all weights as they are: the factors are for `ste_sparse`. In the published
program the last pattern begins where the steps of the others end; here each has as many of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import check_sign
from metaopt.optimizers._nm_sparsity import nm_mask
from metaopt.optimizers._numerics import known


@checked
def mdgf_linear(
    *,
    rate: Scalar = 0.01,
    n: int = 2,
    m: int = 4,
    axis: int = -2,
    start: Scalar = 0,
    end: Scalar | None = None,
) -> Callable[..., Float[Array, "..."]]:
    """Pruned weights fade out linearly.

    Args:
        rate: c, in 1/steps. Traced.
        n: as in `nm_mask`. Static.
        m: as there. Static.
        axis: as there. Static.
        start: steps that are dense. Traced.
        end: the step from which masks are hard; None: when β is 0. Traced.

    Returns:
        `(weights, count) -> factors`, for `ste_sparse(weights, factors)`.

    Raises:
        ValueError: if `rate` is negative; when called, as `nm_mask`.
    """
    check_sign("mdgf_linear", strict=False, rate=rate)
    return _fading(lambda t: jnp.maximum(1 - rate * t, 0), n, m, axis, start, end)


@checked
def mdgf_exp(
    *,
    rate: Scalar = 0.01,
    n: int = 2,
    m: int = 4,
    axis: int = -2,
    start: Scalar = 0,
    end: Scalar,
) -> Callable[..., Float[Array, "..."]]:
    """Pruned weights fade out exponentially.

    Args:
        rate: c, in 1/steps. Traced.
        n: as in `nm_mask`. Static.
        m: as there. Static.
        axis: as there. Static.
        start: steps that are dense. Traced.
        end: the step from which masks are hard. Traced.

    Returns:
        As `mdgf_linear`.

    Raises:
        ValueError: if `rate` is negative; when called, as `nm_mask`.
    """
    check_sign("mdgf_exp", strict=False, rate=rate)
    return _fading(lambda t: jnp.exp(-rate * t), n, m, axis, start, end)


@checked
def sdgf(
    end: Scalar, *, n: int = 2, m: int = 4, axis: int = -2, start: Scalar = 0
) -> Callable[..., Float[Array, "..."]]:
    """Hard masks with fewer and fewer survivors.

    Args:
        end: the step at which all patterns have had the same number of steps; the last one stays.
            Traced.
        n: survivors of a group in the end. Static.
        m: as in `nm_mask`. Static.
        axis: as there. Static.
        start: steps that are dense. Traced.

    Returns:
        As `mdgf_linear`.

    Raises:
        ValueError: if `n` is not between 1 and `m` or `end` not above `start`; when called, as
            `nm_mask`.
    """
    if not 1 <= n <= m:
        raise ValueError(f"sdgf: n={n} must be between 1 and m={m}, such as n=1, m=16.")
    if known(start) and known(end) and not start < end:
        raise ValueError(f"sdgf: end={end} must be above start={start}, the steps that are dense.")
    survivors = _patterns(n, m)
    masks = [lambda w, k=k: nm_mask(w, n=k, m=m, axis=axis) for k in (m, *survivors)]

    def factors(weights, count):
        done = (count - start) / (end - start)
        index = 1 + jnp.floor(done * len(survivors)).astype(jnp.int32)
        return jax.lax.switch(jnp.clip(index, 0, len(survivors)), masks, weights)

    return factors


def _fading(beta, n, m, axis, start, end):
    def factors(weights, count):
        mask = nm_mask(weights, n=n, m=m, axis=axis)
        factor = beta(jnp.maximum(count - start, 0))
        if end is not None:
            factor = jnp.where(count < end, factor, 0)
        return mask + (1 - mask) * jnp.asarray(factor, mask.dtype)

    return factors


def _patterns(n, m):
    """m − 1, m/2, m/4, ..., n."""
    halves = [m // 2**i for i in range(1, m.bit_length())]
    return (*[k for k in (m - 1, *halves) if k > n], n)
