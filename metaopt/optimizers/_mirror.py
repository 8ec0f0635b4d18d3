"""Mirror descent and mirror prox: first-order methods in the geometry of the constraints.

    descent:  ∇Φ(x') = ∇Φ(x) − η ∇f(x),    then the projection of x' in the divergence of Φ
    prox:     half a step to y with η F(x), then the whole step from x with η F(y)

Nemirovski and Yudin 1983; Nemirovski 2004 (SIAM J. Optimization 15); as in Bubeck 2015,
arXiv:1405.4980, theorems 4.2 and 4.4. On the simplex Φ is the negative entropy and a step is
w ← w exp(−η g)/Σ, here in logarithms. Averages of T points are within G √(2 log n / T) of the least
loss, for η = √(2 log n / T)/G and |g|_∞ ≤ G; for a matrix game of size m × n, mirror prox with
η = 1/(2 max |A|) has a duality gap of at most 2 max |A| (log m + log n)/T.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._solver import (
    FirstOrderSolver,
    check_positive,
    check_run,
    length,
    move,
    runner,
    scalar_dtype,
    strong,
    subtract,
)
from metaopt.tree import cast_like


class MirrorMap(NamedTuple):
    """A geometry: trees of parameters and their dual coordinates ∇Φ.

    Attributes:
        dual: `(params) -> ∇Φ(params)`.
        project: `(dual) -> dual` of the projection onto the set, in the divergence of Φ.
        primal: `(dual) -> params`, for projected ones.
    """

    dual: Callable[[PyTree], PyTree]
    project: Callable[[PyTree], PyTree]
    primal: Callable[[PyTree], PyTree]


class MirrorState(NamedTuple):
    """Where a mirror method is.

    Attributes:
        dual: the current point in dual coordinates, float32 at least.
        average: mean of the points that the bounds are about; the start before the first one.
        count: steps taken.
        error: length of the last (half) step, divided by the step size.
    """

    dual: PyTree
    average: PyTree
    count: Int[Array, ""]
    error: Float[Array, ""]


@checked
def entropy_map() -> MirrorMap:
    """Negative entropy on simplices: the last axis of each leaf is a probability vector.

    Returns:
        A map whose dual coordinates are logarithms; a leaf without an axis raises a ValueError.
    """

    def log(x):
        if x.ndim == 0:
            raise ValueError(
                "entropy_map: a leaf is a scalar; the last axis of each must be a probability "
                "vector."
            )
        # A derivative of log at 0, which vertices have, would be infinite.
        return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))

    def normalise(z):
        return z - jax.nn.logsumexp(z, axis=-1, keepdims=True)

    return MirrorMap(
        lambda params: jax.tree.map(log, params),
        lambda dual: jax.tree.map(normalise, dual),
        lambda dual: jax.tree.map(jnp.exp, dual),
    )


@checked
def euclidean_map(projection: Callable[[PyTree], PyTree] | None = None) -> MirrorMap:
    """Half the squared length, which gives projected gradient descent and the extragradient.

    Args:
        projection: onto the set; None for all of space.
    """

    def same(tree):
        return tree

    return MirrorMap(same, same if projection is None else projection, same)


@checked
def mirror_descent(
    mirror_map: MirrorMap,
    step_size: Scalar,
    *,
    average: bool = True,
    tol: Scalar = 1e-6,
    max_steps: int = 1000,
) -> FirstOrderSolver:
    """Mirror descent on a convex loss, which need not be smooth.

    Args:
        mirror_map: the geometry; `entropy_map()` for probability vectors.
        step_size: η. Traced.
        average: answer with the mean of the points where gradients were taken, which the bound is
            about; otherwise with the last point, which is what a smooth loss and derivatives of the
            solution ask for. Static.
        tol: on the length of the last step over η, whether or not points are averaged. Traced.
        max_steps: most steps. Static.

    Returns:
        A solver of losses. Its residual is what a step changes.

    Raises:
        ValueError: if a setting is not positive.
    """

    def move_dual(loss, state, point, step):
        here = point(state.dual)
        new = step(state.dual, jax.grad(loss)(here))
        return new, here, subtract(point(new), here)

    return _mirrored(
        "mirror_descent", jax.grad, move_dual, mirror_map, step_size, average, tol, max_steps
    )


@checked
def mirror_prox(
    mirror_map: MirrorMap,
    step_size: Scalar,
    *,
    average: bool = True,
    tol: Scalar = 1e-6,
    max_steps: int = 1000,
) -> FirstOrderSolver:
    """Mirror prox for a monotone operator: saddle points, games, or the gradient of a convex loss.

    Args:
        mirror_map: as in `mirror_descent`; for a game of two players, of the pair of both.
        step_size: η, at most 1/L for an operator with Lipschitz constant L. Traced.
        average: answer with the mean of the half points, otherwise with the last point. Static.
        tol: on the length of the last half step over η. Traced.
        max_steps: most steps, of two evaluations each. Static.

    Returns:
        A solver of operators `(params) -> tree like params`: for min over x, max over y of
        f(x, y) the pair (∇_x f, −∇_y f). Its residual is what a step changes.

    Raises:
        ValueError: if a setting is not positive.
    """

    def move_dual(operator, state, point, step):
        here = point(state.dual)
        half = point(step(state.dual, operator(here)))
        return step(state.dual, operator(half)), half, subtract(half, here)

    def as_is(operator):
        return operator

    return _mirrored(
        "mirror_prox", as_is, move_dual, mirror_map, step_size, average, tol, max_steps
    )


def _mirrored(name, direction_of, move_dual, mirror_map, step_size, average, tol, max_steps):
    check_positive(name, step_size=step_size)
    check_run(name, tol, max_steps)

    def step(dual, direction):
        return cast_like(mirror_map.project(move(dual, -step_size, direction)), dual)

    def to_dual(params):
        return mirror_map.dual(jax.tree.map(lambda p: p.astype(scalar_dtype(p)), params))

    def init(params):
        params = strong(params)
        infinity = jnp.full((), jnp.inf, scalar_dtype(params))
        dual = mirror_map.project(to_dual(params))
        return MirrorState(dual, params, jnp.zeros((), jnp.int32), infinity)

    def update(problem, state):
        def point(dual):
            return cast_like(mirror_map.primal(dual), state.average)

        dual, sample, change = move_dual(problem, state, point, step)
        count = state.count + 1
        share = 1 / count.astype(state.error.dtype)
        mean = move(state.average, share, subtract(sample, state.average))
        error = length(change) / jax.lax.stop_gradient(step_size)
        return MirrorState(dual, mean, count, error.astype(state.error.dtype))

    def residual(problem, params):
        moved = mirror_map.primal(step(to_dual(params), direction_of(problem)(params)))
        return subtract(params, moved)

    def answer(state):
        return state.average if average else cast_like(mirror_map.primal(state.dual), state.average)

    return FirstOrderSolver(init, update, runner(init, update, answer, tol, max_steps), residual)
