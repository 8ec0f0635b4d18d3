"""What goes wrong in long runs, and what is left afterwards."""

import errno
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import data, estimators, train
from metaopt.train import _recorder
from tests.train import problems, processes


@pytest.mark.compiles
def test_a_stream_that_raises_is_named_and_the_run_goes_on_where_it_was(tmp_path):
    broken = True

    def pool(step):
        if broken and step == 7:
            raise OSError("no route to host")
        return ()

    stream = data.Stream(pool, 2, (1,))
    message = (
        r"the stream of 'quadratic' raised OSError at outer step 7 \(no route to host\)\. "
        "The state of step 7 is saved"
    )
    with pytest.raises(train.RunError, match=message) as caught:
        problems.run(tmp_path / "run", num_steps=10, data=stream)
    assert isinstance(caught.value.__cause__, OSError)
    status = train.run_status(tmp_path / "run")
    assert (status.phase, status.step, status.last_checkpoint) == ("failed", 7, 7)
    assert "no route to host" in status.error
    broken = False
    resumed = problems.run(tmp_path / "run", num_steps=10, data=stream)
    assert problems.equal_bits(resumed.state, problems.run(num_steps=10).state)


@pytest.mark.compiles
def test_a_stream_that_raises_without_a_folder_says_that_nothing_is_saved():
    def pool(step):
        if step == 2:
            raise ValueError("bad record")
        return ()

    with pytest.raises(train.RunError, match=r"step 2 \(bad record\)\. Nothing is saved"):
        problems.run(num_steps=5, data=data.Stream(pool, 2, (1,)))


def minimise(share_broken, directory=None, *, theta=(4.0, -3.0), num_steps=30):
    """ES on |theta - 1|^2, which is NaN for a random share of the tasks."""

    def meta_loss(theta, data, key):
        value = jnp.sum((theta - 1) ** 2)
        return jnp.where(jax.random.bernoulli(key, share_broken), jnp.nan, value)

    def score(theta, data, key):
        return jnp.where(share_broken == 1, jnp.nan, jnp.sum((theta - 1) ** 2))

    return train.meta_train(
        {"bowl": estimators.es(meta_loss, sigma=0.1, num_tasks=8)},
        jnp.array(theta),
        {"bowl": ()},
        jax.random.key(0),
        outer_opt=optax.adam(0.3),
        num_steps=num_steps,
        probes={"bowl": train.Probe(score)},
        probe_every=10,
        directory=directory,
    )


@pytest.mark.compiles
def test_tasks_that_are_nan_count_as_zero_and_training_goes_on(tmp_path):
    result = minimise(0.25, tmp_path)
    assert result.state.best_score < 0.1 * 25
    lines = [line for line in train.read_metrics(tmp_path) if "loss" in line]
    shares = np.array([line["nonfinite"] for line in lines])
    np.testing.assert_array_equal(8 * shares, np.round(8 * shares))
    error = np.sqrt(0.25 * 0.75 / (8 * len(shares)))
    assert abs(shares.mean() - 0.25) < 4 * error
    # A step is skipped exactly where most tasks were lost.
    assert [line["skipped"] for line in lines] == [int(share > 0.5) for share in shares]
    status = train.run_status(tmp_path)
    np.testing.assert_allclose(status.nonfinite, shares.mean())
    assert status.skipped == np.sum(shares > 0.5)


def test_when_all_tasks_are_nan_nothing_moves_and_nothing_sound_is_overwritten(tmp_path):
    result = minimise(1.0, tmp_path)
    np.testing.assert_array_equal(result.state.theta, [4.0, -3.0])
    np.testing.assert_array_equal(result.state.best_theta, [4.0, -3.0])
    saved = train.load_theta(tmp_path / "theta.npz", result.state.theta)
    np.testing.assert_array_equal(saved, [4.0, -3.0])
    status = train.run_status(tmp_path)
    assert (status.skipped, status.nonfinite) == (30, 1.0)
    assert status.probes["bowl"] == train.BestProbe(None, None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_theta_that_is_not_finite_is_refused_at_the_start(tmp_path, bad):
    with pytest.raises(ValueError, match="theta has 1 of 2 numbers that are not finite"):
        minimise(0.0, tmp_path / "run", theta=(0.0, bad))
    assert not (tmp_path / "run").exists()


def test_a_folder_takes_one_process_at_a_time(tmp_path):
    refused = []

    def second(step, metrics):
        if step == 5:
            with pytest.raises(train.RunFolderError, match="another process runs"):
                problems.run(tmp_path, num_steps=5)
            refused.append(train.run_status(tmp_path).phase)

    problems.run(tmp_path, num_steps=10, on_report=second)
    assert refused == ["running"]
    assert train.run_status(tmp_path).phase == "finished"


def test_a_run_killed_while_it_made_its_folder_can_be_started(tmp_path):
    (tmp_path / "settings.json.partial").write_text('{"sett')
    train.open_folder(tmp_path, {"a": 1})
    assert json.loads((tmp_path / "settings.json").read_text())["settings"] == {"a": 1}


@pytest.mark.compiles
def test_a_file_that_cannot_be_written_ends_the_run_in_words_and_the_checkpoint_serves(
    tmp_path, monkeypatch
):
    room, save = 2, _recorder.save_theta

    def until_full(file, theta):
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save(file, theta)

    monkeypatch.setattr(_recorder, "save_theta", until_full)
    with pytest.raises(train.RunError, match="cannot be written .No space left on device.*intact"):
        problems.run(tmp_path, num_steps=20)
    assert train.run_status(tmp_path).phase == "failed"
    monkeypatch.undo()
    resumed = problems.run(tmp_path, num_steps=20)
    assert problems.equal_bits(resumed.state, problems.run(num_steps=20).state)


FULL_DISK = """
import resource

limit = int(sys.argv[2])

def fill(step, metrics):
    if step == 15 and limit:  # By now the save of step 5 is done, for that of step 10 waited.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

try:
    result = problems.run(sys.argv[1], num_steps=20, num_tasks=400, on_report=fill)
    print(int(result.state.step))
except train.RunError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoint_before(tmp_path):
    full = processes.finish(processes.start(FULL_DISK, tmp_path / "run", 8000))
    told = re.search(r"failed \(File too large\); the checkpoint of step (5|10) is intact", full)
    assert told
    assert train.run_status(tmp_path / "run").last_checkpoint == int(told[1])
    assert processes.finish(processes.start(FULL_DISK, tmp_path / "run", 0)) == "20\n"
    assert processes.finish(processes.start(FULL_DISK, tmp_path / "whole", 0)) == "20\n"
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "whole")]
    assert metrics[0] == metrics[1]
