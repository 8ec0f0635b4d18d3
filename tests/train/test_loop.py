import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import data, eval, train
from tests.train import problems


@pytest.mark.compiles
def test_ten_steps_and_ten_more_are_twenty_bit_for_bit(tmp_path):
    whole = problems.run(tmp_path / "whole", num_steps=20)
    problems.run(tmp_path / "halves", num_steps=10)
    halves = problems.run(tmp_path / "halves", num_steps=20)
    assert problems.equal_bits(whole.state, halves.state)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "halves")]
    assert lines[0] == lines[1]
    assert not problems.equal_bits(whole.state.theta, problems.run(num_steps=10).state.theta)


@pytest.mark.compiles
def test_a_folder_changes_nothing(tmp_path):
    assert problems.equal_bits(problems.run(tmp_path / "run").state, problems.run().state)


@pytest.mark.compiles
def test_meta_training_finds_the_best_learning_rate():
    result = problems.run(num_steps=150, outer_opt=optax.adam(0.1))
    probe = eval.probe(problems.FAMILY, problems.OPTIMIZER, num_steps=20, num_tasks=64)
    theta = problems.OPTIMIZER.init(jax.random.key(0))
    score = jax.jit(lambda theta: probe(theta, (), jax.random.key(7)))
    grid = jnp.linspace(-4.0, 1.0, 40)
    rates = {name: value for name, value in theta.items() if name == "learning_rate"}
    assert rates
    best = min(float(score(result.state.theta | {"learning_rate": x})) for x in grid)
    start, end = float(score(theta)), float(score(result.state.best_theta))
    assert end - best < 0.1 * (start - best)


@pytest.mark.compiles
def test_the_best_theta_scores_what_was_reported():
    result = problems.run(num_steps=20)
    scores = []
    problems.run(num_steps=20, on_report=lambda step, m: scores.append(m["probe/quadratic"]))
    assert len(scores) == 5
    np.testing.assert_allclose(result.state.best_score, min(scores))
    probe = eval.probe(problems.FAMILY, problems.OPTIMIZER, num_steps=20, num_tasks=4)
    again = probe(result.state.best_theta, (), jax.random.key(train._loop._PROBE_SEED))
    np.testing.assert_allclose(again, min(scores), rtol=1e-5)


def test_what_is_saved_is_the_best_theta(tmp_path):
    result = problems.run(tmp_path / "run")
    saved = train.load_theta(tmp_path / "run" / "theta.npz", result.state.theta)
    assert problems.equal_bits(saved, result.state.best_theta)


def test_an_interrupted_run_saves_and_goes_on(tmp_path):
    whole = problems.run(tmp_path / "whole", num_steps=20)

    def interrupt(step, metrics):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    partial = problems.run(tmp_path / "run", num_steps=20, on_report=interrupt)
    assert partial.interrupted
    assert partial.state.step == 10
    resumed = problems.run(tmp_path / "run", num_steps=20)
    assert not resumed.interrupted
    assert problems.equal_bits(whole.state, resumed.state)


@pytest.mark.compiles
def test_a_run_killed_before_its_first_checkpoint_writes_its_first_probe_once(tmp_path):
    class Killed(BaseException):
        pass

    def kill(step, metrics):
        raise Killed

    with pytest.raises(Killed):
        problems.run(tmp_path, num_steps=5, on_report=kill)
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [0]
    problems.run(tmp_path, num_steps=5)
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [0, 1, 2, 3, 4, 5, 5]


def test_a_run_outside_the_main_thread_needs_no_signals():
    results = []
    thread = threading.Thread(target=lambda: results.append(problems.run(num_steps=5)))
    thread.start()
    thread.join()
    assert results[0].state.step == 5


@pytest.mark.compiles
def test_a_stream_is_asked_for_the_pool_of_each_step(tmp_path):
    asked = []

    def pool(step):
        asked.append(step)
        return ()

    stream = data.Stream(pool, num_classes=2, input_shape=(1,))
    problems.run(tmp_path / "run", num_steps=10, data=stream)
    problems.run(tmp_path / "run", num_steps=12, data=stream)
    steps = [s for i, s in enumerate(asked) if i not in (0, 11)]  # Shapes are read from step 0.
    assert steps == list(range(12))


@pytest.mark.compiles
def test_a_folder_of_other_settings_is_refused(tmp_path):
    problems.run(tmp_path / "run", num_steps=5)
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(train.RunFolderError, match="name: 'tiny' there, 'other' now"):
        problems.run(tmp_path / "run", settings={"name": "other"})
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"probe_every": 0}, "probe_every must be at least 1"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 1"),
    ],
)
def test_bad_counts_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"meta_train: {message}"):
        problems.run(**changes)


def test_names_of_estimators_and_data_must_agree():
    settings = {"outer_opt": optax.sgd(0.1), "num_steps": 1}
    with pytest.raises(ValueError, match=r"named \['a'\] and data \['b'\]"):
        train.meta_train({"a": problems.estimator()}, (), {"b": ()}, jax.random.key(0), **settings)
    with pytest.raises(ValueError, match="estimators is empty"):
        train.meta_train({}, (), {}, jax.random.key(0), **settings)


def test_memory_does_not_grow_with_the_number_of_steps():
    counts = []
    problems.run(
        num_steps=200, probe_every=100, on_report=lambda s, m: counts.append(len(jax.live_arrays()))
    )
    assert counts[-1] <= counts[-2]


_KILLED = """
import pathlib, sys, time
from metaopt import doctor
doctor.guard_cpu()
doctor.enable_compilation_cache()
from metaopt import data
from tests.train import problems

calls = 0

def pool(step):
    global calls
    calls += 1
    if calls == 2:  # The first call is for the shapes.
        pathlib.Path(sys.argv[1] + "-stepping").touch()
    time.sleep(0.05)
    return ()

problems.run(sys.argv[1], num_steps=200, data=data.Stream(pool, 2, (1,)))
"""


@pytest.mark.slow
def test_a_run_killed_ten_times_loses_nothing(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", _KILLED]
    subprocess.run([*command, str(tmp_path / "whole")], cwd=root, check=True)

    rng, stepping, steps = np.random.default_rng(0), tmp_path / "killed-stepping", []
    for kill in range(10):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=root)
        # Most kills while it steps, checkpoints and probes; every third while it starts.
        while kill % 3 != 2 and not stepping.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.2 if kill % 3 != 2 else 3.0))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        stepping.unlink(missing_ok=True)
        lines = train.read_metrics(tmp_path / "killed")
        steps.append(lines[-1]["step"] if lines else 0)
    assert 0 < steps[-1] < 200
    subprocess.run([*command, str(tmp_path / "killed")], cwd=root, check=True)

    restored = [
        train.Checkpoints(tmp_path / name / "checkpoints").restore(_like())
        for name in ("whole", "killed")
    ]
    assert restored[0].step == 200
    assert problems.equal_bits(*restored)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]
    assert len(metrics[0].splitlines()) == 200 + 41
    assert json.loads(metrics[0].splitlines()[-1])["step"] == 200


def _like():
    estimators = {"quadratic": problems.estimator()}
    theta = problems.OPTIMIZER.init(jax.random.key(0))
    return train.init_state(
        estimators, theta, {"quadratic": ()}, jax.random.key(1), outer_opt=optax.adam(0.05)
    )
