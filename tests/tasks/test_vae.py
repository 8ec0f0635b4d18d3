import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from tests.helpers import central_differences, relative_error, standard_errors
from tests.tasks.training import losses_of_adam


def pool_of(inputs):
    return data.Pool(jnp.asarray(inputs), jnp.zeros(len(inputs), int))


@pytest.mark.usefixtures("x64")
def test_the_bound_is_tight_at_the_exact_posterior_of_a_linear_model():
    # x = W z + b + noise · e with orthogonal columns in W: the posterior of z is Gaussian with
    # variance noise² / (|w|² + noise²), and -ln p(x) is that of N(b, W Wᵀ + noise² I).
    noise, size, latent = 0.5, 3, 2
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(rng.normal(size=(size, latent)))[0] * [1.5, 0.7]
    shift, x = rng.normal(size=size), rng.normal(size=(1, size))
    variance = noise**2 / ((columns**2).sum(0) + noise**2)
    to_mean = columns * variance / noise**2
    params = {
        "encoder": (
            {
                "w": jnp.asarray(np.hstack([to_mean, np.zeros((size, latent))])),
                "b": jnp.asarray(np.concatenate([-shift @ to_mean, np.log(variance)])),
            },
        ),
        "decoder": ({"w": jnp.asarray(columns.T), "b": jnp.asarray(shift)},),
    }
    covariance = columns @ columns.T + noise**2 * np.eye(size)
    centred = (x - shift)[0]
    log_evidence = -0.5 * (
        centred @ np.linalg.solve(covariance, centred)
        + np.linalg.slogdet(covariance)[1]
        + size * math.log(2 * math.pi)
    )
    constant = 0.5 * math.log(2 * math.pi * noise**2)  # per pixel, not part of the loss
    expected = -log_evidence / size - constant

    family = tasks.vae((size,), hidden=(), latent=latent, likelihood="gaussian", noise=noise)

    @jax.jit
    def sample_losses(params, keys):
        return jax.vmap(lambda key: family.loss(params, (), pool_of(x), key)[0])(keys)

    keys = jax.random.split(jax.random.key(0), 20_000)
    losses = sample_losses(params, keys)
    assert standard_errors(losses, expected) < 4
    assert standard_errors(losses, 1.01 * expected) > 4
    # Any other posterior leaves a gap of KL(q ‖ p(z | x)): here the means are off by δ.
    delta = np.array([0.3, -0.2])
    encoder = params["encoder"][0]
    worse = encoder["b"] + np.concatenate([delta, np.zeros(latent)])
    params["encoder"] = ({"w": encoder["w"], "b": worse},)
    gap = 0.5 * (delta**2 / variance).sum() / size
    losses = sample_losses(params, jax.random.clone(keys))
    assert standard_errors(losses, expected + gap) < 4
    assert standard_errors(losses, expected) > 4


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_the_bernoulli_loss_and_its_terms_match_numpy():
    family = tasks.vae((2, 3), hidden=(5, 4), latent=2)
    inputs = jax.random.uniform(jax.random.key(0), (4, 2, 3))
    params = jax.tree.map(lambda p: p + 0.1, family.init((), jax.random.key(1)))
    key = jax.random.key(2)
    eps = np.asarray(jax.random.normal(jax.random.clone(key), (4, 2)))

    def dense(layers, x):
        layers = jax.tree.map(np.asarray, layers)
        for layer in layers[:-1]:
            x = np.tanh(x @ layer["w"] + layer["b"])
        return x @ layers[-1]["w"] + layers[-1]["b"]

    x = np.asarray(inputs).reshape(4, 6)
    mean, log_variance = np.split(dense(params["encoder"], x), 2, axis=1)
    guess = 1 / (1 + np.exp(-dense(params["decoder"], mean + np.exp(log_variance / 2) * eps)))
    surprise = -(x * np.log(guess) + (1 - x) * np.log(1 - guess)).sum(1).mean() / 6
    divergence = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1).mean() / 6
    loss, terms = family.loss(params, (), pool_of(inputs), key)
    np.testing.assert_allclose(terms.reconstruction, surprise, rtol=1e-12)
    np.testing.assert_allclose(terms.divergence, divergence, rtol=1e-12)
    np.testing.assert_allclose(loss, surprise + divergence, rtol=1e-12)
    assert {len(params["encoder"]), len(params["decoder"])} == {3}
    assert params["decoder"][0]["w"].shape == (2, 4)


@pytest.mark.usefixtures("x64")
def test_the_divergence_is_that_of_samples():
    # KL(q ‖ N(0, I)) as the mean of ln q(z) - ln N(z; 0, I) over draws from q.
    mean, deviation = np.array([0.4, -1.0]), np.array([0.5, 1.3])
    family = tasks.vae((1,), hidden=(), latent=2, likelihood="gaussian")
    bias = np.concatenate([mean, 2 * np.log(deviation)])
    params = {
        "encoder": ({"w": jnp.zeros((1, 4)), "b": jnp.asarray(bias)},),
        "decoder": ({"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)},),
    }
    _, terms = family.loss(params, (), pool_of(np.zeros((1, 1))), jax.random.key(0))
    eps = np.random.default_rng(0).normal(size=(20_000, 2))
    z = mean + deviation * eps
    samples = (0.5 * z**2 - 0.5 * eps**2 - np.log(deviation)).sum(1)
    assert standard_errors(samples, terms.divergence) < 4
    assert standard_errors(samples, 1.05 * terms.divergence) > 4


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_the_gradient_through_the_noise_matches_central_differences():
    family = tasks.vae((3,), hidden=(2,), latent=2)
    pool = pool_of(jax.random.uniform(jax.random.key(0), (3, 3)))
    params, key = family.init((), jax.random.key(1)), jax.random.key(2)

    def loss(params):
        return family.loss(params, (), pool, jax.random.clone(key))[0]

    assert relative_error(jax.grad(loss)(params), central_differences(loss, params)) < 1e-6


@pytest.mark.parametrize(
    ("likelihood", "reference"),
    [
        ("bernoulli", math.log(2)),
        pytest.param("gaussian", 0.125 / 0.3**2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.compiles
def test_adam_goes_below_the_loss_of_zero_weights_on_digits(likelihood, reference):
    family = tasks.vae((8, 8, 1), hidden=(16,), latent=4, likelihood=likelihood, batch_size=32)
    losses = losses_of_adam(family, data.digits().train, num_steps=150)
    assert losses[-20:].mean() < 0.75 * min(reference, losses[0])
    normalised = family.normalise(jnp.array(reference), ())
    np.testing.assert_allclose(normalised, math.log(1.001), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "laplace"}, "likelihood='laplace' is unknown; choose from"),
        ({"latent": 0}, "latent=0 is below 1"),
        ({"noise": 0.0}, "noise=0.0 is not positive"),
        ({"hidden": (0,)}, r"hidden=\(0,\) has a width below 1"),
        ({"batch_size": 0}, "batch_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"vae: {message}"):
        tasks.vae((4,), **settings)
