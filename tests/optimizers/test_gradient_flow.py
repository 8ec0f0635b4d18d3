import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers import mdgf_exp, mdgf_linear, nm_mask, sdgf, ste_sparse


def weights(rows=16):
    return jnp.asarray(np.random.default_rng(0).normal(size=(rows, 3)), float)


def factors_at(schedule, counts, w):
    return np.asarray(jax.jit(jax.vmap(schedule, (None, 0)))(w, jnp.asarray(counts)))


@pytest.mark.parametrize(
    ("schedule", "beta"),
    [
        (mdgf_linear(rate=0.25, start=2, end=10), lambda t: max(0.0, 1 - 0.25 * t)),
        (mdgf_exp(rate=0.25, start=2, end=10), lambda t: np.exp(-0.25 * t)),
    ],
    ids=["linear", "exponential"],
)
def test_pruned_weights_fade_out_as_the_formula_says(x64, schedule, beta):
    w = weights()
    mask, counts = np.asarray(nm_mask(w)), [0, 1, 2, 3, 5, 9, 10, 50]
    for count, factors in zip(counts, factors_at(schedule, counts, w), strict=True):
        value = beta(max(count - 2, 0)) if count < 10 else 0.0
        np.testing.assert_allclose(factors, np.where(mask == 1, 1, value), rtol=1e-12)
    # Dense bit for bit at first, with exactly two survivors of four in the end.
    first, *_, last = factors_at(schedule, counts, w)
    assert (np.asarray(ste_sparse(w, jnp.asarray(first))) == np.asarray(w)).all()
    assert ((last != 0).reshape(4, 4, 3).sum(axis=1) == 2).all()


@pytest.mark.parametrize(
    ("n", "m", "survivors"),
    [(1, 16, [15, 8, 4, 2, 1]), (2, 4, [3, 2]), (4, 4, [4]), (3, 8, [7, 4, 3]), (1, 2, [1])],
)
def test_patterns_follow_each_other_for_equally_many_steps(n, m, survivors):
    w, num_frames = weights(), len(survivors)
    schedule = sdgf(3 + 4 * num_frames, n=n, m=m, start=3)
    counts = np.arange(3 + 4 * num_frames + 5)
    factors = factors_at(schedule, counts, w[: 16 // m * m])
    kept = (factors.reshape(len(counts), -1, m, 3) != 0).sum(axis=2)
    expected = [m] * 3 + [k for k in survivors for _ in range(4)] + [n] * 5
    for count, groups in zip(expected, kept, strict=True):
        assert (groups == count).all()


def test_gradients_pass_to_all_weights(x64):
    w = weights()
    schedule = mdgf_exp(rate=0.5, end=10)

    def loss(w):
        return jnp.sum(jnp.sin(ste_sparse(w, schedule(w, 2))))

    factors = np.where(np.asarray(nm_mask(w)) == 1, 1, np.exp(-1.0))
    np.testing.assert_allclose(jax.grad(loss)(w), np.cos(factors * np.asarray(w)), rtol=1e-12)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="mdgf_linear: rate must be finite and at least 0, got -1"):
        mdgf_linear(rate=-1.0)
    with pytest.raises(ValueError, match="mdgf_exp: rate must be finite and at least 0, got -1"):
        mdgf_exp(rate=-1.0, end=10)
    with pytest.raises(ValueError, match="sdgf: n=5 must be between 1 and m=4"):
        sdgf(10, n=5, m=4)
    with pytest.raises(ValueError, match="sdgf: end=2 must be above start=3"):
        sdgf(2, start=3)
