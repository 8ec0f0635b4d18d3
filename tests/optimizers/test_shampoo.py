import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import scale_by_shampoo, shampoo
from tests.helpers import output_on_devices
from tests.optimizers import golden, networks


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


def by_hand(gradients, every, max_size, ridge=1e-6, decay=0.95, b1=0.9, b2=0.999, eps=1e-8):
    """An independent transcription; axes longer than `max_size` have no factor."""
    shape = gradients[0].shape
    axes = [axis for axis, size in enumerate(shape) if size <= max_size]
    factors = {axis: np.zeros((shape[axis], shape[axis])) for axis in axes}
    m = v = np.zeros(shape)
    updates = []
    for step, g in enumerate(gradients):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        for axis in axes:
            others = [other for other in range(g.ndim) if other != axis]
            product = np.tensordot(g, g, (others, others))
            factors[axis] = decay * factors[axis] + (1 - decay) * product
        if step % every == 0:
            roots = {}
            for axis, factor in factors.items():
                values, basis = np.linalg.eigh(factor)
                values = np.clip(values, 0, None) + ridge * np.abs(factor).sum(axis=1).max()
                roots[axis] = basis @ np.diag(values ** (-0.5 / len(axes))) @ basis.T
        d = m_hat = m / (1 - b1 ** (step + 1))
        adam = m_hat / np.sqrt(v / (1 - b2 ** (step + 1)) + eps**2)
        for axis, root in roots.items():
            d = np.moveaxis(np.tensordot(root, d, (1, axis)), 0, axis)
        updates.append(d * np.linalg.norm(adam) / np.linalg.norm(d))
    return updates


@pytest.mark.parametrize(
    ("shape", "max_size"),
    [
        ((3, 4), 4),
        pytest.param((2, 5), 2, marks=pytest.mark.compiles),
        ((2, 3, 4), 4),
        pytest.param((5, 2, 3), 3, marks=pytest.mark.compiles),
        pytest.param((2, 1, 3, 2), 3, marks=pytest.mark.compiles),
    ],
)
def test_repeats_a_transcription(x64, shape, max_size):
    gradients = matrices(shape)
    updates, state = run(
        scale_by_shampoo(every=2, max_size=max_size, merge_axes=1),
        [jnp.asarray(g) for g in gradients],
        jnp.zeros(shape),
    )
    assert [x is not None for x in state.factors[0]] == [size <= max_size for size in shape]
    for update, value in zip(updates, by_hand(gradients, 2, max_size), strict=True):
        np.testing.assert_allclose(update, value, rtol=1e-6, atol=1e-9)


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


def test_a_nan_is_passed_on_and_leaves_the_roots_finite():
    _, state = run(scale_by_shampoo(), [jnp.full((2, 2), jnp.nan)], jnp.zeros((2, 2)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.roots))
    assert np.isnan(state.mu).all()


def published(**settings):
    """With a factor of 1e-6 at first, a root in every step, and momentum of the directions."""
    defaults = {"b2": 0.99, "eps": 1e-10, "factor_decay": 0.99, "momentum": "after"}
    defaults["merge_axes"] = 1
    return shampoo(0.01, **{**defaults, "initial": 1e-6, "ridge": 0.0, "every": 1, **settings})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("shampoo_sgd_graft", {"graft": "sgd"}),
        ("shampoo_adagrad_graft", {"graft": "adagrad"}),
        ("shampoo_rmsprop_graft", {"graft": "rmsprop"}),
        (
            "shampoo_blocks",
            {"graft": "adagrad", "start": 4, "nesterov": True, "block_size": 2},
        ),
        pytest.param("shampoo_tensor", {"graft": "sgd"}, marks=pytest.mark.compiles),
        pytest.param(
            "shampoo_tensor_blocks",
            {"graft": "adagrad", "block_size": 2},
            marks=pytest.mark.compiles,
        ),
    ],
)
def test_repeats_a_published_implementation(x64, name, settings):
    path = golden.trajectory(published(**settings), params=golden.start_of(name))
    assert golden.difference(name, path) < 1e-10


def test_with_sums_and_no_graft_it_repeats_the_published_one_of_the_first_paper(x64):
    tx = published(graft="none", factor_decay=1.0, b1=0.0)
    path = golden.trajectory(tx, params={"w": golden.start()["w"]})
    assert golden.difference("shampoo_sum", path) < 1e-10


def test_before_its_start_it_is_the_rule_that_gives_the_length(x64):
    gradients = [jnp.asarray(g) for g in matrices((3, 4), 4)]
    tx = shampoo(0.1, start=4, graft="adagrad", momentum="after", eps=1e-10)
    updates, _ = run(tx, gradients, jnp.zeros((3, 4)))
    reference = optax.chain(
        optax.scale_by_rss(initial_accumulator_value=0.0, eps=0.0),
        optax.trace(0.9),
        optax.scale(-0.1),
    )
    expected, _ = run(reference, gradients, jnp.zeros((3, 4)))
    np.testing.assert_allclose(updates[:3], expected[:3], rtol=1e-8)
    assert np.abs(updates[3] - expected[3]).max() > 1e-3


@pytest.mark.parametrize("shape", [(5, 4), pytest.param((2, 4, 5), marks=pytest.mark.compiles)])
def test_blocks_are_preconditioned_as_if_they_were_tensors_of_their_own(x64, shape):
    gradients = matrices(shape, 3)
    settings = {"graft": "none", "every": 1, "merge_axes": 1}
    whole, _ = run(
        scale_by_shampoo(block_size=3, **settings),
        [jnp.asarray(g) for g in gradients],
        jnp.zeros(shape),
    )
    halves = [[slice(0, 3), slice(3, size)][: -(-size // 3)] for size in shape]
    places = list(itertools.product(*halves))

    def cut(g):
        return [jnp.asarray(g[place]) for place in places]

    parts, _ = run(
        scale_by_shampoo(**settings),
        [cut(g) for g in gradients],
        cut(np.zeros(shape)),
    )
    for update, blocks in zip(whole, parts, strict=True):
        for place, block in zip(places, blocks, strict=True):
            np.testing.assert_allclose(update[place], block, rtol=1e-9, atol=1e-12)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from metaopt.optimizers import shampoo
mesh = jax.make_mesh((4,), ("devices",), (jax.sharding.AxisType.Auto,))
g = {"w": jnp.sin(jnp.arange(48.0)).reshape(12, 4), "b": jnp.ones(3)}
results = []
for sharding in (None, NamedSharding(mesh, PartitionSpec("devices"))):
    tx = shampoo(0.1, block_size=4, sharding=sharding)
    update = jax.jit(tx.update).lower(g, tx.init(g)).compile()
    results.append(update(g, tx.init(g))[0]["w"])
    # Three blocks have six factors; two identities more, and each device has two of them.
    loops = [line for line in update.as_text().splitlines() if " while(" in line]
    assert loops and all(("f32[2,4,4]" in line) == (sharding is not None) for line in loops)
np.testing.assert_allclose(results[0], results[1], rtol=1e-4)
print("checked")
"""


@pytest.mark.slow
def test_every_device_finds_the_roots_of_its_share_of_the_blocks():
    assert "checked" in output_on_devices(SHARDED, 4)


def trained_on_digits(make, learning_rates, num_steps=300, batch_size=64):
    """Final training losses of a network of 64, 64 and 10 units."""
    (images, labels), _ = networks.digits()
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    params = networks.dense((64, 64, 10), jax.random.key(0))
    draws = jax.random.randint(jax.random.key(1), (num_steps, batch_size), 0, len(images))

    def loss(params, images, labels):
        return networks.cross_entropy(networks.apply(params, images, jax.nn.relu), labels)

    def train(learning_rate):
        tx = make(learning_rate)

        def step(carry, index):
            params, state = carry
            grads = jax.grad(loss)(params, images[index], labels[index])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (last, _), _ = jax.lax.scan(step, (params, tx.init(params)), draws)
        return loss(last, images, labels)

    return np.asarray(jax.jit(lambda rates: jax.lax.map(train, rates))(learning_rates))


@pytest.mark.slow
def test_training_loss_is_far_below_that_of_adagrad_at_each_learning_rate():
    rates = jnp.array([0.003, 0.01, 0.03])
    settings = {"graft": "adagrad", "momentum": "after", "initial": 1e-6, "every": 1}
    ours = trained_on_digits(
        lambda rate: shampoo(rate, factor_decay=0.999, eps=1e-10, **settings), rates
    )
    adagrad = trained_on_digits(
        lambda rate: optax.chain(
            optax.scale_by_rss(initial_accumulator_value=0.0, eps=1e-20),
            optax.trace(0.9),
            optax.scale_by_learning_rate(rate),
        ),
        rates,
    )
    assert (ours <= 0.6 * adagrad).all()


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("settings", "merged"),
    [({}, (18, 5)), ({"merge_axes": 10}, (9, 10)), ({"merge_axes": 10, "max_size": 8}, None)],
)
def test_a_tensor_moves_as_its_merged_self(x64, settings, merged):
    shape = (3, 3, 2, 5)
    tx = scale_by_shampoo(every=2, **settings)
    gradients = [jnp.asarray(g) for g in matrices(shape, 3)]
    updates, _ = run(tx, gradients, jnp.zeros(shape))
    merged = merged or (3, 6, 5)
    plain = scale_by_shampoo(every=2, **{**settings, "merge_axes": 1})
    expected, _ = run(plain, [g.reshape(merged) for g in gradients], jnp.zeros(merged))
    np.testing.assert_allclose(np.ravel(updates), np.ravel(expected), rtol=1e-10)


@pytest.mark.parametrize("name", ["every", "start", "max_size", "merge_axes", "block_size"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        shampoo(0.1, **{name: 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 8, "max_size": 4}, "block_size=8 is above max_size=4"),
        ({"nesterov": True}, "needs momentum='after'"),
        ({"sharding": object()}, "block_size is None"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        shampoo(0.1, **settings)
