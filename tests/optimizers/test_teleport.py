import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import teleport, teleport_every
from metaopt.optimizers._teleport import _mixed, _scaled
from tests.helpers import central_differences, relative_error
from tests.optimizers import networks

AXES = [
    {"w": "x +a", "b": "+a"},
    {"w": "-a +b", "b": "+b"},
    {"w": "-b y", "b": "y"},
]


def problem(seed=0, act=lambda x: jax.nn.leaky_relu(x, 0.1)):
    """A network 5-6-7-8, and half the squared error on 40 random examples."""
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(40, 5)), rng.normal(size=(40, 8))
    params = [
        {"w": rng.normal(size=(rows, columns)) * (2 / rows) ** 0.5, "b": np.zeros(columns)}
        for rows, columns in ((5, 6), (6, 7), (7, 8))
    ]

    def loss(params, batch):
        inputs, targets = batch
        errors = networks.apply(params, inputs, act) - targets
        return 0.5 * jnp.mean(jnp.sum(errors**2, axis=1))

    return loss, params, (inputs, targets)


def squared(tree):
    return optax.tree.norm(tree, squared=True)


@pytest.mark.parametrize(
    ("symmetry", "act"),
    [
        pytest.param("scale", lambda x: jax.nn.leaky_relu(x, 0.1), id="scale"),
        pytest.param("linear", lambda x: x, id="linear", marks=pytest.mark.slow),
    ],
)
def test_the_loss_stays_and_the_gradient_grows_by_the_cap(x64, symmetry, act):
    loss, params, batch = problem(act=act)

    @jax.jit
    def run(params, batch):
        new = teleport(loss, params, batch, axes=AXES, symmetry=symmetry)
        values = [jax.value_and_grad(loss)(p, batch) for p in (params, new)]
        return [(value, squared(g)) for value, g in values]

    (before, small), (after, large) = run(params, batch)
    assert abs(after / before - 1) <= 1e-10
    # One step of overshoot.
    assert 3 <= large / small <= 3.5


@pytest.mark.slow
def test_after_a_teleport_gradient_descent_is_ahead_for_long(x64):
    loss = problem()[0]
    rates, steps = jnp.array([0.003, 0.01, 0.03]), np.array([50, 100, 299])
    several = [problem(seed)[1:] for seed in range(10)]

    def train(opt, params, batch):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, state = opt.update(grads, state, params, value_fn=lambda p: loss(p, batch))
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, opt.init(params)), length=300)[1]

    def both(rate, params, batch):
        plain = optax.sgd(rate)
        moved = teleport_every(plain, axes=AXES, every=5, max_times=1)
        plain = optax.with_extra_args_support(plain)
        return jnp.stack([train(opt, params, batch) for opt in (moved, plain)])

    over_problems = jax.vmap(both, (None, 0, 0))
    found = jax.jit(jax.vmap(over_problems, (0, None, None)))(
        rates, *jax.tree.map(lambda *x: jnp.stack(x), *several)
    )
    ahead, behind = np.asarray(found[:, :, 0]), np.asarray(found[:, :, 1])
    np.testing.assert_allclose(ahead[..., :6], behind[..., :6], rtol=1e-10)
    ratio = np.log(ahead / behind)[..., steps]
    # In every problem at first, in the mean over problems to the end: for each learning rate.
    assert (ratio[..., 0] < 0).all()
    assert (ratio.mean(axis=1) < 0).all()


@pytest.mark.compiles
def test_a_wrapped_optimizer_starts_afresh_where_it_was_moved_to(x64):
    loss, params, batch = problem()
    base = optax.sgd(0.01, momentum=0.9)
    tx = teleport_every(base, axes=AXES, every=2, num_steps=3)

    @jax.jit
    def run(params, batch):
        state, seen = tx.init(params), [params]
        for _ in range(3):
            p = seen[-1]
            updates, state = tx.update(
                jax.grad(loss)(p, batch), state, p, value_fn=lambda p: loss(p, batch)
            )
            seen.append(optax.apply_updates(p, updates))
        moved = teleport(loss, seen[2], batch, axes=AXES, num_steps=3)
        grads = jax.grad(loss)(moved, batch)
        expected = jax.tree.map(lambda p, g: p - 0.01 * g, moved, grads)
        return seen[3], expected, state.inner, grads

    actual, expected, state, grads = run(params, batch)
    assert relative_error(actual, expected) < 1e-10
    assert relative_error(state[0].trace, grads) < 1e-10


def test_actions_repeat_matrices_in_numpy(x64):
    rng = np.random.default_rng(0)
    params = [
        {"w": rng.normal(size=(2, 3)), "b": rng.normal(size=3)},
        {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=())},
    ]
    axes = [{"w": "x +h", "b": "+h"}, {"w": "y -h", "b": ""}]
    s = rng.normal(size=3)
    ours = _scaled({"h": jnp.asarray(s)}, axes, jax.tree.map(jnp.asarray, params))
    d = np.diag(np.exp(s))
    np.testing.assert_allclose(ours[0]["w"], params[0]["w"] @ d, rtol=1e-12)
    np.testing.assert_allclose(ours[0]["b"], params[0]["b"] @ d, rtol=1e-12)
    np.testing.assert_allclose(ours[1]["w"], params[1]["w"] @ np.linalg.inv(d), rtol=1e-12)
    np.testing.assert_allclose(ours[1]["b"], params[1]["b"], rtol=1e-12)

    values, basis = rng.normal(size=3), rng.normal(size=(3, 3))
    matrix = basis @ np.diag(values) @ np.linalg.inv(basis)
    g = basis @ np.diag(np.exp(values)) @ np.linalg.inv(basis)
    ours = _mixed({"h": jnp.asarray(matrix)}, axes, jax.tree.map(jnp.asarray, params))
    np.testing.assert_allclose(ours[0]["w"], params[0]["w"] @ g, rtol=1e-9)
    # The layer above reads its inputs from columns: V D⁻¹ for V, its transpose.
    np.testing.assert_allclose(ours[1]["w"].T, np.linalg.inv(g) @ params[1]["w"].T, rtol=1e-9)


def test_another_objective_is_raised_instead(x64):
    loss, params, batch = problem()

    def flatness(params, batch):
        return -jnp.log(sum(jnp.sum(p**2) for p in jax.tree.leaves(params)))

    new = jax.jit(
        lambda p: teleport(loss, p, batch, axes=AXES, objective=flatness, cap=1.01, step_size=0.1)
    )(params)
    assert 1.01 <= squared(params) / squared(new) <= 1.05


@pytest.mark.slow
def test_derivatives_pass_through_the_ascent_of_a_scan(x64):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, 3))
    start = {"in": rng.normal(size=(3, 2)), "out": rng.normal(size=(2, 1))}

    def loss(params, batch):
        return jnp.mean((jax.nn.leaky_relu(batch @ params["in"]) @ params["out"] - 1) ** 2)

    def value(step_size, loop):
        axes = {"in": "x +h", "out": "-h y"}
        settings = {"step_size": step_size, "num_steps": 2, "cap": 50.0}
        return squared(teleport(loss, start, inputs, axes=axes, loop=loop, **settings))

    at = jnp.array(0.05)

    @jax.jit
    def slopes(x):
        return [jax.value_and_grad(lambda x: value(x, loop))(x) for loop in ("scan", "while")]  # noqa: B023

    (scanned, slope), (looped, nothing) = slopes(at)
    expected = central_differences(lambda x: value(x, "scan"), at)
    assert relative_error(slope, expected) < 1e-6
    assert nothing == 0
    np.testing.assert_allclose(looped, scanned, rtol=1e-12)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([{"w": "x +a", "b": "+a"}], "axes must be a tree like params"),
        ([*AXES[:2], {"w": "-b", "b": "y"}], r"names 2 axes, for \(7, 8\)"),
        ([*AXES[:2], {"w": "-a y", "b": "y"}], r"has 7 for a, which elsewhere has 6"),
        (jax.tree.map(lambda x: x.replace("+", "").replace("-", ""), AXES), "name no hidden layer"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, message):
    loss, params, batch = problem()
    with pytest.raises(ValueError, match=message):
        teleport(loss, params, batch, axes=axes)


def test_settings_that_make_no_sense_are_refused():
    for settings, message in [
        ({"cap": 1.0}, "cap must be a finite factor above 1"),
        ({"step_size": 0.0}, "step_size must be finite and positive"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"max_times": 0}, "max_times must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=f"teleport_every: {message}"):
            teleport_every(optax.sgd(0.1), axes=AXES, **{"every": 1, **settings})


def test_a_missing_loss_is_named():
    tx = teleport_every(optax.sgd(0.1), axes={"w": "+h"}, every=1)
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="teleport_every: update needs value_fn="):
        tx.update(params, tx.init(params), params)
