"""ANIL and BOIL: a part of the parameters adapts, all of them are meta-trained.

    θ = (body, head);    ANIL: only the head takes inner steps;    BOIL: only the body does
    L(body, head) = mean over tasks of L_query(what adapted, what did not)

What stays fixed in a task still has a meta-gradient: directly through the query loss, and through
the inner gradients of what moves. "Almost no inner loop": Raghu et al. 2020 (ICLR),
arXiv:1909.09157, §4; "body only update in inner loop": Oh et al. 2021 (ICLR), arXiv:2008.08882, §3.
Inner gradients are taken of the part that adapts alone, so that ANIL's stop at the head. If all
adapts, this is MAML.
"""

from collections.abc import Callable

import jax
import optax
from jaxtyping import PyTree

from metaopt.algorithms._learner import MetaLearner, initial_params, inner_loop, query_estimator
from metaopt.core import Params, TaskFamily, checked
from metaopt.unroll import Gradient, Loop, Remat


def last_layer(params: Params) -> PyTree[bool]:
    """True in the last of a sequence of layers: the head of most networks."""
    if not isinstance(params, tuple | list) or hasattr(params, "_fields") or len(params) < 2:
        raise ValueError(
            f"last_layer: params is a {type(params).__name__}, not a sequence of layers; pass "
            "head=, a function from params to a tree of bools that says which leaves are the head."
        )
    return type(params)([False] * (len(params) - 1) + [True])


@checked
def anil(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    head: Callable[[Params], PyTree[bool]] = last_layer,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation of which only the head adapts to a task.

    Args:
        family: the tasks. `theta` has the structure of its `params`.
        inner_opt: any optax optimizer; it sees the part that adapts, with `optax.MaskedNode` in
            the place of the rest.
        head: `(params) -> ` a tree of Python bools like `params` or a prefix of it, True for the
            head. The default takes the last entry of a tuple or list of layers. Static.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner; `theta` is `family.init` of any task, and all of it has meta-gradients.

    Raises:
        ValueError: for counts below 1 or an unknown choice; when called, if nothing would adapt, or
            `params` is no sequence and `head` is the default.
    """
    return _partial(
        "anil",
        family,
        inner_opt,
        head,
        num_steps=num_steps,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )


@checked
def boil(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    head: Callable[[Params], PyTree[bool]] = last_layer,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initialisation of which all but the head adapts to a task.

    Args:
        family: as in `anil`.
        inner_opt: as there.
        head: as there; here it is what stays. Static.
        num_steps: inner steps K. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        As in `anil`.

    Raises:
        ValueError: as there.
    """
    return _partial(
        "boil",
        family,
        inner_opt,
        lambda params: jax.tree.map(lambda is_head: not is_head, head(params)),
        num_steps=num_steps,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        remat=remat,
        gradient=gradient,
        loop=loop,
    )


def _partial(
    name, family, inner_opt, adapts, *, num_tasks, tasks_at_once, gradient, **unroll_settings
) -> MetaLearner:
    """A learner whose inner loop moves only the leaves that `adapts` marks."""

    def mask_of(theta):
        mask = jax.tree.broadcast(adapts(theta), theta)
        if not any(jax.tree.leaves(mask)):
            raise ValueError(f"{name}: head= leaves nothing that adapts; mark other leaves.")
        return mask

    def moving(theta):
        return jax.tree.map(lambda m, x: x if m else optax.MaskedNode(), mask_of(theta), theta)

    def whole(params, theta):
        return jax.tree.map(lambda m, x, y: x if m else y, mask_of(theta), params, theta)

    def loss(params, theta, task_params, support, key):
        return family.loss(whole(params, theta), task_params, support, key)

    run = inner_loop(
        name, loss, lambda theta: inner_opt, start=moving, gradient=gradient, **unroll_settings
    )

    def adapted(theta, task_params, support, key):
        return whole(run(theta, task_params, support, key)[0], theta)

    estimator = query_estimator(
        name, family, adapted, num_tasks=num_tasks, tasks_at_once=tasks_at_once, gradient=gradient
    )
    return MetaLearner(initial_params(family), adapted, estimator)
