import jax
import numpy as np
import optax
import optax.contrib
import pytest

from metaopt import optimizers
from tests.optimizers import test_rules
from tests.optimizers.rules import OF_OPTAX, Rule

RENAMED = {"optimistic_adam": "optimistic_adam_v2"}


def original(name):
    name = RENAMED.get(name, name)
    return getattr(optax, name, None) or getattr(optax.contrib, name)


@pytest.mark.parametrize("name", ["adam", "dog", "muon"])
def test_updates_are_those_of_optax(name):
    rule = Rule(name, getattr(optimizers, name))
    params, slopes = test_rules.steps_of(test_rules.SHAPES, 3)
    ours, theirs = jax.jit(
        lambda p, s: [
            test_rules.trajectory(make(0.1), rule, s, p)
            for make in (getattr(optimizers, name), original(name))
        ]
    )(params, slopes)
    for leaf in params:
        np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=1e-6)


def test_all_names_are_those_of_a_rule_of_optax():
    assert len(OF_OPTAX) > 30
    for name in OF_OPTAX:
        assert getattr(optimizers, name).__wrapped__ is original(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_OPTAX)
def test_meta_gradients_are_finite_where_gradients_vanish_or_are_huge(name):
    factory = getattr(optimizers, name)

    def make(rate):
        return factory(max_learning_rate=rate) if name == "polyak_sgd" else factory(rate)

    rule = Rule(name, make, lambda loss, params: {"value": loss(params)})
    test_rules.finite_slopes(rule)


def test_without_the_guard_such_a_meta_gradient_is_not_finite():
    rule = Rule("adam", optax.adam)
    with pytest.raises(AssertionError, match="dead"):
        test_rules.finite_slopes(rule)
