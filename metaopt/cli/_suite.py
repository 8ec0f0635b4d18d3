"""The command `metaopt eval --suite`: baselines and runs on the held-out tasks."""

import pathlib
from collections.abc import Sequence

import jax

from metaopt import eval, learned, train
from metaopt.cli._commands import read_settings, run_folders
from metaopt.cli._optimizers import make_contender, make_optimizer
from metaopt.cli._settings import known


def run_suite(
    run: pathlib.Path | None,
    *,
    names: Sequence[str],
    tasks: Sequence[str],
    out: pathlib.Path,
    settings: eval.SuiteSettings,
) -> None:
    """Computes the cells that a folder lacks; prints a table, writes the scores and a figure."""
    from rich.console import Console

    all_tasks = {task.name: task for task in eval.suite_tasks()}
    chosen = [all_tasks[known("suite task", name, all_tasks)] for name in tasks or all_tasks]
    contenders = [_contender(name) for name in names] if names else [*eval.suite_baselines()]
    if run is not None:
        contenders.append(run_contender(run))
    console = Console()
    summary = eval.run_suite(
        contenders,
        out,
        tasks=chosen,
        settings=settings,
        on_report=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
    )
    train.write_json(out / "suite.json", summary)
    png, _ = eval.suite_figure(summary, out / "suite")
    console.print(eval.suite_table(summary))
    console.print(f"cells, scores and figure: {out}\nfigure: {png}")


def run_contender(run: pathlib.Path) -> eval.Contender:
    """A run's best theta, named as its folder; its step size is tuned, if it has one."""
    folder = run_folders(run)[-1]
    settings = read_settings(folder)
    key = jax.random.key(settings.seed)
    theta = train.load_theta(folder / "theta.npz", make_optimizer(settings).init(key))
    name, chosen = run.resolve().name, settings.optimizer
    return eval.Contender(
        name,
        lambda value, num_steps: make_contender(settings, theta, name, num_steps).make(value),
        chosen.learning_rate,
        is_tuned=make_contender(settings, theta, name, 1).learning_rate is None,
        digest=f"{eval.theta_digest(theta)} {chosen}",
    )


def _contender(name: str) -> eval.Contender:
    """A baseline or shipped weights by name, or a run by its folder."""
    folder = pathlib.Path(name)
    if (folder / "settings.json").exists() or "/" in name:
        return run_contender(folder)
    baselines = {baseline.name: baseline for baseline in eval.suite_baselines()}
    if name in baselines:
        return baselines[name]
    shipped, _, option = name.partition(":")
    known("contender", shipped, (*baselines, *learned.pretrained_names()))
    known("option of weights", option or "default", ["default"])
    return eval.pretrained_contender(shipped, is_tuned=not option)
