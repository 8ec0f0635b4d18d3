"""The inner gradient, and how a meta-gradient passes through it.

An inner step is differentiated through its gradient g(p, a) = ∂L/∂p, where a is whatever else the
loss depends on (theta, data). With cotangents u of the gradient and c of the loss:

    "reverse"      reverse over reverse: g is differentiated like any other program
    "mixed"        forward over reverse: (H u, Bᵀ u) + c ∂L/∂(p, a) = d/dε ∂L/∂(p + ε u, a) + …,
                   one Jacobian-vector product, because H = ∂²L/∂p² is symmetric and B = ∂²L/∂p∂a
    "first_order"  u is dropped: the gradient is a constant, the loss is not

Kemaev et al. 2025, arXiv:2505.00793 (MixFlow-MG), §3, for "mixed"; Finn et al. 2017,
arXiv:1703.03400, §5.2, for "first_order".

"mixed" keeps only (p, a) for the backward pass in place of the intermediate values of two passes.
It is a custom rule of reverse mode, so `jax.jvp` and `jax.jacfwd` of it fail: use "reverse" there.
It presumes a true gradient: a loss with `stop_gradient` or a custom derivative inside has no
symmetric H, and needs "reverse".
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.core
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from metaopt.core import System, checked

Gradient = Literal["auto", "reverse", "mixed", "first_order"]
ValueAndGrad = Callable[..., Callable[..., Any]]

INNER_GRADIENT = "inner_gradient"


def mixed_value_and_grad(
    function: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
    """`jax.value_and_grad` whose transpose is one forward-over-reverse product.

    Args:
        function: `(params, *args) -> scalar`, or `(scalar, aux)`. May close over traced arrays.
        has_aux: as in `jax.value_and_grad`. Static.

    Returns:
        `(params, *args) -> (value, grads)`, with the same numbers as `jax.value_and_grad`. All
        arguments and everything closed over have cotangents; integers and keys have none.
    """

    def value_and_grads(params, *args):
        closed, arrays, treedef = _close(function, params, args)
        rule = _symmetric_rule(closed)
        (value, aux), grads = rule(params, *arrays)
        aux = jax.tree.unflatten(treedef, aux) if has_aux else None
        return ((value, aux), grads) if has_aux else (value, grads)

    return value_and_grads


def first_order_value_and_grad(
    function: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
    """`jax.value_and_grad` whose gradient is a constant to further differentiation.

    Args:
        function: `(params, *args) -> scalar`, or `(scalar, aux)`.
        has_aux: as in `jax.value_and_grad`. Static.

    Returns:
        `(params, *args) -> (value, grads)`; the value stays differentiable.
    """

    def value_and_grads(*args):
        value, grads = jax.value_and_grad(function, has_aux=has_aux)(*args)
        return value, jax.lax.stop_gradient(grads)

    return value_and_grads


VALUE_AND_GRAD: dict[str, ValueAndGrad] = {
    "reverse": jax.value_and_grad,
    "mixed": mixed_value_and_grad,
    "first_order": first_order_value_and_grad,
}


def takes_value_and_grad(system: System) -> bool:
    """Whether the system's step lets its caller choose how the inner loss is differentiated."""
    return "value_and_grad" in inspect.signature(system.step).parameters


@checked
def with_gradient(
    system: System, gradient: Gradient, *, named: bool = False, name: str = "unroll"
) -> System:
    """A system whose inner gradient is differentiated as told.

    Args:
        system: any system; for another gradient than its own one its `step` takes the keyword
            `value_and_grad=`.
        gradient: "reverse", "mixed", "first_order"; "auto" is "mixed" where the system has a
            choice (`unroll` decides by cost instead). Static.
        named: whether the inner loss and gradient are marked for a rematerialisation policy.
            Static.
        name: the function on whose behalf errors speak.

    Returns:
        The system, its choice made.

    Raises:
        ValueError: if `gradient` is unknown, or the system has no choice to make.
    """
    if gradient not in get_args(Gradient):
        raise ValueError(
            f"{name}: gradient={gradient!r} is unknown; choose from {get_args(Gradient)}."
        )
    has_choice = takes_value_and_grad(system)
    if gradient == "auto":
        gradient = "mixed" if has_choice else "reverse"
    if gradient == "reverse" and not named:
        return system
    if not has_choice:
        setting = f"gradient={gradient!r}" if gradient != "reverse" else "remat='gradients'"
        raise ValueError(
            f"{name}: {setting} needs a system whose step takes the keyword value_and_grad=, the "
            "transformation it differentiates its inner loss with, as those of "
            "metaopt.core.{training, adaptation, bilevel_training} do; add it "
            "(value_and_grad=jax.value_and_grad) or choose gradient='reverse' and another remat."
        )
    transform = VALUE_AND_GRAD[gradient]
    transform = _named(transform) if named else transform
    return system._replace(step=functools.partial(system.step, value_and_grad=transform))


def _named(transform: ValueAndGrad) -> ValueAndGrad:
    """Marks the loss and the gradient, so that rematerialisation may keep them."""

    def mark(x):
        return checkpoint_name(x, INNER_GRADIENT)

    def value_and_grad(function, *, has_aux=False):
        def value_and_grads(*args):
            value, grads = transform(function, has_aux=has_aux)(*args)
            value = (mark(value[0]), value[1]) if has_aux else mark(value)
            return value, jax.tree.map(mark, grads)

        return value_and_grads

    return value_and_grad


def _close(function, params, args):
    """The function with all arrays it depends on as explicit arguments of plain types.

    Returns `(params, *arrays) -> output leaves (scalar, *aux)`, the arrays, and aux's structure.
    A custom rule must not close over tracers, and typed keys pass as raw numbers, because its two
    passes take the same key on purpose.
    """
    traced, shape = jax.make_jaxpr(function, return_shape=True)(params, *args)
    aux_tree = jax.tree.structure(shape[1]) if isinstance(shape, tuple) else None
    impls = []

    def unwrap(x):
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        impls.append(jax.random.key_impl(x) if is_key else None)
        return jax.random.key_data(x) if is_key else x

    arrays = [jnp.asarray(unwrap(x)) for x in (*traced.consts, *jax.tree.leaves(args))]
    num_consts = len(traced.consts)

    def closed(params, *arrays):
        arrays = [
            x if impl is None else jax.random.wrap_key_data(x, impl=impl)
            for x, impl in zip(arrays, impls, strict=True)
        ]
        consts, leaves = arrays[:num_consts], arrays[num_consts:]
        return jax.core.eval_jaxpr(traced.jaxpr, consts, *jax.tree.leaves(params), *leaves)

    return closed, arrays, aux_tree


def _symmetric_rule(function):
    """`(params, *arrays) -> ((value, aux), grads)`; the function's outputs are its leaves."""

    def value_and_aux(params, *arrays):
        value, *aux = function(params, *arrays)
        return value, tuple(aux)

    plain = jax.value_and_grad(value_and_aux, has_aux=True)
    rule = jax.custom_vjp(plain)

    def forward(params, *arrays):
        params = jax.tree.map(lambda x: x.value, params, is_leaf=_is_primal)
        wanted = [x.perturbed and jnp.issubdtype(x.value.dtype, jnp.inexact) for x in arrays]
        arrays = [x.value for x in arrays]
        # The plain function, so that forward mode over reverse mode (a Hessian) works.
        return plain(params, *arrays), (params, arrays, _Static(tuple(wanted)))

    def backward(residuals, cotangents):
        params, arrays, wanted = residuals
        (value_bar, aux_bar), grads_bar = cotangents
        chosen = [x for x, w in zip(arrays, wanted.value, strict=True) if w]

        def of(params, chosen):
            rest = iter(chosen)
            full = [next(rest) if w else x for x, w in zip(arrays, wanted.value, strict=True)]
            return value_and_aux(params, *full)

        def gradients(params):
            return jax.grad(of, argnums=(0, 1), has_aux=True)(params, chosen)[0]

        tangent = jax.tree.map(_instantiate, grads_bar, is_leaf=_is_zero)
        slopes, products = jax.jvp(gradients, (params,), (tangent,))
        if not _is_zero(value_bar):
            products = jax.tree.map(
                lambda h, g: h + value_bar.astype(g.dtype) * g, products, slopes
            )
        if any(not _is_zero(x) for x in aux_bar):
            products = jax.tree.map(jnp.add, products, _pull_back(of, params, chosen, aux_bar))
        params_bar, chosen_bar = products
        rest = iter(chosen_bar)
        return params_bar, *(next(rest) if w else None for w in wanted.value)

    rule.defvjp(forward, backward, symbolic_zeros=True)
    return rule


def _pull_back(function, params, chosen, aux_bar):
    """The cotangent that auxiliary outputs of inexact type have, by a reverse pass of its own."""
    kept = [i for i, bar in enumerate(aux_bar) if not _is_zero(bar)]
    _, pull = jax.vjp(lambda *args: [function(*args)[1][i] for i in kept], params, chosen)
    return pull([aux_bar[i] for i in kept])


@jax.tree_util.register_static
class _Static:
    """Python values among the residuals of a rule."""

    def __init__(self, value):
        self.value = value


def _is_zero(x) -> bool:
    return isinstance(x, SymbolicZero)


def _is_primal(x) -> bool:
    return hasattr(x, "perturbed")


def _instantiate(x):
    return jnp.zeros(x.aval.shape, x.aval.dtype) if _is_zero(x) else x
