import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import ademamix_alpha_schedule, ademamix_b3_schedule
from metaopt.unroll import differentiable
from tests.optimizers import golden


def scheduled(alpha=8.0, num_steps=30, **settings):
    return optax.contrib.ademamix(
        0.01,
        alpha=ademamix_alpha_schedule(alpha=alpha, num_steps=num_steps),
        b3=ademamix_b3_schedule(b3=0.9999, num_steps=num_steps),
        **settings,
    )


def test_the_rule_of_optax_with_them_repeats_the_published_one(x64):
    assert golden.difference("ademamix_scheduled", golden.trajectory(scheduled())) < 1e-12
    plain = optax.contrib.ademamix(0.01, b3=0.99)
    assert golden.difference("ademamix", golden.trajectory(plain)) < 1e-12


def half_life(decay):
    return np.log(0.5) / np.log(decay) - 1


def test_half_lives_grow_linearly_from_the_first_step_on(x64):
    alpha = ademamix_alpha_schedule(alpha=5.0, num_steps=10)
    b3 = ademamix_b3_schedule(b1=0.9, b3=0.999, num_steps=10)
    counts = np.arange(13)
    shares = np.minimum((counts + 1) / 10, 1)
    lives = (1 - shares) * half_life(0.9) + shares * half_life(0.999)
    np.testing.assert_allclose(alpha(counts), 5 * shares, rtol=1e-13)
    np.testing.assert_allclose(b3(counts), 0.5 ** (1 / (lives + 1)), rtol=1e-12)
    assert float(b3(100)) == pytest.approx(0.999, abs=1e-15)


def by_hand(slopes, num_steps, weight_decay):
    """An independent transcription, of 20 steps for one parameter."""
    x, m1, m2, v = 1.0, 0.0, 0.0, 0.0
    path = []
    for t, slope in enumerate(slopes, start=1):
        g, share = slope * x, min(t / num_steps, 1)
        life = (1 - share) * half_life(0.9) + share * half_life(0.9999)
        b3 = 0.5 ** (1 / (life + 1))
        m1, m2 = 0.9 * m1 + 0.1 * g, b3 * m2 + (1 - b3) * g
        v = 0.999 * v + 0.001 * g**2
        top = m1 / (1 - 0.9**t) + 8 * share * m2
        direction = top / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - 0.01 * (direction + weight_decay * x)
        path.append(x)
    return path


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_repeats_a_transcription_with_and_without_decay(x64, weight_decay):
    slopes = np.sin(np.arange(1.0, 21.0))
    opt = scheduled(num_steps=15, weight_decay=weight_decay)

    def step(carry, slope):
        x, state = carry
        updates, state = opt.update(slope * x, state, x)
        return (x + updates, state), x + updates

    start = jnp.ones(())
    path = jax.jit(lambda: jax.lax.scan(step, (start, opt.init(start)), jnp.asarray(slopes))[1])()
    np.testing.assert_allclose(path, by_hand(slopes, 15, weight_decay), rtol=1e-12)


def test_a_slow_momentum_crosses_the_valley_of_rosenbrock_at_a_rate_at_which_adam_does_not(x64):
    def loss(p):
        return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2

    def distance(opt):
        def step(carry, _):
            p, state = carry
            updates, state = opt.update(jax.grad(loss)(p), state, p)
            return (p + updates, state), None

        start = jnp.array([-3.0, 5.0])
        (end, _), _ = jax.lax.scan(step, (start, opt.init(start)), length=10_000)
        return jnp.linalg.norm(end - 1)

    @jax.jit
    def distances():
        ours = distance(optax.contrib.ademamix(1e-3, b3=0.9999, alpha=9.0))
        return ours, jax.vmap(lambda b1: distance(optax.adam(1e-3, b1=b1)))(
            jnp.array([0.9, 0.99, 0.999])
        )

    ours, adam = distances()
    assert ours <= 0.5
    assert ours <= 0.15 * adam.min()


@pytest.mark.compiles
def test_settings_of_the_schedules_have_finite_meta_gradients():
    def final(theta):
        opt = differentiable(
            optax.contrib.ademamix(
                0.1,
                alpha=ademamix_alpha_schedule(alpha=theta[0], num_steps=theta[1]),
                b3=ademamix_b3_schedule(b3=jnp.exp(-jnp.exp(theta[2])), num_steps=theta[1]),
            )
        )
        params = jnp.array([1.0, 0.0])  # The gradient of the second one is always 0.
        state = opt.init(params)
        for _ in range(4):
            updates, state = opt.update(params * jnp.array([1.0, 0.0]), state, params)
            params = params + updates
        return params[0]

    slope = jax.jit(jax.grad(final))(jnp.array([5.0, 3.0, -7.0]))
    assert np.isfinite(slope).all()
    assert (slope != 0).all()


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="num_steps must be positive, got 0"):
        ademamix_alpha_schedule(num_steps=0)
    with pytest.raises(ValueError, match="num_steps must be positive"):
        ademamix_b3_schedule(num_steps=-1)
    with pytest.raises(ValueError, match=r"b3 must be in \(0, 1\), got 1.0"):
        ademamix_b3_schedule(num_steps=10, b3=1.0)
