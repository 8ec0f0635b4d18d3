import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.algorithms import (
    MetaCurvatureTheta,
    Warped,
    linear_warps,
    maml,
    meta_curvature,
    t_net,
)
from tests.algorithms.tanh_network import (
    FAMILY,
    estimate,
    params,
    perturbed,
    support_set,
    task,
)
from tests.helpers import relative_error

SETTINGS = {"num_steps": 2, "num_tasks": 2}


def identity():
    return tuple({"w": jnp.eye(layer["w"].shape[1]), "b": ()} for layer in params())


@pytest.mark.compiles
def test_identity_maps_are_maml(x64):
    learner = t_net(FAMILY, optax.sgd(0.05), **SETTINGS)
    theta = learner.init(jax.random.key(0))
    assert relative_error(theta.warp, identity()) == 0
    ours = estimate(learner, Warped(params(), theta.warp))
    theirs = estimate(maml(FAMILY, optax.sgd(0.05), **SETTINGS), params())
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert relative_error(ours.grad.params, theirs.grad) < 1e-12
    assert all(np.any(x != 0) for x in jax.tree.leaves(ours.grad.warp))


def test_the_maps_are_a_meta_curvature_of_the_mapped_weights(x64):
    warp = perturbed(identity())
    mapped = tuple(
        {"w": layer["w"] @ t["w"], "b": layer["b"]} for layer, t in zip(params(), warp, strict=True)
    )
    metric = tuple(
        {"w": (jnp.eye(len(layer["w"])), t["w"].T @ t["w"]), "b": (jnp.ones_like(layer["b"]),)}
        for layer, t in zip(params(), warp, strict=True)
    )
    support = support_set()
    ours = t_net(FAMILY, optax.sgd(0.05), num_steps=3)
    theirs = meta_curvature(FAMILY, optax.sgd(0.05), num_steps=3)
    key = jax.random.key(0)
    first = ours.adapt(Warped(params(), warp), task(), support, key)
    second = theirs.adapt(MetaCurvatureTheta(mapped, metric), task(), support, key)
    assert relative_error(first, second) < 1e-12
    assert relative_error(first, mapped) > 1e-2  # it moved


def test_warped_and_adapted_parameters_have_the_loss_of_the_family(x64):
    warped = Warped(params(), perturbed(identity()))
    family, support, key = linear_warps(FAMILY), support_set(), jax.random.key(0)
    still = t_net(FAMILY, optax.sgd(0.0), num_steps=1).adapt(warped, task(), support, key)
    ours, _ = family.loss(warped, task(), support, key)
    np.testing.assert_allclose(ours, FAMILY.loss(still, task(), support, key)[0], rtol=1e-12)
