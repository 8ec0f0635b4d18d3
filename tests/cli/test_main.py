import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from metaopt import cli, train

TINY = (
    "--outer.steps 4 --outer.warmup 1 --estimator.truncation 5 --estimator.horizon 5 10 "
    "--estimator.num-tasks 2 --task.names quadratic --eval.horizon 10 --eval.probe-every 2 "
    "--eval.probe-tasks 2 --checkpoint-every 2 --eval.tuning-seeds 2 --eval.seeds 2 "
    "--eval.grid-per-decade 1 --eval.held-out longer"
).split()


def refused(capsys, *words):
    """The one line that a refused command prints."""
    assert cli.main([*words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task.names digit/mlp", "unknown task 'digit/mlp'; did you mean digits/mlp"),
        ("--optimizer.name cello", "unknown optimizer 'cello'; did you mean celo"),
        ("--optimizer.bank-size 4", "celo2 has no optimizer.bank_size; it has hidden_size"),
        ("--estimator.objective last", "pes has no estimator.objective"),
        ("--outer.weight-decay 0.1", "outer.weight_decay=0.1 needs outer.optimizer=adamw"),
        ("--task.sampled 1 --task.sampled-seconds 0", "task.sampled_seconds positive"),
        ("--estimator.name pse", "unknown estimator 'pse'; did you mean"),
        ("--task.augment rescal", "unknown augmentation 'rescal'; did you mean rescale"),
        ("--preset digts", "unknown preset 'digts'; did you mean digits"),
        ("--task.activation rleu", "activation='rleu' is unknown; did you mean one of"),
        ("--eval.held-out deper", "unknown held-out problem 'deper'; did you mean deeper"),
        (
            "--estimator.horizon 50 480",
            "horizon=480 is not a multiple of truncation=50; try horizon=500",
        ),
        ("--estimator.sigma -0.1", "sigma must be positive and finite, got -0.1"),
        ("--estimator.num-tasks 0", "num_tasks must be an integer of at least 1, got 0"),
        ("--outer.learning-rate 0", "outer.learning_rate and outer.clip must be positive"),
        ("--outer.steps 0", "outer.steps must be at least 1"),
        ("--eval.grid 0.1 0.01", "eval.grid needs 0 < low <= high"),
        ("--eval.probe-every 0", "probe_every must be at least 1"),
        ("--task.batch-size 0", "batch_size"),
        ("--task.names mnist/mlp --task.data-dir /nonexistent", "mnist"),
    ],
)
def test_bad_settings_are_refused_in_one_line_before_anything_is_written(
    capsys, tmp_path, words, message
):
    line = refused(capsys, "train", "--out", str(tmp_path / "run"), *words.split())
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "train", "--out", str(tmp_path / "file" / "run"))
    assert "cannot be written" in line


def test_unknown_commands_and_missing_runs_are_refused(capsys, tmp_path):
    assert "did you mean train?" in refused(capsys, "trian")
    assert "holds no run" in refused(capsys, "resume", str(tmp_path))
    assert "holds no run" in refused(capsys, "eval", str(tmp_path))
    assert "takes no arguments" in refused(capsys, "list", "more")


def test_help_explains_every_setting(capsys):
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    commands = ("train", "resume", "eval", "diagnose", "list", "doctor")
    assert all(word in overview for word in commands)
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for option in ("--task.names", "--estimator.sigma", "--outer.steps", "--eval.grid", "--out"):
        assert option in text
    assert "Scale of the perturbations" in text


def test_list_names_what_the_settings_accept(capsys):
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for name in ("digits/mlp", "cifar10/convnet", "celo2", "pes", "rescale", "deeper", "quick"):
        assert name in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--estimators pes,pse", "unknown estimator 'pse'; did you mean pes"),
        ("--horizons 10,13 --truncation 5", "horizon=13 is not a multiple of truncation=5"),
        ("--task.names quadratic digits/mlp", "diagnose takes one task"),
        ("--sigma 0 --estimators=es", "sigma must be positive"),
        ("--task.names digit/mlp", "unknown task 'digit/mlp'"),
    ],
)
def test_bad_settings_of_a_diagnosis_are_refused_before_anything_is_written(
    capsys, tmp_path, words, message
):
    line = refused(capsys, "diagnose", "--out", str(tmp_path / "result"), *words.split())
    assert message in line
    assert not (tmp_path / "result").exists()


@pytest.mark.slow
def test_a_diagnosis_is_written_once(capsys, tmp_path):
    words = (
        "--task.names quadratic --optimizer.name sgd --estimators backprop,pes --horizons 2,4 "
        "--samples 4 --reference-samples 4 --num-tasks 2"
    )
    command = ["diagnose", *words.split(), "--out", str(tmp_path)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "Horizon 4: use" in text
    record = json.loads((tmp_path / "diagnosis.json").read_text())
    assert record["settings"]["horizons"] == [2, 4]
    rows = [(row["name"], row["horizon"]) for row in record["diagnosis"]["estimators"]]
    assert rows == [("backprop", 2), ("pes", 2), ("backprop", 4), ("pes", 4)]
    assert (tmp_path / "diagnosis.png").stat().st_size > 0
    before = (tmp_path / "diagnosis.json").read_bytes()
    assert "exists; choose another folder with --out" in refused(capsys, *command)
    assert (tmp_path / "diagnosis.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_is_trained_resumed_evaluated_and_describes_itself(capsys, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["train", "--out", str(out), *TINY]) == 0
    text = capsys.readouterr().out
    assert "adam" in text
    assert "learned celo2" in text
    assert json.loads((out / "settings.json").read_text())["settings"]["outer"]["steps"] == 4
    assert json.loads((out / "summary.json").read_text())["temp_bytes"] > 0
    assert [m["step"] for m in train.read_metrics(out)] == [0, 1, 2, 2, 3, 4, 4]
    names = {p.name for p in (out / "eval").iterdir()}
    assert {"quadratic.json", "quadratic.png", "quadratic.svg", "quadratic-longer.json"} <= names

    before, summary = ((out / n).read_text() for n in ("metrics.jsonl", "summary.json"))
    assert cli.main(["resume", str(out), "--no-evaluate"]) == 0
    assert (out / "metrics.jsonl").read_text() == before
    assert (out / "summary.json").read_text() == summary
    capsys.readouterr()
    line = refused(capsys, "train", "--out", str(out), *TINY, "--seed", "3")
    assert "holds a run of other settings (seed: 0 there, 3 now)" in line


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "metaopt"]
    settings = [*TINY, "--outer.steps", "100000", "--no-evaluate"]
    process = subprocess.Popen(
        [*command, "train", "--out", str(tmp_path / "run"), *settings],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 4/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait() == 130
    process.stdout.close()
    step = int(re.search(r"stopped at step (\d+) of 100000, all saved", rest)[1])
    assert f"metaopt resume {tmp_path / 'run'}" in rest
    assert train.Checkpoints(tmp_path / "run" / "checkpoints").latest_step() == step
