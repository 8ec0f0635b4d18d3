"""First-order gradients of every algorithm that offers them: reached or refused, never zero."""

import inspect
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import algorithms, core, tasks
from metaopt.unroll import Gradient

INNER = optax.sgd(0.1)
SETTINGS: dict = {"num_tasks": 1, "gradient": "first_order"}


class Inner(NamedTuple):
    """A support set, which its family knows by its type."""

    inputs: jax.Array
    labels: jax.Array


class Outer(NamedTuple):
    """A query set."""

    inputs: jax.Array
    labels: jax.Array


ROWS = (jnp.array([[0.3, 0.9], [-0.8, 0.2], [1.1, -0.4]]), jnp.array([[1.0], [0.4], [-0.5]]))
DATA = core.Split(Inner(*ROWS), Outer(ROWS[0] + 0.2, ROWS[1] - 0.1))
STREAM = core.Split(Inner(*(x[:, None] for x in ROWS)), DATA.outer)


def apply(params, inputs):
    return inputs @ params["w"]


def weighted(*, query: bool) -> core.TaskFamily:
    """Linear regression with a weight of the loss, of the support set alone or of both."""

    def loss(params, task_params, batch, key):
        weighs = query or isinstance(batch, Inner)
        factor = jnp.exp(params["weight"] @ jnp.array([1.0, -0.5])) if weighs else 1.0
        return factor * jnp.mean((apply(params, batch.inputs) - batch.labels) ** 2), ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: {
            "w": jnp.array([[0.7], [-0.2]]),
            "weight": jnp.array([0.3, 0.1]),
        },
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


def warped(family: core.TaskFamily) -> core.TaskFamily:
    """The weight as a warp."""

    def init(task_params, key):
        params = family.init(task_params, key)
        return algorithms.Warped({"w": params["w"]}, {"weight": params["weight"]})

    def loss(params, task_params, batch, key):
        return family.loss({**params.params, **params.warp}, task_params, batch, key)

    return family._replace(init=init, loss=loss)


def coded(family: core.TaskFamily) -> core.TaskFamily:
    """The regression itself as a code, and the weight as the field."""

    def init(task_params, key):
        params = family.init(task_params, key)
        return algorithms.Encoded({"weight": params["weight"]}, {"w": params["w"]})

    def loss(params, task_params, batch, key):
        return family.loss({**params.field, **params.code}, task_params, batch, key)

    return family._replace(init=init, loss=loss)


def bounds(params, inputs, *, eps):
    layers = [{"w": params["w"], "b": jnp.zeros(1)}]
    return algorithms.interval_bounds(layers, inputs, eps=eps, activation=jnp.tanh)


def is_w(params):
    return {name: name == "w" for name in params}


def is_weight(params):
    return {name: name == "weight" for name in params}


LEARNERS = {
    "maml": lambda family: algorithms.maml(family, INNER, num_steps=2, **SETTINGS),
    "meta_sgd": lambda family: algorithms.meta_sgd(family, num_steps=2, **SETTINGS),
    "maml_plus_plus": lambda family: algorithms.maml_plus_plus(family, num_steps=2, **SETTINGS),
    "anil": lambda family: algorithms.anil(family, INNER, head=is_w, num_steps=2, **SETTINGS),
    "boil": lambda family: algorithms.boil(family, INNER, head=is_weight, num_steps=2, **SETTINGS),
    "meta_curvature": lambda family: algorithms.meta_curvature(
        family, INNER, num_steps=2, **SETTINGS
    ),
    "gradient_regularisation": lambda family: algorithms.gradient_regularisation(
        family, INNER, num_features=3, rank=2, hidden=(2,), num_steps=2, **SETTINGS
    ),
    "t_net": lambda family: algorithms.t_net(family, INNER, num_steps=2, **SETTINGS),
    "warp_grad": lambda family: algorithms.warp_grad(
        warped(family), INNER, num_steps=2, **SETTINGS
    ),
    "npbml": lambda family: algorithms.npbml(
        family, apply, INNER, parts=("preconditioner",), num_steps=2, **SETTINGS
    ),
    "interval_maml": lambda family: algorithms.interval_maml(
        family, INNER, bounds, num_steps=2, **SETTINGS
    ),
    "amortised": lambda family: algorithms.amortised(
        coded(family),
        lambda key: jnp.array(0.5),
        lambda encoder, task_params, support: {"w": encoder * support.labels[:2]},
        inner_opt=INNER,
        num_steps=2,
        **SETTINGS,
    ),
    "interference": lambda family: algorithms.interference(family, INNER, head=is_w, **SETTINGS),
}
ALWAYS_REFUSED = {"learned_loss", "loss_weights"}
"""Their loss acts through the inner gradient alone; tests of their own."""
WITHOUT_ESTIMATOR = {"adapt", "through_stream"}
"""Inner loops: what they leave out is the caller's affair."""


def estimate(name, family):
    """`(theta) -> estimate`, and theta."""
    learner = LEARNERS[name](family)
    data = STREAM if name == "interference" else DATA
    # A network whose last layer is zero has no other gradients yet.
    theta = jax.tree.map(lambda x: x + 0.1, learner.init(jax.random.key(0)))

    def run(theta):
        state = learner.estimator.init(theta, data, jax.random.key(1))
        return learner.estimator.estimate(theta, state, data, jax.random.key(2))[0]

    return run, theta


def test_every_algorithm_with_the_option_is_here_by_hand():
    offered = {
        name
        for name in algorithms.__all__
        if inspect.isfunction(function := getattr(algorithms, name))
        and "gradient" in inspect.signature(function).parameters
    }
    assert "first_order" in get_args(Gradient)
    assert offered == {*LEARNERS, *ALWAYS_REFUSED, *WITHOUT_ESTIMATOR, "maml_rl"}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_leaf_that_acts_through_inner_gradients_alone_is_named(name):
    run, theta = estimate(name, weighted(query=False))
    with pytest.raises(ValueError, match="first_order.*weight.*without any gradient"):
        jax.eval_shape(run, theta)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_leaf_that_is_not_refused_has_a_gradient(name):
    run, theta = estimate(name, weighted(query=True))
    grad = jax.jit(run)(theta).grad
    # What is zero on paper may be a rounding error.
    noise = np.finfo(np.float32).eps * max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(grad))
    for path, leaf in jax.tree.leaves_with_path(grad):
        assert np.max(np.abs(leaf)) > noise, jax.tree_util.keystr(path)


def test_a_leaf_of_a_policy_that_nothing_reaches_is_named():
    policy = tasks.policy_of_logits(
        lambda key: {"w": jnp.zeros((1, 2)), "idle": jnp.zeros(2)},
        lambda params, observation: observation @ params["w"],
    )
    learner = algorithms.maml_rl(
        tasks.bandit(num_arms=2), policy, INNER, horizon=1, num_episodes=2, **SETTINGS
    )
    theta = learner.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"maml_rl: gradient='first_order' leaves theta\['idle'\]"):
        learner.estimator.estimate(theta, (), (), jax.random.key(1))


@pytest.mark.parametrize("gradient", ["reverse", "first_order"])
def test_a_theta_without_gradients_is_refused_in_the_name_of_the_learner(gradient):
    family = weighted(query=True)
    learner = algorithms.maml(family, INNER, num_steps=1, **SETTINGS | {"gradient": gradient})
    theta = jax.tree.map(lambda x: x.astype(jnp.int32), learner.init(jax.random.key(0)))
    with pytest.raises(TypeError, match="maml: theta"):
        learner.estimator.estimate(theta, (), DATA, jax.random.key(1))
