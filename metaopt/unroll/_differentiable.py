"""Derivatives of an optax rule that are finite wherever the rule itself is.

Rules divide by roots of accumulators, and d√v/dv = 1/(2√v) is infinite at v = 0: one entry that
has only seen zero gradients turns a whole meta-gradient into NaN, because 0 · ∞ is NaN. Where a
partial derivative of an elementwise function is not finite, it is taken to be 0 instead:

    dy = Σᵢ ∂ᵢ dxᵢ,    ∂ᵢ = (∂f/∂xᵢ)(x̃) if that of x is finite, else 0

with x̃ = x where it is finite and a harmless constant elsewhere (the guard on the input, without
which second derivatives are NaN again). At such a point an entry whose gradient is always 0 stays
where it is, and 0 is its derivative. Values do not change, nor any derivative that was finite.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Literal

from metaopt.core import checked

# Primitives whose derivative has poles, and a point where it has none. A product is singular where
# a factor is, as in the branch of a `where` that is not taken.
_HARMLESS = dict.fromkeys(
    "mul sqrt rsqrt cbrt log log1p div pow integer_pow atan2 asin acos atanh erf_inv".split(), 0.5
) | {"acosh": 2.0}

# Primitives that call a program, and the parameter that holds it.
_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}


@checked
def differentiable(
    inner_opt: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation with the same updates, whose derivatives are not NaN.

    For any rule that an inner loop uses and a meta-gradient passes through. Prefer `eps_root` or
    the like where a rule has one: there the derivative is that of a smooth rule. `update` is
    traced once more; it costs a check per singular operation in the backward pass, nothing forward.

    Functions with derivatives of their own (`custom_jvp`, `custom_vjp`) keep them. Matrix
    decompositions (`eigh`, `svd`, `qr`) are not elementwise and stay as singular as they are, so
    `optax.contrib.galore` is not covered; nor is `optax.lbfgs`, whose line search has no reverse
    mode.

    Args:
        inner_opt: any optax transformation, chains and extra arguments included.

    Returns:
        A transformation with the state of `inner_opt`.
    """
    inner_opt = optax.with_extra_args_support(inner_opt)

    def update(updates, state, params=None, **extra_args):
        def plain(updates, state, params, extra_args):
            return inner_opt.update(updates, state, params, **extra_args)

        return _safely(plain, (updates, state, params, extra_args))

    return optax.GradientTransformationExtraArgs(inner_opt.init, update)


def _safely(function: Callable[..., Any], args: tuple) -> Any:
    """Calls the function operation by operation, singular ones by their safe versions."""
    leaves, treedef = jax.tree.flatten(args)
    is_array = [hasattr(x, "dtype") or isinstance(x, bool | int | float | complex) for x in leaves]

    def of_arrays(arrays):
        rest = iter(arrays)
        full = [next(rest) if a else x for a, x in zip(is_array, leaves, strict=True)]
        return function(*jax.tree.unflatten(treedef, full))

    arrays = [x for a, x in zip(is_array, leaves, strict=True) if a]
    traced, shape = jax.make_jaxpr(of_arrays, return_shape=True)(arrays)
    return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(traced)(*arrays))


def _evaluate(program) -> Callable[..., list]:
    """A jaxpr as a function of its arguments, with safe derivatives."""
    jaxpr, consts = (program.jaxpr, program.consts) if hasattr(program, "consts") else (program, ())

    def run(*args):
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))

        def read(atom):
            return atom.val if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, _apply(eqn, *map(read, eqn.invars)), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return run


def _apply(eqn, *args) -> list:
    """The outputs of one operation."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _evaluate(params[_CALLS[name]])(*args)
    if name == "cond":
        index, *operands = args
        return jax.lax.switch(index, [_evaluate(b) for b in params["branches"]], *operands)
    if name == "scan":
        return _scan(eqn, args)
    if name == "while":
        return _while(params, args)
    function = functools.partial(eqn.primitive.bind, **eqn.primitive.get_bind_params(params))
    if name in _HARMLESS and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        # A scalar literal may stand beside an array.
        args = [jnp.broadcast_to(x, eqn.outvars[0].aval.shape) for x in args]
        return [_elementwise(function, _HARMLESS[name])(*args)]
    outputs = function(*args)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _elementwise(function: Callable, harmless: float) -> Callable:
    """An elementwise function whose partial derivatives are 0 where they are not finite."""

    def partial(index, args):
        def of_one(x):
            return function(*args[:index], x, *args[index + 1 :])

        return jax.jvp(of_one, (args[index],), (jnp.ones_like(args[index]),))[1]

    def guarded_partial(index, args):
        finite = jnp.isfinite(partial(index, args))
        inside = [
            jnp.where(finite, x, jnp.array(harmless, x.dtype))
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
            for x in args
        ]
        return jnp.where(finite, partial(index, inside), 0)

    def tangent_rule(args, tangents):
        args = [jnp.asarray(x) for x in args]
        output = safe(*args)  # Not the function itself: this rule is differentiated again.
        tangent = jnp.zeros_like(output)
        for index, t in enumerate(tangents):
            if not isinstance(t, SymbolicZero):
                tangent = tangent + guarded_partial(index, args) * t
        return output, tangent

    safe = jax.custom_jvp(function)
    safe.defjvp(tangent_rule, symbolic_zeros=True)
    return safe


def _scan(eqn, args) -> list:
    params = eqn.params
    program = params["jaxpr"]
    program = getattr(program, "jaxpr", program)
    body = _evaluate(params["jaxpr"])
    # Releases of jax store the counts differently; what is scanned over has one axis more outside.
    num_xs = _num_scanned(eqn.invars, program.invars)
    num_carry = len(program.outvars) - _num_scanned(eqn.outvars, program.outvars)
    num_consts = len(args) - num_xs - num_carry
    consts, carry, xs = (
        args[:num_consts],
        args[num_consts:][:num_carry],
        args[num_consts:][num_carry:],
    )

    def step(carry, x):
        outputs = body(*consts, *carry, *x)
        return outputs[:num_carry], outputs[num_carry:]

    settings = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(step, list(carry), list(xs), **settings)
    return [*carry, *ys]


def _num_scanned(outside, inside) -> int:
    return sum(a.aval.ndim != b.aval.ndim for a, b in zip(outside, inside, strict=True))


def _while(params, args) -> list:
    condition, body = _evaluate(params["cond_jaxpr"]), _evaluate(params["body_jaxpr"])
    split = params["cond_nconsts"]
    start = split + params["body_nconsts"]
    return jax.lax.while_loop(
        lambda carry: condition(*args[:split], *carry)[0],
        lambda carry: body(*args[split:start], *carry),
        list(args[start:]),
    )
