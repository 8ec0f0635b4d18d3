"""EGN: exact Gauss-Newton steps, by a linear system of the size of the batch's outputs.

    d = (JᵀQJ/b + λI)⁻¹ Jᵀr/b = Jᵀ (Q J Jᵀ + bλI)⁻¹ r,    m ← β m + (1−β) d,    w ← w − α m̂

J is the Jacobian of the outputs of b examples, r and Q are the first and second derivatives of
their losses with respect to the outputs. Korbit, Adeoye, Bemporad, Zanon 2024, arXiv:2405.14402.
λ may follow the quality of the quadratic model as Levenberg and Marquardt have it:
ρ = (change of the loss) / (that of the model), λ ← 1.5 λ where ρ < 1/4 and λ/2 where ρ > 3/4. The
system is not symmetric and is solved by LU: Q, singular for the cross-entropy, has no inverse root.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import known, quotient, refuse_decays, wide_zeros, widen

# Adapted, λ stays within this factor of where it began.
_RANGE = 1e8


class EGNState(NamedTuple):
    """Moving average and damping.

    Attributes:
        count: steps taken.
        mu: m.
        damping: λ.
    """

    count: Int[Array, ""]
    mu: PyTree
    damping: Float[Array, ""]


@checked
def egn(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    damping: Scalar = 1.0,
    momentum: Scalar = 0.0,
    adapt: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Gauss-Newton steps on batches.

    `update` needs the parameters and three extra arguments: `predict_fn(params, input) -> outputs`
    of one example, a vector; `loss_fn(outputs, target) -> scalar`, convex in the outputs; and
    `batch`, a pair (inputs, targets) of trees whose arrays have the examples first. The gradients
    are not looked at: the loss is the mean of `loss_fn` over the batch. It returns the final
    update. With a line search, which then sets the step, as in
    `optax.chain(egn(), optax.scale_by_backtracking_linesearch(15))`, optax asks that its `value_fn`
    take the three as well.

    Args:
        learning_rate: α, a scalar or a schedule. Traced.
        damping: λ > 0. Too little of it diverges. Traced.
        momentum: β of the average of directions, which is corrected for its start at 0. Traced.
        adapt: whether λ follows the quality of the model, for one more evaluation of the loss.
            Static.

    Returns:
        A complete optimizer whose updates have the dtypes of the gradients.

    Raises:
        ValueError: if `momentum` is outside [0, 1) or `damping` is not positive; `update`, if it
            misses an argument.
    """
    refuse_decays("egn", momentum=momentum)
    if known(damping) and not damping > 0:
        raise ValueError(
            f"egn: damping must be positive, got {damping}; without it the system is singular."
        )

    def init(params):
        mu = wide_zeros(params)
        dtype = jnp.result_type(float, *jax.tree.leaves(mu))
        return EGNState(jnp.zeros((), jnp.int32), mu, jnp.asarray(damping, dtype))

    def update(updates, state, params=None, **extra_args):
        model = _model(params, extra_args)
        direction = gauss_newton_direction(*model, damping=state.damping)
        direction = optax.tree.cast_like(direction, state.mu)
        count = state.count + 1
        mu = optax.tree.update_moment(direction, state.mu, momentum, 1)
        mu = optax.tree.cast_like(mu, state.mu)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        steps = optax.tree.scale(
            -jnp.asarray(rate), optax.tree.bias_correction(mu, momentum, count)
        )
        steps = optax.tree.cast_like(steps, updates)
        new_damping = state.damping
        if adapt:
            # Traced settings may be wider than the state.
            new_damping = _adapted(state.damping, damping, params, steps, model, extra_args)
            new_damping = new_damping.astype(state.damping.dtype)
        return steps, EGNState(count, mu, new_damping)

    return optax.GradientTransformationExtraArgs(init, update)


def gauss_newton_direction(
    jacobian: PyTree,
    residual: Float[Array, "b c"],
    curvature: Float[Array, "b c c"],
    *,
    damping: Scalar,
) -> PyTree:
    """(JᵀQJ/b + λI)⁻¹ Jᵀr/b by one system of bc equations.

    Args:
        jacobian: a tree like the parameters; each leaf has the axes of examples and outputs first.
        residual: r, derivatives of the losses of b examples with respect to their c outputs.
        curvature: Q, their second derivatives, symmetric without negative eigenvalues.
        damping: λ > 0. Traced.

    Returns:
        The direction, a tree like the parameters: a step goes along its negative.
    """
    size = residual.size
    rows = jax.tree.map(lambda j: j.reshape(size, -1), widen(jacobian))
    # JJᵀ of large numbers overflows; one over their size squared becomes part of the damping.
    largest = [jnp.max(jnp.abs(j), initial=1).astype(residual.dtype) for j in jax.tree.leaves(rows)]
    scale = jax.lax.stop_gradient(jnp.stack(largest).max())
    rows = jax.tree.map(lambda j: j / scale.astype(j.dtype), rows)
    kernel = sum((j @ j.T for j in jax.tree.leaves(rows)), jnp.zeros((size, size), residual.dtype))
    kernel = kernel.reshape(*residual.shape, size)
    system = jnp.einsum("bij,bjk->bik", curvature, kernel).reshape(size, size)
    # A ridge below the rounding errors of the system leaves it singular.
    numbers = jnp.finfo(system.dtype)
    least = float(numbers.eps) * jnp.abs(system).max() + float(numbers.tiny) ** 0.4
    ridge = jnp.maximum(len(residual) * damping / scale / scale, jax.lax.stop_gradient(least))
    ridge = ridge.astype(system.dtype) * jnp.eye(size, dtype=system.dtype)
    dual = jnp.linalg.solve(system + ridge, residual.ravel())
    return jax.tree.map(
        lambda j, like: (dual @ j / scale.astype(j.dtype)).reshape(like.shape[2:]), rows, jacobian
    )


def _model(params, extra_args):
    """J, r and Q of the batch."""
    predict_fn, loss_fn, (inputs, targets) = _needed(params, extra_args)

    def outputs(inputs):
        return jnp.ravel(predict_fn(params, inputs))

    jacobian = jax.vmap(lambda x: jax.jacrev(lambda p: jnp.ravel(predict_fn(p, x)))(params))(inputs)
    predictions = widen(jax.vmap(outputs)(inputs))
    residual = jax.vmap(jax.grad(loss_fn))(predictions, targets)
    return jacobian, residual, jax.vmap(jax.hessian(loss_fn))(predictions, targets)


def _needed(params, extra_args) -> tuple[Callable, Callable, tuple[Any, Any]]:
    if params is None:
        raise ValueError("egn: update got no params; pass update(grads, state, params, ...).")
    meaning = {
        "predict_fn": "(params, input) -> outputs of one example",
        "loss_fn": "(outputs, target) -> loss of one example",
        "batch": "(inputs, targets), examples first",
    }
    for name, text in meaning.items():
        if extra_args.get(name) is None:
            raise ValueError(
                f"egn: update misses the extra argument {name}, {text}; pass "
                f"update(grads, state, params, {name}=...)."
            )
    return extra_args["predict_fn"], extra_args["loss_fn"], extra_args["batch"]


def _adapted(value, first, params, steps, model, extra_args):
    """The next λ, from what the steps did to the loss of the batch."""
    predict_fn, loss_fn, (inputs, targets) = _needed(params, extra_args)

    def loss(params):
        predictions = jax.vmap(lambda x: jnp.ravel(predict_fn(params, x)))(inputs)
        return jnp.mean(jax.vmap(loss_fn)(widen(predictions), targets))

    jacobian, residual, curvature = model
    moves = [
        jnp.einsum("bcn,n->bc", widen(j).reshape(*residual.shape, -1), widen(s).ravel())
        for j, s in zip(jax.tree.leaves(jacobian), jax.tree.leaves(steps), strict=True)
    ]
    change = sum(moves)
    bent = jnp.einsum("bc,bcd,bd->b", change, curvature, change)
    predicted = jnp.mean(jnp.sum(residual * change, axis=1) + 0.5 * bent)
    actual = loss(optax.apply_updates(params, steps)) - loss(params)
    ratio = quotient(actual, predicted)
    # A loss that is not finite is a bad one; no move says nothing.
    factor = jnp.where(ratio > 0.75, 0.5, jnp.where(ratio >= 0.25, 1.0, 1.5))
    factor = jnp.where(predicted == 0, 1.0, factor)
    return jnp.clip(value * factor, first / _RANGE, first * _RANGE)
