"""Context-affine multi-environment learning (CAMEL): shared features, one weight vector each.

    f(x; θ, w) = c(x; θ) + w · v(x; θ)

    training:    min over θ and w₁, ..., w_T of  mean over t of  L_t(θ, w_t) + penalty |w_t|²
    adaptation:  min over w of                   L_support(θ, w) + ridge |w|²

Training is plain gradient descent on everything; adaptation is least squares, solved exactly. If
the true system is affine in its physical parameters, the weights of trained environments are an
affine image of them, so that a few known environments are enough to read the parameters of others
off their weights (`identify`). Blanke and Lelarge 2024 (ICLR), arXiv:2312.00477, §3 and §4.

Weights are determined up to an affine map only, and only if there are more environments than
features, in general position. The penalty and the ridge are added to the paper's objectives: they
choose among equal solutions, and keep the solve well posed with fewer measurements than features.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metaopt import estimators
from metaopt.algorithms._learner import MetaLearner
from metaopt.core import Params, Scalar, Split, TaskFamily, checked
from metaopt.estimators._shared import check_count
from metaopt.tasks._mlp import dense_layers


class CamelTheta(NamedTuple):
    """Meta-parameters.

    Attributes:
        features: parameters of c and v.
        weights: w of every training environment.
    """

    features: Params
    weights: Float[Array, "environments features"]


class AffineParams(NamedTuple):
    """Parameters of one task.

    Attributes:
        features: parameters of c and v, which adaptation leaves alone.
        weights: w.
    """

    features: Params
    weights: Float[Array, " features"]


@checked
def affine_network(
    num_inputs: int,
    num_features: int,
    *,
    num_outputs: int = 1,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
) -> tuple[Callable, Callable]:
    """A perceptron that computes c and v, for `metaopt.tasks.environments` and its kin.

    Args:
        num_inputs: entries of x. Static.
        num_features: entries r of w, at best the number of physical parameters. Static.
        num_outputs: entries of f. Static.
        hidden: widths of the hidden layers. Static.
        activation: as in `metaopt.tasks.mlp`. Static.

    Returns:
        `(key) -> AffineParams`, weights being standard normal, and `(params, inputs) -> outputs`.

    Raises:
        ValueError: if a size is below 1 or `activation` is unknown.
    """
    sizes = {"num_inputs": num_inputs, "num_features": num_features, "num_outputs": num_outputs}
    check_count("affine_network", **sizes)
    widths = (num_inputs, *hidden, num_outputs * (1 + num_features))
    init_features, features = dense_layers("affine_network", widths, activation)

    def init(key):
        key_features, key_weights = jax.random.split(key)
        params = init_features(key_features)
        return AffineParams(params, jax.random.normal(key_weights, (num_features,)))

    def apply(params, inputs):
        terms = features(params.features, inputs).reshape(len(inputs), num_outputs, -1)
        return terms[..., 0] + terms[..., 1:] @ params.weights

    return init, apply


@checked
def camel(
    family: TaskFamily,
    *,
    num_environments: int,
    penalty: Scalar = 1e-3,
    ridge: Scalar = 1e-4,
) -> MetaLearner:
    """Features trained jointly with one weight vector per environment; adaptation solves for w.

    Args:
        family: environments numbered by `task_params.environment`; `params` are `AffineParams`, and
            the loss is quadratic in `weights`, as the squared error of `affine_network` is.
        num_environments: those of the training pool. Every estimate takes all of them. Static.
        penalty: of |w|² in training. Traced.
        ridge: of |w|² in adaptation. Traced.

    Returns:
        A learner; `theta` is a `CamelTheta`. Training makes no difference between support and query
        sets: the loss is the mean of both.

    Raises:
        ValueError: if `num_environments < 1`; when traced, if the tasks have no `environment`.
    """
    check_count("camel", num_environments=num_environments)

    def init(key):
        key_task, key_first, key_weights = jax.random.split(key, 3)
        task_params = family.sample(key_task)
        keys = jax.random.split(key_weights, num_environments)
        weights = jax.vmap(lambda key: family.init(task_params, key).weights)(keys)
        return CamelTheta(family.init(task_params, key_first).features, weights)

    def meta_loss(theta, data, key):
        def one(environment, weights, key):
            key_task, key_draw, key_loss = jax.random.split(key, 3)
            task_params = _at(family.sample(key_task), environment)
            params = AffineParams(theta.features, weights)
            pools = data if isinstance(data, Split) else Split(data, data)
            losses = [
                family.loss(
                    params,
                    task_params,
                    family.batch(pool, task_params, jax.random.fold_in(key_draw, index)),
                    jax.random.fold_in(key_loss, index),
                )[0]
                for index, pool in enumerate(pools)
            ]
            # The penalty is inside, so that what is reported is what is minimised.
            loss = sum(losses) / 2 + penalty * jnp.sum(weights**2)
            return family.normalise(loss, task_params)

        keys = jax.random.split(key, num_environments)
        return jnp.mean(jax.vmap(one)(jnp.arange(num_environments), theta.weights, keys))

    def adapt(theta, task_params, support, key):
        def loss(weights, key):
            params = AffineParams(theta.features, weights)
            value, _ = family.loss(params, task_params, support, key)
            return value + ridge * jnp.sum(weights**2)

        # One Newton step from zero is the minimiser of a quadratic.
        zero = jnp.zeros_like(theta.weights[0])
        slope, curvature = jax.grad(loss)(zero, key), jax.hessian(loss)(zero, jax.random.clone(key))
        return AffineParams(theta.features, -jnp.linalg.solve(curvature, slope))

    return MetaLearner(init, adapt, estimators.backprop(meta_loss, num_tasks=1))


def _at(task_params, environment):
    if not hasattr(task_params, "environment"):
        raise ValueError(
            f"camel: a task is a {type(task_params).__name__} without `environment`; pass a family "
            "such as metaopt.tasks.environments, whose tasks know which environment they are of."
        )
    return task_params._replace(environment=environment)


def identify(
    weights: Float[Array, "n features"],
    known_weights: Float[Array, "known features"],
    known_parameters: Float[Array, "known parameters"],
) -> Float[Array, "n parameters"]:
    """Physical parameters by the affine map from weights that is least-squares on known ones.

    Args:
        weights: adapted weights of environments whose parameters are asked for.
        known_weights: weights of others, more than there are features and in general position.
        known_parameters: their physical parameters.

    Returns:
        Estimates of the parameters.
    """
    centre = jnp.mean(known_weights, axis=0, keepdims=True)
    offset = jnp.mean(known_parameters, axis=0, keepdims=True)
    matrix, *_ = jnp.linalg.lstsq(known_weights - centre, known_parameters - offset)
    return offset + (weights - centre) @ matrix
