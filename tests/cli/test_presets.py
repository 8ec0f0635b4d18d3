import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import cli, train
from metaopt.cli import _commands as commands
from metaopt.cli import _optimizers as optimizers
from metaopt.cli import _phases as phases
from metaopt.cli import _presets as presets
from metaopt.cli import _settings as settings

SHORT = (
    "--outer.steps 2 --outer.warmup 0 --outer.accumulate 1 --estimator.truncation 2 "
    "--estimator.horizon 2 4 --estimator.num-tasks 2 --eval.horizon 4 --eval.probe-every 2 "
    "--eval.probe-tasks 2 --no-evaluate"
).split()
SMALL = {
    "l2l": "--optimizer.hidden-size 3",
    "mulo": "--optimizer.hidden-size 3 --task.hidden 4 4 --task.batch-size 4",
    "celo2": "--task.hidden 4 --task.batch-size 4",
    "celo_1": "--optimizer.hidden-size 3 --task.hidden 4 --task.batch-size 4",
    "celo_2": "--optimizer.hidden-size 3 --task.hidden 4 --task.batch-size 4",
    "velo_1": "--optimizer.hidden-size 3 --optimizer.bank-size 2 --task.hidden 4 --task.sampled 1",
    "velo_2": "--optimizer.hidden-size 3 --optimizer.bank-size 2 --task.hidden 4 --task.sampled 1",
}
CHEAP = "--task.names quadratic --optimizer.name sgd".split()


def theta_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(folder / "theta.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_has_an_optimizer_and_an_optimizer_of_it(name):
    chosen = presets.preset(name)
    theta = jax.eval_shape(optimizers.make_optimizer(chosen).init, jax.random.key(0))
    updates = jax.eval_shape(optimizers.make_outer(chosen).init, theta)
    assert jax.tree.leaves(updates)
    assert settings.from_dict(settings.to_dict(chosen)) == chosen


def test_phases_of_a_curriculum_have_the_same_theta_and_different_tasks_or_parts():
    for names in presets.PHASES.values():
        first, second = (presets.preset(name) for name in names)
        shapes = [
            jax.eval_shape(optimizers.make_optimizer(s).init, jax.random.key(0))
            for s in (first, second)
        ]
        assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])
        assert first.seed != second.seed
    velo = [presets.preset(name) for name in presets.PHASES["velo"]]
    assert velo[0].task.sampled_seed != velo[1].task.sampled_seed
    assert velo[0].estimator.horizon[1] < velo[1].estimator.horizon[1]
    assert velo[0].task.sampled_seconds < velo[1].task.sampled_seconds


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_preset_trains(name, tmp_path):
    out = tmp_path / "run"
    words = [*SHORT, *SMALL[name].split()]
    assert cli.main(["train", "--preset", name, "--out", str(out), *words]) == 0
    lines = [line for line in train.read_metrics(out) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["update_norm"] > 0
    families = [key for key in lines[0] if key.startswith("loss/")]
    chosen = presets.preset(name).task
    assert len(families) == len(chosen.names) + min(chosen.sampled, 1)


@pytest.mark.slow
def test_a_curriculum_that_was_stopped_between_phases_ends_with_the_same_bits(
    tmp_path, monkeypatch, capsys
):
    words = ["--preset", "quick,quick", *CHEAP, *SHORT]
    assert cli.main(["train", "--out", str(tmp_path / "whole"), *words]) == 0

    real, begun = commands.train_run, []

    def stops_in_the_second(chosen, out, **options):
        begun.append(out.name)
        if len(begun) == 2:
            raise commands.Interrupted("stopped at step 0 of 2; go on")
        real(chosen, out, **options)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(commands, "train_run", stops_in_the_second)
        assert cli.main(["train", "--out", str(stopped), *words]) == 130
    assert begun == ["1-quick", "2-quick"]
    assert (
        f"stopped at step 0 of 2; go on with: metaopt resume {stopped}" in capsys.readouterr().out
    )
    assert cli.main(["resume", str(stopped), "--no-evaluate"]) == 0

    for phase in ("1-quick", "2-quick"):
        whole, resumed = (theta_of(tmp_path / name / phase) for name in ("whole", "stopped"))
        assert whole.keys() == resumed.keys()
        assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    first, start = theta_of(stopped / "1-quick"), np.load(stopped / "2-quick" / "start.npz")
    assert all(np.array_equal(first[name], start[name]) for name in first)

    capsys.readouterr()
    assert cli.main(["status", str(stopped), "--json"]) == 0
    statuses = json.loads(capsys.readouterr().out)
    assert [status["phase"] for status in statuses] == ["finished", "finished"]


def test_a_run_starts_from_another_theta_and_keeps_a_copy(tmp_path):
    theta = {"rate": jnp.array(0.5)}
    train.save_theta(tmp_path / "theta.npz", {"rate": jnp.array(0.25)})
    out = tmp_path / "run"
    fresh = settings.RunSettings()
    assert commands._start(fresh, out, theta) is theta

    for path in (str(tmp_path / "theta.npz"), "../theta.npz"):
        chosen = settings.RunSettings(init_theta=path)
        assert commands._start(chosen, out, theta)["rate"] == 0.25
    out.mkdir()
    train.save_theta(out / "start.npz", {"rate": jnp.array(0.125)})
    assert commands._start(chosen, out, theta)["rate"] == 0.125


def test_a_missing_or_foreign_theta_is_refused_before_anything_is_written(tmp_path, capsys):
    train.save_theta(tmp_path / "theta.npz", {"other": jnp.zeros(3)})
    for file, message in [
        ("none.npz", "is not there; looked for"),
        ("theta.npz", "does not fit: missing learning_rate"),
    ]:
        words = ["--out", str(tmp_path / "run"), "--init-theta", str(tmp_path / file), *CHEAP]
        assert cli.main(["train", *words]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_curriculum_is_not_distributed(tmp_path, capsys):
    words = ["train", "--preset", "celo", "--distributed", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 2
    assert "phases cannot be distributed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_phases_are_in_numbered_folders():
    phase = phases.Phase("celo_1", presets.preset("celo_1"))
    assert phases.folder_name(0, phase) == "1-celo_1"


def test_a_phase_that_would_leave_its_folder_is_refused(tmp_path):
    whole = phases.chained([phases.Phase("celo_1", presets.preset("celo_1"))])
    phases.open_curriculum(whole, tmp_path)
    file = tmp_path / "settings.json"
    file.write_text(file.read_text().replace('"celo_1"', '"x/../../elsewhere"'))
    with pytest.raises(ValueError, match="a phase of the name 'x/../../elsewhere'"):
        phases.read_phases(tmp_path)
