import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from metaopt.algorithms import AffineParams, CamelTheta, affine_network, camel, identify
from tests.helpers import central_differences, ravel, relative_error

POINTS, FEATURES = 6, 3


def polynomial(params, inputs):
    """c = a₀, v = (a₁ x, a₂ x², a₃ x³): few numbers, known features."""
    powers = inputs ** jnp.arange(4)[None] * params.features[None]
    return powers[:, :1] + powers[:, 1:] @ params.weights[:, None]


def family(num_shots=3):
    def init(key):
        key_features, key_weights = jax.random.split(key)
        return AffineParams(
            jax.random.normal(key_features, (4,)), jax.random.normal(key_weights, (FEATURES,))
        )

    return tasks.environments(
        init, polynomial, pool_shape=(4, POINTS, 1), num_shots=num_shots, num_queries=3
    )


def pool():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(4, POINTS, 1)), rng.normal(size=(4, POINTS, 1))
    return tasks.EnvironmentPool(jnp.asarray(inputs), jnp.asarray(labels), jnp.zeros((4, 1)))


def test_adaptation_is_ridge_regression_on_the_features(x64):
    ridge, rng = 0.03, np.random.default_rng(1)
    features = rng.normal(size=4)
    theta = CamelTheta(jnp.asarray(features), jnp.zeros((4, FEATURES)))
    inputs, labels = rng.normal(size=(3, 1)), rng.normal(size=(3, 1))
    support = data.Pool(jnp.asarray(inputs), jnp.asarray(labels))
    adapt = jax.jit(camel(family(), num_environments=4, ridge=ridge).adapt)
    params = adapt(theta, (), support, jax.random.key(0))

    v = inputs ** np.arange(1, 4) * features[1:]
    normal = v.T @ v / 3 + ridge * np.eye(FEATURES)
    expected = np.linalg.solve(normal, v.T @ (labels[:, 0] - features[0]) / 3)
    np.testing.assert_allclose(params.weights, expected, rtol=1e-10)
    np.testing.assert_array_equal(params.features, features)


def test_training_minimises_the_error_of_all_environments_and_the_penalty(x64):
    penalty, measurements = 0.1, pool()
    # Points in order: shuffling them takes most of the compilation and changes nothing here.
    in_order = tasks.EnvironmentTask(jnp.array(0), jnp.arange(POINTS))
    ordered = family()._replace(sample=lambda key: in_order)
    learner = camel(ordered, num_environments=4, penalty=penalty)
    theta = learner.init(jax.random.key(1))
    assert theta.weights.shape == (4, FEATURES)
    assert np.linalg.matrix_rank(theta.weights) == FEATURES
    sides = tasks.episodes(measurements)

    @jax.jit
    def estimate(theta):
        return learner.estimator.estimate(theta, (), sides, jax.random.key(2))[0]

    losses = []
    for inputs, labels, weights in zip(
        measurements.inputs, measurements.labels, np.asarray(theta.weights), strict=True
    ):
        # All six points of an environment are in the support or the query set, three in each.
        outputs = np.asarray(inputs) ** np.arange(4) * np.asarray(theta.features)
        residual = outputs[:, 0] + outputs[:, 1:] @ weights - np.asarray(labels)[:, 0]
        losses.append(np.mean(residual**2) + penalty * np.sum(weights**2))
    found = estimate(theta)
    np.testing.assert_allclose(found.loss, np.mean(losses), rtol=1e-10)
    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    assert relative_error(ravel(found.grad), differences) < 1e-6


def test_with_the_true_terms_weights_are_the_parameters(x64):
    system = tasks.point_charges()
    measured = tasks.environment_pool(
        system, jax.random.key(0), num_environments=3, num_points=8, noise=0.0
    )

    def apply(params, inputs):
        terms = system.terms(inputs)
        return terms[..., 0] + terms[..., 1:] @ params.weights

    exact = tasks.environments(
        lambda key: AffineParams((), jnp.zeros(4)), apply, pool_shape=(3, 8, 2), num_queries=1,
        num_shots=7,
    )  # fmt: skip
    adapt = camel(exact, num_environments=3, ridge=0.0).adapt
    theta = CamelTheta((), jnp.zeros((3, 4)))

    @jax.jit
    @jax.vmap
    def weights(inputs, labels):
        return adapt(theta, (), data.Pool(inputs, labels), jax.random.key(0)).weights

    found = weights(measured.inputs, measured.labels)
    np.testing.assert_allclose(found, measured.parameters, rtol=1e-8)


def test_parameters_are_read_off_an_affine_image(x64):
    rng = np.random.default_rng(0)
    parameters = rng.normal(size=(9, 2))
    weights = parameters @ rng.normal(size=(2, 3)) + rng.normal(size=3)
    found = jax.jit(identify)(weights[5:], weights[:5], parameters[:5])
    np.testing.assert_allclose(found, parameters[5:], rtol=1e-9)


def test_a_network_is_affine_in_the_weights(x64):
    init, apply = affine_network(2, 3, num_outputs=2, hidden=(4,))
    params = init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (5, 2))
    first, last = params.features
    first, last, inputs = jax.tree.map(np.asarray, (first, last, inputs))
    hidden = np.tanh(inputs @ first["w"] + first["b"])
    terms = (hidden @ last["w"] + last["b"]).reshape(5, 2, 4)
    expected = terms[..., 0] + terms[..., 1:] @ np.asarray(params.weights)
    np.testing.assert_allclose(apply(params, inputs), expected, rtol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_environments must be an integer of at least 1"):
        camel(family(), num_environments=0)
    with pytest.raises(ValueError, match="affine_network: num_features must be"):
        affine_network(2, 0)
    numberless = camel(tasks.quadratic(dim=2), num_environments=2).estimator
    theta = CamelTheta((), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="a task is a .* without `environment`"):
        numberless.estimate(theta, (), (), jax.random.key(0))
