"""What "auto" means: which settings of an unroll pay, read off one step before anything runs.

Reverse mode keeps, over T steps, T times what one step's backward pass needs (R bytes), or with
rematerialisation T states (S bytes), at the price of F more floating-point operations a step.

    remat pays      if T·R > C,  R > 2·S  and  F / (R − S) < I
    "nested" pays   if also T·S > C

With C = 16 MiB about a cache: below it, memory is no concern and traffic costs nothing. With I = 40
operations a byte: above it a recomputation takes longer than writing and reading what it saves.
Both were measured on CPU (`benchmarks/unroll_memory.py`). A vmapped axis is not seen here.

"mixed" computes the inner gradient again for its backward pass, so it pays where remat does.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.unroll._inner_gradient import Gradient

Remat = Literal["auto", "none", "step", "nested", "gradients"]
Loop = Literal["auto", "scan", "unrolled"]

_CACHE_BYTES = 16 * 2**20
_OPERATIONS_PER_BYTE = 40
_LONGEST_UNROLLED = 8


class Plan(NamedTuple):
    """Settings without "auto"."""

    remat: Remat
    gradient: Gradient
    loop: Loop


class StepCost(NamedTuple):
    """What one step costs.

    Attributes:
        kept: bytes that the backward pass needs of it: R.
        state: bytes of the state: S.
        operations: floating-point operations in matrix products and convolutions: F.
        convolves: whether there is a convolution.
    """

    kept: int
    state: int
    operations: int
    convolves: bool


def make_plan(
    step: Callable[..., Any],
    theta,
    state,
    *fed,
    num_steps: int,
    remat: Remat,
    gradient: Gradient,
    loop: Loop,
    has_choice: bool,
) -> Plan:
    """Replaces every "auto" by what pays.

    Args:
        step: `(theta, state, *fed) -> anything`, traced and not run; the inner gradient is the
            system's own.
        theta: meta-parameters.
        state: the system's state.
        *fed: what is the same in every step.
        num_steps: T. Static.
        remat: as in `unroll`. Static.
        gradient: as in `unroll`. Static.
        loop: as in `unroll`. Static.
        has_choice: whether the system leaves its inner gradient to the caller. Static.

    Returns:
        The settings.
    """
    if "auto" not in (remat, gradient, loop):
        return Plan(remat, gradient, loop)
    cost = step_cost(step, theta, state, *fed)
    kept, states = num_steps * cost.kept, num_steps * cost.state
    pays = (
        kept > _CACHE_BYTES
        and kept > 2 * states
        and cost.operations < _OPERATIONS_PER_BYTE * (cost.kept - cost.state)
    )
    if remat == "auto":
        remat = ("nested" if states > _CACHE_BYTES else "step") if pays else "none"
    if gradient == "auto":
        pays = pays or remat != "none"
        gradient = "mixed" if pays and has_choice else "reverse"
    if loop == "auto":
        # On CPU, XLA's convolutions take three times as long inside a loop. Beyond a few steps
        # the compilation, minutes long, is not won back.
        is_cpu = jax.default_backend() == "cpu"
        short = is_cpu and cost.convolves and num_steps <= _LONGEST_UNROLLED
        loop = "unrolled" if short else "scan"
    return Plan(remat, gradient, loop)


def step_cost(step: Callable[..., Any], theta, state, *fed) -> StepCost:
    """The cost of one step, from its program and that of its derivative."""
    leaves, treedef = jax.tree.flatten((theta, state))
    moves = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves]
    num_theta = len(jax.tree.leaves(theta))

    def residuals(leaves, fed):
        def of_inexact(inexact):
            rest = iter(inexact)
            full = [next(rest) if m else x for m, x in zip(moves, leaves, strict=True)]
            return step(*jax.tree.unflatten(treedef, full), *fed)

        _, pull = jax.vjp(of_inexact, [x for m, x in zip(moves, leaves, strict=True) if m])
        return jax.tree.leaves(pull)

    program = jax.make_jaxpr(residuals)(leaves, fed).jaxpr
    same = {*program.constvars, *program.invars[:num_theta], *program.invars[len(leaves) :]}
    # A literal among the outputs is a constant; a variable may be kept for several reasons.
    kept = {v for v in program.outvars if not hasattr(v, "val")} - same
    forward = jax.make_jaxpr(step)(theta, state, *fed).jaxpr
    operations, convolves = _operations(forward)
    sizes = [_size(v.aval) for v in program.invars[num_theta : len(leaves)]]
    return StepCost(sum(_size(v.aval) for v in kept), sum(sizes), operations, convolves)


def _size(aval) -> int:
    return int(np.prod(aval.shape, dtype=np.int64)) * aval.dtype.itemsize


def _operations(jaxpr) -> tuple[int, bool]:
    """Floating-point operations of products and convolutions, and whether there are any latter."""
    total, convolves = 0, False
    for eqn in jaxpr.eqns:
        name, outputs = eqn.primitive.name, eqn.outvars
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * outputs[0].aval.size * int(np.prod([shape[i] for i in contracted]))
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            out_channels = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * outputs[0].aval.size * kernel.size // out_channels
            convolves = True
        elif name == "convolution_of_tasks":  # See metaopt.tasks.convolve.
            places = {"outputs": (2, 1), "images": (0, 1), "kernel": (1, 2)}
            arrays = [v.aval for v in (*eqn.invars, *outputs)]
            result, kernel = (arrays[i] for i in places[eqn.params["wanted"]])
            total += 2 * result.size * kernel.size // (kernel.shape[0] * kernel.shape[-1])
        for inner in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                operations, inside = _operations(getattr(inner, "jaxpr", inner))
                total += operations * eqn.params.get("length", 1)
                convolves |= inside
    return total, convolves


def _is_program(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")
