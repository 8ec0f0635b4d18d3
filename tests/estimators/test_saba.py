import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.core import Split
from metaopt.estimators import saba
from tests.estimators import bilevel
from tests.estimators.bilevel import CURVED, ROWS

SETTINGS = {"step_size": 0.4, "system_step_size": 0.7}
BATCHES = ROWS // 2


def batch_values(data, z, u, x):
    """Per batch: (∇_z g, H u, J u) and (∇_z f, ∇_θ f), `[batches, 3]` each."""

    def means(pool):
        return np.asarray(pool["extra"]).reshape(BATCHES, 2, 2, 3).mean(axis=1)

    inner, outer = means(data.inner), means(data.outer)
    ones = np.ones((BATCHES, 1))
    return (
        CURVED.g_z(z, x) + inner[:, 0] + inner[:, 1] * z,
        CURVED.hessian(z, x) @ u + inner[:, 1] * u,
        ones * (CURVED.cross(z, x) @ u),
        CURVED.f_z(z, x) + outer[:, 0] + outer[:, 1] * z,
        ones * CURVED.f_x(z, x),
    )


def table(state):
    """The five tables, `[batches, 3]` each."""
    gradient, hessian, mixed = state.inner.values
    outer_params, outer_theta = state.outer.values
    z_of, x_of = jax.vmap(lambda p: jnp.concatenate([p["a"], p["b"][None]])), bilevel_x
    return [z_of(gradient), z_of(hessian), x_of(mixed), z_of(outer_params), x_of(outer_theta)]


def bilevel_x(stack):
    return np.concatenate([stack[0], np.asarray(stack[1]["s"])[:, None]], axis=1)


def test_steps_on_batches_are_those_of_the_equations(x64):
    data = CURVED.data(varied=True)
    x, z, u, theta, state = bilevel.X0, bilevel.Z0, np.zeros(3), bilevel.theta_of(bilevel.X0), None
    tables = [np.array(t) for t in batch_values(data, z, u, x)]
    drawn = set()
    for k in range(6):
        theta, state, estimate = bilevel.run(
            "saba", data, settings=SETTINGS, outer_step=0.2, theta=theta, state=state,
            start=k, stop=k + 1,
        )  # fmt: skip
        values = batch_values(data, z, u, x)
        # One row of the inner and one of the outer tables may change: find which was drawn.
        found = table(state)
        row = _drawn([(values[i], tables[i], found[i]) for i in range(3)])
        column = _drawn([(values[i], tables[i], found[i]) for i in range(3, 5)])
        drawn.add((row, column))
        moves = []
        for i, index in enumerate((row, row, row, column, column)):
            change = values[i][index] - tables[i][index]
            moves.append(change + tables[i].mean(axis=0))
            tables[i][index] = values[i][index]
            np.testing.assert_allclose(found[i], tables[i], rtol=1e-10, atol=1e-13)
        direction = moves[4] - moves[2]
        z, u = z - 0.4 * moves[0], u - 0.7 * (moves[1] - moves[3])
        np.testing.assert_allclose(bilevel.x_of(estimate.grad), direction, rtol=1e-10)
        np.testing.assert_allclose(bilevel.z_of(state.params), z, rtol=1e-10)
        np.testing.assert_allclose(bilevel.z_of(state.u), u, rtol=1e-10)
        x = x - 0.2 * direction
    assert len(drawn) > 2
    assert tuple(int(x) for x in estimate.info.oracles) == (1, 1, 1, 1)


def _drawn(triples):
    """The batch with whose new values the old tables become the found ones."""

    def matches(index):
        return all(
            np.allclose(found[index], new[index], rtol=1e-9)
            and np.allclose(np.delete(found, index, 0), np.delete(old, index, 0), rtol=1e-9)
            for new, old, found in triples
        )

    candidates = [index for index in range(BATCHES) if matches(index)]
    assert candidates, "no batch explains the tables"
    return candidates[0]


def test_tables_start_from_zero_on_request(x64):
    estimator = saba(bilevel.PROBLEM, batch_size=2, warm=False)
    state = estimator.init(bilevel.theta_of(bilevel.X0), CURVED.data(), jax.random.key(0))
    assert all(not np.any(t) for t in table(state))


def test_bad_settings_and_data_are_refused():
    estimator = saba(bilevel.PROBLEM, batch_size=3)
    with pytest.raises(ValueError, match=r"saba: batch_size=3 does not divide .* try batch_size=2"):
        estimator.init(bilevel.theta_of(bilevel.X0), CURVED.data(), jax.random.key(0))
    with pytest.raises(ValueError, match="saba: data is a tuple"):
        estimator.init(bilevel.theta_of(bilevel.X0), (), jax.random.key(0))
    pools = Split({"a": jnp.ones(3), "b": jnp.ones(2)}, jnp.ones(3))
    with pytest.raises(ValueError, match="saba: the leading axes of a pool are"):
        estimator.init(bilevel.theta_of(bilevel.X0), pools, jax.random.key(0))
