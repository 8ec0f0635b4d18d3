import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from metaopt.algorithms import Modulation, meta_modulation, modulate, prototypes
from tests.algorithms.embeddings import embed, family, pool
from tests.helpers import central_differences, ravel, relative_error, standard_errors


def above(body, hidden):
    return jnp.sin(hidden @ body.T)


def whole(body, inputs):
    return above(body, embed(body, inputs))


def learner(**settings):
    settings = {"num_features": 5, "num_samples": 2, "num_tasks": 2, **settings}
    return meta_modulation(family(whole), embed, above, **settings)


def test_the_divergence_is_zero_at_the_prior_and_elsewhere_an_integral(x64):
    prior = Modulation(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    assert prior.divergence() == 0
    mean, log_variance = 0.7, -0.9
    one = Modulation(jnp.zeros((2, 1)).at[0].set(mean), jnp.zeros((2, 1)).at[0].set(log_variance))
    p, q = scipy.stats.norm(mean, np.exp(log_variance / 2)), scipy.stats.norm()
    expected = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -10, 10)[0]
    np.testing.assert_allclose(one.divergence(), expected, rtol=1e-8)


def test_without_variance_it_is_a_scale_and_a_shift():
    hidden = jax.random.normal(jax.random.key(0), (4, 3))
    mean = jax.random.normal(jax.random.key(1), (2, 3))
    still = Modulation(mean, jnp.full((2, 3), -jnp.inf))
    expected = (1 + np.asarray(mean)[0]) * np.asarray(hidden) + np.asarray(mean)[1]
    np.testing.assert_allclose(modulate(hidden, still, jax.random.key(2)), expected, rtol=1e-6)


def test_draws_have_the_mean_and_the_variance_asked_for(x64):
    modulation = Modulation(jnp.array([[0.5], [-1.0]]), jnp.log(jnp.array([[0.04], [0.25]])))
    keys = jax.random.split(jax.random.key(0), 4000)
    ends = jnp.array([[0.0], [1.0]])
    rows = np.asarray(jax.jit(jax.vmap(lambda key: modulate(ends, modulation, key)))(keys))[..., 0]
    shift, scale = rows[:, 0], rows[:, 1] - rows[:, 0]
    moments = np.stack([scale, shift, (scale - 1.5) ** 2, (shift + 1) ** 2], axis=1)
    assert standard_errors(moments, [1.5, -1.0, 0.04, 0.25]) < 4.5
    assert standard_errors(moments, [1.5, -1.0, 0.2, 0.5]) > 4.5


def test_without_variance_and_penalty_it_is_twice_the_loss_of_prototypes(x64):
    """At mean 0 both losses are those of the unmodulated task."""
    made = learner(log_variance=-1e4, penalty=0.0, num_tasks=1)
    theta = made.init(jax.random.key(1))
    alone = learner(log_variance=-1e4, penalty=0.0, num_tasks=1, original=0.0)
    both, one = (
        jax.jit(x.estimator.estimate)(theta, (), pool(), jax.random.key(2))[0]
        for x in (made, alone)
    )
    np.testing.assert_allclose(both.loss, 2 * one.loss, rtol=1e-10)
    assert relative_error(both.grad.body, 2 * one.grad.body) < 1e-10


def test_the_meta_gradient_agrees_with_central_differences(x64):
    made = learner(penalty=0.1, log_variance=-2.0)
    theta = made.init(jax.random.key(1))
    theta = theta._replace(w=0.1 * jax.random.normal(jax.random.key(3), theta.w.shape))

    def estimate(theta):
        return made.estimator.estimate(theta, (), pool(), jax.random.key(2))[0]

    differences = central_differences(lambda theta: estimate(theta).loss, theta)
    assert relative_error(ravel(jax.jit(estimate)(theta).grad), differences) < 1e-6


def test_adaptation_is_that_of_prototypes():
    made = learner()
    theta = made.init(jax.random.key(1))
    task = family().sample(jax.random.key(2))
    support = family().batch(pool().inner, task, jax.random.key(3))
    params = made.adapt(theta, task, support, jax.random.key(4))
    plain = prototypes(family(whole), whole).adapt(theta.body, task, support, jax.random.key(4))
    assert relative_error(params, plain) < 1e-7


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
        learner(num_samples=0)
