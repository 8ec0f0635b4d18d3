import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import aggregators
from tests.helpers import ravel, relative_error
from tests.optimizers.networks import digits


def losses():
    """Two losses of shared parameters and a head each."""

    def one(target):
        def loss(shared, head, batch):
            output = jnp.tanh(batch @ shared["w"]) @ head["v"]
            return jnp.mean((output - target) ** 2)

        return loss

    return [one(1.0), one(-0.5)]


def point():
    rng = np.random.default_rng(0)
    shared = {"w": jnp.asarray(rng.normal(size=(3, 2)))}
    heads = [{"v": jnp.asarray(rng.normal(size=2))} for _ in range(2)]
    return shared, heads, jnp.asarray(rng.normal(size=(5, 3)))


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_without_perturbation_it_is_the_aggregator_and_the_gradients_of_the_heads():
    shared, heads, batch = point()
    function = aggregators.task_flat(losses(), aggregators.upgrad(), rho=0.0)
    values, (shared_grad, head_grads) = jax.jit(function)(shared, heads, batch)
    pairs = [
        jax.value_and_grad(loss, (0, 1))(shared, head, batch)
        for loss, head in zip(losses(), heads, strict=True)
    ]
    np.testing.assert_allclose(values, [value for value, _ in pairs], rtol=1e-12)
    jacobian = jnp.stack([grads[0]["w"] for _, grads in pairs])
    assert relative_error(shared_grad, aggregators.upgrad().aggregate(jacobian)) < 1e-12
    assert relative_error(head_grads, [grads[1] for _, grads in pairs]) < 1e-12


@pytest.mark.usefixtures("x64")
def test_with_the_mean_it_is_sharpness_aware_minimisation_of_each_task():
    shared, heads, batch = point()
    rho = 0.3
    function = aggregators.task_flat(losses(), aggregators.mean(), rho=rho)
    _, (shared_grad, head_grads) = jax.jit(function)(shared, heads, batch)
    sharp = []
    for loss, head in zip(losses(), heads, strict=True):
        g, h = jax.grad(loss, (0, 1))(shared, head, batch)
        w = shared["w"] + rho * g["w"] / np.linalg.norm(ravel(g))
        v = head["v"] + rho * h["v"] / np.linalg.norm(ravel(h))
        sharp.append(jax.grad(loss, (0, 1))({"w": w}, {"v": v}, batch))
    assert relative_error(shared_grad, (sharp[0][0]["w"] + sharp[1][0]["w"]) / 2) < 1e-12
    assert relative_error(head_grads, [s[1] for s in sharp]) < 1e-12


@pytest.mark.usefixtures("x64")
def test_conflicts_of_losses_and_of_flatness_are_resolved_apart():
    shared, heads, batch = point()
    settings = {"rho": 0.3}
    plain = aggregators.task_flat(losses(), aggregators.mean(), rho=0.0)
    both = aggregators.task_flat(losses(), aggregators.mean(), **settings)
    parts = []

    def record(jacobian, key=None):
        parts.append(jacobian["w"])
        return jax.tree.map(lambda x: x.mean(axis=0), jacobian)

    recorder = aggregators.Aggregator(record, None)
    aggregators.task_flat(losses(), recorder, **settings)(shared, heads, batch)
    low, flat = parts
    assert relative_error(low.mean(axis=0), plain(shared, heads, batch)[1][0]) < 1e-12
    assert relative_error((low + flat).mean(axis=0), both(shared, heads, batch)[1][0]) < 1e-12


@pytest.mark.compiles
def test_zero_gradients_give_zero_updates_and_finite_derivatives():
    function = aggregators.task_flat(losses(), aggregators.upgrad())
    shared, heads, _ = jax.tree.map(lambda x: x.astype(jnp.float32), point())
    batch = jnp.zeros((5, 3))

    def total(shared):
        return jnp.sum(function(shared, heads, batch)[1][0]["w"])

    value, slope = jax.jit(jax.value_and_grad(total))(shared)
    assert value == 0
    assert np.isfinite(ravel(slope)).all()


def _train(rho, seed, num_steps=1200):
    """Largest Hessian eigenvalues of the shared layers, by task, and test losses, on 600 digits."""
    (pixels, labels), (test_pixels, test_labels) = digits()
    pixels, labels = jnp.asarray(pixels[:600]), jnp.asarray(labels[:600])
    signs = [lambda y: jnp.where(y % 2 == 1, 1.0, -1.0), lambda y: jnp.where(y >= 5, 1.0, -1.0)]

    def task(sign):
        def loss(shared, head, batch):
            inputs, labels = batch
            for layer in shared:
                inputs = jnp.tanh(inputs @ layer["w"] + layer["b"][None])
            logit = inputs @ head["w"] + head["b"]
            return jnp.mean(jax.nn.softplus(-sign(labels) * logit))

        return loss

    tasks = [task(sign) for sign in signs]
    # Of two tasks the order of the projections does not matter.
    function = aggregators.task_flat(tasks, aggregators.pcgrad(), rho=rho)
    opt = optax.sgd(0.2)
    key_init, key_run = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(key_init, 4)
    shared = [
        {"w": jax.random.normal(k, (m, n)) / np.sqrt(m), "b": jnp.zeros(n)}
        for k, m, n in zip(keys[:2], (64, 32), (32, 16), strict=True)
    ]
    heads = tuple({"w": jax.random.normal(k, (16,)) / 4, "b": jnp.zeros(())} for k in keys[2:])

    def step(carry, key):
        params, opt_state = carry
        key_rows, key_draw = jax.random.split(key)
        rows = jax.random.choice(key_rows, 600, (50,), replace=False)
        _, grads = function(*params, (pixels[rows], labels[rows]), key_draw)
        updates, opt_state = opt.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def sharpness(loss, shared, head):
        def power(vector, _):
            def grad(shared):
                return jax.grad(loss)(shared, head, (pixels, labels))

            product = jax.jvp(grad, (shared,), (vector,))[1]
            length = optax.tree.norm(product)
            return optax.tree.scale(1 / length, product), length

        start = optax.tree.scale(0.01, optax.tree.ones_like(shared))
        return jax.lax.scan(power, start, None, length=100)[1][-1]

    params = (shared, heads)
    keys = jax.random.split(key_run, num_steps)
    (params, _), _ = jax.lax.scan(step, (params, opt.init(params)), keys)
    tops = [sharpness(loss, params[0], h) for loss, h in zip(tasks, params[1], strict=True)]
    batch = (jnp.asarray(test_pixels), jnp.asarray(test_labels))
    tests = [loss(params[0], h, batch) for loss, h in zip(tasks, params[1], strict=True)]
    return jnp.stack(tops), jnp.stack(tests)


@pytest.mark.slow
def test_both_tasks_of_digits_end_in_flatter_regions():
    seeds, radii = (0, 1, 0, 1), (0.0, 0.0, 0.05, 0.05)
    run = jax.jit(_train)
    found = [run(rho, seed) for rho, seed in zip(radii, seeds, strict=True)]
    tops, tests = (np.stack(x) for x in zip(*found, strict=True))
    plain, flat = tops[:2].mean(axis=0), tops[2:].mean(axis=0)
    assert (flat <= 0.6 * plain).all(), (plain, flat)
    assert tests[2:].mean() <= tests[:2].mean(), tests


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="task_flat: rho must be at least 0"):
        aggregators.task_flat(losses(), aggregators.mean(), rho=-0.1)
    with pytest.raises(ValueError, match="losses is empty"):
        aggregators.task_flat([], aggregators.mean())
    shared, heads, batch = point()
    with pytest.raises(ValueError, match="1 heads for 2 losses"):
        aggregators.task_flat(losses(), aggregators.mean())(shared, heads[:1], batch)
