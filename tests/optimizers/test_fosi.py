import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import fosi, refresh_fosi


def quadratic(kappa=1.12, mixed=90, size=100):
    """Eigenvalues, Hessian and start; extreme eigenvalues in a random basis, others along axes."""
    values = 1e-3 * kappa ** np.arange(size)
    order = [*range(mixed // 2), *range(size - mixed // 2, size)]
    order += [index for index in range(size) if index not in order]
    basis = np.eye(size)
    block = np.random.default_rng(1234).normal(size=(mixed, mixed))
    basis[:mixed, :mixed] = np.linalg.qr(block)[0]
    start = np.full(size, 0.5)
    start[1] = 1.0
    return values, (basis * values[order]) @ basis.T, basis @ start


def final_loss(tx, hessian, start, num_steps=200):
    hessian, start = jnp.asarray(hessian), jnp.asarray(start)

    def loss(x):
        return 0.5 * x @ hessian @ x

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(hessian @ x, state, x, obj_fn=loss)
        return (optax.apply_updates(x, updates), state), None

    @jax.jit
    def run(x):
        return loss(jax.lax.scan(step, (x, tx.init(x)), length=num_steps)[0][0])

    return float(run(start))


@pytest.mark.slow
def test_a_quadratic_is_solved_further_than_by_the_base_alone(x64):
    values, hessian, start = quadratic()
    pairs = {"num_largest": 10, "order": 100, "warmup": 1, "every": 1000, "alpha": 1.0}
    smallest, largest = values[0], values[-1]
    heavy = {"learning_rate": 2 / (smallest**0.5 + largest**0.5) ** 2, "momentum": 0.9}
    bases = {
        "gradient descent": (optax.sgd(2 / (smallest + largest)), "none", jnp.inf, 0.05),
        "heavy ball": (optax.sgd(**heavy), "ema", jnp.inf, 0.5),
        "adam": (optax.adam(0.05), "ema", 1.0, 0.6),
    }
    for name, (base, momentum, clip, bar) in bases.items():
        alone = final_loss(optax.with_extra_args_support(base), hessian, start)
        ours = final_loss(fosi(base, momentum=momentum, clip=clip, **pairs), hessian, start)
        assert ours <= bar * alone, name


def by_hand(gradient, hessian, start, momentum, num_steps, every=2, k=2, small=1, rate=0.05):
    """An independent transcription over a base of momentum 0.9, with dense eigenpairs."""
    decay, alpha, clip = 0.9, 0.3, 3.0
    x, velocity, trace = start, 0 * start, 0 * start
    vectors, inverse, scale = np.zeros((1, len(start))), np.zeros(1), 1.0
    path = []
    for step in range(num_steps):
        if step + 1 >= every and (step + 1) % every == 0:
            values, basis = np.linalg.eigh(hessian(x))
            chosen = [*range(small), *range(len(x) - k, len(x))]
            vectors, inverse = basis[:, chosen].T, 1 / np.abs(values[chosen])
            scale = np.clip(values[-1] / values[-k], 1, clip)
        g = gradient(x)
        within = vectors.T @ vectors @ g
        velocity = {
            "none": within,
            "heavy_ball": within + decay * velocity,
            "nesterov": (1 + decay) * within + decay**2 * velocity,
            "ema": (1 - decay) * within + decay * velocity,
        }[momentum]
        trace = (g - within) + 0.9 * trace
        delta = -rate * trace
        delta = delta - vectors.T @ vectors @ delta
        x = x + scale * delta - alpha * vectors.T @ (inverse * (vectors @ velocity))
        path.append(x)
    return path


@pytest.mark.parametrize(
    "momentum",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "heavy_ball")),
        "nesterov",
        "ema",
    ],
)
def test_repeats_a_transcription_with_dense_eigenpairs(x64, momentum):
    weights = np.array([3.0, 1.0, -0.5, 6.0, 0.3])

    def loss(params):
        x = jnp.concatenate([params["b"], params["w"].ravel()])
        return jnp.sum(weights * jnp.cosh(0.3 * x)) + 0.2 * jnp.sum(x) ** 2

    start = np.array([0.5, -0.3, 0.2, 0.7, -0.9])
    params = {"b": jnp.asarray(start[:1]), "w": jnp.asarray(start[1:]).reshape(2, 2)}
    tx = fosi(
        optax.sgd(0.05, momentum=0.9),
        momentum=momentum,
        alpha=0.3,
        num_largest=2,
        num_smallest=1,
        every=2,
    )

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, obj_fn=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.concatenate([params["b"], params["w"].ravel()])

    path = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=5)[1])(params)
    expected = by_hand(
        lambda x: 0.3 * weights * np.sinh(0.3 * x) + 0.4 * x.sum(),
        lambda x: np.diag(0.09 * weights * np.cosh(0.3 * x)) + 0.4,
        start,
        momentum,
        5,
    )
    np.testing.assert_allclose(path, expected, rtol=1e-9)


def test_until_the_first_pairs_it_is_the_base_and_then_it_is_not():
    hessian, start = jnp.diag(jnp.array([4.0, 2.0, 1.0])), jnp.array([1.0, -2.0, 0.5])
    tx, base = fosi(optax.adam(0.1), num_largest=1, every=4), optax.adam(0.1)
    state, reference = tx.init(start), base.init(start)
    update = jax.jit(lambda g, s, x: tx.update(g, s, x, obj_fn=lambda y: 0.5 * y @ hessian @ y))
    for index in range(4):
        g = hessian @ start + index
        ours, state = update(g, state, start)
        theirs, reference = base.update(g, reference)
        assert np.allclose(ours, theirs, rtol=1e-6) == (index < 3)


def test_refreshed_outside_of_jit_it_takes_the_same_steps():
    hessian, x = jnp.diag(jnp.array([4.0, 2.0, 1.0])), jnp.array([1.0, -2.0, 0.5])
    settings = {"num_largest": 2, "clip": 5.0}
    inside = fosi(optax.sgd(0.1), every=1, **settings)
    outside = fosi(optax.sgd(0.1), every=None, **settings)

    @jax.jit
    def both(x):
        g = hessian @ x
        expected, _ = inside.update(g, inside.init(x), x, obj_fn=lambda y: y @ hessian @ y / 2)
        state = refresh_fosi(x, outside.init(x), hvp_fn=lambda at, v: hessian @ v, clip=5.0)
        return expected, outside.update(g, state, x)[0]

    expected, actual = both(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # Without momentum a Newton step of 0.1 · 0.1 (ema), and a doubled one of the base.
    np.testing.assert_allclose(expected, [-0.01 * x[0], -0.01 * x[1], -0.2 * x[2]], rtol=1e-4)


def test_flat_directions_are_left_to_the_base(x64):
    x = jnp.array([1.0, -2.0, 0.5])
    tx = fosi(optax.sgd(0.1), momentum="none", alpha=1.0, num_largest=3, every=1)
    curvature = jnp.array([4.0, 1e-9, 0.0])
    updates, state = jax.jit(
        lambda x: tx.update(x, tx.init(x), x, hvp_fn=lambda _, v: curvature * v)
    )(x)
    np.testing.assert_allclose(updates, [-x[0] / 4, -0.1 * x[1], -0.1 * x[2]], rtol=1e-6)
    assert (state.inverse != 0).sum() == 1


def test_missing_arguments_and_impossible_settings_are_refused():
    tx, x = fosi(optax.sgd(0.1)), jnp.ones(3)
    with pytest.raises(ValueError, match="got no params"):
        tx.update(x, tx.init(x))
    with pytest.raises(ValueError, match="misses the extra argument obj_fn"):
        tx.update(x, tx.init(x), x)
    for settings, message in [
        ({"every": 0}, "every must be at least 1"),
        ({"warmup": 0}, "warmup must be at least 1"),
        ({"num_largest": 0}, "one of them must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            fosi(optax.sgd(0.1), **settings)
