"""Learners that see a stream one support set at a time, with a memory between them.

    m₀ = start(θ),    mₖ = observe(θ, mₖ₋₁, support setₖ),    params = finish(θ, m_K)

What a learner keeps of the past is its memory and nothing else: the scan hands it one set at a
time. Few-shot continual learning in the sense of Antoniou et al. 2020, arXiv:2004.11967, §3, whose
measure of memory is `memory_ratio`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.algorithms._learner import MetaLearner
from metaopt.core import Batch, Params, StepInfo, System, Theta, checked
from metaopt.unroll import Gradient, Loop, Remat, takes_value_and_grad, unroll


class StreamLearner(NamedTuple):
    """How a learner takes in a stream.

    Attributes:
        start: `(theta) -> memory`.
        observe: `(theta, memory, task_params, support, key) -> memory`. It may take the keyword
            `value_and_grad=`, as the step of a `System` may.
        finish: `(theta, memory) -> params`, which the family's `loss` takes.
    """

    start: Callable[[Theta], Any]
    observe: Callable[..., Any]
    finish: Callable[[Theta, Any], Params]


@checked
def through_stream(
    learner: StreamLearner,
    *,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> Callable[..., Params]:
    """Makes the `adapt` of a `MetaLearner` whose support batches are streams.

    Args:
        learner: what is done with each support set.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        `(theta, task_params, stream, key) -> params`, where `stream` is a batch with one more axis,
        that of the support sets, in front.

    Raises:
        ValueError: for an unknown choice, or one that needs `value_and_grad=`; when called, if the
            arrays of the stream have not the same number of support sets.
    """

    def init(theta, data, key, *, num_steps=None):
        del data, key, num_steps
        return learner.start(theta), jnp.zeros((), jnp.int32)

    def step(theta, state, data, key, **options):
        memory, index = state
        task_params, stream = data
        support = jax.tree.map(lambda x: x[index], stream)
        memory = learner.observe(theta, memory, task_params, support, key, **options)
        return (memory, index + 1), StepInfo(jnp.zeros(()), jnp.array(False))

    def step_with_choice(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        return step(theta, state, data, key, value_and_grad=value_and_grad)

    has_choice = takes_value_and_grad(System(init, learner.observe))
    system = System(init, step_with_choice if has_choice else step)

    def over(num_sets):
        return unroll(
            system,
            num_steps=num_sets,
            remat=remat,
            gradient=gradient,
            loop=loop,
            name="through_stream",
        )

    over(1)  # Raises at once.

    def adapt(theta, task_params, stream, key):
        run = over(_num_sets(stream))
        data = (task_params, stream)
        (memory, _), _ = run(theta, init(theta, data, key), data, key)
        return learner.finish(theta, memory)

    return adapt


@checked
def continued(learner: MetaLearner) -> StreamLearner:
    """A learner that adapts to each support set from where the last one left it.

    Args:
        learner: one whose `theta` is the parameters that it adapts, such as `maml` and `anil`.

    Returns:
        A stream learner whose memory is the parameters.
    """

    def observe(theta, memory, task_params, support, key):
        del theta
        return learner.adapt(memory, task_params, support, key)

    return StreamLearner(lambda theta: theta, observe, lambda theta, memory: memory)


def memory_ratio(learner: StreamLearner, theta: Theta, stream: Batch) -> float:
    """Bytes that a learner carries between support sets over bytes of all of them.

    What is carried unchanged from `theta` counts too: it could have been changed.

    Args:
        learner: the learner.
        theta: its meta-parameters, or their shapes and dtypes.
        stream: the support sets of one task, or their shapes and dtypes.

    Returns:
        The ratio; above 1, remembering every example would have been cheaper.
    """
    return _bytes(jax.eval_shape(learner.start, theta)) / _bytes(stream)


def _bytes(tree) -> int:
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _num_sets(stream) -> int:
    lengths = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(stream)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            f"through_stream: the arrays of the stream have {sorted(lengths)} support sets; the "
            "first axis of each must be that of the sets, with one length."
        )
    return lengths.pop()
