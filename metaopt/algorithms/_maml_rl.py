"""MAML for reinforcement learning: a policy that adapts by a few policy gradients.

    φ = θ − inner_opt(∇ L(θ; episodes of π_θ)),    J(θ) = E over tasks of the return of π_φ

The episodes that are adapted to depend on θ as well, which derivatives of the inner gradient alone
do not see:

    "naive"   ∇θ through φ with the drawn actions fixed: biased (Finn et al. 2017, arXiv:1703.03400)
    "dice"    through φ, the inner gradient's derivative being the Hessian of the expected return:
              exact for an inner gradient from infinitely many episodes (Foerster et al. 2018,
              arXiv:1802.05098)
    "emaml"   "naive", plus Σ_k ∇θ log p(inner episodes | φ_k) · (return of π_φ − baseline):
              unbiased for the inner gradient as it is (Stadie et al. 2018, arXiv:1803.01118;
              Al-Shedivat et al. 2017, arXiv:1710.03641, with more than one step)

The baseline of the score term is the return of π_θ before adaptation in episodes of its own, so
that it is independent of the inner actions. Differs from the papers: the outer step is the
caller's, not a trust region, and only inner advantages are normalised, so that the meta-gradient is
that of J.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from metaopt.algorithms._learner import MetaLearner, episode_estimator, initial_params
from metaopt.algorithms._policy_gradient import Baseline, policy_gradient
from metaopt.core import Scalar, StepInfo, System, checked
from metaopt.tasks import Environment, Policy
from metaopt.unroll import Gradient, Loop, Remat, unroll

Correction = Literal["naive", "dice", "emaml"]


@checked
def maml_rl(
    environment: Environment,
    policy: Policy,
    inner_opt: optax.GradientTransformation,
    *,
    horizon: int,
    estimator: Correction = "naive",
    num_episodes: int = 20,
    discount: Scalar = 0.99,
    trace: Scalar = 1.0,
    baseline: Baseline = "linear",
    normalise: bool = True,
    num_steps: int = 1,
    num_tasks: int = 20,
    tasks_at_once: int | None = None,
    remat: Remat = "none",
    gradient: Gradient = "reverse",
    loop: Loop = "scan",
) -> MetaLearner:
    """An initial policy, trained for its return after a few policy gradients.

    Args:
        environment: a family of environments.
        policy: the policy; `theta` has the structure of its `params`.
        inner_opt: any optax optimizer; `optax.sgd(0.1 / horizon)` is the paper's, whose loss
            is a mean over actions where ours is their sum.
        horizon: actions of an episode at most. Static.
        estimator: "naive", "dice" or "emaml". Static.
        num_episodes: episodes per inner step, and as many after adaptation. Static.
        discount: as in `policy_gradient`. Traced.
        trace: as there. Traced.
        baseline: as there. Static.
        normalise: as there, of the inner gradients. Static.
        num_steps: inner steps K, each on episodes of its own. Static.
        num_tasks: tasks per estimate. Static.
        tasks_at_once: as in `metaopt.estimators.backprop`. Static.
        remat: as in `metaopt.unroll.unroll`. Static.
        gradient: as there. Static.
        loop: as there. Static.

    Returns:
        A learner on `data = ()`, whose loss is minus the mean discounted return after adaptation.
        `few_shot_scores` on the family `policy_gradient(environment, policy, ...)` judges it.

    Raises:
        ValueError: for counts below 1 or an unknown choice.
    """
    name = "maml_rl"
    if estimator not in get_args(Correction):
        raise ValueError(
            f"{name}: estimator={estimator!r} is unknown; choose from {get_args(Correction)}."
        )
    settings: dict[str, Any] = {
        "horizon": horizon,
        "num_episodes": num_episodes,
        "discount": discount,
        "trace": trace,
        "baseline": baseline,
    }
    surrogate = "dice" if estimator == "dice" else "reinforce"
    inner = policy_gradient(
        environment, policy, normalise=normalise, surrogate=surrogate, **settings
    )
    outer = policy_gradient(environment, policy, **settings)
    run = unroll(
        _adaptation(inner, inner_opt),
        num_steps=num_steps,
        remat=remat,
        gradient=gradient,
        loop=loop,
        name=name,
    )

    def adapted(theta, task_params, key):
        start = (theta, inner_opt.init(theta))
        (params, _), infos = run(theta, start, task_params, key)
        return params, infos.loss

    def adapt(theta, task_params, support, key):
        del support
        return adapted(theta, task_params, key)[0]

    def episode_loss(theta, episode, key):
        key_adapt, key_outer, key_baseline = jax.random.split(key, 3)
        task_params = episode.task_params
        params, log_likelihoods = adapted(theta, task_params, key_adapt)
        loss, _ = outer.loss(params, task_params, (), key_outer)
        if estimator == "emaml":
            before, _ = outer.loss(theta, task_params, (), key_baseline)
            score = jnp.sum(log_likelihoods)
            gain = jax.lax.stop_gradient(loss - before)
            loss = loss + (score - jax.lax.stop_gradient(score)) * gain
        return loss

    return MetaLearner(
        initial_params(outer),
        adapt,
        episode_estimator(
            name,
            outer,
            episode_loss,
            num_tasks=num_tasks,
            tasks_at_once=tasks_at_once,
            gradient=gradient,
        ),
    )


def _adaptation(family, inner_opt) -> System:
    """Policy gradients on one task, which is the data; a step reports its log-likelihood."""
    inner_opt = optax.with_extra_args_support(inner_opt)

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        del theta
        params, opt_state = state
        (value, info), grads = value_and_grad(family.loss, has_aux=True)(params, data, (), key)
        updates, opt_state = inner_opt.update(grads, opt_state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), StepInfo(info.log_likelihood, jnp.array(False))

    return System(lambda theta, data, key, *, num_steps=None: (theta, inner_opt.init(theta)), step)
