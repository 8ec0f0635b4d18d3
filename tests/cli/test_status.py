import json
import os

import numpy as np
import pytest

from metaopt import cli, train
from metaopt.train import _progress, _run_folder
from tests.cli.test_main import TINY, refused
from tests.train import processes


def make_run(folder, phase="running", *, steps=300):
    """A run's files with known numbers: every 10th update skipped, the probe best at step 100."""
    train.open_folder(folder, {"outer": {"steps": 400}})
    metrics = train.Metrics(folder, 0)
    for step in range(1, steps + 1):
        metrics.write(
            step,
            {"loss": 1.0, "nonfinite": 0.25 if step > 200 else 1.0, "skipped": step % 10 == 0},
        )
        if step % 100 == 0:
            metrics.write(step, {"probe/a": 2.0 + step / 100, "probe/b": float("nan")})
    metrics.close()
    _progress.write_progress(folder, _progress.Progress(phase, steps, 400, 4.0, 1.5))
    for step in (100, 200, 300):
        (folder / "checkpoints" / str(step) / "default").mkdir(parents=True)
        (folder / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").touch()
    return folder


def status_of(folder, capsys):
    assert cli.main(["status", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_status_holds_the_numbers_of_the_files(tmp_path, capsys):
    lock = _run_folder.hold(make_run(tmp_path / "run"))
    status = status_of(tmp_path / "run", capsys)
    assert (status["phase"], status["step"], status["num_steps"]) == ("running", 300, 400)
    assert (status["steps_per_second"], status["seconds_left"]) == (4.0, 25.0)
    assert status["probes"]["a"] == {"score": 3.0, "step": 100, "last": 5.0}
    assert status["probes"]["b"] == {"score": None, "step": None, "last": None}
    assert (status["nonfinite"], status["skipped"]) == (0.25, 30)
    assert status["last_checkpoint"] == 300
    assert 0 <= status["updated"] < 60
    assert (status["error"], status["problems"]) == (None, [])

    assert cli.main(["status", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    words = ("300 of 400 (75%)", "4 steps/s", "25 s", "best 3 at step 100, last 5", "never finite")
    for word in (*words, "25.0%", "30", "step 300"):
        assert word in text
    os.close(lock)


@pytest.mark.parametrize(
    ("written", "told"),
    [("running", "killed"), ("compiling", "killed"), ("stopped", "stopped"), ("failed", "failed")],
)
def test_without_its_process_a_run_is_not_running(tmp_path, capsys, written, told):
    assert status_of(make_run(tmp_path / "run", written), capsys)["phase"] == told


DAMAGES = {
    "settings.json": "settings.json is damaged",
    "progress.json": "progress.json is damaged",
    "metrics.jsonl": "metrics.jsonl cannot be read beyond line 0",
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{]", b"[1, 2]\n[3]\n[4]\n"])
def test_damage_is_told_and_the_rest_is_shown(tmp_path, capsys, name, content):
    folder = make_run(tmp_path / "run", "stopped")
    (folder / name).write_bytes(content)
    status = status_of(folder, capsys)
    told = " ".join(status["problems"])
    if (name, content) in {("metrics.jsonl", b""), ("metrics.jsonl", b"\xff\xfe{]")}:
        assert status["step"] == 0  # Like a run whose first line is not yet whole.
    else:
        assert name in told
    assert status["last_checkpoint"] == 300
    assert status["num_steps"] == 400
    assert name == "metrics.jsonl" or status["skipped"] == 30


def test_missing_files_and_incomplete_checkpoints_are_told(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "stopped")
    for name in ("settings.json", "progress.json"):
        (folder / name).unlink()
    (folder / "checkpoints" / "300" / "_CHECKPOINT_METADATA").unlink()
    status = status_of(folder, capsys)
    assert status["problems"] == ["settings.json is missing", "checkpoint 300 is incomplete"]
    assert (status["phase"], status["num_steps"]) == ("unknown", None)
    assert (status["step"], status["last_checkpoint"]) == (300, 200)


def test_a_torn_middle_line_is_told_with_its_number(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "stopped")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[50] = lines[50][:20] + b"\n"
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    status = status_of(folder, capsys)
    assert status["problems"] == ["metrics.jsonl cannot be read beyond line 50"]
    assert status["step"] == 50


def test_where_there_is_no_run_the_status_is_refused(tmp_path, capsys):
    assert "holds no run" in refused(capsys, "status", str(tmp_path))
    assert "holds no run" in refused(capsys, "status", str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_run_of_the_command_line_can_be_watched_and_profiled(tmp_path, capsys):
    out, profile = tmp_path / "run", tmp_path / "profile"
    words = ["train", "--out", str(out), *TINY, "--no-evaluate", "--profile", str(profile)]
    assert cli.main(words) == 0
    capsys.readouterr()
    status = status_of(out, capsys)
    assert (status["phase"], status["step"], status["last_checkpoint"]) == ("finished", 4, 4)
    probes = [m["probe/quadratic"] for m in train.read_metrics(out) if "probe/quadratic" in m]
    np.testing.assert_allclose(status["probes"]["quadratic"]["score"], min(probes))
    assert list(profile.rglob("*.xplane.pb"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["compile_seconds"] > 0
    assert summary["device_peak_bytes"] == -1  # The CPU does not tell.


@pytest.mark.slow
def test_two_processes_under_slurm_are_one_run_of_the_command_line(tmp_path):
    out, words = tmp_path / "run", [*TINY, "--no-evaluate", "--distributed"]
    slurm = {
        "SLURM_JOB_ID": str(processes.free_port() % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    script = "from metaopt import cli; sys.exit(cli.main(sys.argv[1:]))"
    pair = [
        processes.start(
            script,
            *("train", "--out", out, *words),
            environment=slurm | {"SLURM_PROCID": str(index)},
        )
        for index in range(2)
    ]
    first, second = [processes.finish(process) for process in pair]
    assert "step 4/4" in first
    assert "step 4/4" not in second
    status = train.run_status(out)
    assert (status.phase, status.step, status.last_checkpoint) == ("finished", 4, 4)
    assert [m["step"] for m in train.read_metrics(out)] == [0, 1, 2, 2, 3, 4, 4]
    assert json.loads((out / "summary.json").read_text())["best_probe"] is not None
