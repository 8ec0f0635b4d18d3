import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import (
    LearnedLossTheta,
    MetaCurvatureTheta,
    learned_loss,
    maml,
    meta_curvature,
    npbml,
)
from tests.algorithms.tanh_network import (
    FAMILY,
    apply,
    estimate,
    params,
    perturbed,
    support_set,
    task,
)
from tests.helpers import central_differences, ravel, relative_error

PARTS = ("preconditioner", "loss", "modulation")
SUBSETS = [
    *(
        pytest.param(subset, id="+".join(subset) or "none", marks=pytest.mark.slow)
        for count in range(3)
        for subset in itertools.combinations(PARTS, count)
    ),
    pytest.param(PARTS, id="all"),
]
SETTINGS = {"num_steps": 2, "num_tasks": 2}


def key():
    return jax.random.key(0)


def learner_with(parts, rate=0.05, **settings):
    settings = {"num_features": 2, "hidden": (3,), **SETTINGS, **settings}
    return npbml(FAMILY, apply, optax.sgd(rate), parts=parts, **settings)


@pytest.fixture(scope="module")
def mamls():
    with jax.enable_x64(True):
        return estimate(maml(FAMILY, optax.sgd(0.05), **SETTINGS), params())


@pytest.mark.parametrize("parts", SUBSETS)
def test_whatever_is_on_it_starts_as_maml(x64, mamls, parts):
    learner = learner_with(parts)
    theta = learner.init(key())._replace(params=params())
    ours = estimate(learner, theta)
    np.testing.assert_allclose(ours.loss, mamls.loss, rtol=1e-12)
    assert relative_error(ours.grad.params, mamls.grad) < 1e-12
    for part, field in zip(PARTS, ("factors", "loss", "modulation"), strict=True):
        grads = ravel(getattr(ours.grad, field))
        assert np.any(grads != 0) if part in parts else grads.size == 0


def test_with_one_part_it_is_the_learner_of_that_part(x64):
    support = support_set()
    with_loss = learner_with(("loss",))
    theta = perturbed(with_loss.init(key()))
    other = learned_loss(FAMILY, apply, optax.sgd(0.05), hidden=(3,), **SETTINGS)
    assert (
        relative_error(
            with_loss.adapt(theta, task(), support, key()),
            other.adapt(LearnedLossTheta(theta.params, theta.loss), task(), support, key()),
        )
        < 1e-12
    )
    preconditioned = learner_with(("preconditioner",))
    theta = perturbed(preconditioned.init(key()))
    other = meta_curvature(FAMILY, optax.sgd(0.05), **SETTINGS)
    assert (
        relative_error(
            preconditioned.adapt(theta, task(), support, key()),
            other.adapt(MetaCurvatureTheta(theta.params, theta.factors), task(), support, key()),
        )
        < 1e-12
    )


def silu(x):
    return x / (1 + np.exp(-x))


def test_the_modulation_scales_and_shifts_what_the_layers_compute(x64):
    strength = 0.4
    learner = learner_with(("modulation",), rate=0.0, strength=strength)
    theta = perturbed(learner.init(key()))
    support = support_set()
    adapted = learner.adapt(theta, task(), support, key())

    embed, head = jax.tree.map(np.asarray, theta.modulation)
    pairs = np.concatenate([support.inputs, support.labels], axis=1)
    embedding = (pairs @ embed[0]["w"] + embed[0]["b"]).mean(0)
    hidden = silu(embedding @ head[0]["w"] + head[0]["b"])
    condition = strength * np.tanh(hidden @ head[1]["w"] + head[1]["b"])

    inputs = np.linspace(-1, 1, 7)[:, None]
    x, used = inputs, 0
    for number, layer in enumerate(theta.params):
        size = len(layer["b"])
        shift, scale = condition[used : used + size], condition[used + size : used + 2 * size]
        x = (1 + scale) * (x @ np.asarray(layer["w"])) + np.asarray(layer["b"]) + shift
        x = np.tanh(x) if number == 0 else x
        used += 2 * size
    assert used == len(condition)
    np.testing.assert_allclose(apply(adapted, jnp.asarray(inputs)), x, rtol=1e-10)


def test_the_modulation_is_bounded_whatever_its_networks_say(x64):
    learner = learner_with(("modulation",), rate=0.0, strength=0.3)
    theta = learner.init(key())
    wild = theta._replace(modulation=perturbed(theta.modulation, scale=1e4))
    adapted = learner.adapt(wild, task(), support_set(), key())
    for before, after in zip(theta.params, adapted, strict=True):
        ratio = np.asarray(after["w"] / before["w"])
        shift = np.asarray(after["b"] - before["b"])
        assert np.all(np.abs(ratio - 1) < 0.3 + 1e-12)
        assert np.all(np.abs(shift) < 0.3 + 1e-12)
        np.testing.assert_allclose(np.abs(shift), 0.3)  # the networks do say a lot


def test_the_order_of_the_support_set_does_not_matter(x64):
    learner = learner_with(PARTS)
    theta = perturbed(learner.init(key()))
    support = support_set()
    turned = jax.tree.map(lambda x: x[::-1], support)
    run = jax.jit(learner.adapt)
    first, second = (run(theta, task(), batch, key()) for batch in (support, turned))
    assert relative_error(first, second) < 1e-12


@pytest.mark.slow
def test_agrees_with_central_differences(x64):
    learner = learner_with(PARTS)
    theta = perturbed(learner.init(key()))

    def loss(theta):
        return learner.estimator.estimate(theta, (), (), jax.random.key(14))[0].loss

    assert relative_error(estimate(learner, theta).grad, central_differences(loss, theta)) < 1e-6


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"npbml: parts=\('lose',\) has unknown \['lose'\]"):
        learner_with(("lose",))
    with pytest.raises(ValueError, match="npbml: the modulation needs num_features"):
        learner_with(PARTS, num_features=None)
    with pytest.raises(ValueError, match="npbml: strength must be positive"):
        learner_with(PARTS, strength=0.0)
    with pytest.raises(ValueError, match=r"hidden=\(\) have at least one width"):
        learner_with(PARTS, hidden=())
    odd = learner_with(PARTS, num_features=4)
    with pytest.raises(ValueError, match="npbml: num_features=4, but an input has 1 entries"):
        estimate(odd, odd.init(key()))
