"""Teleportation: moves along a level set of the loss to where gradients are larger.

    w ← T(s) w,    L(T(s) w) = L(w) for all s,    s ← s + η ∇ₛ log |∇L(T(s) w)|²

until the objective has grown by the factor `cap`. Zhao et al. 2022 (NeurIPS), arXiv:2205.10637;
other objectives, such as the sharpness, in Zhao et al. 2024 (ICLR), arXiv:2305.13404. Symmetries of
a hidden layer with activation φ are

    scale    W ← W D,  b ← b D,  V ← D⁻¹ V,     D = diag(exp s):  φ positively homogeneous
    linear   W ← W G,  b ← b G,  V ← G⁻¹ V,     G = expm S:       φ the identity

for outputs φ(x W + b) V: the loss is the same on any data. Differs from the published programs,
whose group acts through a pseudo-inverse of the activations, so keeps the loss of one batch alone;
and in the objective, a logarithm with a relative cap: unbounded ascent makes what follows diverge.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Batch, Params, Scalar, checked
from metaopt.optimizers._neighbourhood import check_sign, require_params
from metaopt.optimizers._numerics import global_norm, widen

Symmetry = Literal["scale", "linear"]


class TeleportState(NamedTuple):
    """State of `teleport_every`.

    Attributes:
        count: steps taken.
        inner: state of the wrapped optimizer.
    """

    count: Int[Array, ""]
    inner: Any


@checked
def teleport(
    loss_fn: Callable[..., Float[Array, ""]],
    params: Params,
    batch: Batch,
    *,
    axes: PyTree,
    symmetry: Symmetry = "scale",
    objective: Callable | None = None,
    cap: Scalar = 3.0,
    step_size: Scalar = 0.05,
    num_steps: int = 200,
    loop: Literal["while", "scan"] = "while",
) -> Params:
    """Moves parameters along a level set of the loss, to where its gradient is larger.

    `axes` says how parameters transform: a tree like them, with a string for each array that names
    its axes. `+h` is an output of hidden layer h, `-h` an input from it, anything else stays:

        params = [{"w": [4, 8], "b": [8]}, {"w": [8, 3], "b": [3]}]
        axes = [{"w": "x +h", "b": "+h"}, {"w": "-h y", "b": "y"}]

    or a function of the parameters that gives it. Derivatives pass through the move itself, s
    counts as a constant; to learn how to teleport, take `loop="scan"`, which differentiates s, too.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        params: where to start.
        batch: what the loss is measured on.
        axes: as above. Static.
        symmetry: "scale" for (leaky) rectifiers and anything positively homogeneous, or "linear".
            Static.
        objective: `(params, batch) -> scalar` to be raised, a logarithm for the cap to mean a
            factor; None: log |∇L|². Minus the log of the mean loss under random perturbations
            looks for flat places. Static.
        cap: factor of the objective's argument at which the ascent ends. Traced.
        step_size: of the ascent on s. Traced.
        num_steps: most steps of it. Static.
        loop: "while" stops when the cap is reached; "scan" goes through all steps, so that
            derivatives pass through the ascent. Static.

    Returns:
        Parameters of the same loss up to rounding, in the same dtypes. A step to where the
        objective is not finite is not taken.

    Raises:
        ValueError: if `cap` is not above 1, `step_size` not positive or `num_steps` below 1, or if
            the axes do not fit the parameters.
    """
    _check_settings("teleport", cap, step_size, num_steps)
    axes, sizes = _hidden_layers("teleport", axes, params)
    move = _scaled if symmetry == "scale" else _mixed
    base = params if loop == "scan" else jax.lax.stop_gradient(params)
    goal = objective or (lambda p, batch: _log_size(jax.grad(loss_fn)(p, batch)))
    value_and_slope = jax.value_and_grad(lambda s: jnp.asarray(goal(move(s, axes, base), batch)))
    s = _ascend(
        value_and_slope, _identity(symmetry, sizes, params), cap, step_size, num_steps, loop
    )
    return move(s, axes, params)


@checked
def teleport_every(
    base: optax.GradientTransformation,
    *,
    axes: PyTree,
    every: int,
    max_times: int | None = None,
    symmetry: Symmetry = "scale",
    cap: Scalar = 3.0,
    step_size: Scalar = 0.05,
    num_steps: int = 200,
) -> optax.GradientTransformationExtraArgs:
    """Teleports parameters now and then, before the step of an optimizer.

    Its `update` needs `value_fn(params)`, the loss on the batch of the step. After a move the
    gradient is taken anew and the state of the optimizer starts afresh, as running averages belong
    to the place that was left (other extra arguments still belong to it, too). The updates are
    final: they are added to the parameters and contain the move.

    Args:
        base: any complete optimizer.
        axes: as in `teleport`. Static.
        every: steps between moves; the first one is before step `every`, counted from 0. Static.
        max_times: most moves; None: no limit. Static.
        symmetry: as in `teleport`. Static.
        cap: as there. Traced.
        step_size: as there. Traced.
        num_steps: as there. Static.

    Returns:
        A complete optimizer.

    Raises:
        ValueError: as in `teleport`, or if `every` or `max_times` is below 1; from `update`,
            without `value_fn` or parameters.
    """
    _check_settings("teleport_every", cap, step_size, num_steps)
    for name, count in {"every": every, "max_times": max_times}.items():
        if count is not None and count < 1:
            raise ValueError(f"teleport_every: {name} must be at least 1, got {count}.")
    inner_opt = optax.with_extra_args_support(base)
    settings = {"symmetry": symmetry, "cap": cap, "step_size": step_size, "num_steps": num_steps}

    def init(params):
        _hidden_layers("teleport_every", axes, params)
        return TeleportState(jnp.zeros((), jnp.int32), inner_opt.init(params))

    def update(updates, state, params=None, *, value_fn=None, **extra_args):
        require_params("teleport_every", params)
        if value_fn is None:
            raise ValueError(
                "teleport_every: update needs value_fn=, the loss as a function of params; pass "
                "value_fn=lambda params: loss(params, batch)."
            )
        due = (state.count > 0) & (state.count % every == 0)
        if max_times is not None:
            due &= state.count <= max_times * every

        def moved():
            new = teleport(lambda p, _: value_fn(p), params, (), axes=axes, **settings)
            grads = jax.grad(value_fn)(new)
            return new, grads, inner_opt.init(new)

        new, grads, inner = jax.lax.cond(due, moved, lambda: (params, updates, state.inner))
        updates, inner = inner_opt.update(grads, inner, new, value_fn=value_fn, **extra_args)
        final = jax.tree.map(
            lambda u, x, p: (widen(u) + (widen(x) - widen(p))).astype(u.dtype), updates, new, params
        )
        return final, TeleportState(state.count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _identity(symmetry, sizes, params):
    """s = 0."""
    dtype = jnp.result_type(*map(widen, jax.tree.leaves(params)))
    shape = (lambda n: (n,)) if symmetry == "scale" else (lambda n: (n, n))
    return {name: jnp.zeros(shape(n), dtype) for name, n in sizes.items()}


def _ascend(value_and_slope, start, cap, step_size, num_steps, loop):
    """Gradient ascent on s until the value has grown by log cap."""
    first, slope = value_and_slope(start)
    if loop == "while":
        first, slope = jax.lax.stop_gradient((first, slope))

    def going(carry):
        _, value, slope, count = carry
        rising = value - first < jnp.log(cap)
        return rising & (count < num_steps) & _finite(slope)

    def step(carry):
        s, value, slope, count = carry
        tried = jax.tree.map(lambda x, d: x + (step_size * d).astype(x.dtype), s, slope)
        new_value, new_slope = value_and_slope(tried)
        good = jnp.isfinite(new_value) & _finite(new_slope)
        new = (tried, new_value, new_slope, count + 1)
        # NaN ends the loop by itself; what came before it stays.
        stopped = (s, value, jax.tree.map(lambda x: x + jnp.nan, slope), count)
        return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, stopped)

    carry = (start, first, slope, jnp.zeros((), jnp.int32))
    if loop == "while":
        end = jax.lax.while_loop(going, step, carry)
    else:
        end = _masked_scan(going, step, carry, num_steps)
    return end[0] if loop == "scan" else jax.lax.stop_gradient(end[0])


def _check_settings(name, cap, step_size, num_steps):
    check_sign(name, strict=True, step_size=step_size)
    if not isinstance(cap, jax.core.Tracer) and not (cap > 1 and math.isfinite(cap)):
        raise ValueError(
            f"{name}: cap must be a finite factor above 1, got {cap}; without one gradients grow "
            "until the next step diverges. Try 3."
        )
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps must be at least 1, got {num_steps}.")


def _hidden_layers(name, axes, params) -> tuple[PyTree, dict[str, int]]:
    """The axes, and the width of every hidden layer that is named with a sign."""
    axes = axes(params) if callable(axes) else axes
    if jax.tree.structure(axes) != jax.tree.structure(params):
        raise ValueError(
            f"{name}: axes must be a tree like params, with a string for each array; got "
            f"{jax.tree.structure(axes)} for {jax.tree.structure(params)}."
        )
    sizes = {}
    for (path, p), text in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(axes), strict=True
    ):
        where = f"{name}: axes{jax.tree_util.keystr(path)}={text!r}"
        names = text.split() if isinstance(text, str) else []
        if len(names) != jnp.ndim(p):
            raise ValueError(
                f"{where} must be a string that names {jnp.ndim(p)} axes, for {jnp.shape(p)}."
            )
        for axis, size in zip(names, jnp.shape(p), strict=True):
            if axis[0] in "+-" and sizes.setdefault(axis[1:], size) != size:
                raise ValueError(
                    f"{where} has {size} for {axis[1:]}, which elsewhere has {sizes[axis[1:]]}."
                )
    if not sizes:
        raise ValueError(f"{name}: axes name no hidden layer; write +h and -h for its axes.")
    return axes, sizes


def _on_axes(act, s, axes, params):
    """`act(x, index, s, sign)` for all signed axes of all arrays."""

    def one(p, text):
        x = widen(p)
        for index, axis in enumerate(text.split()):
            if axis[0] in "+-":
                x = act(x, index, s[axis[1:]].astype(x.dtype), 1 if axis[0] == "+" else -1)
        return x.astype(jnp.result_type(p))

    return jax.tree.map(one, params, axes)


def _scaled(s, axes, params):
    def act(x, index, s, sign):
        shape = [1] * x.ndim
        shape[index] = s.size
        return x * jnp.exp(sign * s).reshape(shape)

    return _on_axes(act, s, axes, params)


def _mixed(s, axes, params):
    def act(x, index, s, sign):
        g = jax.scipy.linalg.expm(sign * s)
        # Outputs are rows that G multiplies from the right, inputs columns of its inverse.
        g = g if sign > 0 else g.T
        return jnp.moveaxis(jnp.moveaxis(x, index, -1) @ g, -1, index)

    return _on_axes(act, s, axes, params)


def _log_size(tree):
    size = global_norm(tree)
    return 2 * jnp.log(jnp.maximum(size, jnp.finfo(size.dtype).tiny))


def _finite(tree):
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def _masked_scan(going, step, carry, num_steps):
    """`while_loop` with derivatives."""

    def one(carry, _):
        new = jax.lax.cond(going(carry), step, lambda c: c, carry)
        return new, None

    return jax.lax.scan(one, carry, length=num_steps)[0]
