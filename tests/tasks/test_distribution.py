import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import data, tasks
from metaopt.tasks import _distribution
from metaopt.tasks._distribution import _draw_budget, _draw_class
from tests.helpers import standard_errors

CLASSES = (
    "mlp",
    "convnet",
    "autoencoder",
    "vae",
    "vision_transformer",
    "logistic",
    "rnn_lm",
    "transformer_lm",
    "quadratic",
)


@functools.cache
def pools():
    return {
        "images": data.strokes(jax.random.key(0), num_classes=3, examples_per_class=4, size=6),
        "vectors": data.gaussian_mixture(jax.random.key(1), num_classes=3, dim=2, num_examples=5),
        "text": data.TextPool(jnp.arange(200) % 7),
    }


def draw(seed=0, **settings):
    return tasks.sample_family(pools(), np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_gives_a_family_within_the_budget(name):
    drawn = draw(classes=[name], seconds=1e-3)
    assert drawn.name.split("/")[0] == drawn.settings["class"] == name
    assert 0 < drawn.seconds <= 1e-3

    def gradient(pool, key):
        key_task, key_init, key_batch, key_loss = jax.random.split(key, 4)
        task = drawn.family.sample(key_task)
        params = drawn.family.init(task, key_init)
        batch = drawn.family.batch(pool, task, key_batch)
        return params, jax.grad(drawn.family.loss, has_aux=True)(params, task, batch, key_loss)[0]

    params, grads = jax.eval_shape(gradient, drawn.data, jax.random.key(0))
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


@pytest.mark.compiles
def test_the_generator_decides_on_everything():
    first, again, other = draw(3), draw(3), draw(4)
    assert first.settings == again.settings
    assert (first.name, first.seconds) == (again.name, again.seconds)
    assert first.settings != other.settings


def test_smaller_images_are_what_the_settings_say():
    for seed in range(20):
        drawn = draw(seed, classes=["logistic"])
        assert drawn.data.inputs.shape[1:] == drawn.settings["input_shape"]
        if drawn.settings["pool"] == "images" and drawn.settings["input_shape"][0] < 6:
            mean, expected = jnp.mean(drawn.data.inputs), jnp.mean(pools()["images"].inputs)
            assert abs(mean - expected) < 0.3 * expected
            return
    pytest.fail("no draw had smaller images")


def test_initial_parameters_are_scaled_per_task():
    drawn = draw(classes=["mlp"])
    task = jax.eval_shape(drawn.family.sample, jax.random.key(0))
    assert isinstance(task, tasks.ScaledInitTask)


def test_classes_are_equally_likely_and_language_needs_a_larger_budget():
    rng = np.random.default_rng(0)
    small, large = (
        [_draw_class(pools(), None, budget, rng) for _ in range(2000)] for budget in (5e-5, 1e-4)
    )
    assert set(large) == set(CLASSES)
    assert set(small) == set(CLASSES) - {"rnn_lm", "transformer_lm"}
    assert standard_errors([name == "mlp" for name in large], 1 / 9) < 4
    assert standard_errors([name == "mlp" for name in small], 1 / 7) < 4


def test_budgets_are_drawn_by_their_weights():
    rng = np.random.default_rng(0)
    found = np.array([_draw_budget({1.0: 3.0, 2.0: 1.0}, rng) for _ in range(2000)])
    assert set(found) == {1.0, 2.0}
    assert standard_errors(found == 2.0, 0.25) < 4


def test_a_budget_that_no_draw_meets_is_refused(monkeypatch):
    monkeypatch.setattr(_distribution, "_MAX_ATTEMPTS", 2)
    with pytest.raises(ValueError, match=r"2 draws of 'quadratic' take at least .* raise seconds"):
        draw(seconds=1e-12, classes=["quadratic"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["resnet"]}, "sample_family: unknown class 'resnet'"),
        ({"seconds": 0.0}, "sample_family: seconds=0.0 is not positive"),
        ({"operations_per_second": 0.0}, "operations_per_second=0.0 is not positive"),
        ({"max_batch_size": 0}, "max_batch_size=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(**settings)


def test_pools_that_serve_no_class_are_refused():
    with pytest.raises(ValueError, match="serve none of the classes"):
        tasks.sample_family({}, np.random.default_rng(0), classes=["mlp"])
