import functools

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.estimators._hypergradient import neumann, random_neumann
from tests.estimators import bilevel
from tests.estimators.bilevel import QUADRATIC, A, E
from tests.helpers import relative_error, standard_errors

RATE, TERMS = 0.4, 6


@functools.cache
def samples(make, terms):
    """u = P b on independent batches of a noisy Hessian, and the products taken."""
    problem, data = bilevel.PROBLEM, QUADRATIC.data(hessian_noise=0.3)
    inverse = make(problem, step_size=RATE, num_terms=terms)
    params, theta = bilevel.params_of(bilevel.Z0), bilevel.theta_of(bilevel.X0)

    def one(key):
        u, products = inverse(params, theta, bilevel.params_of(E), data, key)
        return jnp.append(u["a"], u["b"]), jnp.asarray(products)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 10_000))


def test_the_truncated_series_has_its_closed_form_in_expectation(x64):
    u, products = samples(neumann, TERMS)
    expected = bilevel.neumann(A, E, RATE, TERMS)
    assert standard_errors(u, expected) < 4.5
    assert standard_errors(u, 1.1 * expected) > 4.5
    assert np.all(products == TERMS)
    # What is missing of the inverse has a closed form too.
    exact = np.linalg.solve(A, E)
    missing = np.linalg.matrix_power(np.eye(3) - RATE * A, TERMS + 1) @ exact
    assert relative_error(expected + missing, exact) < 1e-12


def test_one_random_term_is_unbiased_for_the_series(x64):
    # Q terms are those of a truncated series with Q − 1 products.
    u, products = samples(random_neumann, TERMS)
    series, _ = samples(neumann, TERMS - 1)
    expected = bilevel.neumann(A, E, RATE, TERMS - 1)
    assert standard_errors(u, expected) < 4.5
    assert standard_errors(u, 1.1 * expected) > 4.5
    assert standard_errors(u - series, np.zeros(3)) < 4.5
    assert np.all(np.std(u, axis=0) > 3 * np.std(series, axis=0))
    counts = np.bincount(products, minlength=TERMS)
    assert counts.shape == (TERMS,)
    assert standard_errors(products, (TERMS - 1) / 2) < 4.5
