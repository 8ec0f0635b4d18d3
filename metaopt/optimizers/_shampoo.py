"""Shampoo: Kronecker-factored preconditioning of tensors, with the step length of another rule.

    L ← ρ L + (1-ρ) G Gᵀ,    R ← ρ R + (1-ρ) Gᵀ G,    m̂, v̂ as in Adam
    d = L^(-1/4) m̂ R^(-1/4),    u = d · |a| / |d|,    a = m̂ / √(v̂ + ε²)

A tensor with k axes has k factors, each of the product of G with itself over all axes but one, and
the power of each is -1/(2k). Gupta et al. 2018, arXiv:1802.09568, algorithms 1 and 2. Moving
averages, roots that are renewed only every k steps, merged axes, blocks and the grafted length
follow Anil et al. 2020, arXiv:2002.09018. By default the momentum is preconditioned, not the
gradient, with the length of Adam's step, as above. The published rule preconditions G and gathers
momentum of the result, M ← β₁ M + u:

    shampoo(rate, momentum="after", graft="sgd", factor_decay=0.999, initial=1e-6, ridge=0.0)

and the first paper's is `factor_decay=1` (sums), `graft="none"`, `b1=0` and `momentum="after"`.
Differs from both: an axis that is too long has no factor and is not counted, so that those of the
others get a larger power; tensors with fewer than two axes follow the rule that gives the length;
a merged tensor keeps two axes; roots are new at the first step, not the k-th one; gradients whose
squares would overflow are clipped.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._matrix_roots import TINY, inverse_root, stacked_inverse_roots
from metaopt.optimizers._numerics import moderate, wide_zeros, widen
from metaopt.optimizers._shampoo_blocks import (
    from_blocks,
    merged_shape,
    to_blocks,
    unused_entries,
)

Graft = Literal["adam", "sgd", "adagrad", "rmsprop", "none"]
Momentum = Literal["before", "after"]


class ShampooState(NamedTuple):
    """Moments like the parameters; for each leaf, factors of its axes and their roots.

    Attributes:
        count: steps taken.
        mu: moving average of the gradients, or the momentum of the directions.
        nu: moving average, or sum, of squared gradients; None where no length needs it.
        factors: for each leaf one for each axis, (L, R) for a matrix; None where there is none, no
            axes for those with fewer than two; with blocks, stacks of them.
        roots: for each factor its power of the last step at which they were renewed.
        graft_mu: momentum of the rule that gives the length; None where no step takes it.
    """

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    factors: tuple
    roots: tuple
    graft_mu: PyTree


@checked
def scale_by_shampoo(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    factor_decay: Scalar = 0.95,
    initial: Scalar = 0.0,
    ridge: Scalar = 1e-6,
    every: int = 10,
    start: int = 1,
    max_size: int = 256,
    merge_axes: int = 128,
    block_size: int | None = None,
    graft: Graft = "adam",
    momentum: Momentum = "before",
    nesterov: bool = False,
    sharding: NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by Shampoo's direction, of the length that another rule's would have.

    Derivatives pass through moments and lengths; the roots count as constants, as they do between
    two renewals.

    Args:
        b1: decay of the first moment, or of the momentum. Traced.
        b2: decay of the second moment, of which only the length is used. Traced.
        eps: ε of Adam; with "adagrad" and "rmsprop" it is added to the root. Traced.
        factor_decay: ρ, decay of the factors; 1 makes them sums. Traced.
        initial: what the factors are before the first step, times the identity. Traced.
        ridge: added to a factor's eigenvalues, as a fraction of its largest absolute row sum, which
            is at least the largest of them. Traced.
        every: steps k between new roots. Static.
        start: the first step, from 1, that takes Shampoo's direction; those before take the other
            rule's. Static.
        max_size: longest axis that gets a factor. Static.
        merge_axes: neighbouring axes of a tensor with more than two count as one while their
            product is at most this and `max_size`, down to two axes; 1 merges none. Static.
        block_size: axes longer than this are cut, and all blocks of one size get their roots in
            one loop; None cuts nothing. Static.
        graft: whose step gives the length: that of "adam", "sgd", "adagrad" or "rmsprop" (both
            moments as they are, without bias correction); "none" leaves d as it is. Static.
        momentum: "before" averages gradients, with bias correction, and preconditions that;
            "after" sums directions, u being made of the gradient alone. Static.
        nesterov: with "after", looks one step ahead: β₁ M + u. Static.
        sharding: with blocks, of the axis along which they are stacked for the roots, such as
            `NamedSharding(mesh, PartitionSpec("devices"))`. Static.

    Returns:
        A transformation whose updates have the dtypes of the gradients; its state is in float32 at
        least. Mapped over settings it still renews roots only when they are due.

    Raises:
        ValueError: if `every`, `start`, `max_size`, `merge_axes` or `block_size` is below 1,
            `block_size` above `max_size`, `nesterov` without "after", or `sharding` without
            `block_size`.
    """
    _check(every, start, max_size, merge_axes, block_size, momentum, nesterov, sharding)

    def merged(tree):
        """The leaves as they are preconditioned."""
        limit = min(merge_axes, max_size)
        return [x.reshape(merged_shape(x.shape, limit)) for x in jax.tree.leaves(tree)]

    def init(params):
        zeros = wide_zeros(params)
        factors = tuple(_sides(x, max_size, block_size, initial) for x in merged(zeros))
        nu = None if graft in ("sgd", "none") else zeros
        graft_mu = zeros if momentum == "after" and start > 1 else None
        count = jnp.zeros((), jnp.int32)
        return ShampooState(count, zeros, nu, factors, factors, graft_mu)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        grads = moderate(widen(updates))
        count = state.count + 1
        mu, base = state.mu, grads
        if momentum == "before":
            mu = optax.tree.update_moment(grads, state.mu, b1, 1)
            base = optax.tree.bias_correction(mu, b1, count)
        nu = _squares(graft, grads, state.nu, b2)
        targets = _targets(graft, base, nu, b2, eps, count)
        factors = tuple(
            _accumulate(sides, to_blocks(g, block_size), factor_decay) if sides else sides
            for sides, g in zip(state.factors, merged(grads), strict=True)
        )
        roots = jax.lax.cond(
            state.count % every == 0,
            lambda: _all_roots(factors, merged(grads), ridge, block_size, sharding),
            lambda: state.roots,
        )
        leaves, structure = jax.tree.flatten(base)
        directions = jax.tree.unflatten(
            structure,
            [
                _direction(x, a, sides, block_size, graft).reshape(leaf.shape)
                for leaf, x, a, sides in zip(
                    leaves, merged(base), merged(targets), roots, strict=True
                )
            ],
        )
        new, mu, graft_mu = directions, mu, state.graft_mu
        if momentum == "after":
            new, mu = _with_momentum(directions, mu, b1, nesterov)
        if start > 1:
            if momentum == "after":
                targets, graft_mu = _with_momentum(targets, graft_mu, b1, nesterov)
            new = jax.tree.map(lambda u, a: jnp.where(count >= start, u, a), new, targets)
        new = jax.tree.map(lambda u, g: u.astype(g.dtype), new, updates)
        return new, ShampooState(count, mu, nu, factors, roots, graft_mu)

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    factor_decay: Scalar = 0.95,
    initial: Scalar = 0.0,
    ridge: Scalar = 1e-6,
    every: int = 10,
    start: int = 1,
    max_size: int = 256,
    merge_axes: int = 128,
    block_size: int | None = None,
    graft: Graft = "adam",
    momentum: Momentum = "before",
    nesterov: bool = False,
    sharding: NamedSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo with Adam's step length: learning rates of Adam carry over.

    Args:
        learning_rate: step size, a scalar or a schedule. Traced.
        b1: as in `scale_by_shampoo`.
        b2: as there.
        eps: as there.
        factor_decay: as there.
        initial: as there.
        ridge: as there.
        every: as there. Static.
        start: as there. Static.
        max_size: as there. Static.
        merge_axes: as there. Static.
        block_size: as there. Static.
        graft: as there. Static.
        momentum: as there. Static.
        nesterov: as there. Static.
        sharding: as there. Static.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `scale_by_shampoo`.
    """
    direction = scale_by_shampoo(
        b1=b1,
        b2=b2,
        eps=eps,
        factor_decay=factor_decay,
        initial=initial,
        ridge=ridge,
        every=every,
        start=start,
        max_size=max_size,
        merge_axes=merge_axes,
        block_size=block_size,
        graft=graft,
        momentum=momentum,
        nesterov=nesterov,
        sharding=sharding,
    )
    return optax.with_extra_args_support(
        optax.chain(direction, optax.scale_by_learning_rate(learning_rate))
    )


def _check(every, start, max_size, merge_axes, block_size, momentum, nesterov, sharding) -> None:
    counts = {"every": every, "start": start, "max_size": max_size}
    counts |= {"merge_axes": merge_axes, "block_size": block_size}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"scale_by_shampoo: {name} must be at least 1, got {count}.")
    if block_size is not None and block_size > max_size:
        raise ValueError(
            f"scale_by_shampoo: block_size={block_size} is above max_size={max_size}, so blocks "
            "would have no factors; raise max_size."
        )
    if nesterov and momentum != "after":
        raise ValueError(
            f"scale_by_shampoo: nesterov=True needs momentum='after', got {momentum!r}."
        )
    if sharding is not None and block_size is None:
        raise ValueError(
            "scale_by_shampoo: sharding divides stacks of blocks, but block_size is None; set it, "
            "for instance to max_size."
        )


def _sides(x, max_size, block_size, initial):
    """The first factors of a tensor."""
    if x.ndim < 2:
        return ()
    blocks = to_blocks(x, block_size)
    stack = blocks.shape[: blocks.ndim - x.ndim]
    return tuple(
        None
        if size > max_size
        else jnp.broadcast_to(initial * jnp.eye(size), (*stack, size, size)).astype(x.dtype)
        for size in blocks.shape[len(stack) :]
    )


def _accumulate(sides, g, decay):
    weight = jnp.where(jnp.equal(decay, 1), 1, 1 - decay)

    def one(axis, factor):
        if factor is None:
            return None
        rows = _rows(g, axis, len(sides))
        return (decay * factor + weight * jnp.swapaxes(rows, -1, -2) @ rows).astype(g.dtype)

    return tuple(one(axis, factor) for axis, factor in enumerate(sides))


def _rows(x, axis, num_axes):
    """A tensor, or each of a stack, as a matrix whose columns are that axis."""
    stack = x.ndim - num_axes
    return jnp.moveaxis(x, stack + axis, -1).reshape(*x.shape[:stack], -1, x.shape[stack + axis])


def _squares(graft, grads, nu, b2):
    """The second moments that a length is made of."""
    if nu is None:
        return None
    if graft == "adagrad":
        return jax.tree.map(lambda v, g: v + g**2, nu, grads)
    return optax.tree.update_moment(grads, nu, b2, 2)


def _targets(graft, base, nu, b2, eps, count):
    """The steps whose lengths the directions get."""
    if nu is None:
        return base
    if graft == "adam":
        nu = optax.tree.bias_correction(nu, b2, count)
        return jax.tree.map(lambda x, v: x * jax.lax.rsqrt(v + eps**2), base, nu)
    # √v whose derivative is finite at 0.
    return jax.tree.map(lambda x, v: x / (v * jax.lax.rsqrt(v + TINY) + eps), base, nu)


def _all_roots(factors, grads, ridge, block_size, sharding):
    """Roots of all factors, in the places of the factors."""
    powers = [0.5 / max(1, sum(x is not None for x in sides)) for sides in factors]
    if block_size is None:
        return tuple(
            tuple(None if x is None else inverse_root(x, power, ridge) for x in sides)
            for sides, power in zip(factors, powers, strict=True)
        )
    roots = [list(sides) for sides in factors]
    groups, unused = {}, {}
    for index, (sides, g) in enumerate(zip(factors, grads, strict=True)):
        for side, factor in enumerate(sides):
            if factor is not None:
                groups.setdefault((factor.shape[-1], powers[index]), []).append((index, side))
                unused[index, side] = jnp.asarray(unused_entries(g.shape, block_size)[side])
    for (_, power), places in groups.items():
        found = stacked_inverse_roots(
            [factors[index][side] for index, side in places],
            [unused[place] for place in places],
            power,
            ridge,
            sharding=sharding,
        )
        for (index, side), root in zip(places, found, strict=True):
            roots[index][side] = root
    return tuple(map(tuple, roots))


def _direction(x, target, sides, block_size, graft):
    """The preconditioned x, as long as the target."""
    if all(side is None for side in sides):
        return target
    d = to_blocks(x, block_size)
    for axis, side in enumerate(sides):
        if side is not None:
            rows, place = _rows(d, axis, x.ndim) @ side, axis + d.ndim - x.ndim
            shape = (*d.shape[:place], *d.shape[place + 1 :], d.shape[place])
            d = jnp.moveaxis(rows.reshape(shape), -1, place)
    if graft == "none":
        return from_blocks(d, x.shape, block_size)
    # |a| / |d| without the root of zero, whose derivative is infinite.
    length2, target2 = jnp.sum(d**2) + TINY, jnp.sum(target**2)
    ratio = target2 * jax.lax.rsqrt(target2 + TINY) * jax.lax.rsqrt(length2)
    return from_blocks(ratio * d, x.shape, block_size)


def _with_momentum(steps, mu, decay, nesterov):
    """Updates and the running sum of steps."""
    mu = jax.tree.map(lambda m, u: (decay * m + u).astype(m.dtype), mu, steps)
    if nesterov:
        return jax.tree.map(lambda m, u: (decay * m + u).astype(m.dtype), mu, steps), mu
    return mu, mu
