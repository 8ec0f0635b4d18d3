import jax
import jax.numpy as jnp

from metaopt import data, tasks
from metaopt.tasks._cost import operations, step_operations

LEFT, RIGHT = jnp.ones((3, 4)), jnp.ones((4, 5))


def test_products_count_two_operations_per_term():
    assert operations(lambda x, y: x @ y, LEFT, RIGHT) == 2 * 3 * 4 * 5


def test_loops_count_every_round_and_branches_the_dearest():
    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ jnp.ones((4, 4)), None), x, None, length=7)[0]

    one = operations(lambda x: x @ jnp.ones((4, 4)), LEFT)
    assert operations(loop, LEFT) >= 7 * 2 * 3 * 4 * 4
    assert operations(loop, LEFT) <= 7 * one + 50

    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ RIGHT, lambda x: x[:, :1] + RIGHT[:3], x)

    assert 2 * 3 * 4 * 5 <= operations(branches, LEFT) < 2 * 2 * 3 * 4 * 5


def test_a_step_of_a_perceptron_is_three_passes_through_its_products():
    wide = tasks.mlp((64,), 10, hidden=(32,), batch_size=8)
    pool = data.Pool(jnp.zeros((20, 64)), jnp.zeros(20, int))
    # The gradient by the inputs of the first layer is not needed.
    products = 2 * 8 * (2 * 64 * 32 + 3 * 32 * 10)
    assert products < step_operations(wide, pool) < 1.3 * products
