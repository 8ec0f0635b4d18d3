"""Forward gradients along a guess: one derivative in the direction that something else proposes.

    c = ⟨∇L(θ), v⟩,    one forward pass (`jax.jvp`), for a guess v
    unnormalised  c v             unbiased if E[v vᵀ] = I, such as random signs
    projection    c v / |v|²      the best multiple of v, for guesses that know something
    sign          sign(c) v

Random guesses: Baydin et al. 2022, arXiv:2202.08587. Gradients of local losses as guesses:
Fournier et al. 2023 (ICML), arXiv:2306.06968: a head on top of every block but the last predicts
the targets from the block's outputs; gradients of the heads' losses stop at the block's inputs, and
the last block has its true gradient. For many random directions at once, or online through a long
inner loop, there is `forward`; here the guess is a function of the user's.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from metaopt import tree
from metaopt.core import Batch, Estimator, MetaLoss, checked
from metaopt.estimators._checked import checked_estimator
from metaopt.estimators._columns import Directions, random_directions
from metaopt.estimators._shared import average, check_tasks, map_tasks

Normalisation = Literal["unnormalised", "projection", "sign"]


@checked
def forward_gradient(
    meta_loss: MetaLoss,
    *,
    guess: Callable,
    normalisation: Normalisation = "projection",
    by_block: bool = False,
    num_tasks: int = 1,
    tasks_at_once: int | None = None,
) -> Estimator:
    """The derivative of a loss along a guess, in forward mode: no backward pass through it.

    Memory does not grow with the length of an inner loop inside `meta_loss`, which for a System is
    `unroll.meta_loss(system, ...)`. As a rule to train a network, θ is its parameters and `data`
    the batch.

    Args:
        meta_loss: `(theta, data, key) -> scalar`; it must have forward derivatives.
        guess: `(theta, data, key) -> ` a tree like theta, its direction v; `random_guess`,
            `local_guess`, or a gradient of anything cheaper. Not differentiated. Static.
        normalisation: as above; "projection" of random guesses shrinks the mean by the number of
            coordinates. Static.
        by_block: whether every top-level part of theta (a layer in a list of layers) has a
            coefficient c of its own, at one forward pass each. Static.
        num_tasks: draws of the key that are averaged. Static.
        tasks_at_once: as in `backprop`. Static.

    Returns:
        An estimator without state. A draw whose estimate is not finite contributes zero.

    Raises:
        ValueError: for `num_tasks < 1`; from `estimate`, if the guess is no tree like theta or the
            loss no scalar.
    """
    check_tasks("forward_gradient", num_tasks, tasks_at_once)

    def init(theta, data, key):
        del theta, data, key
        return ()

    def one_task(theta, data, key):
        key_guess, key_loss = jax.random.split(key)
        v = jax.lax.stop_gradient(guess(theta, data, key_guess))
        _check_guess(theta, v)
        v = tree.cast_like(v, theta)

        def along(v):
            loss, slope = jax.jvp(lambda theta: meta_loss(theta, data, key_loss), (theta,), (v,))
            if jnp.shape(loss):
                raise ValueError(
                    "forward_gradient: meta_loss must return a scalar, got an array of shape "
                    f"{jnp.shape(loss)}; take its mean."
                )
            return loss, slope

        if by_block:
            columns = _blocks(v)
            losses, slopes = jax.vmap(along)(columns)
            estimates = jax.vmap(lambda c, v: _normalised(c, v, normalisation))(slopes, columns)
            loss, grad = losses[0], jax.tree.map(lambda x: x.sum(axis=0), estimates)
        else:
            loss, slope = along(v)
            grad = _normalised(slope, v, normalisation)
        finite = tree.all_finite(grad)
        grad = tree.where(finite, grad, jax.tree.map(jnp.zeros_like, grad))
        return grad, loss, finite, jnp.array(False), jnp.zeros(())

    def estimate(theta, state, data, key):
        outputs = map_tasks(
            lambda _, key: one_task(theta, data, key),
            (),
            key,
            num_tasks=num_tasks,
            at_once=tasks_at_once,
        )
        return average(theta, *outputs, inner_steps=0), state

    return checked_estimator("forward_gradient", init, estimate)


@checked
def random_guess(*, directions: Directions = "rademacher") -> Callable[..., PyTree]:
    """Guesses that know nothing, for "unnormalised" forward gradients, which are then unbiased.

    Args:
        directions: "rademacher", random signs, which have the smaller variance, or "normal".
            Static.

    Returns:
        `(theta, data, key) -> v` with E[v vᵀ] = I.
    """

    def guess(theta, data, key):
        del data
        drawn = random_directions(theta, key, num_directions=1, directions=directions)
        return jax.tree.map(lambda x: x[0], drawn)

    return guess


@checked
def local_value_and_grad(
    block_fns: Sequence[Callable], head_fns: Sequence[Callable], loss_fn: Callable
) -> Callable:
    """Losses that each see one block of a network alone, and their gradients.

    Args:
        block_fns: for each block, `(params, inputs) -> outputs`. Static.
        head_fns: for each but the last, `(head_params, outputs) -> predictions`. Static.
        loss_fn: `(predictions, targets) -> scalar`.

    Returns:
        `(blocks, heads, batch) -> (losses, (block_grads, head_grads))` for sequences of parameters
        of blocks and heads and `batch = (inputs, targets)`; the last loss is that of the network.

    Raises:
        ValueError: if there is not one head for every block but the last.
    """
    if len(head_fns) != len(block_fns) - 1:
        raise ValueError(
            f"local_value_and_grad: {len(head_fns)} head_fns for {len(block_fns)} block_fns; give "
            "one for every block but the last."
        )

    def total(trained, batch):
        blocks, heads = trained
        x, targets = batch
        losses = []
        for index, (apply, block) in enumerate(zip(block_fns, blocks, strict=True)):
            x = apply(block, jax.lax.stop_gradient(x))
            predictions = x if index == len(head_fns) else head_fns[index](heads[index], x)
            losses.append(loss_fn(predictions, targets))
        losses = jnp.stack(losses)
        return jnp.sum(losses), losses

    def value_and_grad(
        blocks: Sequence[PyTree], heads: Sequence[PyTree], batch: Batch
    ) -> tuple[Float[Array, " blocks"], tuple[PyTree, PyTree]]:
        grads, losses = jax.grad(total, has_aux=True)((blocks, heads), batch)
        return losses, grads

    return value_and_grad


@checked
def local_guess(
    block_fns: Sequence[Callable], head_fns: Sequence[Callable], loss_fn: Callable
) -> Callable[..., PyTree]:
    """Guesses for the blocks of a network: the gradients of their local losses.

    The heads are trained by gradients of their own, those of `local_value_and_grad`.

    Args:
        block_fns: as in `local_value_and_grad`. Static.
        head_fns: as there. Static.
        loss_fn: as there.

    Returns:
        `(blocks, data, key) -> v` with `data = (heads, batch)`, for a `meta_loss` of
        `forward_gradient` that reads the batch from the same pair.

    Raises:
        ValueError: as in `local_value_and_grad`.
    """
    local = local_value_and_grad(block_fns, head_fns, loss_fn)

    def guess(theta, data, key):
        del key
        heads, batch = data
        return local(theta, heads, batch)[1][0]

    return guess


def _check_guess(theta, v):
    shapes = [jax.tree.map(jnp.shape, x) for x in (theta, v)]
    if jax.tree.structure(theta) != jax.tree.structure(v) or shapes[0] != shapes[1]:
        raise ValueError(
            "forward_gradient: guess must return a tree like theta, "
            f"{jax.tree.structure(theta)} of {shapes[0]}; got {jax.tree.structure(v)} of "
            f"{shapes[1]}."
        )


def _blocks(v):
    """One column for each top-level part: that part of v, and zeros elsewhere."""
    parts, treedef = jax.tree.flatten(v, is_leaf=lambda x: x is not v)

    def alone(index):
        return treedef.unflatten(
            [x if i == index else jax.tree.map(jnp.zeros_like, x) for i, x in enumerate(parts)]
        )

    columns = [alone(index) for index in range(len(parts))]
    return jax.tree.map(lambda *x: jnp.stack(x), *columns)


def _normalised(slope, v, normalisation):
    if normalisation == "unnormalised":
        factor = slope
    elif normalisation == "sign":
        factor = jnp.sign(slope)
    else:
        # Divided by the largest entry first: squares of gradients leave the range of float32.
        largest = jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(v)]).max()
        scale = jnp.where(largest > 0, largest, 1.0)
        squares = sum(
            jnp.sum((x / scale.astype(x.dtype)) ** 2, dtype=jnp.promote_types(x.dtype, jnp.float32))
            for x in jax.tree.leaves(v)
        )
        factor = slope / scale / jnp.where(largest > 0, squares, 1.0) / scale
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x, v)
