"""The command line: `metaopt train | resume | eval | diagnose | status | plot | list | ...`."""

import dataclasses
import pathlib
import sys
from typing import Annotated

from metaopt import doctor

COMMANDS = {
    "train": "meta-train a learned optimizer, then compare it with tuned baselines",
    "resume": "go on with a run that was stopped",
    "eval": "compare a run with tuned baselines, on its own problems or on the suite",
    "diagnose": "measure which meta-gradient suits a problem, and up to which horizon",
    "status": "where a run stands, from its files alone",
    "plot": "meta-loss and probes of runs, drawn over one another",
    "list": "names of tasks, optimizers, estimators and presets",
    "experiments": "the scripts behind published claims: list them, run one",
    "doctor": "check versions, devices and numerics of this machine",
}
_USAGE = "usage: metaopt COMMAND [--help]\n\n" + "\n".join(
    f"  {name:13}{text}" for name, text in COMMANDS.items()
)

_EXPERIMENTS_USAGE = """usage: metaopt experiments list [--folder FOLDER] [--json]
       metaopt experiments run [--folder FOLDER] NAME [OPTIONS OF THE SCRIPT]"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the words after `metaopt`; those of the process by default.

    Returns:
        The exit status: 0; 1 for a run that could not go on and 2 for bad settings, both told in
        one line; 130 for a run that a signal stopped after saving.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    command, rest = words[0], words[1:]
    doctor.guard_cpu()
    doctor.enable_compilation_cache()
    from metaopt.cli._commands import Interrupted, leave_if_alone
    from metaopt.cli._settings import known
    from metaopt.train import RunError

    try:
        known("command", command, COMMANDS)
        return {
            "train": _train,
            "resume": _resume,
            "eval": _eval,
            "diagnose": _diagnose,
            "status": _status,
            "plot": _plot,
            "list": _list,
            "experiments": _experiments,
            "doctor": _doctor,
        }[command](rest)
    except Interrupted as stop:
        print(stop)
        return 130
    except RunError as error:
        print(f"metaopt {command}: {error}", file=sys.stderr, flush=True)
        leave_if_alone()
        return 1
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        print(f"metaopt {command}: {error}", file=sys.stderr)
        return 2


def _train(words: list[str]) -> int:
    import tyro

    from metaopt.cli._commands import train_phases, train_run
    from metaopt.cli._phases import Phase, chained
    from metaopt.cli._presets import phase_names, preset
    from metaopt.cli._settings import RunSettings

    name, words = _take_preset(words)

    @dataclasses.dataclass(frozen=True)
    class Train(RunSettings):
        """Meta-train a learned optimizer, then compare it with tuned baselines.

        Start from a preset (`--preset quick`, the default, or another one of `metaopt list`) and
        change any of the settings below. A run is identified by its settings: the same command on
        the same folder goes on where the run was stopped, other settings are refused.

        Several presets (`--preset celo`, or names with commas) are the phases of a curriculum,
        each of which starts from the theta of the one before; what is set below is set for all.
        """

        out: pathlib.Path = pathlib.Path("runs") / name.replace(",", "-")
        """The run's folder: settings, metrics, checkpoints, theta, evaluation."""
        tensorboard: bool = False
        """Write TensorBoard events too (needs the extra `tensorboard`)."""
        evaluate: bool = True
        """Compare with tuned baselines at the end."""
        distributed: bool = False
        """One run of several processes, each started with this command (see BUILD.md)."""
        params_devices: int = 1
        """Devices that share the large arrays of one task, for inner models too large for one."""
        profile: pathlib.Path | None = None
        """Where to write a profile of three outer steps, for TensorBoard."""

    fields = [field.name for field in dataclasses.fields(RunSettings)]
    phases, commands = [], []
    for phase in phase_names(name):
        default = Train(**vars(preset(phase)))
        command = tyro.cli(Train, default=default, args=words, prog="metaopt train [--preset NAME]")
        settings = RunSettings(**{field: getattr(command, field) for field in fields})
        if settings.init_theta is not None:
            start = str(pathlib.Path(settings.init_theta).resolve())
            settings = dataclasses.replace(settings, init_theta=start)
        phases.append(Phase(phase, settings))
        commands.append(command)
    command = commands[0]
    options = {
        option: getattr(command, option)
        for option in ("tensorboard", "evaluate", "distributed", "params_devices", "profile")
    }
    if len(phases) == 1:
        train_run(phases[0].settings, command.out, **options)
    else:
        train_phases(chained(phases), command.out, **options)
    return 0


def _take_preset(words: list[str]) -> tuple[str, list[str]]:
    """The preset's name and the other words; it decides on the defaults that the rest override."""
    for index, word in enumerate(words):
        if word == "--preset":
            if index + 1 == len(words):
                raise ValueError("--preset needs a name; see metaopt list.")
            return words[index + 1], words[:index] + words[index + 2 :]
        if word.startswith("--preset="):
            return word.partition("=")[2], words[:index] + words[index + 1 :]
    return "quick", words


def _resume(words: list[str]) -> int:
    import tyro

    from metaopt.cli._commands import resume_run

    def resume(
        run: Annotated[pathlib.Path, tyro.conf.Positional],
        *,
        tensorboard: bool = False,
        evaluate: bool = True,
        distributed: bool = False,
        params_devices: int = 1,
        profile: pathlib.Path | None = None,
    ) -> None:
        """Go on with a run that was stopped, from its last checkpoint.

        Args:
            run: the run's folder.
            tensorboard: write TensorBoard events too.
            evaluate: compare with tuned baselines at the end.
            distributed: one run of several processes, each started with this command; they may
                be more or fewer than before.
            params_devices: devices that share the large arrays of one task.
            profile: where to write a profile of three outer steps, for TensorBoard.
        """
        resume_run(
            run,
            tensorboard=tensorboard,
            evaluate=evaluate,
            distributed=distributed,
            params_devices=params_devices,
            profile=profile,
        )

    tyro.cli(resume, args=words, prog="metaopt resume")
    return 0


def _eval(words: list[str]) -> int:
    import tyro

    from metaopt import eval
    from metaopt.cli._commands import eval_run
    from metaopt.cli._suite import run_suite

    defaults = eval.SuiteSettings()

    def evaluate(
        run: Annotated[pathlib.Path | None, tyro.conf.Positional] = None,
        *,
        suite: bool = False,
        suite_tasks: tuple[str, ...] = (),
        contenders: tuple[str, ...] = (),
        values: int = defaults.num_values,
        max_steps: int | None = None,
        seed: int = defaults.seed,
        out: pathlib.Path | None = None,
    ) -> None:
        """Compare a run with tuned baselines, on its own problems or on the evaluation suite.

        Writes results (JSON) and figures (PNG, SVG). With --suite each pair of a task and a
        contender is a file that is never computed twice: the same command goes on where it was
        stopped, another contender finds the baselines there, and processes with different
        --suite-tasks may share a folder.

        Args:
            run: the run's folder; may be left out with --suite.
            suite: evaluate on the held-out tasks of the suite (see `metaopt list`).
            suite_tasks: only these of its tasks, separated by spaces or commas.
            contenders: of the suite: names of baselines, names of shipped weights (tuned, or with
                `:default` after it as recommended) or folders of runs, separated by spaces or
                commas; all baselines if not given.
            values: of the suite: values tried of each contender's knob, and evaluation seeds.
            max_steps: of the suite: cuts every task to that many steps, for trying things out.
            seed: seed of tuning and evaluation.
            out: the folder of the results; `eval` or `suite` in the run's folder if not given,
                `runs/suite` without a run.
        """
        if suite:
            folder = pathlib.Path("runs") / "suite" if run is None else run / "suite"
            run_suite(
                run,
                names=contenders,
                tasks=suite_tasks,
                out=folder if out is None else out,
                settings=eval.SuiteSettings(seed=seed, num_values=values, max_steps=max_steps),
            )
        elif run is None:
            raise ValueError("name a run's folder, or add --suite.")
        else:
            eval_run(run, seed=seed, out=out)

    words = _split_commas(words, ("--suite-tasks", "--contenders"))
    tyro.cli(evaluate, args=words, prog="metaopt eval")
    return 0


def _diagnose(words: list[str]) -> int:
    import tyro

    from metaopt.cli._commands import diagnose_run
    from metaopt.cli._settings import DiagnoseSettings

    @dataclasses.dataclass(frozen=True)
    class Diagnose(DiagnoseSettings):
        """Measure which meta-gradient suits a problem, and up to which horizon.

        For each estimator and horizon: bias, variance, time, memory; whether inner training is
        chaotic; slices of the meta-loss. Prints a table and advice, writes diagnosis.json and a
        figure, and refuses a folder that holds a diagnosis.
        """

        out: pathlib.Path = pathlib.Path("runs") / "diagnosis"
        """The folder of the results."""
        theta: pathlib.Path | None = None
        """Meta-parameters to measure at: the theta.npz of a run of the same optimizer; the
        initial ones if not given."""

    words = _split_commas(words, ("--estimators", "--horizons"))
    command = tyro.cli(Diagnose, args=words, prog="metaopt diagnose")
    fields = [field.name for field in dataclasses.fields(DiagnoseSettings)]
    settings = DiagnoseSettings(**{field: getattr(command, field) for field in fields})
    diagnose_run(settings, command.out, theta_file=command.theta)
    return 0


def _status(words: list[str]) -> int:
    import tyro

    from metaopt.cli._watch import show_status

    def status(run: Annotated[pathlib.Path, tyro.conf.Positional], *, json: bool = False) -> None:
        """Tell where a run stands, from its files alone: running, stopped or damaged.

        Args:
            run: the run's folder.
            json: print JSON instead of a table.
        """
        show_status(run, as_json=json)

    tyro.cli(status, args=words, prog="metaopt status")
    return 0


def _plot(words: list[str]) -> int:
    import tyro

    from metaopt.cli._watch import draw_runs

    def plot(
        runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional],
        *,
        out: pathlib.Path | None = None,
    ) -> None:
        """Draw the meta-loss and the probes of runs over one another, as PNG and SVG.

        Args:
            runs: the runs' folders; they may still be running.
            out: where to write; the suffix is replaced. `curves` in the first folder if not given.
        """
        draw_runs(runs, out)

    tyro.cli(plot, args=words, prog="metaopt plot")
    return 0


def _split_commas(words: list[str], options: tuple[str, ...]) -> list[str]:
    """Values of the options with their commas as separators of words."""
    result, inside = [], False
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            inside = name in options
            result += [name, *value.split(",")] if inside and value else [word]
        else:
            result += [part for part in word.split(",") if part] if inside else [word]
    return result


def _list(words: list[str]) -> int:
    from metaopt.cli._commands import list_names

    if words:
        raise ValueError(f"takes no arguments, got {' '.join(words)}.")
    list_names()
    return 0


def _experiments(words: list[str]) -> int:
    import tyro

    from metaopt.cli._experiments import list_experiments, run_experiment
    from metaopt.cli._settings import known

    # What follows the name of a script is the script's, `--help` included.
    first = words[0] if words else "list"
    if first in ("-h", "--help"):
        print(_EXPERIMENTS_USAGE)
        return 0
    if known("action", first, ("list", "run")) == "run":
        rest, folder = words[1:], None
        if rest and rest[0].partition("=")[0] == "--folder":
            _, _, value = rest[0].partition("=")
            value, rest = (value, rest[1:]) if value else ("".join(rest[1:2]), rest[2:])
            folder = pathlib.Path(value)
        if not rest:
            raise ValueError("run needs a name; see metaopt experiments list.")
        return run_experiment(rest[0], rest[1:], folder=folder)

    def show(*, folder: pathlib.Path | None = None, json: bool = False) -> None:
        """List the experiments of a checkout: what each shows, how long it takes, its results.

        Args:
            folder: where the scripts are; `experiments` of the checkout if not given.
            json: print JSON instead of a table.
        """
        list_experiments(folder, as_json=json)

    tyro.cli(show, args=words[1:], prog="metaopt experiments list")
    return 0


def _doctor(words: list[str]) -> int:
    if words:
        raise ValueError(f"takes no arguments, got {' '.join(words)}.")
    return doctor.main()
