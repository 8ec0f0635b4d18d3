import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import learned, tasks
from metaopt.core import TaskFamily
from metaopt.data import Pool
from metaopt.eval import coordinate_check


def sums(width):
    """Every weight has the gradient 1, so descent at rate 1 changes their sum by t · width."""

    def loss(params, task_params, batch, key):
        del task_params, key
        activations = {"sum": params.sum() * batch, "mean": params.mean() * batch, "none": batch}
        return params.sum(), activations

    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jax.random.normal(key, (width,)),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


def test_changes_and_slopes_are_those_of_a_closed_form():
    probe = jnp.array([2.0, -2.0])
    check = coordinate_check(
        sums,
        optax.sgd(1.0),
        probe,
        jax.random.key(0),
        widths=(4, 16, 32),
        steps=(1, 3),
        num_seeds=2,
        activations=lambda aux: aux,
    )
    expected = 2 * np.outer((1, 3), (4, 16, 32))
    np.testing.assert_allclose(check.rms["sum"], expected, rtol=1e-5)
    np.testing.assert_allclose(check.slopes["sum"], 1, rtol=1e-5)
    np.testing.assert_allclose(check.rms["mean"], [[2, 2, 2], [6, 6, 6]], rtol=1e-5)
    np.testing.assert_allclose(check.slopes["mean"], 0, atol=1e-5)
    # What does not move has no logarithm.
    assert not check.rms["none"].any()
    assert np.isnan(check.slopes["none"]).all()
    assert (check.widths, check.steps) == ((4, 16, 32), (1, 3))


@pytest.mark.slow
def test_steps_of_one_size_blow_up_with_the_width_unless_divided_by_it():
    images = jax.random.normal(jax.random.key(0), (32, 5))
    pool = Pool(images, (images[:, 0] > 0).astype(int))
    signs = optax.sign_sgd(0.01)
    scale = learned.scale_by_mup(lambda p: learned.mup_scale(p, learned.mlp_roles(p)))

    def slope(optimizer, standard):
        check = coordinate_check(
            lambda width: tasks.mup_mlp((5,), 2, hidden=(width,) * 2, standard=standard),
            optimizer,
            pool,
            jax.random.key(1),
            widths=(32, 512),
            steps=(4,),
        )
        return check.slopes["1"][0]

    assert abs(slope(optax.chain(signs, scale), standard=False)) < 0.15
    assert slope(signs, standard=True) > 0.5


def test_rejects_bad_settings():
    check = functools.partial(coordinate_check, sums, optax.sgd(1.0), (), jax.random.key(0))
    with pytest.raises(ValueError, match=r"coordinate_check: widths=\(8,\) has no slope"):
        check(widths=(8,))
    with pytest.raises(ValueError, match=r"coordinate_check: steps=\(0, 1\)"):
        check(steps=(0, 1))
    with pytest.raises(ValueError, match=r"coordinate_check: steps=\(\)"):
        check(steps=())
    with pytest.raises(ValueError, match="num_seeds=0"):
        check(num_seeds=0)
