import json
import os
import re
import time

import pytest

from metaopt import data, train
from metaopt.train import _metrics, _progress, _recorder
from tests.train import problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run."""
    place = tmp_path_factory.mktemp("runs") / "run"
    problems.run(place, num_steps=10)
    return place


def documented():
    """The names that a docstring explains, each at the beginning of an indented line."""
    return set(re.findall(r"^ {4}([\w/<>]+)  +\S", _metrics.__doc__, re.M))


def test_every_name_in_the_metrics_is_documented_and_every_documented_name_is_there(folder):
    found = set()
    for line in train.read_metrics(folder):
        names = {re.sub("(loss|probe)/.*", r"\1/<name>", name) for name in line}
        is_probe = "probe/<name>" in names
        assert names == ({"step", "probe/<name>"} if is_probe else names - {"probe/<name>"})
        assert all(value is None or type(value) in (int, float) for value in line.values())
        found |= names
    explained = {name.replace("<family>", "<name>") for name in documented()}
    assert found == explained | {"step"}


def test_the_lines_are_in_order_and_a_probe_follows_its_step(folder):
    lines = train.read_metrics(folder)
    expected = [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    assert [line["step"] for line in lines] == expected
    assert ["loss" in line for line in lines] == [
        i > 0 and expected[i] != expected[i - 1] for i in range(len(expected))
    ]


def test_progress_tells_speed_and_end(folder):
    progress = json.loads((folder / "progress.json").read_text())
    assert set(progress) == set(_progress.Progress._fields) | {"updated", "process", "host"}
    assert all(name in _progress.__doc__ for name in progress)
    assert (progress["phase"], progress["step"], progress["num_steps"]) == ("finished", 10, 10)
    assert progress["process"] == os.getpid()
    assert abs(progress["updated"] - (folder / "progress.json").stat().st_mtime) < 1
    assert progress["compile_seconds"] > 0


def test_the_speed_is_steps_over_seconds(tmp_path):
    start = None

    def pool(step):
        nonlocal start
        if step == 1:
            start = time.perf_counter()
        time.sleep(0.02)
        return ()

    problems.run(tmp_path, num_steps=20, data=data.Stream(pool, 2, (1,)))
    upper = 20 / 0.4
    lower = 19 / (time.perf_counter() - start) / 2  # What follows the last step is in here too.
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert lower < progress["steps_per_second"] < upper


def test_a_run_between_probes_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(_recorder, "_HEARTBEAT", 0.0)
    seen = []

    def pool(step):
        if step:
            status = train.run_status(tmp_path)
            seen.append((status.phase, status.step))
        return ()

    stream = data.Stream(pool, 2, (1,))
    problems.run(tmp_path, num_steps=4, data=stream, probe_every=100, checkpoint_every=100)
    assert seen == [("running", 1), ("running", 2), ("running", 3)]


def test_an_error_of_the_program_is_told(tmp_path):
    def fail(step, metrics):
        if step == 5:
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError):
        problems.run(tmp_path, num_steps=10, on_report=fail)
    status = train.run_status(tmp_path)
    assert (status.phase, status.error) == ("failed", "ZeroDivisionError: on purpose")


@pytest.mark.compiles
def test_a_profile_of_a_few_steps_is_written_and_changes_nothing(tmp_path):
    result = problems.run(num_steps=6, profile=tmp_path / "profile")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert problems.equal_bits(result.state, problems.run(num_steps=6).state)
