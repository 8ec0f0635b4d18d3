"""The coordinate check: does a training step change activations alike at every width?

    Δ_t(n) = root mean square of a_t - a_0,    slope = d log Δ_t / d log n

with a_t the activations of a fixed batch after t steps in a network of width n. In the
maximal-update parametrisation the slope is near 0 in every layer; where it is positive, wide
networks blow up at the learning rate that suits narrow ones, and where it is negative, the layer
stops learning. Yang et al. 2022, arXiv:2203.03466, App. D.1; for learned optimizers Thérien et al.
2024, arXiv:2406.00153.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import TaskFamily


class CoordinateCheck(NamedTuple):
    """How activations change, by step and width, on the host.

    Attributes:
        widths: n.
        steps: t.
        rms: for every layer Δ_t(n), `[steps, widths]`.
        slopes: for every layer the slope of log Δ_t against log n, `[steps]`, by least squares; NaN
            where a change is zero or not finite.
    """

    widths: tuple[int, ...]
    steps: tuple[int, ...]
    rms: dict[str, Float[np.ndarray, "steps widths"]]
    slopes: dict[str, Float[np.ndarray, "steps"]]


def coordinate_check(
    make_family: Callable[[int], TaskFamily],
    optimizer: optax.GradientTransformation,
    data: Any,
    key: PRNGKeyArray,
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    steps: Sequence[int] = (1, 5, 10),
    num_seeds: int = 1,
    activations: Callable[[Any], PyTree] = lambda aux: aux.preactivations,
) -> CoordinateCheck:
    """Trains networks of several widths for a few steps and compares how their activations change.

    Each width compiles two programs. For example::

        scale = learned.scale_by_mup(lambda p: learned.mup_scale(p, learned.mlp_roles(p)))
        check = coordinate_check(
            lambda n: tasks.mup_mlp((8, 8, 1), 10, hidden=(n, n)),
            optax.chain(optax.adam(0.01), scale),
            digits.train,
            key,
        )

    Args:
        make_family: `(width) -> TaskFamily`.
        optimizer: any optax optimizer; one for all widths.
        data: the pool, for all widths.
        key: randomness, the same for all widths.
        widths: at least two different ones. Static.
        steps: when to look, counted in updates, from 1 on. Static.
        num_seeds: trainings over which squares are averaged, one after the other. Static.
        activations: `(aux) -> tree of arrays`, from what the family's loss reports.

    Returns:
        The changes and their slopes; a layer's name is its path in that tree.

    Raises:
        ValueError: if there are fewer than two widths, or a step or count is below 1.
    """
    widths, steps = tuple(widths), tuple(steps)
    if len(set(widths)) < 2:
        raise ValueError(f"coordinate_check: widths={widths} has no slope; give two or more.")
    if min((*steps, num_seeds, *widths), default=0) < 1 or not steps:
        raise ValueError(
            f"coordinate_check: steps={steps}, num_seeds={num_seeds} and widths={widths} must be "
            "at least 1."
        )
    squares = []
    for width in widths:
        prepare, measure = _programs(make_family(width), optimizer, activations, max(steps))
        runs = [
            measure(*prepare(data, key_seed))
            for key_seed in jax.random.split(jax.random.clone(key), num_seeds)
        ]
        squares.append(jax.tree.map(lambda *x: np.mean(x, axis=0, dtype=np.float64), *runs))
    named = [jax.tree_util.tree_leaves_with_path(tree) for tree in squares]
    rows = np.asarray(steps) - 1
    rms = {
        jax.tree_util.keystr(layers[0][0], simple=True, separator="/"): np.sqrt(
            np.stack([x[rows] for _, x in layers], axis=1)
        )
        for layers in zip(*named, strict=True)
    }
    return CoordinateCheck(widths, steps, rms, {k: _slopes(widths, x) for k, x in rms.items()})


def _programs(family, optimizer, activations, num_steps) -> tuple[Callable, Callable]:
    """What draws a task with its batches, and what trains on them; both compiled.

    Apart, because most of the compilation is that of the drawing, and it is the same for every
    optimizer: a compilation cache remembers it.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def prepare(data, key):
        key_task, key_params, key_probe, key_batches, key_losses = jax.random.split(key, 5)
        task_params = family.sample(key_task)
        draw = lambda key: family.batch(data, task_params, key)  # noqa: E731
        batches = jax.vmap(draw)(jax.random.split(key_batches, num_steps))
        key_losses, key_look = jax.random.split(key_losses)
        keys = jax.random.split(key_losses, num_steps)
        params = family.init(task_params, key_params)
        return params, task_params, draw(key_probe), batches, keys, jax.random.key_data(key_look)

    def measure(params, task_params, probe, batches, keys, key_data):
        def look(params):
            # Wrapped anew at each look, to say that one key is meant for all.
            key = jax.random.wrap_key_data(key_data)
            return activations(family.loss(params, task_params, probe, key)[1])

        before = look(params)

        def step(carry, fed):
            params, state = carry
            batch, key = fed
            (loss, _), grads = jax.value_and_grad(family.loss, has_aux=True)(
                params, task_params, batch, key
            )
            updates, state = optimizer.update(grads, state, params, value=loss)
            params = optax.apply_updates(params, updates)
            return (params, state), jax.tree.map(_mean_square_difference, look(params), before)

        return jax.lax.scan(step, (params, optimizer.init(params)), (batches, keys))[1]

    return jax.jit(prepare), jax.jit(measure)


def _mean_square_difference(after: Array, before: Array) -> Float[Array, ""]:
    wide = jnp.promote_types(after.dtype, jnp.float32)
    return jnp.mean(jnp.square(after.astype(wide) - before.astype(wide)))


def _slopes(widths, rms: np.ndarray) -> np.ndarray:
    """Of the logarithm of each row against that of the widths."""
    x = np.log(widths) - np.log(widths).mean()
    usable = np.all(np.isfinite(rms) & (rms > 0), axis=1)
    safe = np.where(usable[:, None], rms, 1.0)
    return np.where(usable, np.log(safe) @ x / (x @ x), np.nan)
