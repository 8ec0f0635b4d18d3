"""Amortised fields: an encoder reads the support set, and no inner loop is run at all.

    z = encode(θ_e; support set),    φ = (θ_f, z),    L(θ) = mean over tasks of L_query(φ)

A field f(v; θ_f, z) of coordinates v is shared by all signals and told by the code z which one is
meant. What is measured of it is the family's business: its loss applies the forward map from field
to sensors, known and differentiable, and compares there, so that fields are never seen themselves
(partially observed neural processes). Gu et al. 2023 (ICCV), arXiv:2309.06660, §3; without their
predictive variance, the likelihood being Gaussian of fixed width. Conditional neural processes:
Garnelo et al. 2018, arXiv:1807.01613.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from metaopt.algorithms._learner import MetaLearner, initial_params, query_estimator
from metaopt.core import Batch, Params, TaskFamily, TaskParams, checked


class AmortisedTheta(NamedTuple):
    """Meta-parameters.

    Attributes:
        encoder: what reads support sets.
        field: what is shared by all signals.
    """

    encoder: Any
    field: Params


class Encoded(NamedTuple):
    """Parameters of one signal.

    Attributes:
        field: what it shares with the others.
        code: what tells it from them.
    """

    field: Params
    code: Any


@checked
def amortised(
    family: TaskFamily,
    init: Callable[[PRNGKeyArray], Any],
    encode: Callable[[Any, TaskParams, Batch], Any],
    *,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
) -> MetaLearner:
    """An encoder and a field, trained together for the query loss after one forward pass.

    Args:
        family: the signals; its `params` are `Encoded`. The `field` of its `init` is used, the
            `code` is not.
        init: `(key) -> encoder`.
        encode: `(encoder, task_params, support) -> code`. Where sensors differ between tasks it
            should not depend on their order.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.

    Returns:
        A learner; `theta` is an `AmortisedTheta`, and `adapt` one call of `encode`.

    Raises:
        ValueError: for counts below 1; when called, if the family's `params` are not `Encoded`.
    """

    def init_both(key):
        key_encoder, key_field = jax.random.split(key)
        params = initial_params(family)(key_field)
        if not isinstance(params, Encoded):
            raise ValueError(
                f"amortised: the family's params are a {type(params).__name__}; its init must give "
                "metaopt.algorithms.Encoded(field, code), which its loss takes."
            )
        return AmortisedTheta(init(key_encoder), params.field)

    def adapt(theta, task_params, support, key):
        del key
        return Encoded(theta.field, encode(theta.encoder, task_params, support))

    estimator = query_estimator(
        "amortised", family, adapt, num_tasks=num_tasks, tasks_at_once=tasks_at_once
    )
    return MetaLearner(init_both, adapt, estimator)
