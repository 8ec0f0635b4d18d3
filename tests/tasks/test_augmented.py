import functools
import re

import jax
import numpy as np
import pytest

from metaopt import tasks
from tests.helpers import standard_errors

ALL = {
    name: 1.0
    for name in (
        "rescale",
        "es_gradient",
        "reduced_batch",
        "bfloat16",
        "normalised_gradient",
        "random_directions",
        "delayed_gradients",
    )
}


def draws(number, **settings):
    rng = np.random.default_rng(0)
    family = tasks.quadratic(dim=2)
    return [tasks.augmented(family, rng, **settings) for _ in range(number)]


@functools.cache
def velo_draws():
    return draws(3000)


def share(found, word):
    """For each draw, whether an augmentation is among those applied."""
    return [any(text.startswith(word) for text in draw.applied) for draw in found]


@pytest.mark.parametrize(
    ("name", "chance"),
    [
        ("rescale(", 5 / 7),
        ("rescale(global", 2 / 7),
        ("rescale(tensor", 2 / 7),
        ("rescale(parameter", 1 / 7),
        ("es_gradient", 0.08),
        ("reduced_batch", 0.2),
        ("bfloat16", 0.2),
        ("normalised_gradient", 0.05),
        ("random_directions", 0.08),
        ("delayed_gradients", 0.05),
    ],
)
def test_augmentations_are_as_frequent_as_in_velo(name, chance):
    found = share(velo_draws(), name)
    assert standard_errors(found, chance) < 4
    assert standard_errors(found, 1.5 * chance) > 4


@pytest.mark.compiles
def test_numbers_are_in_their_ranges_and_log_uniform():
    found = draws(2000, probabilities=ALL, max_directions=64)
    assert all(len(draw.applied) == len(ALL) for draw in found)
    directions = [int(re.match(r"\w+\((\d+)", draw.applied[-2])[1]) for draw in found]
    assert (min(directions), max(directions)) == (1, 64)
    # ⌊exp(u)⌋ = 1 for u below ln 2, of a range of ln 65.
    assert standard_errors(np.array(directions) == 1, np.log(2) / np.log(65)) < 4
    delays = [draw.delay for draw in found]
    assert set(delays) == set(range(1, 9))
    assert standard_errors(np.array(delays) == 1, np.log(2) / np.log(9)) < 4


def test_a_draw_advances_the_generator_by_the_same_amount():
    states = []
    for probabilities in (ALL, dict.fromkeys(ALL, 0.0)):
        rng = np.random.default_rng(5)
        tasks.augmented(tasks.quadratic(dim=2), rng, probabilities=probabilities)
        states.append(rng.random())
    assert states[0] == states[1]


def test_nothing_drawn_leaves_the_family_itself():
    family = tasks.quadratic(dim=2)
    rng = np.random.default_rng(0)
    drawn = tasks.augmented(family, rng, probabilities=dict.fromkeys(ALL, 0.0))
    assert drawn == tasks.Augmented(family, 0, ())


def test_all_at_once_is_a_family_in_the_stated_order():
    family = tasks.mlp((3,), 3, hidden=(4,), batch_size=4)
    rng = np.random.default_rng(0)
    drawn = tasks.augmented(family, rng, probabilities=ALL, max_directions=4)
    assert [re.match(r"\w+", text)[0] for text in drawn.applied] == list(ALL)
    task = jax.eval_shape(drawn.family.sample, jax.random.key(0))
    assert isinstance(task, tasks.ReducedBatchTask)
    assert isinstance(task.inner, tasks.ESGradientTask)
    assert isinstance(task.inner.inner, tasks.RescaledTask)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probabilities": {"noise": 0.1}}, "augmented: probabilities has 'noise'; choose from"),
        ({"probabilities": {"rescale": 2}}, "augmented: the probability 2 of 'rescale' is not"),
        ({"max_directions": 0}, "augmented: max_directions must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        draws(1, **settings)
