"""The commands. Each builds everything first, so that bad settings are refused at once."""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import jax

from metaopt import core, eval, train
from metaopt.cli import _problem as problem_of
from metaopt.cli._display import Display
from metaopt.cli._optimizers import OPTIMIZERS, make_contender, make_optimizer, make_outer
from metaopt.cli._phases import (
    Phase,
    folder_name,
    is_finished,
    open_curriculum,
    read_phases,
    run_folders,
)
from metaopt.cli._presets import PHASES, PRESETS
from metaopt.cli._settings import DiagnoseSettings, RunSettings, from_dict, known, stored

_START = "start.npz"


class Interrupted(Exception):
    """A signal stopped the run; everything is saved."""


def train_run(
    settings: RunSettings,
    out: pathlib.Path,
    *,
    tensorboard: bool,
    evaluate: bool,
    distributed: bool = False,
    params_devices: int = 1,
    profile: pathlib.Path | None = None,
) -> None:
    """Meta-trains, or goes on with a run of the same settings, then compares with baselines."""
    if distributed:
        train.initialize_distributed()
    place = lambda state: state  # noqa: E731
    if jax.device_count() > 1 or params_devices > 1:
        place = train.task_sharding(params_devices=params_devices)
    run = _build(settings)
    is_first = jax.process_index() == 0
    content = stored(settings, out)
    key_theta, key_run = jax.random.split(jax.random.key(settings.seed))
    theta = _start(settings, out, run["optimizer"].init(key_theta))
    if not distributed:  # Otherwise the processes open it together, when they train.
        train.open_folder(out, content)
        if settings.init_theta is not None and not (out / _START).exists():
            train.save_theta(out / _START, theta)  # The original may go; the run can still go on.
    with Display(settings.outer.steps, quiet=not is_first) as display:
        result = train.meta_train(
            run["estimators"],
            theta,
            run["data"],
            key_run,
            outer_opt=run["outer"],
            num_steps=settings.outer.steps,
            probes=run["probes"],
            probe_every=settings.eval.probe_every,
            directory=out,
            settings=content,
            checkpoint_every=settings.checkpoint_every,
            tensorboard=tensorboard,
            profile=profile if is_first else None,
            place=place,
            on_report=display.report,
        )
    if distributed:  # The others need not wait for the evaluation.
        jax.distributed.shutdown()
    if result.interrupted:
        raise Interrupted(
            f"stopped at step {int(result.state.step)} of {settings.outer.steps}, all saved; "
            f"go on with: metaopt resume {out}"
        )
    if not is_first:
        return
    if result.steps_per_second:  # A finished run keeps its own summary.
        _summarise(out, result)
    if evaluate:
        eval_run(out)


def train_phases(phases: list[Phase], out: pathlib.Path, *, evaluate: bool, **options: Any) -> None:
    """Meta-trains phase by phase, or goes on where this was stopped; compares the last theta.

    `options` are those of `train_run`.
    """
    if options.get("distributed"):
        raise ValueError(
            "phases cannot be distributed; run their presets one by one, with --init-theta."
        )
    for _, settings in phases:
        _build(settings)  # Bad settings of any phase are refused before the first one begins.
    open_curriculum(phases, out)
    for index, phase in enumerate(phases):
        folder = out / folder_name(index, phase)
        if is_finished(phase.settings, folder):
            continue
        if jax.process_index() == 0:
            print(f"phase {index + 1} of {len(phases)}: {phase.name}", flush=True)
        try:
            train_run(phase.settings, folder, evaluate=False, **options)
        except Interrupted as stop:
            words = str(stop).partition(";")[0]
            raise Interrupted(f"{words}; go on with: metaopt resume {out}") from None
    if evaluate:
        eval_run(out)


def _start(settings: RunSettings, out: pathlib.Path, theta: Any) -> Any:
    """Where theta starts: as it was initialised, or what another run has learned."""
    if settings.init_theta is None:
        return theta
    # Normalised, for the run's folder itself need not exist yet.
    copy, original = out / _START, pathlib.Path(os.path.normpath(out / settings.init_theta))
    if not copy.exists() and not original.exists():
        raise ValueError(f"init_theta={settings.init_theta} is not there; looked for {original}.")
    return train.load_theta(copy if copy.exists() else original, theta)


def _summarise(out: pathlib.Path, result: train.TrainResult) -> None:
    compiled = result.compiled
    summary = {
        "steps_per_second": result.steps_per_second,
        "compile_seconds": compiled.seconds,
        "temp_bytes": compiled.temp_bytes,
        "state_bytes": compiled.state_bytes,
        "device_peak_bytes": result.device_peak_bytes,
        "best_probe": float(result.state.best_score),
    }
    train.write_json(out / "summary.json", summary)


def leave_if_alone() -> None:
    """Ends a process of a distributed run at once: its exit would wait for the others."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(1)


def resume_run(
    out: pathlib.Path,
    *,
    tensorboard: bool,
    evaluate: bool,
    distributed: bool = False,
    params_devices: int = 1,
    profile: pathlib.Path | None = None,
) -> None:
    """Goes on with a run, or a curriculum of runs, from its last checkpoint."""
    options: dict[str, Any] = {
        "tensorboard": tensorboard,
        "evaluate": evaluate,
        "distributed": distributed,
        "params_devices": params_devices,
        "profile": profile,
    }
    if phases := read_phases(out):
        train_phases(phases, out, **options)
    else:
        train_run(read_settings(out), out, **options)


def eval_run(run: pathlib.Path, *, seed: int = 1, out: pathlib.Path | None = None) -> None:
    """Compares a run's best theta with its initial one and with tuned baselines."""
    from rich.console import Console

    run = run_folders(run)[-1]
    settings = read_settings(run)
    optimizer = make_optimizer(settings)
    problems = problem_of.held_out_problems(settings)
    grid = problem_of.make_grid(settings.eval)
    initial = _start(
        settings, run, optimizer.init(jax.random.split(jax.random.key(settings.seed))[0])
    )
    trained = train.load_theta(run / "theta.npz", initial)
    folder, console = run / "eval" if out is None else out, Console()
    folder.mkdir(parents=True, exist_ok=True)
    for problem in problems:
        contenders = [
            *eval.baselines(problem.horizon),
            make_contender(
                settings,
                initial,
                "untrained" if settings.init_theta is None else "at the start",
                problem.horizon,
            )._replace(learning_rate=settings.optimizer.learning_rate),
            make_contender(
                settings, trained, f"learned {settings.optimizer.name}", problem.horizon
            ),
        ]
        comparison = eval.compare(
            contenders,
            problem.family,
            problem_of.evaluation_data(problem),
            jax.random.key(seed),
            num_steps=problem.horizon,
            grid=grid,
            num_tuning_seeds=settings.eval.tuning_seeds,
            num_seeds=settings.eval.seeds,
            reference="adam",
        )
        name = problem.name.replace("/", "-").replace(", ", "-")
        train.write_json(folder / f"{name}.json", eval.to_json(comparison))
        eval.figure(comparison, folder / name, title=problem.name)
        table = eval.table(comparison)
        table.title = f"{problem.name}, {problem.horizon} inner steps"
        console.print(table)
    console.print(f"run: {run}\ntheta: {run / 'theta.npz'}\nresults and figures: {folder}")


def diagnose_run(
    settings: DiagnoseSettings, out: pathlib.Path, *, theta_file: pathlib.Path | None
) -> None:
    """Measures estimators on a problem; prints a table and advice, writes JSON and figures."""
    from rich.console import Console

    if len(settings.task.names) != 1:
        raise ValueError(f"diagnose takes one task, got task.names={settings.task.names}.")
    for name in settings.estimators:
        known("estimator", name, (*problem_of.ESTIMATORS, "combined"))
    run = RunSettings(task=settings.task, optimizer=settings.optimizer)
    optimizer = make_optimizer(run)
    problem = problem_of.make_problem(settings.task.names[0], settings.task, 1)
    system = core.training(problem.family, optimizer, outer_loss=settings.task.outer_loss)
    factories = eval.standard_estimators(
        system,
        settings.estimators,
        sigma=settings.sigma,
        truncation=settings.truncation,
        num_tasks=settings.num_tasks,
    )
    for make in factories.values():
        for horizon in settings.horizons:
            make(horizon)
    key_theta, key = jax.random.split(jax.random.key(settings.seed))
    theta = optimizer.init(key_theta)
    if theta_file is not None:
        theta = train.load_theta(theta_file, theta)
    file = _new_result(out, "diagnosis.json")
    console = Console()
    diagnosis = eval.diagnose(
        system,
        factories,
        theta,
        problem_of.current_pool(problem_of.training_data(problem, settings.task)),
        key,
        horizons=settings.horizons,
        num_samples=settings.samples,
        sigma=settings.sigma,
        num_reference=settings.reference_samples,
        num_tasks=settings.num_tasks,
        on_report=console.print,
    )
    train.write_json(
        file, {"settings": dataclasses.asdict(settings), "diagnosis": eval.to_json(diagnosis)}
    )
    title = f"{problem.name}, {settings.optimizer.name}"
    png, _ = eval.figure(diagnosis, file, title=title)
    table = eval.table(diagnosis)
    table.title = title
    console.print(table)
    for sentence in eval.recommend(diagnosis):
        console.print(f"- {sentence}", highlight=False)
    console.print(f"results: {file}\nfigure: {png}")


def _new_result(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A file to write into a folder that is made where it is missing.

    Raises:
        ValueError: if there is such a file already, or the folder cannot be written.
    """
    file = folder / name
    if file.exists():
        raise ValueError(f"{file} exists; choose another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with --out."
        ) from error
    return file


def list_names() -> None:
    """Prints every name that settings accept."""
    from rich.console import Console

    console = Console()
    groups: dict[str, Any] = {
        "presets": {name: text for name, (_, text) in PRESETS.items()},
        "curricula of presets": {name: ", then ".join(phases) for name, phases in PHASES.items()},
        "tasks (--task.names)": problem_of.task_names(),
        "augmentations (--task.augment)": problem_of.AUGMENTATIONS,
        "optimizers (--optimizer.name)": OPTIMIZERS,
        "estimators (--estimator.name)": problem_of.ESTIMATORS,
        "held-out problems (--eval.held-out)": problem_of.HELD_OUT,
        "tasks of the evaluation suite (--suite-tasks)": {
            task.name: task.group for task in eval.suite_tasks()
        },
        "its contenders (--contenders)": [b.name for b in eval.suite_baselines()],
    }
    for title, names in groups.items():
        console.print(f"[bold]{title}[/bold]")
        for name in names:
            text = names[name] if isinstance(names, dict) else ""
            console.print(f"  {name}" + (f"  {text}" if isinstance(text, str) and text else ""))


def read_settings(out: pathlib.Path) -> RunSettings:
    """The settings of the run in a folder.

    Raises:
        ValueError: if there is no run, or its settings are of another version.
    """
    file = out / "settings.json"
    if not file.exists():
        raise ValueError(f"{out} holds no run (no settings.json); start one with metaopt train.")
    return from_dict(json.loads(file.read_text())["settings"])


def _build(settings: RunSettings) -> dict[str, Any]:
    """Everything `meta_train` needs; every bad setting is refused here."""
    if not settings.task.names:
        raise ValueError("task.names is empty; give at least one, such as digits/mlp.")
    counts = {
        "checkpoint_every": settings.checkpoint_every,
        **{
            f"eval.{name}": getattr(settings.eval, name)
            for name in ("probe_every", "probe_tasks", "horizon", "tuning_seeds", "seeds")
        },
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    optimizer = make_optimizer(settings)
    problems = [
        problem_of.make_problem(name, settings.task, settings.eval.horizon)
        for name in settings.task.names
    ]
    problems += problem_of.sampled_problems(settings.task, settings.eval.horizon)
    problem_of.held_out_problems(settings)
    problem_of.make_grid(settings.eval)
    return {
        "optimizer": optimizer,
        "outer": make_outer(settings),
        "probes": problem_of.make_probes(settings, optimizer),
        "data": {p.name: problem_of.training_data(p, settings.task) for p in problems},
        "estimators": {p.name: problem_of.make_estimator(settings, p, optimizer) for p in problems},
    }
