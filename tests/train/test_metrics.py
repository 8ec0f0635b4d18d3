import json
import struct
import sys

import pytest

from metaopt import train


def test_lines_are_json_and_non_finite_numbers_are_null(tmp_path):
    metrics = train.Metrics(tmp_path, 0)
    metrics.write(1, {"loss": 0.5, "bad": float("nan"), "worse": float("-inf"), "count": 3.0})
    metrics.close()
    assert train.read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.5, "bad": None, "worse": None, "count": 3}
    ]


def test_going_on_drops_what_came_after_the_checkpoint_and_a_torn_line(tmp_path):
    metrics = train.Metrics(tmp_path, 0)
    for step in range(1, 6):
        metrics.write(step, {"loss": float(step)})
    metrics.close()
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 6, "lo')
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]

    metrics = train.Metrics(tmp_path, 3)
    metrics.write(4, {"loss": 40.0})
    metrics.close()
    assert [(m["step"], m["loss"]) for m in map(json.loads, file.read_text().splitlines())] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]


def test_tensorboard_events_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboardX")
    metrics = train.Metrics(tmp_path, 0, tensorboard=True)
    metrics.write(2, {"loss": 0.25})
    metrics.close()
    file = next((tmp_path / "tensorboard").iterdir())
    # The record holds the tag and the number as a little-endian float32.
    assert b"loss" in (content := file.read_bytes())
    assert struct.pack("<f", 0.25) in content


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'metaopt\[tensorboard\]'"):
        train.Metrics(tmp_path, 0, tensorboard=True)
