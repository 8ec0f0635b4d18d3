import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import estimators
from metaopt.estimators import _shared
from tests.estimators import toys

THETA = jnp.array([0.3, -0.2])
MAKE = {
    "pes": lambda **k: estimators.pes(toys.linear(0.3), truncation=2, horizon=6, **k),
    "nres": lambda **k: estimators.nres(toys.linear(0.3), truncation=2, horizon=6, **k),
    "truncated_es": lambda **k: estimators.truncated_es(
        toys.linear(0.3), truncation=2, horizon=6, **k
    ),
    "es": lambda **k: estimators.es(toys.linear(0.3), horizon=3, **k),
    "backprop": lambda **k: estimators.backprop(toys.linear(0.3), horizon=3, **k),
    "truncated_backprop": lambda **k: estimators.truncated_backprop(
        toys.linear(0.3), truncation=2, horizon=6, **k
    ),
}


@pytest.mark.compiles
@pytest.mark.parametrize("name", MAKE)
def test_tasks_in_groups_give_the_numbers_of_all_at_once(name):
    results = []
    for at_once in (None, 2):
        estimator = MAKE[name](num_tasks=6, tasks_at_once=at_once)
        state = estimator.init(THETA, (), jax.random.key(0))
        results.append(jax.jit(estimator.estimate)(THETA, state, (), jax.random.key(1)))
    for whole, grouped in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(grouped, whole, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_groups_must_divide_the_tasks(name):
    with pytest.raises(
        ValueError,
        match=f"{name}: tasks_at_once=4 does not divide num_tasks=6; try tasks_at_once=3",
    ):
        MAKE[name](num_tasks=6, tasks_at_once=4)


def test_antithetic_arms_are_mirror_images():
    theta = {"a": jnp.ones((2, 3)), "b": jnp.zeros(4, jnp.bfloat16)}
    eps = _shared.perturbation(theta, 0.1, jax.random.key(0))
    arms = _shared.antithetic(theta, eps)
    np.testing.assert_allclose(arms["a"][0] + arms["a"][1], 2 * theta["a"], rtol=1e-6)
    assert arms["b"].dtype == eps["b"].dtype == jnp.bfloat16
    assert 0.05 < np.std(np.asarray(eps["a"])) < 0.2


def test_empty_and_complex_theta_are_refused():
    with pytest.raises(ValueError, match="es: theta has no arrays"):
        _shared.check_theta("es", {})
    with pytest.raises(TypeError, match=r"es: theta\['a'\] is complex64"):
        _shared.check_theta("es", {"a": jnp.zeros(2, jnp.complex64)})
