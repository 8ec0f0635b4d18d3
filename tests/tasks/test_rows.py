"""Every public factory has a row, and every family keeps the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import ravel, relative_error
from tests.registry import HEAVY_TASKS
from tests.tasks.rows import TASK_ROWS

TASK_IDS = [f"{name}-{i}" for i, (name, _) in enumerate(TASK_ROWS)]
FAMILIES = {
    name: row
    for name, row in TASK_ROWS
    if name not in ("clip_classification", "relative_log", "velo_classification")
}
# Long to compile; the conformance tests cover them as well.
HEAVY = (
    "convnet", "environments", "es_gradient", "gradient_noise", "mup_mlp", "normalised_gradient",
    "random_directions", "reduced_batch", "rescale", "rnn_lm", "scaled_init", "transformer_lm",
    "vae", "vision_transformer", *HEAVY_TASKS,
)  # fmt: skip


def run(family, pool, key):
    """Draws a task and evaluates value, gradient and normalised value once."""
    key_task, key_params, key_batch, key_loss = jax.random.split(key, 4)
    task_params = family.sample(key_task)
    params = family.init(task_params, key_params)
    batch = family.batch(pool, task_params, key_batch)
    (loss, aux), grads = jax.value_and_grad(family.loss, has_aux=True)(
        params, task_params, batch, key_loss
    )
    return loss, grads, params, aux, family.normalise(loss, task_params)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.compiles] * (name in HEAVY)) for name in FAMILIES],
)
def test_vmap_over_tasks_equals_one_task_at_a_time(name):
    family, pool = FAMILIES[name]()
    keys = jax.random.split(jax.random.key(1), 3)

    @jax.jit
    def both(pool, keys):
        together = jax.vmap(lambda key: run(family, pool, key))(keys)
        return together, run(family, pool, jax.random.clone(keys)[2])

    together, one = both(pool, keys)
    # bfloat16 keeps 8 bits, and the two programs round at different places.
    tolerance = 0.05 if name == "bfloat16" else 1e-5
    last = jax.tree.map(lambda x: x[2], together)
    for actual, expected in zip(last, one, strict=True):
        if jax.tree.leaves(expected):
            np.testing.assert_allclose(
                ravel(actual), ravel(expected), rtol=tolerance, atol=tolerance
            )
    loss, grads, params, *_ = one
    assert loss.dtype == jnp.float32
    assert jax.tree.map(jnp.result_type, grads) == jax.tree.map(jnp.result_type, params)
    assert np.isfinite(ravel(grads)).all()


@pytest.mark.parametrize(("name", "row"), TASK_ROWS, ids=TASK_IDS)
def test_normalised_loss_is_finite_for_any_loss(name, row):
    family, _ = row()
    task_params = family.sample(jax.random.key(0))
    for dtype in (jnp.float32, jnp.bfloat16):
        losses = jnp.array([0.0, 1.0, -1.0, 3e38, jnp.inf, -jnp.inf, jnp.nan], dtype)
        values = jax.vmap(family.normalise, (0, None))(losses, task_params)
        assert values.dtype == dtype
        assert np.isfinite(np.asarray(values, np.float64)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "row"), TASK_ROWS, ids=TASK_IDS)
def test_float64_is_kept(name, row):
    family, pool = row()
    shapes = jax.eval_shape(lambda pool, key: run(family, pool, key), pool, jax.random.key(0))
    loss, grads, params, *_ = shapes
    expected = jnp.float32 if name == "bfloat16" else jnp.float64
    assert loss.dtype == expected
    assert {x.dtype for x in jax.tree.leaves(grads)} == {x.dtype for x in jax.tree.leaves(params)}


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_a_bfloat16_task_is_the_float32_task_up_to_rounding(name):
    family, pool = FAMILIES[name]()
    low = tasks.bfloat16(family)

    @jax.jit
    def values(pool, key):
        loss, grads, params, *_ = run(low, pool, key)
        return loss, grads, run(family, pool, jax.random.clone(key))[:2], params

    loss, grads, (expected_loss, expected_grads), params = values(pool, jax.random.key(3))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    # A handful of roundings of relative size 2⁻⁸.
    assert abs(loss - expected_loss) < 8 * 2**-8 * max(1.0, float(expected_loss))
    assert relative_error(grads, expected_grads) < 16 * 2**-8
