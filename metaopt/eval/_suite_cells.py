"""Cells of the evaluation suite: one contender on one task, as one JSON file.

The name of a file carries a hash of everything its numbers depend on, except code; a file that is
there is read and not computed again.
"""

import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt.eval._curves import Curves, learning_curve
from metaopt.eval._drawing import plain
from metaopt.eval._metrics import envelope
from metaopt.eval._suite_baselines import Contender, knob_values
from metaopt.eval._suite_overhead import UpdateTimer, keep_dtypes
from metaopt.eval._suite_tasks import SuiteProblem, SuiteTask

# Of the definitions of tasks and baselines: a new number makes old cells invisible.
_VERSION = 1
_DIGITS = 6

# Adam's own grid, at constant learning rates.
ENVELOPE = Contender("envelope", lambda value, num_steps: optax.adam(value), 10**-2.0)


@dataclasses.dataclass(frozen=True)
class SuiteSettings:
    """What all cells of a suite share."""

    seed: int = 1
    """Seed of tuning and evaluation."""
    num_values: int = 7
    """Values of each contender's knob, and evaluation seeds: one batch of either."""
    num_tuning_seeds: int = 2
    """Seeds on which knobs are chosen; none of them is reported."""
    num_eval_batches: int = 16
    """Batches of losses that are not the curve itself."""
    envelope_factor: int = 4
    """How many times longer the runs behind the envelope are."""
    max_steps: int | None = None
    """Cuts every task to that many inner steps; for trying things out."""

    def __post_init__(self):
        """Refuses counts below 1."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" and value is not None and value < 1:
                raise ValueError(f"SuiteSettings: {field.name} must be at least 1, got {value}.")


class TaskRunner:
    """The cells of one task; what they share is made when the first one has to be computed."""

    def __init__(self, task: SuiteTask, settings: SuiteSettings, folder: Path):
        self._task, self._settings, self._folder = task, settings, folder
        self._loaded: tuple[SuiteProblem, UpdateTimer] | None = None

    def cell(self, contender: Contender, compute: Callable, report: Callable) -> dict[str, Any]:
        """A cell from its file, or computed and written."""
        facts = _facts(self._task, contender, self._settings)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
        file = self._folder / self._task.name / f"{contender.name}-{digest}.json"
        if file.exists():
            return json.loads(file.read_text())
        start, start_cpu = time.perf_counter(), time.process_time()
        content = {**facts, "group": self._task.group, **compute(contender)}
        content["wall_seconds"] = time.perf_counter() - start
        content["cpu_seconds"] = time.process_time() - start_cpu
        write_cell(file, plain(content))
        report(_line(content))
        # What is used is what was written: a run that goes on sees the same numbers.
        return json.loads(file.read_text())

    def contender(self, contender: Contender) -> dict[str, Any]:
        """Tunes and evaluates a contender; times its update."""
        problem, timer = self._problem()
        settings, num_steps = self._settings, problem.num_steps
        values = knob_values(contender, settings.num_values)
        key_tune, key_evaluate, _ = self._keys()
        run = _program(problem, contender, num_steps, settings)
        tuning: dict[str, Any] = {"scores": None, "failure_rate": None}
        best = 0
        if len(values) > 1:
            runs = []
            for seed in range(settings.num_tuning_seeds):
                key = jax.random.fold_in(jax.random.clone(key_tune), seed)
                runs.append(run(values, jnp.broadcast_to(key, (settings.num_values,))))
            # In float64: a normaliser's worst value may be the largest finite float32.
            scores = np.mean([r.normalised.final for r in runs], axis=0, dtype=np.float64)
            best = int(np.argmin(scores))
            tuning = {"scores": scores, "failure_rate": np.mean([r.failed for r in runs], axis=0)}
        keys = jax.random.split(key_evaluate, settings.num_values)
        curves = run(np.full(settings.num_values, values[best]), keys)
        return {
            "num_steps": num_steps,
            "value": values[best],
            "at_edge": len(values) > 1 and best in (0, len(values) - 1),
            "tuning": tuning,
            "train_curves": _rounded(curves.normalised.train),
            "initial_loss": curves.initial_loss,
            "final_loss": curves.final_loss,
            **_test(curves, problem),
            "failed": curves.failed,
            "overhead": timer.ratio(keep_dtypes(contender.make(float(values[best]), num_steps))),
        }

    def envelope(self, contender: Contender) -> dict[str, Any]:
        """The best loss that Adam reaches by each step at any constant learning rate."""
        problem, _ = self._problem()
        settings = self._settings
        num_steps = settings.envelope_factor * problem.num_steps
        run = _program(problem, contender, num_steps, settings)
        key = self._keys()[2]
        curves = run(
            knob_values(contender, settings.num_values),
            jnp.broadcast_to(key, (settings.num_values,)),
        )
        return {
            "num_steps": num_steps,
            "levels": _rounded(envelope(curves.normalised.train[:, None])),
        }

    def _problem(self) -> tuple[SuiteProblem, UpdateTimer]:
        if self._loaded is None:
            problem = self._task.make()
            if self._settings.max_steps is not None:
                num_steps = min(problem.num_steps, self._settings.max_steps)
                problem = problem._replace(num_steps=num_steps)
            key_task, key_init = jax.random.split(jax.random.key(self._settings.seed))
            params = problem.family.init(problem.family.sample(key_task), key_init)
            self._loaded = problem, UpdateTimer(params)
        return self._loaded

    def _keys(self):
        """Of tuning, evaluation and envelope; a task's do not depend on the other tasks."""
        key = jax.random.key(self._settings.seed)
        return jax.random.split(jax.random.fold_in(key, zlib.crc32(self._task.name.encode())), 3)


def _program(problem: SuiteProblem, contender: Contender, num_steps: int, settings: SuiteSettings):
    """`(values, keys) -> Curves` on the host, seed axis first; one compilation."""

    @jax.jit
    def run(values, data, keys):
        def one(value, key):
            curves = learning_curve(
                problem.family,
                keep_dtypes(contender.make(value, num_steps)),
                data,
                key,
                num_steps=num_steps,
                num_seeds=1,
                num_eval_batches=settings.num_eval_batches,
                eval_params=contender.eval_params,
            )
            return jax.tree.map(lambda x: x[0], curves)

        return jax.vmap(one)(values, keys)

    def on_host(values, keys) -> Curves:
        return jax.device_get(run(jnp.asarray(values, jnp.float32), problem.data, keys))

    return on_host


def _test(curves: Curves, problem: SuiteProblem) -> dict[str, Any]:
    """Losses on the test pool, if the problem has one, and accuracies, if it has any."""
    has_pool = bool(jax.tree.leaves(problem.data.outer))
    accuracy = curves.validation_accuracy
    return {
        "test_loss": curves.validation_loss[:, -1] if has_pool else None,
        "test_accuracy": None if accuracy is None else accuracy[:, -1],
    }


def _facts(task: SuiteTask, contender: Contender, settings: SuiteSettings) -> dict[str, Any]:
    """Everything that decides about the numbers of a cell; code only by `_VERSION`."""
    return {
        "version": _VERSION,
        "task": task.name,
        "contender": contender.name,
        "digest": contender.digest,
        "values": [float(f"{v:.6g}") for v in knob_values(contender, settings.num_values)],
        "settings": {
            "seed": settings.seed,
            "num_values": settings.num_values,
            "num_tuning_seeds": settings.num_tuning_seeds,
            "num_eval_batches": settings.num_eval_batches,
            "max_steps": settings.max_steps,
            "envelope_factor": settings.envelope_factor if contender is ENVELOPE else None,
        },
    }


def _rounded(values):
    """Enough digits for scores, few enough for files of curves."""
    return [_rounded(v) if np.ndim(v) else float(f"{v:.{_DIGITS}g}") for v in np.asarray(values)]


def _line(content: Mapping[str, Any]) -> str:
    seconds = f"{content['cpu_seconds']:.1f} s of process time"
    text = f"{content['task']} / {content['contender']}: {seconds}"
    if "value" not in content:
        return text
    loss = float(np.mean(content["final_loss"]))
    edge = " (edge)" if content["at_edge"] else ""
    return f"{text}, value {content['value']:.3g}{edge}, final loss {loss:.4g}"


def write_cell(file: Path, content: Any) -> None:
    """Writes JSON so that a reader sees a whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may compute the same cell: each writes a file of its own first.
    partial = file.with_name(f"{file.name}.{time.time_ns()}.partial")
    partial.write_text(json.dumps(content) + "\n")
    partial.replace(file)
