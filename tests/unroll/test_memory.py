import jax
import jax.numpy as jnp
import pytest

from metaopt import unroll
from metaopt.core import StepInfo, System


def doubled(x, y):
    return jnp.concatenate([x, x]) @ y


def test_arguments_and_outputs_are_counted_to_the_byte():
    shapes = (jax.ShapeDtypeStruct((16, 8), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32))
    report = unroll.memory_report(doubled, *shapes)
    assert report.arguments == 4 * (16 * 8 + 8 * 4)
    assert report.outputs == 4 * 32 * 4
    assert report.peak == report.arguments + report.outputs + report.temporary
    assert report.temporary >= 4 * 32 * 8
    arrays = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    assert unroll.memory_report(jax.jit(doubled), *arrays) == report


def test_a_buffer_that_is_given_away_counts_once():
    function = jax.jit(lambda x: x + 1, donate_argnums=0)
    report = unroll.memory_report(function, jax.ShapeDtypeStruct((1024,), jnp.float32))
    assert report.arguments == report.outputs == 4096
    assert report.peak - report.temporary == 4096


def wide_batch():
    """Three products with a batch whose intermediate values are far larger than the parameters."""

    def init(theta, data, key, *, num_steps=None):
        return theta

    def step(theta, state, data, key, *, value_and_grad=jax.value_and_grad):
        def inner_loss(params, data):
            for _ in range(3):
                data = jnp.tanh(data @ params)
            return jnp.mean(data**2)

        value, grads = value_and_grad(inner_loss)(state, data)
        return state - grads, StepInfo(value, jnp.array(False))

    return System(init, step)


def test_the_table_shows_what_mixed_mode_and_remat_save():
    def meta_grad(**settings):
        return jax.grad(unroll.meta_loss(wide_batch(), horizon=16, **settings))

    functions = {
        "plain": meta_grad(),
        "mixed": meta_grad(gradient="mixed"),
        "auto": meta_grad(gradient="auto", remat="auto"),
    }
    args = (jnp.eye(16), jnp.ones((2048, 16)), jax.random.key(0))
    header, *lines = unroll.memory_table(functions, *args).splitlines()
    assert header.split() == ["function", *"temporary MiB peak MiB times less".split()]
    rows = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in lines}
    assert list(rows) == ["plain", "mixed", "auto"]
    assert rows["plain"][2] == 1.0
    for temporary, _, ratio in (rows["mixed"], rows["auto"]):
        assert ratio > 4
        assert ratio == pytest.approx(rows["plain"][0] / temporary, rel=0.01)


def test_an_empty_comparison_is_refused():
    with pytest.raises(ValueError, match="memory_table: functions is empty"):
        unroll.memory_table({})
