import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import nm_mask, sr_ste, ste_sparse
from tests.optimizers import networks


def by_hand(weights, n, m):
    """Rows are inputs: groups of m neighbours in every column."""
    mask = np.zeros_like(weights)
    for column in range(weights.shape[1]):
        for start in range(0, weights.shape[0], m):
            size = np.abs(weights[start : start + m, column])
            for place in sorted(range(m), key=lambda i: (-size[i], i))[:n]:  # noqa: B023
                mask[start + place, column] = 1
    return mask


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (4, 4), (1, 2)])
def test_repeats_numpy_group_by_group(n, m):
    weights = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    mask = nm_mask(jnp.asarray(weights), n=n, m=m)
    np.testing.assert_array_equal(mask, by_hand(weights, n, m))
    other = nm_mask(jnp.asarray(weights.T), n=n, m=m, axis=-1)
    np.testing.assert_array_equal(other, mask.T)


def test_equal_weights_go_by_their_places_and_every_group_has_exactly_n():
    weights = np.random.default_rng(0).integers(-1, 2, size=(24, 7)).astype(np.float32)
    mask = np.asarray(nm_mask(jnp.asarray(weights), n=2, m=4))
    np.testing.assert_array_equal(mask, by_hand(weights, 2, 4))
    assert (mask.reshape(6, 4, 7).sum(axis=1) == 2).all()
    # A kernel: height, width, inputs, outputs.
    kernel = nm_mask(jnp.zeros((3, 3, 8, 2)), n=1, m=4)
    assert (kernel.reshape(3, 3, 2, 4, 2).sum(axis=3) == 1).all()
    assert (kernel[:, :, ::4] == 1).all()


def test_gradients_are_those_by_the_masked_weights(x64):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    mask = nm_mask(weights)

    def loss(masked):
        return jnp.sum(jnp.sin(masked) ** 2 + masked)

    value, grad = jax.value_and_grad(lambda w: loss(ste_sparse(w, nm_mask(w))))(weights)
    np.testing.assert_allclose(value, loss(weights * mask), rtol=1e-12)
    np.testing.assert_allclose(grad, jax.grad(loss)(weights * mask), rtol=1e-12)
    assert (np.asarray(ste_sparse(weights, mask))[np.asarray(mask) == 0] == 0).all()


def test_sr_ste_pulls_pruned_weights_alone_and_leaves_vectors_dense(x64):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(8, 3)), "b": rng.normal(size=4), "odd": rng.normal(size=(6, 2))}
    grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
    tx = sr_ste(n=1, m=4, decay=0.3)
    updates, _ = tx.update(
        jax.tree.map(jnp.asarray, grads), tx.init(params), jax.tree.map(jnp.asarray, params)
    )
    expected = grads["w"] + 0.3 * (1 - by_hand(params["w"], 1, 4)) * params["w"]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-12)
    np.testing.assert_array_equal(updates["b"], grads["b"])
    np.testing.assert_array_equal(updates["odd"], grads["odd"])


@pytest.mark.slow
def test_with_one_weight_in_eight_a_network_still_reads_digits():
    train, test = networks.digits()
    start = networks.dense((64, 64, 64, 16), jax.random.key(0))
    opt = optax.chain(sr_ste(n=1, m=8), optax.adam(3e-3))

    def sparse(params):
        return [{"w": ste_sparse(p["w"], nm_mask(p["w"], n=1, m=8)), "b": p["b"]} for p in params]

    @jax.jit
    def run(train, test):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (64,), 0, len(train[1]))

            def loss(params):
                logits = networks.apply(sparse(params), train[0][rows], jax.nn.relu)
                return networks.cross_entropy(logits, train[1][rows])

            updates, state = opt.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(1), 1200)
        (params, _), _ = jax.lax.scan(step, (start, opt.init(start)), keys)
        logits = networks.apply(sparse(params), test[0], jax.nn.relu)
        return jnp.mean(jnp.argmax(logits, axis=1) == test[1])

    accuracy = float(run(*jax.tree.map(jnp.asarray, (train, test))))
    assert accuracy >= 0.95, accuracy


def test_patterns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="n=5 must be between 1 and m=4"):
        nm_mask(jnp.zeros((4, 2)), n=5)
    with pytest.raises(ValueError, match=r"m=4 must divide the length of axis=-2 .* \(6, 2\)"):
        nm_mask(jnp.zeros((6, 2)))
    with pytest.raises(ValueError, match="sr_ste: n=0 must be between"):
        sr_ste(n=0)
    tx = sr_ste()
    with pytest.raises(ValueError, match="sr_ste: update needs params"):
        tx.update(jnp.zeros((4, 2)), tx.init(jnp.zeros((4, 2))))
