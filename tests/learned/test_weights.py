"""Weights as files; those of the originals, read from the format they are published in."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

from benchmarks import parity
from metaopt import learned, train, tree
from metaopt.learned import _weights
from tests.learned import reference


def vectors(name):
    reference.load(name)  # Skips where there are none.
    return reference.FOLDER / f"{name}.npz"


def publish(folder, theta):
    file = folder / "theta.state"
    file.write_bytes(serialization.msgpack_serialize(theta))
    return file


@pytest.fixture
def theta():
    return learned.celo2().init(jax.random.key(0))


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), actual, expected))


def test_what_was_saved_comes_back(tmp_path, theta):
    training = {"steps": 3, "names": ["a"]}
    file = tmp_path / "weights.npz"
    learned.save(file, theta, optimizer="celo2", settings={"hidden_size": 8}, training=training)
    assert_equal(learned.load(file, learned.celo2()), theta)
    info = learned.weights_info(file)
    assert info["optimizer"] == "celo2"
    assert info["settings"] == {"hidden_size": 8}
    assert info["training"] == training


def test_equal_weights_make_equal_files(tmp_path, theta):
    for name in ("a.npz", "b.npz"):
        learned.save(tmp_path / name, theta, optimizer="celo2")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_bfloat16_weights_are_stored_as_float32_and_come_back(tmp_path, theta):
    theta = jax.tree.map(lambda x: x.astype(jnp.bfloat16), theta)
    learned.save(tmp_path / "weights.npz", theta, optimizer="celo2")
    back = learned.load(tmp_path / "weights.npz", learned.celo2())
    assert_equal(back, jax.tree.map(lambda x: x.astype(jnp.float32), theta))


def test_a_file_is_not_overwritten_unless_told(tmp_path, theta):
    file = tmp_path / "weights.npz"
    learned.save(file, theta, optimizer="celo2")
    before = file.read_bytes()
    other = jax.tree.map(lambda x: x + 1, theta)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        learned.save(file, other, optimizer="celo2")
    assert file.read_bytes() == before
    learned.save(file, other, optimizer="celo2", overwrite=True)
    assert_equal(learned.load(file, learned.celo2()), other)


def test_weights_of_another_optimizer_are_refused_with_the_difference(tmp_path, theta):
    learned.save(tmp_path / "weights.npz", theta, optimizer="celo2")
    with pytest.raises(ValueError, match=r"linear_0/w has shape \(30, 8\), expected \(30, 4\)"):
        learned.load(tmp_path / "weights.npz", learned.celo2(hidden_size=4))
    with pytest.raises(ValueError, match="missing decays/momenta.*unexpected linear_0"):
        learned.load(tmp_path / "weights.npz", learned.adafac_mlp())


def test_changed_weights_are_noticed(tmp_path, theta):
    file = tmp_path / "weights.npz"
    learned.save(file, theta, optimizer="celo2")
    arrays = tree.read_arrays(file)
    arrays["linear_0/b"] = arrays["linear_0/b"] + 1
    tree.write_arrays(file, arrays)
    with pytest.raises(ValueError, match="not those it was written with"):
        learned.load(file, learned.celo2())


def test_a_newer_format_is_refused(tmp_path, theta):
    file = tmp_path / "weights.npz"
    learned.save(file, theta, optimizer="celo2")
    arrays = tree.read_arrays(file)
    header = json.loads(arrays["__metaopt__"].tobytes()) | {"format": 2}
    arrays["__metaopt__"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    tree.write_arrays(file, arrays)
    with pytest.raises(ValueError, match="format 2.*upgrade metaopt"):
        learned.load(file, learned.celo2())


def test_bad_arguments_are_refused(tmp_path, theta):
    with pytest.raises(ValueError, match="optimizer='celo9' makes no learned optimizer"):
        learned.save(tmp_path / "a.npz", theta, optimizer="celo9")
    bad = jax.tree.map(lambda x: x * jnp.nan, theta)
    with pytest.raises(ValueError, match="not finite in linear_0/b"):
        learned.save(tmp_path / "a.npz", bad, optimizer="celo2")
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path, theta):
    text = tmp_path / "text.npz"
    text.write_text("not weights")
    with pytest.raises(ValueError, match="neither an archive of arrays nor a msgpack checkpoint"):
        learned.load(text, learned.celo2())
    train.save_theta(tmp_path / "run.npz", theta)
    with pytest.raises(ValueError, match="has no header.*load_theta"):
        learned.load(tmp_path / "run.npz", learned.celo2())
    unknown = publish(tmp_path, {"layer": {"w": np.zeros(2)}})
    with pytest.raises(ValueError, match="no known optimizer.*layer/w"):
        learned.load(unknown, learned.celo2())


@pytest.mark.parametrize("changed", [{"format": "1"}, {"settings": [1]}, {"optimizer": None}])
def test_a_damaged_header_is_refused(tmp_path, theta, changed):
    file = tmp_path / "weights.npz"
    learned.save(file, theta, optimizer="celo2")
    arrays = tree.read_arrays(file)
    header = json.loads(arrays["__metaopt__"].tobytes()) | changed
    arrays["__metaopt__"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    tree.write_arrays(file, arrays)
    with pytest.raises(ValueError, match="is not one that save writes"):
        learned.load(file, learned.celo2())


def test_only_makers_of_optimizers_are_taken_from_a_file():
    with pytest.raises(ValueError, match="optimizer='save' makes no learned optimizer"):
        _weights.build({"optimizer": "save", "settings": {"path": "x"}})


def test_a_truncated_file_is_refused(tmp_path, theta):
    file = tmp_path / "weights.npz"
    learned.save(file, theta, optimizer="celo2")
    content = file.read_bytes()
    for length in (1, 10, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"weights\.npz"):
            learned.load(file, learned.celo2())


def test_a_published_checkpoint_with_a_missing_array_is_refused(tmp_path):
    parity.publish(parity.read(vectors("celo2_base_loud")), tmp_path / "theta.state")
    theta = serialization.msgpack_restore((tmp_path / "theta.state").read_bytes())
    del theta["ff_mod_stack"]["~"]["w1"]
    with pytest.raises(ValueError, match="lacks 'w1'"):
        learned.load(publish(tmp_path, theta), learned.celo2())


@pytest.mark.parametrize("name", parity.CASES)
def test_published_weights_take_the_original_steps(name):
    errors = parity.measure(vectors(name))
    assert errors["stored"] < 5e-6
    assert errors["rolling"] < 1e-5
    assert errors["moved"] > 100 * errors["rolling"]


def test_weights_trained_by_others_lower_a_loss():
    file = reference.FOLDER / "celo_published.theta.state"
    if not file.exists():
        pytest.skip("no published weights")
    celo = learned.celo()
    opt = celo.optimizer(learned.load(file, celo), num_steps=100)
    params = {"w": jnp.ones((6, 4)), "b": jnp.ones(4)}
    target = jax.random.normal(jax.random.key(0), (6, 4))

    def loss(params):
        return jnp.mean((params["w"] - target) ** 2) + jnp.mean(params["b"] ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = opt.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.jit(lambda p: jax.lax.scan(step, (p, opt.init(p)), length=100))(params)
    assert values[-1] < 0.5 * values[0]
