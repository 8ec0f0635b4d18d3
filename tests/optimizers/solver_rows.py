"""Rows of convex solvers and of helpers around batches and learning rates."""

import jax
import jax.numpy as jnp
import optax

from metaopt import optimizers
from metaopt.implicit import dense

SCALES = (1.0, 2.0, 0.5)


def loss(params, theta):
    """A quadratic whose minimiser is the target."""
    return 0.5 * jnp.sum(jnp.asarray(SCALES, params.dtype) * (params - theta) ** 2)


def target():
    return jnp.array([0.5, -0.3, 1.2])


def uniform():
    return jnp.ones(3) / 3


def solution(solver, problem=loss):
    solve = optimizers.implicit_solution(problem, solver, linear_solver=dense())
    return (lambda theta, start: solve(theta, start)[0]), (target(), uniform())


def steps(solver, problem=loss):
    """Three of them, and the residual where they lead."""

    def end(theta, start):
        def posed(params):
            return problem(params, theta)

        state = solver.init(start)
        for _ in range(3):
            state = solver.update(posed, state)
        return state._replace(error=jax.lax.stop_gradient(state.error)), solver.residual(
            posed, start
        )

    return end, (target(), uniform())


def soft_threshold(params, step_size):
    return jnp.sign(params) * jnp.maximum(jnp.abs(params) - 0.1 * step_size, 0)


def oracle(lmo, gradient):
    return lmo, (gradient,)


def matrix():
    return jnp.array([[1.0, 0.2], [0.3, -0.4], [0.1, 2.0]])


def sizes(test):
    """A request for a batch size; an integer, so nothing to differentiate."""
    return test, ({"w": jnp.outer(target(), target()), "b": target()},)


def estimated(previous, updates):
    return optimizers.entrywise_lr_estimate(previous, updates, learning_rate=0.1)


def momentum(base):
    schedule = optimizers.one_cycle_momentum(4, base=base, pct_start=0.5)
    return jnp.stack([schedule(count) for count in range(5)])


def variance_reduced(params, batches):
    """A full gradient and two steps on batches."""
    sarah = optimizers.ai_sarah(lambda w, batch: jax.grad(loss)(w, batch))
    state = sarah.outer_step(sarah.init(params), jnp.mean(batches, axis=0))
    for index in range(2):
        state = sarah.inner_step(state, batches[index])
    return state.params


SOLVER_ROWS = [
    ("norm_test", lambda: sizes(optimizers.norm_test())),
    ("inner_product_test", lambda: sizes(optimizers.inner_product_test())),
    ("augmented_test", lambda: sizes(optimizers.augmented_test())),
    ("entrywise_lr_estimate", lambda: (estimated, (target(), 0.5 * target()))),
    ("one_cycle_momentum", lambda: (momentum, (jnp.array(0.95),))),
    ("ai_sarah", lambda: (variance_reduced, (target(), jnp.ones((2, 3)) * target()[None]))),
    ("agd implicit_solution", lambda: solution(optimizers.agd(2.0, tol=1e-4))),
    ("agd", lambda: steps(optimizers.agd(2.0, strong_convexity=0.5))),
    ("fista", lambda: solution(optimizers.fista(soft_threshold, 2.0, restart=True, tol=1e-4))),
    (
        "frank_wolfe simplex_lmo",
        lambda: steps(
            optimizers.frank_wolfe(
                optimizers.simplex_lmo(), projection=optax.projections.projection_simplex
            )
        ),
    ),
    ("l1_ball_lmo", lambda: oracle(optimizers.l1_ball_lmo(radius=2.0), target())),
    ("nuclear_ball_lmo", lambda: oracle(optimizers.nuclear_ball_lmo(num_steps=20), matrix())),
    (
        "mirror_descent entropy_map",
        lambda: steps(optimizers.mirror_descent(optimizers.entropy_map(), 0.5)),
    ),
    (
        "dual_averaging",
        lambda: steps(optimizers.dual_averaging(optimizers.entropy_map(), 0.5)),
    ),
    (
        "mirror_prox euclidean_map",
        lambda: steps(
            optimizers.mirror_prox(optimizers.euclidean_map(), 0.3, average=False), jax.grad(loss)
        ),
    ),
]
