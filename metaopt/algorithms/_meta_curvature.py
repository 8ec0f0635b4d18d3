"""Meta-curvature: a learned linear map of the inner gradient, one factor per axis.

    matrices   ΔW = −α M_in G M_out
    kernels    ΔW = −α (M_kernel ⊗ M_in ⊗ M_out) G    over (kernel positions, inputs, outputs)
    biases     Δb = −α m ⊙ g

All factors start at the identity, where this is MAML, and are constant while a task adapts.
Park and Oliva 2019 (NeurIPS), arXiv:1902.03356. Any inner optimizer may follow the map; the
paper's is gradient descent.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt.algorithms._learner import (
    MetaLearner,
    initial_params,
    inner_loop,
    query_estimator,
)
from metaopt.core import Params, TaskFamily, checked
from metaopt.unroll import Gradient, Loop, Remat


class MetaCurvatureTheta(NamedTuple):
    """What meta-curvature learns.

    Attributes:
        params: where tasks start.
        factors: the structure of `params` with a tuple in place of every array: `(diagonal,)` for
            vectors and scalars, `(M_in, M_out)` for matrices, `(M_kernel, M_in, M_out)` for arrays
            of more axes, the last two of which are inputs and outputs.
    """

    params: Params
    factors: PyTree


@checked
def meta_curvature(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation and a preconditioner of the inner gradient, trained together.

    Args:
        family: the tasks.
        inner_opt: any optax optimizer; it is given the preconditioned gradient.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner with `theta` a `MetaCurvatureTheta` that starts with identity factors.

    Raises:
        ValueError: for counts below 1 or an unknown choice.
    """

    def loss(params, theta, task_params, support, key):
        del theta
        return family.loss(params, task_params, support, key)

    run = inner_loop(
        "meta_curvature",
        loss,
        lambda theta: optax.chain(precondition(theta.factors), inner_opt),
        start=lambda theta: theta.params,
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )

    def init(key):
        params = initial_params(family)(key)
        return MetaCurvatureTheta(params, identity_factors(params))

    def adapt(theta, task_params, support, key):
        return run(theta, task_params, support, key)[0]

    estimator = query_estimator(
        "meta_curvature",
        family,
        adapt,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(init, adapt, estimator)


def identity_factors(params: Params) -> PyTree:
    """Factors of the identity, for every array of `params`."""

    def of(x):
        if x.ndim <= 1:
            return (jnp.ones_like(x),)
        kernel = (math.prod(x.shape[:-2]),) if x.ndim > 2 else ()
        return tuple(jnp.eye(size, dtype=x.dtype) for size in (*kernel, *x.shape[-2:]))

    return jax.tree.map(of, params)


def precondition(factors: PyTree) -> optax.GradientTransformation:
    """An optax transformation that multiplies every gradient by its factors."""

    def of(grad, factors):
        if grad.ndim <= 1:
            return factors[0] * grad
        *kernel, m_in, m_out = factors
        product = jnp.einsum("ij,kjo,op->kip", m_in, grad.reshape(-1, *grad.shape[-2:]), m_out)
        for factor in kernel:
            product = jnp.tensordot(factor, product, axes=1)
        return product.reshape(grad.shape)

    return optax.stateless(lambda updates, params: jax.tree.map(of, updates, factors))
