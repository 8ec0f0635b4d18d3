import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import pytest

import metaopt
from metaopt import train


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path
    seeds: tuple[int, ...] = (0, 1)
    runs: pathlib.Path = pathlib.Path("runs")


def git(*arguments):
    folder = pathlib.Path(metaopt.__file__).parent
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True)
    return done.stdout.strip()


def test_a_record_holds_settings_commit_versions_times_and_what_was_found(tmp_path):
    config = Config(tmp_path / "new" / "results.json")
    record = train.Record(config)
    record.write({"results": [1]})
    begin = time.process_time()
    while time.process_time() < begin + 0.15:
        pass
    contents = record.write({"results": [1, 2], "cpu_count": "of this run"})
    assert json.loads(config.out.read_text()) == json.loads(json.dumps(contents))
    assert contents["config"] == {"seeds": (0, 1)}
    assert contents["results"] == [1, 2]
    assert contents["cpu_count"] == "of this run"
    assert contents["seconds"] >= 0.1
    assert contents["process_seconds"] >= 0.1
    assert contents["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(contents["versions"]) == {"python", "metaopt", "jax", "jaxlib", "optax"}
    assert contents["commit"] == (git("rev-parse", "HEAD") or None)


def test_a_copy_in_a_checkout_of_something_else_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    file = tmp_path / "site-packages" / "metaopt" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr("metaopt.train._record._FOLDER", file.parent)
    contents = train.Record(Config(tmp_path / "results.json")).write({})
    assert contents["commit"] is None
    assert contents["uncommitted_changes"] is None


def test_settings_without_a_file_are_refused():
    with pytest.raises(TypeError, match="Record: config must be a dataclass with a path `out`"):
        train.Record({"out": "results.json"})
    with pytest.raises(TypeError, match="path `out`"):
        train.Record(Config("results.json"))  # pyright: ignore[reportArgumentType]
