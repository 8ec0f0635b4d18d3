import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import LowRank, gradient_regularisation, maml
from metaopt.algorithms._gradient_regularisation import regularise
from tests.algorithms.tanh_network import FAMILY, estimate, params, perturbed, support_set, task
from tests.helpers import central_differences, relative_error

SETTINGS = {"num_features": 2, "rank": 2, "hidden": (3,), "num_steps": 2, "num_tasks": 2}
GRADS = {"matrix": np.array([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]]), "scalar": np.array(0.4)}
TURNS = {
    "matrix": LowRank(np.array([[0.2], [-0.5], [1.0]]), np.array([[0.7, 0.1, -0.4]])),
    "scalar": LowRank(np.array([[0.3]]), np.array([[-0.6]])),
}


def learner(**settings):
    return gradient_regularisation(FAMILY, optax.sgd(0.05), **(SETTINGS | settings))


def regularised(z, grads=GRADS):
    run = jax.jit(lambda grads: regularise(TURNS, z).update(grads, optax.EmptyState())[0])
    return jax.tree.map(np.asarray, run(grads))


def test_a_gate_of_one_is_the_identity_and_of_zero_keeps_norms_by_hand(x64):
    kept, turned = regularised(1.0), regularised(0.0)
    for name, grad in GRADS.items():
        np.testing.assert_allclose(kept[name], grad, rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(turned[name]), np.linalg.norm(grad), rtol=1e-12)
    assert np.abs(turned["matrix"] - GRADS["matrix"]).max() > 0.05


def test_a_regularised_gradient_agrees_with_numpy(x64):
    grad, (v, u) = GRADS["matrix"], TURNS["matrix"]
    hidden = grad @ v
    turned = grad + (hidden / (1 + np.exp(-hidden))) @ u
    turned *= np.linalg.norm(grad) / np.linalg.norm(turned)
    np.testing.assert_allclose(regularised(0.3)["matrix"], 0.7 * turned + 0.3 * grad, rtol=1e-12)


def test_a_gradient_of_zero_stays_and_has_a_finite_derivative_by_hand():
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    assert all(np.all(x == 0) for x in jax.tree.leaves(regularised(0.3, zero)))
    slope = jax.grad(
        lambda grads: sum(
            map(jnp.sum, jax.tree.leaves(regularise(TURNS, 0.3).update(grads, ())[0]))
        )
    )(zero)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))


@pytest.mark.parametrize("gradient", ["first_order", "reverse"])
def test_at_first_it_is_maml(x64, gradient):
    ours = learner(gradient=gradient)
    start = ours.init(jax.random.key(0))._replace(params=params())
    found = estimate(ours, start)
    plain = {"num_steps": 2, "num_tasks": 2, "gradient": gradient}
    expected = estimate(maml(FAMILY, optax.sgd(0.05), **plain), params())
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12)
    assert relative_error(found.grad.params, expected.grad) < 1e-12
    assert all(np.any(turn.u != 0) for turn in _turns(found.grad))


def test_the_gate_is_open_as_far_as_the_support_set_says(x64):
    ours = learner(num_steps=1)
    theta = perturbed(ours.init(jax.random.key(0)))
    support = support_set()
    adapted = jax.jit(ours.adapt)(theta, task(), support, jax.random.key(1))

    first, last = jax.tree.map(np.asarray, theta.gate)
    examples = np.concatenate([support.inputs, support.labels], axis=1)
    embedding = (examples @ first[0]["w"] + first[0]["b"]).mean(axis=0)
    z = 1 / (1 + np.exp(-(embedding @ last[0]["w"] + last[0]["b"])[0]))
    grads = jax.grad(lambda p: FAMILY.loss(p, task(), support, jax.random.key(1))[0])(theta.params)
    steps, _ = regularise(theta.turns, z).update(grads, optax.EmptyState())
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, theta.params, steps)
    assert relative_error(adapted, expected) < 1e-10


def test_meta_gradients_agree_with_central_differences(x64):
    ours = learner(gradient="reverse", num_tasks=1)
    theta = perturbed(ours.init(jax.random.key(0)))
    found = estimate(ours, theta)
    run = jax.jit(lambda theta: ours.estimator.estimate(theta, (), (), jax.random.key(14))[0].loss)
    assert relative_error(found.grad, central_differences(run, theta)) < 1e-6


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="gradient_regularisation: rank must be"):
        learner(rank=0)
    with pytest.raises(ValueError, match="gradient_regularisation: num_steps must be"):
        learner(num_steps=0)
    other = learner(num_features=3)
    theta = other.init(jax.random.key(0))
    with pytest.raises(ValueError, match="gradient_regularisation: num_features=3, but an input"):
        estimate(other, theta)


def _turns(theta):
    return [x for x in jax.tree.leaves(theta.turns, is_leaf=lambda x: isinstance(x, LowRank))]
