"""FOSI: Newton steps in the span of extreme eigenvectors, any optimizer in its complement.

    H ≈ Vᵀ diag(λ) V,    g₁ = Vᵀ V g,    g₂ = g − g₁,    v ← momentum(g₁, v)
    w ← w + s (I − VᵀV) base(g₂) − α Vᵀ |diag(λ)|⁻¹ V v,    s = min(λ_max / λ_k, clip)

Sivan, Gabel, Schuster 2023, arXiv:2302.08484: V has the k largest and l smallest eigenpairs of the
Hessian, found anew from time to time by Lanczos' method. Differs from the paper: pairs whose
eigenvalue is tiny beside the largest are left to the base optimizer, as their inverses would be
huge; the base sees g₂ as the tree of the parameters, not as a vector. Weight decay must be part of
the loss, not of the base: the eigenpairs are those of the loss.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Params, Scalar, checked
from metaopt.optimizers._curvature import hvp_from
from metaopt.optimizers._lanczos import lanczos_extremes

# v after a step, from g and v before it.
_MOMENTUM = {
    "none": lambda g, v, decay: g,
    "heavy_ball": lambda g, v, decay: g + decay * v,
    "nesterov": lambda g, v, decay: (1 + decay) * g + decay**2 * v,
    "ema": lambda g, v, decay: (1 - decay) * g + decay * v,
}


class FosiState(NamedTuple):
    """The base's state, and the quadratic model; vectors have the entries of all parameters.

    Attributes:
        count: steps taken.
        base: state of the base optimizer.
        velocity: v.
        inverse: 1/|λ| of the smallest pairs, then of the largest; 0 for pairs that are not used.
        vectors: V, one eigenvector per row; 0 for pairs that are not used.
        scale: s.
    """

    count: Int[Array, ""]
    base: PyTree
    velocity: Float[Array, " n"]
    inverse: Float[Array, " pairs"]
    vectors: Float[Array, "pairs n"]
    scale: Float[Array, ""]


@checked
def fosi(
    base: optax.GradientTransformation,
    *,
    momentum: Literal["none", "heavy_ball", "nesterov", "ema"] = "ema",
    decay: Scalar = 0.9,
    alpha: Scalar = 0.1,
    clip: Scalar = 3.0,
    floor: Scalar = 1e-6,
    num_largest: int = 5,
    num_smallest: int = 0,
    every: int | None = 100,
    warmup: int | None = None,
    order: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Accelerates an optimizer by Newton steps along the directions of largest curvature.

    Until the eigenpairs are found for the first time it is the base optimizer. `update` needs the
    parameters and the extra argument `obj_fn(params) -> scalar`, or `hvp_fn(params, v)` in its
    place, on any batch. It returns the final update; the base has the learning rate.

    Args:
        base: a complete optimizer, such as `optax.adam(1e-3)`.
        momentum: of the Newton steps: v ← g ("none"), g + δ v ("heavy_ball"), (1 + δ) g + δ² v
            ("nesterov") or (1 − δ) g + δ v ("ema", for Adam); take that of the base. Static.
        decay: δ. Traced.
        alpha: learning rate α of the Newton steps. Traced.
        clip: largest s; use 1 for bases like Adam, whose steps have a size of their own. Traced.
        floor: pairs with |λ| below this fraction of the largest are not used. Traced.
        num_largest: k; at most as many as there are parameters. Static.
        num_smallest: l, such as directions of negative curvature. Static.
        every: steps between new eigenpairs; None leaves that to `refresh_fosi`, outside of jit,
            where steps that keep the state do not copy it. Static.
        warmup: the first step, from 1, with new eigenpairs; `every` by default. Static.
        order: Hessian-vector products for them, as in `lanczos_extremes`. Static.
        seed: of the random vectors. Static.

    Returns:
        A complete optimizer whose updates have the dtypes of the gradients. Derivatives do not pass
        through eigenpairs.

    Raises:
        ValueError: if `every` or `warmup` is below 1, or a number of pairs is out of range;
            `update`, if it misses the parameters or `obj_fn`.
    """
    for name, value in {"every": every, "warmup": warmup, "order": order}.items():
        if value is not None and value < 1:
            raise ValueError(f"fosi: {name} must be at least 1, got {value}.")
    if min(num_largest, num_smallest) < 0 or num_largest + num_smallest < 1:
        raise ValueError(
            f"fosi: num_largest={num_largest} and num_smallest={num_smallest} must not be "
            "negative, and one of them must be positive."
        )
    base = optax.with_extra_args_support(base)
    settings = {"num_smallest": num_smallest, "order": order, "seed": seed}

    def init(params):
        wide = jnp.result_type(float)
        size = _flat(params).size
        num_pairs = min(num_largest + num_smallest, size)
        return FosiState(
            count=jnp.zeros((), jnp.int32),
            base=base.init(params),
            velocity=jnp.zeros(size, wide),
            inverse=jnp.zeros(num_pairs, wide),
            vectors=jnp.zeros((num_pairs, size), wide),
            scale=jnp.ones((), wide),
        )

    def update(updates, state, params=None, **extra_args):
        if every is not None:
            first = every if warmup is None else warmup
            hvp_fn = hvp_from("fosi", params, extra_args)
            state = jax.lax.cond(
                (state.count + 1 >= first) & ((state.count + 1 - first) % every == 0),
                lambda: refresh_fosi(
                    params, state, hvp_fn=hvp_fn, clip=clip, floor=floor, **settings
                ),
                lambda: state,
            )
        vectors = state.vectors
        g = _flat(updates)
        within = vectors.T @ (vectors @ g)
        velocity = _MOMENTUM[momentum](within, state.velocity, decay).astype(g.dtype)
        newton = vectors.T @ (state.inverse * (vectors @ velocity))
        rest = _unflat(g - within, updates)
        delta, base_state = base.update(rest, state.base, params, **extra_args)
        delta = _flat(delta)
        delta = delta - vectors.T @ (vectors @ delta)
        new = _unflat(state.scale * delta - alpha * newton, updates)
        return new, state._replace(count=state.count + 1, base=base_state, velocity=velocity)

    return optax.GradientTransformationExtraArgs(init, update)


def refresh_fosi(
    params: Params,
    state: FosiState,
    *,
    hvp_fn: Callable[[Params, Params], Params],
    num_smallest: int = 0,
    order: int | None = None,
    clip: Scalar = 3.0,
    floor: Scalar = 1e-6,
    seed: int = 0,
) -> FosiState:
    """New eigenpairs, at these parameters: what `fosi` does from time to time.

    Args:
        params: where the Hessian is taken.
        state: of `fosi`.
        hvp_fn: `(params, v) -> H v`, all of them trees.
        num_smallest: as in `fosi`; the other pairs of the state are the largest. Static.
        order: as there. Static.
        clip: as there. Traced.
        floor: as there. Traced.
        seed: as there. Static.

    Returns:
        The state with the new pairs.
    """
    num_pairs, size = state.vectors.shape
    # Few parameters: the largest come first, as many as there are.
    num_smallest = min(num_smallest, num_pairs)
    params = jax.lax.stop_gradient(params)
    values, vectors = lanczos_extremes(
        lambda v: _flat(hvp_fn(params, _unflat(v, params))),
        size,
        jax.random.fold_in(jax.random.key(seed), state.count),
        num_largest=num_pairs - num_smallest,
        num_smallest=num_smallest,
        order=order if order is None else max(order, num_pairs),
    )
    sizes = jnp.abs(values)
    used = (sizes > floor * sizes.max()) & jnp.isfinite(values)
    inverse = jnp.where(used, 1 / jnp.where(used, sizes, 1), 0)
    largest = inverse[num_smallest:]
    ratio = jnp.ones(())
    if largest.size:
        # λ_max / λ_k of the pairs that are used; there may be none.
        least = jnp.where(largest > 0, largest, jnp.inf).min()
        ratio = jnp.where(jnp.isfinite(least), largest.max() / least, 1)
    return state._replace(
        inverse=inverse.astype(state.inverse.dtype),
        vectors=jnp.where(used[:, None], vectors, 0).astype(state.vectors.dtype),
        scale=jnp.clip(ratio, 1, jnp.maximum(clip, 1)).astype(state.scale.dtype),
    )


def _flat(tree):
    """All entries as one vector in the widest precision that is switched on."""
    wide = jnp.result_type(float)
    return ravel_pytree(jax.tree.map(lambda x: x.astype(wide), tree))[0]


def _unflat(vector, like):
    """A tree of these shapes and dtypes."""
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(vector.dtype), like))
    return jax.tree.map(lambda x, y: x.astype(y.dtype), unravel(vector), like)
