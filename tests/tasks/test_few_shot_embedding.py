import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks

SHAPE = (3, 4, 2, 1, 1)


def init(key):
    return jax.random.normal(key, (2, 5))


def embed(body, inputs):
    return jnp.tanh(inputs.reshape(len(inputs), -1) @ body)


def family(make=embed, **settings):
    return tasks.few_shot_embedding(
        init, make, pool_shape=SHAPE, num_ways=2, num_queries=3, **settings
    )


def test_the_loss_is_the_cross_entropy_of_a_linear_head(x64):
    pool = tasks.episodes(data.ClassPool(jax.random.normal(jax.random.key(0), SHAPE)))
    made = family()
    task = made.sample(jax.random.key(1))
    params = made.init(task, jax.random.key(2))
    params = params._replace(head=params.head._replace(b=jnp.array([0.3, -0.4])))
    batch = made.batch(pool.outer, task, jax.random.key(3))
    loss, metrics = jax.jit(made.loss)(params, task, batch, jax.random.key(4))

    inputs, labels = np.asarray(batch.inputs).reshape(6, 2), np.asarray(batch.labels)
    logits = np.tanh(inputs @ np.asarray(params.body)) @ np.asarray(params.head.w)
    logits = logits + np.array([0.3, -0.4])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(loss, -log_p[np.arange(6), labels].mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics.accuracy, (logits.argmax(1) == labels).mean())


def test_unit_features_have_norm_one_and_a_finite_slope_at_zero(x64):
    unit = tasks.unit_features(lambda body, inputs: inputs * body)
    features = jax.random.normal(jax.random.key(0), (4, 3)).at[1].set(0.0)
    found = unit(jnp.ones(()), features)
    norms = np.linalg.norm(found, axis=-1)
    np.testing.assert_allclose(norms, [1, 0, 1, 1], rtol=1e-12)
    slope = jax.grad(lambda x: unit(jnp.ones(()), x).sum())(features)
    assert np.isfinite(slope).all()


def test_the_perceptron_is_the_textbook_one_also_in_parts(x64):
    init, embed = tasks.mlp_embedding((2, 3, 1), widths=(5, 4))
    body = jax.tree.map(lambda x: x + 0.1, init(jax.random.key(0)))
    inputs = jax.random.normal(jax.random.key(1), (7, 2, 3, 1))
    expected = np.asarray(inputs).reshape(7, 6)
    for layer in body:
        expected = np.maximum(expected @ np.asarray(layer["w"]) + np.asarray(layer["b"]), 0)
    assert expected.shape == (7, 4)
    np.testing.assert_allclose(embed(body, inputs), expected, rtol=1e-12)
    np.testing.assert_allclose(embed(body[1:], embed(body[:1], inputs)), expected, rtol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"mlp_embedding: in_shape=\(2,\) and widths=\(\) must be"):
        tasks.mlp_embedding((2,), widths=())
    with pytest.raises(ValueError, match="few_shot_embedding: num_shots=0"):
        family(num_shots=0)
    with pytest.raises(ValueError, match="few_shot_embedding: data is a tuple"):
        family().batch((), family().sample(jax.random.key(0)), jax.random.key(1))
