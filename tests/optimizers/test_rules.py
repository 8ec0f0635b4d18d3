"""What every rule of `metaopt.optimizers` promises to those who compose and differentiate it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import output_on_devices
from tests.learned.unrolled import awkward_gradients, params_like
from tests.optimizers.rules import RULES

SHAPES = {"matrix": (4, 3), "bias": (3,), "scalar": ()}
STEPS = 20

# Several seconds of compilation each.
SLOW_TO_COMPILE = {
    "accelerated_gam", "adamp", "diffgrad", "egn", "fosi", "gam", "oasis", "opt_amsgrad", "sania",
    "shampoo", "smb", "smbi", "step_adam", "teleport_every",
}  # fmt: skip


def name_of(rule):
    return rule.covers.split()[0]


each_rule = pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=[pytest.mark.compiles] * (name_of(rule) in SLOW_TO_COMPILE))
        for rule in RULES
    ],
    ids=[name_of(rule) for rule in RULES],
)


def loss_of(slopes, bend):
    """A loss whose gradients are `slopes * (1 + bend * params)`."""

    def loss(params):
        terms = jax.tree.map(lambda s, p: jnp.sum(s * (p + 0.5 * bend * p**2)), slopes, params)
        return sum(jax.tree.leaves(terms))

    return loss


def trajectory(opt, rule, slopes, params, bend=0.1):
    """Parameters after each step; `slopes` has the step axis first."""

    def one(carry, slopes):
        params, state = carry
        loss = loss_of(slopes, bend)
        updates, new = opt.update(jax.grad(loss)(params), state, params, **rule.extra(loss, params))
        assert jax.tree.map(describe, new) == jax.tree.map(describe, state)
        assert jax.tree.map(describe, updates) == jax.tree.map(describe, params)
        params = optax.apply_updates(params, updates)
        return (params, new), params

    return jax.lax.scan(one, (params, opt.init(params)), slopes)[1]


def describe(x):
    x = jnp.asarray(x)
    return x.shape, x.dtype


def steps_of(shapes, num_steps, dtype=jnp.float32):
    """Parameters, and slopes for each step."""
    params = params_like(jax.random.key(0), shapes, dtype)
    slopes = {name: (num_steps, *shape) for name, shape in shapes.items()}
    return params, params_like(jax.random.key(1), slopes, dtype)


@each_rule
def test_composes_with_wrappers_of_optax(rule):
    params, slopes = steps_of(SHAPES, 4)
    whole = jax.tree.map(lambda _: True, params)

    @jax.jit
    def all_of_them(params, slopes):
        inner = rule.make(0.1)
        halved = optax.chain(optax.scale(0.5), optax.scale(2.0), inner, optax.scale(1.0))
        injected = optax.inject_hyperparams(lambda learning_rate: rule.make(learning_rate))(
            learning_rate=0.1
        )
        wrapped = {
            "chain": halved,
            "inject_hyperparams": injected,
            "masked": optax.masked(inner, whole),
        }
        # Two small batches for each step, which sees their mean.
        twice = jax.tree.map(lambda s: jnp.repeat(s, 2, axis=0), slopes)
        accumulated = trajectory(optax.MultiSteps(inner, 2), rule, twice, params)
        runs = {name: trajectory(opt, rule, slopes, params) for name, opt in wrapped.items()}
        runs["MultiSteps"] = jax.tree.map(lambda p: p[1::2], accumulated)
        return trajectory(inner, rule, slopes, params), runs

    expected, runs = all_of_them(params, slopes)
    assert all((expected[name][-1] != params[name]).any() for name in params)
    for name, actual in runs.items():
        for leaf in params:
            np.testing.assert_allclose(
                actual[leaf], expected[leaf], rtol=1e-4, atol=1e-6, err_msg=f"{name}, {leaf}"
            )


@each_rule
def test_takes_parameters_in_bfloat16_with_statistics_in_float32(rule):
    params, slopes = steps_of(SHAPES, 2, jnp.bfloat16)
    low = jax.jit(lambda p, s: trajectory(rule.make(0.1), rule, s, p))(params, slopes)
    params, slopes = jax.tree.map(lambda x: x.astype(jnp.float32), (params, slopes))
    high = jax.jit(lambda p, s: trajectory(rule.make(0.1), rule, s, p))(params, slopes)
    for leaf in params:
        assert low[leaf].dtype == jnp.bfloat16
        # Rounding of the parameters and of the updates; a direction may turn with them.
        scale = float(jnp.abs(high[leaf]).max())
        error = float(jnp.abs(low[leaf].astype(jnp.float32) - high[leaf]).max())
        assert error < 0.05 * scale


DEAD, ZERO, HUGE, LATE = range(4)


def finite_slopes(rule):
    """Slopes by the rate, one for each kind of gradients; all slopes and values are finite."""
    params = params_like(jax.random.key(0), SHAPES)
    awkward = awkward_gradients(params, STEPS, jax.random.key(1))

    def final(theta, slopes, bend):
        rate, params = theta
        path = trajectory(rule.make(rate), rule, slopes, params, bend)
        # Huge gradients may lead to huge parameters, whose squares overflow by themselves.
        return sum(jnp.sum(jnp.sin(p[-1])) for p in jax.tree.leaves(path))

    # As do gradients that are proportional to them.
    bends = jnp.full(4, 0.1).at[HUGE].set(0.0)
    theta = (jnp.array(0.01), params)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(final), (None, 0, 0)))(
        theta, awkward, bends
    )
    for name, kind in {"dead": DEAD, "zero": ZERO, "huge": HUGE, "late": LATE}.items():
        parts = {
            jax.tree_util.keystr(path): bool(jnp.isfinite(x[kind]).all())
            for path, x in jax.tree.leaves_with_path(slopes)
        }
        assert np.isfinite(values[kind]), name
        assert all(parts.values()), (name, parts)
    return slopes[0]


@each_rule
def test_meta_gradients_are_finite_where_gradients_vanish_or_are_huge(rule):
    # Gradients that are always zero move nothing; others do.
    assert np.abs(finite_slopes(rule)[jnp.array([DEAD, LATE])]).min() > 0


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tests.optimizers.rules import RULES
from tests.optimizers.test_rules import steps_of, trajectory
assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("params",), (jax.sharding.AxisType.Auto,))
params, slopes = steps_of({"matrix": (8, 4), "bias": (4,)}, 3)
rows = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
shard = lambda tree, *first: {
    "matrix": jax.device_put(tree["matrix"], rows(*first, "params")),
    "bias": jax.device_put(tree["bias"], rows(*first)),
}
for rule in RULES:
    run = jax.jit(lambda p, s: trajectory(rule.make(0.1), rule, s, p))
    expected = run(params, slopes)
    actual = run(shard(params), shard(slopes, None))
    for name in params:
        error = np.abs(np.asarray(actual[name]) - np.asarray(expected[name])).max()
        assert error < 1e-4, (rule.covers, name, error)
print("checked", len(RULES))
"""


@pytest.mark.slow
def test_sharded_parameters_move_as_whole_ones_do():
    assert f"checked {len(RULES)}" in output_on_devices(SHARDED, 4)
