"""Solutions as differentiable functions: the implicit function theorem on any solver.

    F(x*(θ), θ) = 0        ⇒        ∂F/∂x · dx* = −∂F/∂θ · dθ

The solver is a black box: a loop, a callback, a closed form. Derivatives of every order, in forward
and reverse mode, come from the optimality condition alone. Blondel et al. 2021, arXiv:2105.15183,
§2; second derivatives because the rule is itself made of differentiable parts
(`jax.lax.custom_root`, `jax.lax.custom_linear_solve`).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from metaopt.core import checked
from metaopt.implicit._cg import cg
from metaopt.implicit._contracts import (
    LinearSolver,
    Operator,
    Status,
    Structure,
    check_structure,
    frozen_keys,
)
from metaopt.implicit._gmres import gmres
from metaopt.implicit._hypergradient import check_residual

OnFailure = Literal["nan", "ignore"]
Solution = Callable[[PyTree, PyTree], Any]


class _Rule(NamedTuple):
    """What the three transforms differ in."""

    name: str
    residual: Callable[[PyTree, PyTree], PyTree]
    posed: Callable[[PyTree, PyTree], Any]
    structure: Structure


@checked
def root(
    optimality: Callable[[PyTree, PyTree], PyTree],
    solve: Callable[..., Any],
    *,
    solver: LinearSolver | None = None,
    structure: Structure = "general",
    has_aux: bool = False,
    on_failure: OnFailure = "nan",
) -> Solution:
    """The root of a function as a differentiable function of what determines it.

    Args:
        optimality: `(x, theta) -> tree like x`, zero at the solution. It may close over traced
            values; derivatives with respect to them are right too.
        solve: `(residual, start) -> x`, any black box that finds a zero of `residual(x)`.
        solver: of the linear systems in the derivatives; None: `gmres()`, or `cg()` where the
            structure allows it. Randomised ones go through `seeded`.
        structure: of ∂F/∂x: "general", "symmetric" or "psd". Static.
        has_aux: whether `solve` returns `(x, aux)`: any arrays, without derivatives. Static.
        on_failure: derivatives whose linear solve has not status OK become NaN, or with "ignore"
            are used as they are; `hypergradient` reports instead. Static.

    Returns:
        `(theta, start) -> x` or `(theta, start) -> (x, aux)`. Integers and keys in theta are
        constants. A derivative with respect to `start` is refused when it is traced.

    Raises:
        ValueError: if the solver cannot treat the structure, or an option is unknown.
    """
    rule = _Rule("root", optimality, optimality, structure)
    return _transform(rule, solve, solver, has_aux, on_failure)


@checked
def fixed_point(
    update: Callable[[PyTree, PyTree], PyTree],
    solve: Callable[..., Any],
    *,
    solver: LinearSolver | None = None,
    has_aux: bool = False,
    on_failure: OnFailure = "nan",
) -> Solution:
    """The fixed point of an update, as `root` of x − T(x, θ).

    Args:
        update: T, `(x, theta) -> tree like x`; a gradient step, a proximal step, a network.
        solve: `(update, start) -> x`, any black box that finds a fixed point of `update(x)`.
        solver: as in `root`; None: `gmres()`. With a contraction,
            `neumann(num_terms=..., step_size=1.0)` is the usual backward iteration.
        has_aux: as in `root`. Static.
        on_failure: as in `root`. Static.

    Returns:
        As `root`.

    Raises:
        ValueError: as `root`.
    """

    def residual(x, theta):
        return jax.tree.map(jnp.subtract, x, update(x, theta))

    rule = _Rule("fixed_point", residual, update, "general")
    return _transform(rule, solve, solver, has_aux, on_failure)


@checked
def minimise(
    loss: Callable[[PyTree, PyTree], Any],
    solve: Callable[..., Any],
    *,
    solver: LinearSolver | None = None,
    has_aux: bool = False,
    on_failure: OnFailure = "nan",
) -> Solution:
    """The minimiser of a loss, as `root` of its gradient, whose derivative is symmetric.

    Args:
        loss: `(x, theta) -> scalar`.
        solve: `(loss, start) -> x`, any black box that minimises `loss(x)`.
        solver: as in `root`; None: `cg()`, which notices where the Hessian is not positive
            definite.
        has_aux: as in `root`. Static.
        on_failure: as in `root`. Static.

    Returns:
        As `root`.

    Raises:
        ValueError: as `root`.
    """
    rule = _Rule("minimise", jax.grad(loss), loss, "symmetric")
    return _transform(rule, solve, solver, has_aux, on_failure)


def _transform(rule: _Rule, solve, solver, has_aux, on_failure) -> Solution:
    if on_failure not in get_args(OnFailure):
        raise ValueError(
            f"{rule.name}: on_failure={on_failure!r} is unknown; choose from {get_args(OnFailure)}."
        )
    if solver is None:
        solver = gmres() if rule.structure == "general" else cg()
    check_structure(rule.name, solver, rule.structure)
    tangent_solve = _linear_solve(solver, rule.structure, on_failure)

    def solution(theta, start):
        start = _constant(rule.name)(jax.tree.map(_strong, start))
        _check_unknowns(rule.name, start)
        thaw = frozen_keys(theta)
        check_residual(rule.name, jax.eval_shape(lambda x: rule.residual(x, thaw()), start), start)
        decode = None

        def run(_, start):
            nonlocal decode
            found = solve(lambda x: rule.posed(x, thaw()), start)
            x, aux = found if has_aux else (found, ())
            floats, decode = _as_floats(aux)
            return x, floats

        x, floats = jax.lax.custom_root(
            lambda x: rule.residual(x, thaw()), start, run, tangent_solve, has_aux=True
        )
        assert decode is not None
        return (x, decode(floats)) if has_aux else x

    return solution


def _linear_solve(solver: LinearSolver, structure: Structure, on_failure: OnFailure):
    """What `custom_root` needs: `(linear map, b) -> solution`, differentiable and transposable."""

    def solve(apply, b):
        u, info = solver.solve(Operator(apply, structure), b)
        if on_failure == "ignore":
            return u
        ok = info.status == int(Status.OK)
        return jax.tree.map(lambda x: jnp.where(ok, x, jnp.full_like(x, jnp.nan)), u)

    def tangent_solve(apply, b):
        # The transpose needs every leaf of b to depend on what is differentiated, as the residuals
        # of some unknowns need not.
        zero = sum((0 * jnp.sum(x) for x in jax.tree.leaves(b)), jnp.zeros(()))
        b = jax.tree.map(lambda x: x + zero.astype(x.dtype), b)
        return jax.lax.custom_linear_solve(
            apply, b, solve, transpose_solve=solve, symmetric=structure != "general"
        )

    return tangent_solve


def _constant(name: str):
    """The identity, which refuses to be differentiated."""

    @jax.custom_jvp
    def constant(start):
        return start

    def refuse(primals, tangents):
        zero = jax.custom_derivatives.SymbolicZero
        leaves = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, zero))
        if not all(isinstance(t, zero) for t in leaves):
            raise ValueError(
                f"{name}: a derivative with respect to start was asked for. The solution does not "
                "depend on where the solver starts; wrap start in jax.lax.stop_gradient."
            )
        return primals[0], tangents[0]

    constant.defjvp(refuse, symbolic_zeros=True)
    return constant


def _strong(x):
    return jnp.asarray(x, jnp.result_type(x))


def _check_unknowns(name: str, start: PyTree) -> None:
    for path, leaf in jax.tree.leaves_with_path(start):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name}: start{jax.tree_util.keystr(path)} is {leaf.dtype}, but unknowns are real "
                "numbers; cast it, or return it as aux."
            )


def _as_floats(aux: PyTree):
    """Integers, booleans and keys in float arrays, bit by bit, and the way back.

    `custom_root` gives every output a tangent of its own dtype, which only floats have.
    """
    leaves, treedef = jax.tree.flatten(aux)
    pairs = [_encode(jnp.asarray(leaf)) for leaf in leaves]

    def decode(floats):
        return treedef.unflatten([back(x) for (_, back), x in zip(pairs, floats, strict=True)])

    return [x for x, _ in pairs], decode


def _encode(x) -> tuple[jax.Array, Callable[[Any], Any]]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(x)
        bits, back = _encode(jax.random.key_data(x))
        return bits, lambda floats: jax.random.wrap_key_data(back(floats), impl=impl)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x, lambda floats: floats
    # Bytes: exact in every float type, and no bit pattern that could be taken for a NaN.
    dtype, width = x.dtype, np.dtype(x.dtype).itemsize
    whole = x.astype(jnp.uint8) if dtype == jnp.bool_ else x
    parts = jax.lax.bitcast_convert_type(whole, jnp.uint8).astype(jnp.float32)

    def restore(floats):
        parts = jnp.round(floats).astype(jnp.uint8)
        if dtype == jnp.bool_:
            return parts.astype(jnp.bool_)
        return jax.lax.bitcast_convert_type(parts, dtype) if width > 1 else parts.view(dtype)

    return parts, restore
