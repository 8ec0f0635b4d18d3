import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.core import LearnedOptimizer
from metaopt.optimizers import scale_by_shampoo, shampoo
from tests.learned.unrolled import awkward_gradients, final_loss, params_like


def run(tx, gradients, params):
    """All updates for a list of gradients, and the last state."""
    update, state, updates = jax.jit(tx.update), tx.init(params), []
    for grads in gradients:
        new, state = update(grads, state, params)
        updates.append(new)
    return updates, state


def matrices(shape, count=5, seed=0):
    return [np.random.default_rng(seed + i).normal(size=shape) for i in range(count)]


def test_the_first_update_is_the_orthogonal_factor_of_the_gradient(x64):
    (g,) = matrices((3, 4), 1)
    (update,), _ = run(scale_by_shampoo(ridge=1e-9, eps=0.0), [jnp.asarray(g)], jnp.zeros((3, 4)))
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    # Adam's first update has entries ±1, so the length √12; the factor's is √3. The smaller side
    # has full rank; of the larger one only the row space of g counts.
    np.testing.assert_allclose(update, u @ vt * np.sqrt(12 / 3), rtol=1e-6)


def by_hand(gradients, every, powers, ridge=1e-6, decay=0.95, b1=0.9, b2=0.999, eps=1e-8):
    """An independent transcription, of a matrix; `powers` are those of L and R, 0 for none."""
    rows, columns = gradients[0].shape
    left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
    m = v = np.zeros((rows, columns))
    updates = []
    for step, g in enumerate(gradients):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        left = decay * left + (1 - decay) * g @ g.T
        right = decay * right + (1 - decay) * g.T @ g
        if step % every == 0:
            roots = []
            for factor, power in ((left, powers[0]), (right, powers[1])):
                values, basis = np.linalg.eigh(factor)
                values = np.clip(values, 0, None) + ridge * np.abs(factor).sum(axis=1).max()
                roots.append(basis @ np.diag(values**-power) @ basis.T)
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        adam = m_hat / np.sqrt(v_hat + eps**2)
        d = roots[0] @ m_hat @ roots[1]
        updates.append(d * np.linalg.norm(adam) / np.linalg.norm(d))
    return updates


@pytest.mark.parametrize(
    ("shape", "max_size", "powers"),
    [((3, 4), 4, (0.25, 0.25)), ((2, 2, 3), 3, (0.0, 0.5)), ((2, 5), 2, (0.5, 0.0))],
)
def test_repeats_a_transcription(x64, shape, max_size, powers):
    gradients = matrices(shape)
    updates, _ = run(
        scale_by_shampoo(every=2, max_size=max_size),
        [jnp.asarray(g) for g in gradients],
        jnp.zeros(shape),
    )
    expected = by_hand([g.reshape(-1, shape[-1]) for g in gradients], 2, powers)
    for update, value in zip(updates, expected, strict=True):
        np.testing.assert_allclose(update.reshape(value.shape), value, rtol=1e-6, atol=1e-9)


def test_every_update_is_as_long_as_that_of_adam_and_vectors_are_its_own(x64):
    params = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
    gradients = [{"w": jnp.asarray(w), "b": jnp.asarray(w[0])} for w in matrices((3, 4), 4, seed=7)]
    ours, _ = run(shampoo(0.1), gradients, params)
    adam, _ = run(optax.adam(0.1, eps=0.0, eps_root=1e-16), gradients, params)
    for update, reference in zip(ours, adam, strict=True):
        np.testing.assert_allclose(update["b"], reference["b"], rtol=1e-10)
        lengths = [np.linalg.norm(x["w"]) for x in (update, reference)]
        np.testing.assert_allclose(*lengths, rtol=1e-10)
        assert np.abs(update["w"] / reference["w"] - 1).max() > 0.1


def test_mapped_over_learning_rates_it_renews_roots_only_when_due():
    def train(learning_rate):
        tx = shampoo(learning_rate, every=3)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.eye(2)
        return jax.lax.scan(step, (params, tx.init(params)), length=4)[0][0]

    program = str(jax.make_jaxpr(jax.vmap(train))(jnp.array([0.1, 0.2])))
    # A mapped condition would have become a selection between both branches.
    assert "cond[" in program
    assert "while[" in program.split("cond[")[1]
    assert "while[" not in program.split("cond[")[0]


def test_meta_gradients_are_finite_where_gradients_vanish():
    rule = LearnedOptimizer(
        init=lambda key: jnp.array(0.1),
        optimizer=lambda theta, *, num_steps=None: shampoo(theta, every=2),
    )
    params = params_like(jax.random.key(0), {"matrix": (4, 3), "bias": (3,)})
    dead, zero, _, late = range(4)
    gradients = jax.tree.map(
        lambda g: g[jnp.array([dead, zero, late])],
        awkward_gradients(params, 4, jax.random.key(1)),
    )

    @jax.jit
    @jax.vmap
    def slope(gradients):
        return jax.grad(lambda theta: final_loss(rule, theta, gradients, params))(jnp.array(0.1))

    slopes = np.asarray(slope(gradients))
    assert np.isfinite(slopes).all()
    assert (slopes != 0).tolist() == [True, False, True]


def test_a_nan_is_passed_on_and_leaves_the_roots_finite():
    _, state = run(scale_by_shampoo(), [jnp.full((2, 2), jnp.nan)], jnp.zeros((2, 2)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.roots))
    assert np.isnan(state.mu).all()


@pytest.mark.parametrize("name", ["every", "max_size"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        shampoo(0.1, **{name: 0})
