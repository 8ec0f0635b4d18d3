import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers import ai_sarah
from tests.optimizers.cancer import breast_cancer, logistic_loss


def problem():
    """Tumours with rows of length 1 and L2 1/n."""
    inputs, labels = breast_cancer(unit_rows=True)
    return inputs, labels, 1 / len(labels)


def grad_fn(l2):
    return lambda w, batch: jax.grad(lambda w: logistic_loss(w, batch, l2))(w)


def gradient(w, x, y, l2):
    """In NumPy."""
    return x.T @ (-y / (1 + np.exp(y * (x @ w)))) / len(y) + l2 * w


def slopes(w, v, x, y, l2):
    """ξ'(0) and ξ''(0) from the second and third derivatives of the logistic loss."""
    p = 1 / (1 + np.exp(-(x @ w)))
    along = x @ v
    hv = x.T @ (p * (1 - p) * along) / len(y) + l2 * v
    third = x.T @ (p * (1 - p) * (1 - 2 * p) * along**2) / len(y)
    return -2 * v @ hv, 2 * hv @ hv + 2 * v @ third


def test_steps_repeat_a_transcription(x64):
    x, y, l2 = problem()
    beta = 0.9
    sarah = ai_sarah(grad_fn(l2), beta=beta)
    rng = np.random.default_rng(0)
    w = rng.normal(size=30)
    state = sarah.outer_step(sarah.init(jnp.asarray(w)), (jnp.asarray(x), jnp.asarray(y)))
    v, delta, bound, bounded = gradient(w, x, y, l2), None, np.inf, 0
    np.testing.assert_allclose(state.direction, v, rtol=1e-10)
    inner = jax.jit(sarah.inner_step)
    for _ in range(12):
        rows = rng.choice(len(y), 16, replace=False)
        batch = x[rows], y[rows]
        first, second = slopes(w, v, *batch, l2)
        new = -first / abs(second)
        alpha = min(new, bound)
        bounded += new > bound
        delta = 1 / new if delta is None else beta * delta + (1 - beta) / new
        bound = 1 / delta
        w_new = w - alpha * v
        v = gradient(w_new, *batch, l2) - gradient(w, *batch, l2) + v
        w = w_new
        state = inner(state, batch)
        np.testing.assert_allclose(state.params, w, rtol=1e-9)
        np.testing.assert_allclose(state.direction, v, rtol=1e-7, atol=1e-10)
    assert 0 < bounded < 12
    np.testing.assert_allclose(state.inverse, delta, rtol=1e-9)
    assert state.num_inner == 12
    assert state.num_full == 1


def test_the_loop_ends_when_the_direction_is_short(x64):
    x, y, l2 = problem()
    batch = jnp.asarray(x), jnp.asarray(y)
    sarah = ai_sarah(grad_fn(l2))
    state = sarah.outer_step(sarah.init(jnp.zeros(30)), batch)

    def draw(key):
        rows = jax.random.choice(key, len(y), (64,), replace=False)
        return batch[0][rows], batch[1][rows]

    @jax.jit
    def loops(state, key):
        ended = sarah.inner_loop(state, draw, key)
        return ended, sarah.inner_loop(ended, draw, jax.random.fold_in(key, 0))

    state, again = loops(state, jax.random.key(0))
    assert 1 < state.num_inner < 1000
    assert jnp.sum(state.direction**2) < state.start2 / 32
    assert again.num_inner == state.num_inner


def test_a_batch_along_which_the_direction_grows_takes_no_step(x64):
    sarah = ai_sarah(lambda w, sign: sign * w)
    state = sarah.outer_step(sarah.init(jnp.ones(2)), 1.0)
    up = sarah.inner_step(state, -1.0)
    np.testing.assert_array_equal(up.params, state.params)
    assert up.inverse == 0
    # Of a linear gradient without curvature of its own the first step is exact.
    down = sarah.inner_step(state, 1.0)
    np.testing.assert_allclose(down.params, 0, atol=1e-15)
    assert down.inverse == 1
    # At the solution nothing is divided by 0.
    again = sarah.inner_step(sarah.outer_step(down, 1.0), 1.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(again))


def tuned_sarah(rate, length, seed, passes=60.0, size=64):
    """The final gradient norm of SARAH with a fixed rate and number of inner steps."""
    x, y, l2 = problem()
    rng, w, spent = np.random.default_rng(seed), np.zeros(30), 0.0
    while spent + 1 <= passes:
        v, spent = gradient(w, x, y, l2), spent + 1
        for _ in range(length):
            if spent + 2 * size / len(y) > passes:
                break
            rows = rng.choice(len(y), size, replace=False)
            w_new = w - rate * v
            v = v + gradient(w_new, x[rows], y[rows], l2) - gradient(w, x[rows], y[rows], l2)
            w, spent = w_new, spent + 2 * size / len(y)
    return np.linalg.norm(gradient(w, x, y, l2))


@pytest.mark.slow
def test_without_tuning_it_is_within_ten_times_of_a_tuned_method(x64):
    x, y, l2 = problem()
    smoothness = np.linalg.norm(x, 2) ** 2 / (4 * len(y)) + l2
    grid = [
        np.mean([tuned_sarah(rate / smoothness, length, seed) for seed in range(3)])
        for rate in (0.1, 0.3, 1.0, 2.0)
        for length in (9, 18, 36)
    ]
    sarah = ai_sarah(grad_fn(l2))
    outer, inner = jax.jit(sarah.outer_step), jax.jit(sarah.inner_step)
    for seed in range(3):
        rng, state, spent = np.random.default_rng(seed), sarah.init(jnp.zeros(30)), 0.0
        while spent + 1 <= 60:
            state, spent = outer(state, (x, y)), spent + 1
            while jnp.sum(state.direction**2) >= state.start2 / 32:
                if spent + 2 * 64 / len(y) > 60:
                    break
                rows = rng.choice(len(y), 64, replace=False)
                state, spent = inner(state, (x[rows], y[rows])), spent + 2 * 64 / len(y)
        end = np.linalg.norm(gradient(np.asarray(state.params), x, y, l2))
        assert end <= 5e-5
        assert end <= 10 * min(grid)


def test_bad_arguments_are_refused():
    for bad in [{"gamma": 0.0}, {"beta": 1.0}]:
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            ai_sarah(jnp.add, **bad)
    with pytest.raises(ValueError, match="ai_sarah: max_inner_steps must be at least 1"):
        ai_sarah(jnp.add, max_inner_steps=0)
