"""T-nets: a learned linear map behind every layer, which tasks do not adapt.

    h = x W T + b,    ΔW = −α ∂L/∂W = −α G Tᵀ,    Δ(W T) = −α G Tᵀ T,    G = ∂L/∂(W T)

The maps are a metric of the space of weights. They are the linear case of the warps of `warp_grad`,
but trained through the whole trajectory, and start at the identity, where this is MAML. Lee and
Choi 2018 (ICML), arXiv:1801.05558; without the learned masks of their MT-nets.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt.algorithms._learner import MetaLearner
from metaopt.algorithms._maml import maml
from metaopt.algorithms._warp_grad import Warped
from metaopt.core import Params, TaskFamily, checked
from metaopt.unroll import Gradient, Loop, Remat


@checked
def linear_warps(family: TaskFamily) -> TaskFamily:
    """A family whose weights W become W T, with a square T that starts at the identity.

    Args:
        family: any family. Arrays of two or more axes get a T, which mixes the last one.

    Returns:
        The family with `params` a `Warped`.
    """

    def init(task_params, key):
        params = family.init(task_params, key)
        eye = lambda x: jnp.eye(x.shape[-1], dtype=x.dtype) if x.ndim > 1 else ()  # noqa: E731
        return Warped(params, jax.tree.map(eye, params))

    def loss(params, task_params, batch, key):
        return family.loss(fold_warps(params), task_params, batch, key)

    return family._replace(init=init, loss=loss)


def fold_warps(warped: Warped) -> Params:
    """The parameters of the same network without warps: W T for W."""
    return jax.tree.map(
        lambda x, warp: x if isinstance(warp, tuple) else x @ warp, warped.params, warped.warp
    )


@checked
def t_net(
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
    """MAML with a learned linear map behind every layer.

    Args:
        family: the tasks, without warps; `adapt` returns plain parameters too.
        inner_opt: any optax optimizer.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner with `theta` a `Warped` whose warps start at the identity.

    Raises:
        ValueError: for counts below 1 or an unknown choice.
    """
    frozen = optax.multi_transform(
        {"params": inner_opt, "warp": optax.set_to_zero()}, Warped("params", "warp")
    )
    learner = maml(
        linear_warps(family),
        frozen,
        num_steps=num_steps,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )
    return learner._replace(adapt=lambda *args: fold_warps(learner.adapt(*args)))
