"""Jacobi preconditioning: division by the diagonal.

    M = diag(A),    given, or A eᵢ for every i, or estimated:  diag(A) ≈ 1/m Σⱼ zⱼ ⊙ A zⱼ

with random signs zⱼ (Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003).
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from metaopt.core import checked
from metaopt.implicit._contracts import Preconditioner
from metaopt.implicit._dense import as_matrix


@checked
def jacobi(diagonal: PyTree | None = None, *, num_probes: int | None = None) -> Preconditioner:
    """Divides by the diagonal of the operator; entries that are not positive are left alone.

    Args:
        diagonal: the diagonal of the (damped) operator, in the structure of b. Traced. None: found
            from products with the operator.
        num_probes: products for an estimate with random signs, which needs a key. None: one product
            per unknown, exact. Static.

    Returns:
        A preconditioner for `cg(preconditioner=...)`.

    Raises:
        ValueError: if both are given, or `num_probes < 1`.
    """
    if num_probes is not None and (not isinstance(num_probes, int) or num_probes < 1):
        raise ValueError(f"jacobi: num_probes must be at least 1, got {num_probes!r}.")
    if diagonal is not None and num_probes is not None:
        raise ValueError("jacobi: the diagonal is given, so nothing is probed; drop num_probes.")

    def build(operator, b, key):
        found = _find(operator, b, key, num_probes) if diagonal is None else diagonal
        safe = jax.tree.map(lambda d: jnp.where(d > 0, d, jnp.ones_like(d)), found)
        return lambda r: jax.tree.map(lambda x, d: (x / d).astype(x.dtype), r, safe)

    return build


def _find(operator, b, key, num_probes):
    flat, unravel = ravel_pytree(b)
    if num_probes is None:
        return unravel(jnp.diagonal(as_matrix(operator, b)))
    if key is None:
        raise ValueError("jacobi: random probes need a key; wrap the solver in seeded().")
    signs = jax.random.rademacher(key, (num_probes, flat.size), flat.dtype)
    products = jax.vmap(lambda z: ravel_pytree(operator.apply(unravel(z)))[0])(signs)
    return unravel(jnp.mean(signs * products, axis=0))
