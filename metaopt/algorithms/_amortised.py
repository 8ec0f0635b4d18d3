"""Amortised fields: an encoder reads the support set, in place of an inner loop or before one.

    z₀ = encode(θ_e; support set),    zₖ₊₁ = zₖ − inner_opt(∇_z L_support(θ_f, zₖ))
    L(θ) = mean over tasks of L_query(θ_f, z_K),    usually with K = 0

A field f(v; θ_f, z) of coordinates v is shared by all signals and told by the code z which one is
meant. What is measured of it is the family's business: its loss applies the forward map from field
to sensors, known and differentiable, and compares there, so that fields are never seen themselves
(partially observed neural processes). Gu et al. 2023 (ICCV), arXiv:2309.06660, §3; without their
predictive variance, the likelihood being Gaussian of fixed width. Conditional neural processes:
Garnelo et al. 2018, arXiv:1807.01613. Steps on the code alone, with the
field shared: Zintgraf et al. 2019 (ICML), arXiv:1810.03642, from a code of zeros there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PRNGKeyArray

from metaopt.algorithms._learner import MetaLearner, initial_params, inner_loop, query_estimator
from metaopt.core import Batch, Params, TaskFamily, TaskParams, checked
from metaopt.unroll import Gradient, Loop, Remat


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
    inner_opt: optax.GradientTransformation | None = None,
    num_steps: int = 5,
    num_tasks: int = 8,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An encoder and a field, trained together for the query loss after one forward pass.

    Args:
        family: the signals; its `params` are `Encoded`. The `field` of its `init` is used, the
            `code` is not.
        init: `(key) -> encoder`.
        encode: `(encoder, task_params, support) -> code`. Where sensors differ between tasks it
            should not depend on their order.
        inner_opt: any optax optimizer, for steps on the code from where the encoder put it, down
            the loss of the support set; None: no steps.
        num_steps: their number K. Static; without `inner_opt` it counts for nothing.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner; `theta` is an `AmortisedTheta`, and `adapt` one call of `encode`, and the steps.

    Raises:
        ValueError: for counts below 1 or an unknown choice; when called, if the family's `params`
            are not `Encoded`.
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

    def encoded(theta, task_params, support, key):
        del key
        return Encoded(theta.field, encode(theta.encoder, task_params, support))

    adapt = encoded
    if inner_opt is not None:

        def loss(code, params, task_params, support, key):
            return family.loss(Encoded(params.field, code), task_params, support, key)

        run = inner_loop(
            "amortised",
            loss,
            lambda params: inner_opt,
            start=lambda params: params.code,
            num_steps=num_steps,
            remat=remat,
            gradient=gradient,
            loop=loop,
        )

        def adapt(theta, task_params, support, key):
            params = encoded(theta, task_params, support, key)
            return Encoded(params.field, run(params, task_params, support, key)[0])

    estimator = query_estimator(
        "amortised",
        family,
        adapt,
        num_tasks=num_tasks,
        tasks_at_once=tasks_at_once,
        gradient=gradient,
    )
    return MetaLearner(init_both, adapt, estimator)
