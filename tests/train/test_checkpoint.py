import resource
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import train
from tests.train.problems import equal_bits


class Small(NamedTuple):
    weights: jax.Array
    half: jax.Array
    key: jax.Array
    count: jax.Array
    outer: tuple


def make(value):
    weights = jnp.full((3,), value)
    return Small(
        weights,
        weights.astype(jnp.bfloat16),
        jax.random.key(int(value)),
        jnp.array(int(value)),
        optax.adam(0.1).init(weights),
    )


def save_all(folder, scores, **settings):
    checkpoints = train.Checkpoints(folder, **settings)
    for step, score in scores.items():
        checkpoints.save(step, make(step), score=score)
    checkpoints.close()


def test_a_state_comes_back_bit_for_bit(tmp_path):
    save_all(tmp_path / "c", {3: 1.0})
    assert equal_bits(train.Checkpoints(tmp_path / "c").restore(make(0)), make(3))


def test_an_empty_folder_restores_nothing(tmp_path):
    assert train.Checkpoints(tmp_path / "c").restore(make(0)) is None


def test_the_last_ones_and_the_best_one_are_kept(tmp_path):
    scores = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.0}
    save_all(tmp_path / "c", scores, keep_last=2)
    kept = {int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit()}
    assert kept == {2, 4, 5}


def test_a_save_is_of_the_state_at_its_time(tmp_path):
    checkpoints = train.Checkpoints(tmp_path / "c")
    state = make(1)
    overwrite = jax.jit(lambda s: s._replace(weights=s.weights + 1), donate_argnums=0)
    checkpoints.save(1, state, score=0.0)
    for _ in range(20):
        state = overwrite(state)
    checkpoints.close()
    assert equal_bits(train.Checkpoints(tmp_path / "c").restore(make(0)), make(1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, damage):
    save_all(tmp_path / "c", {1: 2.0, 2: 1.0})
    files = [p for p in (tmp_path / "c" / "2" / "default").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    if damage == "truncate":
        largest.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        middle = len(content) // 2
        largest.write_bytes(
            content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        )
    else:
        largest.unlink()

    checkpoints = train.Checkpoints(tmp_path / "c")
    with pytest.warns(UserWarning, match="checkpoint 2 of .* cannot be read"):
        restored = checkpoints.restore(make(0))
    assert equal_bits(restored, make(1))
    # What was damaged is kept, and its step can be saved again.
    assert len(list((tmp_path / "c-unreadable").iterdir())) == 1
    checkpoints.save(2, make(2), score=1.0)
    checkpoints.close()
    assert equal_bits(train.Checkpoints(tmp_path / "c").restore(make(0)), make(2))


def test_leftovers_of_a_killed_save_are_ignored(tmp_path):
    save_all(tmp_path / "c", {1: 2.0})
    leftover = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x")
    checkpoints = train.Checkpoints(tmp_path / "c")
    assert checkpoints.latest_step() == 1
    checkpoints.save(2, make(2), score=1.0)
    checkpoints.close()
    assert np.array_equal(train.Checkpoints(tmp_path / "c").restore(make(0)).count, 2)


def test_a_save_that_fails_in_the_background_is_told_before_the_next_one(tmp_path):
    checkpoints = train.Checkpoints(tmp_path / "c")
    checkpoints.save(1, make(1), score=1.0)
    while checkpoints.latest_step() is None:
        time.sleep(0.01)
    large = {"weights": jax.random.normal(jax.random.key(0), (10_000,))}

    def failure():
        for _ in range(3000):
            checkpoints.check()
            time.sleep(0.01)

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, unlimited[1]))  # As a disk that is full.
    try:
        checkpoints.save(2, large, score=1.0)
        with pytest.raises(train.RunError, match="step 2 .*File too large.* step 1 is intact"):
            failure()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    checkpoints.check()
    checkpoints.save(3, make(3), score=1.0)
    checkpoints.close()
    assert train.Checkpoints(tmp_path / "c").latest_step() == 3
