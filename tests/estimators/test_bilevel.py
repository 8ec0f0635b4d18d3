"""What holds for every estimator of bilevel problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators import bilevel
from tests.estimators.bilevel import METHODS, QUADRATIC

# Settings of every method, and of its outer step, with which it converges on the quadratic.
CONSTANT = {"step_exponent": 0.0}
SINGLE = {"step_size": 0.8, **CONSTANT, "system_exponent": 0.0}
SETTINGS = {
    "amigo": {"step_size": 0.8, **CONSTANT},
    "bamm": {**SINGLE, "average_exponent": 0.5},
    "bome": {"step_size": 0.8, "params_step_size": 0.1},
    "bsa": {"step_size": 0.8, **CONSTANT},
    "darts": {"step_size": 0.8},
    "f2sa": {"step_size": 0.8, **CONSTANT},
    "fsla": {**SINGLE, "momentum_exponent": 0.0},
    "mrbo": {"step_size": 0.8, **CONSTANT, "system_step_size": 1.0, "momentum_exponent": 0.0},
    "pbgd": {"step_size": 0.8},
    "pbgd_gradient": {"step_size": 0.8},
    "pzobo": {"step_size": 0.8},
    "saba": {"step_size": 0.3},
    "saba_full": {"step_size": 0.8},
    "sama": {},
    "soba": SINGLE,
    "srba": {"step_size": 0.3},
    "stocbio": {"step_size": 0.8, **CONSTANT, "system_step_size": 1.0},
    "sustain": {"step_size": 0.8, **CONSTANT},
    "ttsa": {"step_size": 0.8, **CONSTANT},
    "vrbo": {"step_size": 0.3, "system_step_size": 1.0},
}
ALL = sorted(set(METHODS) - {"saba_full"})


def test_every_method_is_tested():
    assert set(SETTINGS) == set(METHODS)


def noisy(scale=1.0):
    return QUADRATIC.data(noise=0.1, hessian_noise=0.1, varied=True, scale=scale)


def assert_same(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.compiles
@pytest.mark.parametrize("name", ALL)
def test_a_run_may_be_interrupted_and_survives_numbers_that_are_not_finite(name, x64):
    settings = {"settings": SETTINGS[name], "outer_step": 0.1, "seed": 1}
    whole = bilevel.run(name, noisy(), stop=5, **settings)
    half = bilevel.run(name, noisy(), stop=2, **settings)
    rest = {"theta": half.theta, "state": half.state, **settings}
    assert_same(bilevel.run(name, noisy(), start=2, stop=5, **rest), whole)

    # NaN everywhere: nothing moves but the count.
    broken = bilevel.run(name, noisy(np.nan), start=2, stop=4, **rest)
    assert broken.estimate.info.nonfinite == 1
    np.testing.assert_array_equal(bilevel.x_of(broken.estimate.grad), np.zeros(3))
    assert_same(broken.theta, half.theta)
    assert broken.state.count == 4
    assert_same(broken.state._replace(count=half.state.count), half.state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_runs_is_separate_runs(name, x64):
    settings = {"settings": SETTINGS[name], "outer_step": 0.1, "stop": 5}
    rows = [bilevel.arguments(name, noisy(), seed=seed, **settings) for seed in range(8)]
    shared = rows[0][4:]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[row[:4] for row in rows])
    together = jax.jit(jax.vmap(lambda *lane: bilevel._loop(name, *lane, *shared)))(*stacked)
    for seed in range(8):
        alone = bilevel.run(name, noisy(), seed=seed, **settings)
        assert_same(jax.tree.map(lambda x, i=seed: x[i], together), alone)
    assert len(np.unique(bilevel.x_of(together.theta)[:, 0])) == 8


IMPLICIT = ["amigo", "fsla", "mrbo", "saba", "soba", "srba", "stocbio", "vrbo"]


@pytest.mark.parametrize("name", IMPLICIT)
def test_the_hypergradient_vanishes_in_the_end(name, x64):
    # Those that reduce the variance of batches do so on data whose rows differ.
    varied = name in ("saba", "srba", "vrbo")
    run = bilevel.run(
        name,
        QUADRATIC.data(varied=varied),
        settings=SETTINGS[name],
        outer_step=0.1,
        stop=2_000,
    )
    x = bilevel.x_of(run.theta)
    assert np.linalg.norm(bilevel.hypergradient(x)) < 1e-6
    assert np.linalg.norm(bilevel.z_of(run.state.params) - bilevel.solution(x)) < 1e-6


def test_the_averages_of_bamm_die_out_and_with_them_its_bias(x64):
    norms = []
    for stop in (1_000, 16_000):
        run = bilevel.run(
            "bamm", QUADRATIC.data(), settings=SETTINGS["bamm"], outer_step=0.1, stop=stop
        )
        norms.append(np.linalg.norm(bilevel.hypergradient(bilevel.x_of(run.theta))))
    # μ falls by √16.
    assert 3.5 < norms[0] / norms[1] < 4.5


@pytest.mark.compiles
def test_on_full_batches_saba_and_srba_are_soba(x64):
    common = {"outer_step": 0.2, "stop": 7}
    steps = {"step_size": 0.4, "system_step_size": 0.6}
    constant = {"step_exponent": 0.0, "system_exponent": 0.0}
    expected = bilevel.run("soba", QUADRATIC.data(), settings=steps | constant, **common)
    for name in ("saba_full", "srba"):
        got = bilevel.run(name, QUADRATIC.data(), settings=steps, **common)
        for x, y in [
            (bilevel.x_of(got.theta), bilevel.x_of(expected.theta)),
            (bilevel.z_of(got.state.params), bilevel.z_of(expected.state.params)),
            (bilevel.z_of(got.state.u), bilevel.z_of(expected.state.u)),
        ]:
            np.testing.assert_allclose(x, y, rtol=1e-10)


def test_bamm_without_an_average_is_soba(x64):
    common = {"outer_step": 0.2, "stop": 7}
    expected = bilevel.run("soba", QUADRATIC.data(), settings=SETTINGS["soba"], **common)
    got = bilevel.run(
        "bamm", QUADRATIC.data(), settings=SETTINGS["bamm"] | {"average": 0.0}, **common
    )
    np.testing.assert_allclose(bilevel.x_of(got.theta), bilevel.x_of(expected.theta), rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_trees_of_several_dtypes_keep_them(name):
    narrow, wide = jnp.bfloat16, jnp.float32
    theta = [jnp.zeros(2, narrow), {"s": jnp.zeros((), wide)}, jnp.zeros(0, narrow)]
    params = {"a": jnp.zeros(2, narrow), "b": jnp.zeros((), wide)}
    problem = bilevel.PROBLEM._replace(init=lambda key: params)
    estimator = METHODS[name](problem, **SETTINGS[name])
    data, key = QUADRATIC.data(dtype=wide), jax.random.key(0)
    state = jax.eval_shape(estimator.init, theta, data, key)
    estimate, new = jax.eval_shape(estimator.estimate, theta, state, data, key)
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
    kinds = [(x.shape, x.dtype) for x in jax.tree.leaves(theta)]
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(estimate.grad)] == kinds
    assert jax.tree.structure(estimate.grad) == jax.tree.structure(theta)
