"""One row per public factory of `metaopt.tasks`, for the conformance tests.

Pairs (name, thunk), the thunk giving (family, data). A name may have several rows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metaopt import data, tasks
from tests.algorithms.rows import embedding_family, episodes, linear_few_shot, pixels_times

SHAPE, CLASSES = (4, 4, 1), 3


def images():
    """Nine 4 x 4 images of three classes, in the precision in force."""
    return _images(jax.config.read("jax_enable_x64"))


@functools.cache
def _images(x64):
    """Drawn once per precision: most rows need them."""
    return data.strokes(jax.random.key(0), num_classes=CLASSES, examples_per_class=3, size=4)


def small_mlp():
    """The family that the augmentations and normalisers wrap."""
    return tasks.mlp(SHAPE, CLASSES, hidden=(5,), activation="tanh", batch_size=4)


def linear_classifier():
    """A classifier given as two plain functions."""
    return tasks.classification(
        lambda key: jax.random.normal(key, (16, CLASSES)),
        lambda params, inputs: inputs.reshape(len(inputs), -1) @ params,
        input_shape=SHAPE,
        num_classes=CLASSES,
        batch_size=4,
    )


def characters():
    """A text of five different characters."""
    return data.TextPool(jnp.arange(20) ** 2 % 5)


def table():
    """Six rows of two columns, with targets."""
    inputs = jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
    return data.Pool(inputs, inputs.sum(axis=-1, keepdims=True) ** 2)


def normalised(normalise):
    """A family with another normaliser."""
    return small_mlp()._replace(normalise=normalise), images()


def sampled():
    """A family of a few hundred parameters from the task distribution, and its pool."""
    rng = np.random.default_rng(0)
    drawn = tasks.sample_family({"images": images()}, rng, seconds=1e-5, classes=["logistic"])
    return drawn.family, drawn.data


def augmented():
    """Two augmentations for sure, and none of the others."""
    names = ("es_gradient", "reduced_batch", "bfloat16", "random_directions", "delayed_gradients")
    chances = {**dict.fromkeys(names, 0.0), "rescale": 1.0, "normalised_gradient": 1.0}
    drawn = tasks.augmented(small_mlp(), np.random.default_rng(0), probabilities=chances)
    return drawn.family, images()


def few_images():
    """Two classes of three 4 x 5 images, in the precision in force."""
    inputs = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 1))
    return tasks.episodes(data.ClassPool(inputs))


def perceptron_embedding():
    """Two layers and a head, 2-way 1-shot."""
    shape = few_images().inner.pool.inputs.shape
    return tasks.few_shot_embedding(
        *tasks.mlp_embedding(shape[2:], widths=(4, 3)), pool_shape=shape, num_ways=2, num_queries=2
    )


def small_convnet(statistics):
    """Two blocks, 2-way 1-shot."""
    sizes = {"num_ways": 2, "num_shots": 1, "num_queries": 2}
    shape = few_images().inner.pool.inputs.shape
    return tasks.few_shot_convnet(shape, channels=(2, 3), statistics=statistics, **sizes)


def coordinates(field, **settings):
    """Three 4 x 3 images of two channels."""
    images = jax.random.uniform(jax.random.key(0), (3, 4, 3, 2))
    family = tasks.coordinate_images(images.shape, field=field, hidden=(3,), **settings)
    return family, tasks.episodes(images)


def small_few_shot_mlp():
    """2-way 1-shot."""
    shape = few_images().inner.pool.inputs.shape
    return tasks.few_shot_mlp(shape, num_ways=2, num_queries=2, hidden=(3,), activation="tanh")


def partly_seen():
    """Images of which the upper or the lower half may be missing."""
    masks = np.repeat(np.eye(2), 2, axis=1).reshape(2, 4, 1, 1)
    return tasks.missing_modalities(small_few_shot_mlp(), masks)


def support_of(family, pools):
    """A family with the data of its support sets."""
    return family, pools.inner


def query_of(family, pools):
    """A family with the data of its query sets."""
    return family, pools.outer


def with_running_statistics():
    """A family whose params come with statistics of its episodes."""
    family, pools = small_convnet("transductive"), few_images()
    measure = tasks.running_statistics(family, num_episodes=2)

    def init(task_params, key):
        key_params, key_episodes = jax.random.split(key)
        return measure(family.init(task_params, key_params), pools, key_episodes)

    return small_convnet("running")._replace(init=init), pools.outer


def environments():
    """Linear regression in two environments of the point charges."""
    pool = tasks.environment_pool(
        tasks.point_charges(), jax.random.key(0), num_environments=2, num_points=5
    )
    family = tasks.environments(
        lambda key: jax.random.normal(key, (2, 2)),
        lambda params, inputs: inputs @ params,
        pool_shape=pool.inputs.shape,
        num_shots=2,
        num_queries=3,
    )
    return family, tasks.episodes(pool).inner


TASK_ROWS = [
    ("augmented", augmented),
    ("autoencoder", lambda: (tasks.autoencoder(SHAPE, hidden=(3,), batch_size=4), images())),
    ("bfloat16", lambda: (tasks.bfloat16(small_mlp()), images())),
    ("black_box", lambda: (tasks.black_box(dim=3), ())),
    ("classification", lambda: (linear_classifier(), images())),
    ("clip_classification", lambda: normalised(tasks.clip_classification(CLASSES))),
    ("convnet", lambda: (tasks.convnet(SHAPE, CLASSES, channels=(2, 3), batch_size=4), images())),
    ("coordinate_images", lambda: support_of(*coordinates("siren", support_share=0.3))),
    ("coordinate_images", lambda: query_of(*coordinates("fourier", num_features=2))),
    ("environments", environments),
    (
        "es_gradient",
        lambda: (tasks.es_gradient(small_mlp(), sigma=(0.01, 0.1), num_pairs=2), images()),
    ),
    ("few_shot episodes", lambda: (linear_few_shot(), episodes().inner)),
    (
        "few_shot_embedding unit_features",
        lambda: (embedding_family(tasks.unit_features(pixels_times)), episodes().outer),
    ),
    ("mlp_embedding", lambda: query_of(perceptron_embedding(), few_images())),
    ("few_shot_convnet", lambda: support_of(small_convnet("transductive"), few_images())),
    ("few_shot_convnet", lambda: query_of(small_convnet("support"), few_images())),
    ("few_shot_mlp", lambda: query_of(small_few_shot_mlp(), few_images())),
    (
        "few_shot_continual",
        lambda: (
            tasks.few_shot_continual(linear_few_shot(), num_ways=1, num_sets=2),
            episodes().outer,
        ),
    ),
    ("gradient_noise", lambda: (tasks.gradient_noise(small_mlp(), scale=(0.01, 0.1)), images())),
    ("least_squares", lambda: (tasks.least_squares(dim=3), ())),
    ("logistic", lambda: (tasks.logistic(SHAPE, CLASSES, batch_size=4, l2=0.1), images())),
    ("mlp", lambda: (small_mlp(), images())),
    ("mup_mlp", lambda: (tasks.mup_mlp(SHAPE, CLASSES, hidden=(5, 3), batch_size=4), images())),
    ("normalised_gradient", lambda: (tasks.normalised_gradient(small_mlp()), images())),
    ("missing_modalities", lambda: support_of(partly_seen(), few_images())),
    ("quadratic", lambda: (tasks.quadratic(dim=3), ())),
    (
        "random_directions",
        lambda: (tasks.random_directions(small_mlp(), num_directions=3, sign=True), images()),
    ),
    (
        "random_directions",
        lambda: (tasks.random_directions(small_mlp(), num_directions=2, orthogonal=True), images()),
    ),
    ("reduced_batch", lambda: (tasks.reduced_batch(small_mlp()), images())),
    ("regression", lambda: (tasks.regression((2,), hidden=(3,), batch_size=4), table())),
    ("relative_log", lambda: normalised(tasks.relative_log(lambda task_params: 1.0))),
    ("rescale", lambda: (tasks.rescale(small_mlp(), level="global"), images())),
    ("rescale", lambda: (tasks.rescale(small_mlp(), level="tensor"), images())),
    ("rescale", lambda: (tasks.rescale(small_mlp(), level="parameter"), images())),
    (
        "rnn_lm",
        lambda: (tasks.rnn_lm(5, hidden=3, embed=2, length=4, batch_size=2), characters()),
    ),
    ("rosenbrock", lambda: (tasks.rosenbrock(dim=3), ())),
    ("running_statistics", with_running_statistics),
    ("sample_family", sampled),
    ("scaled_init", lambda: (tasks.scaled_init(small_mlp()), images())),
    (
        "shape_segmentation",
        lambda: (tasks.shape_segmentation(size=4, channels=(2, 2), batch_size=2), ()),
    ),
    ("sinusoid_regression", lambda: (tasks.sinusoid_regression(hidden=(4,), batch_size=3), ())),
    (
        "sinusoid_stream",
        lambda: (
            tasks.sinusoid_stream(hidden=(3,), num_functions=2, num_queries=2),
            tasks.episodes(()).outer,
        ),
    ),
    (
        "transformer_lm",
        lambda: (
            tasks.transformer_lm(5, depth=1, width=4, length=4, batch_size=2),
            characters(),
        ),
    ),
    ("vae", lambda: (tasks.vae(SHAPE, hidden=(3,), latent=2, batch_size=4), images())),
    ("velo_classification", lambda: normalised(tasks.velo_classification(CLASSES))),
    (
        "vision_transformer",
        lambda: (
            tasks.vision_transformer(SHAPE, CLASSES, depth=1, width=4, batch_size=4),
            images(),
        ),
    ),
]
