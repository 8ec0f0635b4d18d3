"""Online-aware meta-learning (OML): representations in which learning online does not interfere.

    hₖ = hₖ₋₁ − inner_opt(∇_h L(body, hₖ₋₁; batchₖ)),    k = 1, ..., K, in the order of the stream
    L(θ) = mean over streams of L(body, h_K; examples of the whole stream),    θ = (body, h₀)

The head learns from a correlated stream, a batch at a time, each seen once; the meta-loss asks for
all that was in it, so that it rises both where learning is slow and where it overwrites. Javed and
White 2019 (NeurIPS), arXiv:1905.12588, §3; "Is fast adaptation all you need?": Javed et al. 2019,
arXiv:1910.01705, which compares with meta-training on streams of one task each: the same learner on
another family.
"""

from collections.abc import Callable

import jax
import optax
from jaxtyping import PyTree

from metaopt.algorithms._anil import last_layer
from metaopt.algorithms._learner import MetaLearner, initial_params, query_estimator
from metaopt.algorithms._stream import StreamLearner, through_stream
from metaopt.core import Params, TaskFamily, checked
from metaopt.unroll import Gradient, Loop, Remat


@checked
def online(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    head: Callable[[Params], PyTree[bool]] = last_layer,
) -> StreamLearner:
    """One step of the head for every batch of a stream.

    Args:
        family: the tasks; its `loss` is minimised.
        inner_opt: any optax optimizer; its state goes through the stream with the head.
        head: as in `metaopt.algorithms.anil`: the leaves that learn online. Static.

    Returns:
        A learner whose memory is the head, with `optax.MaskedNode` in the place of the rest, and
        the state of the optimizer.

    Raises:
        ValueError: when called, if `head` marks nothing.
    """
    opt = optax.with_extra_args_support(inner_opt)

    def mask_of(theta):
        mask = jax.tree.broadcast(head(theta), theta)
        if not any(jax.tree.leaves(mask)):
            raise ValueError("online: head= marks nothing that learns; mark some leaves.")
        return mask

    def whole(params, theta):
        return jax.tree.map(lambda m, x, y: x if m else y, mask_of(theta), params, theta)

    def start(theta):
        params = jax.tree.map(lambda m, x: x if m else optax.MaskedNode(), mask_of(theta), theta)
        return params, opt.init(params)

    def observe(theta, memory, task_params, support, key, *, value_and_grad=jax.value_and_grad):
        def loss(params, theta, task_params, support, key):
            return family.loss(whole(params, theta), task_params, support, key)

        params, opt_state = memory
        (value, _), grads = value_and_grad(loss, has_aux=True)(
            params, theta, task_params, support, key
        )
        updates, opt_state = opt.update(grads, opt_state, params, value=value)
        return optax.apply_updates(params, updates), opt_state

    return StreamLearner(start, observe, lambda theta, memory: whole(memory[0], theta))


@checked
def interference(
    family: TaskFamily,
    inner_opt: optax.GradientTransformation,
    *,
    head: Callable[[Params], PyTree[bool]] = last_layer,
    num_tasks: int = 4,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """A representation, and where the head starts, for learning online from correlated streams.

    Args:
        family: its support batches are streams: arrays with the batches, in order, in front of what
            its `loss` takes. Its query batches are what is to be known at the end.
        inner_opt: any optax optimizer; `optax.sgd(0.01)` is usual.
        head: as in `online`. Static.
        num_tasks: streams per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner; `theta` is `family.init` of any task. Clip its meta-gradients: streams are long.

    Raises:
        ValueError: for counts below 1 or an unknown choice; when called, as in `online`.
    """
    adapt = through_stream(
        online(family, inner_opt, head=head), remat=remat, gradient=gradient, loop=loop
    )
    estimator = query_estimator(
        "interference",
        family,
        adapt,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(initial_params(family), adapt, estimator)
