"""The driver: a loop around one compiled meta-step, with probes, metrics and checkpoints."""

import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from metaopt import doctor
from metaopt.core import Estimator, MetaLoss
from metaopt.data import Stream
from metaopt.train._checkpoint import Checkpoints
from metaopt.train._metrics import Metrics
from metaopt.train._run_folder import open_folder, save_theta
from metaopt.train._signals import StopRequest
from metaopt.train._state import TrainState, init_state, keep_best, meta_step

_PROBE_SEED = 0x9E37  # Probes of every run see the same held-out tasks.
_SOUND = 1e-3


class Probe(NamedTuple):
    """A fixed measurement on held-out tasks, lower is better.

    Attributes:
        score: `(theta, data, key) -> scalar`, such as `metaopt.eval.probe(...)`.
        data: its pool.
    """

    score: MetaLoss
    data: PyTree = ()


class Compiled(NamedTuple):
    """The compiled meta-step, with what XLA says of it.

    Attributes:
        call: `(state, data) -> (state, metrics)`; the state's buffers are reused.
        seconds: what tracing and compiling took; little where the cache was warm.
        temp_bytes: memory for intermediate values; -1 where the backend does not tell.
        state_bytes: memory of the state and the pools, likewise.
    """

    call: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    seconds: float
    temp_bytes: int
    state_bytes: int


class TrainResult(NamedTuple):
    """How a run ended.

    Attributes:
        state: the last state; `state.best_theta` is what to use.
        interrupted: whether a signal ended it before `num_steps`; everything is saved then.
        compiled: facts about the compiled meta-step.
        steps_per_second: outer steps per second of this call, compilation excluded.
    """

    state: TrainState
    interrupted: bool
    compiled: Compiled
    steps_per_second: float


def compile_step(
    estimators: Mapping[str, Estimator],
    outer_opt: optax.GradientTransformation,
    state: TrainState,
    data: Mapping[str, PyTree],
) -> Compiled:
    """Compiles the meta-step ahead of time for the shapes and placement of `state` and `data`."""
    start = time.perf_counter()
    # The state is carried from call to call, so its placement must not change on the way.
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        meta_step(estimators, outer_opt), donate_argnums=0, out_shardings=(shardings, None)
    )
    call = step.lower(state, data).compile()
    seconds = time.perf_counter() - start
    memory = call.memory_analysis()
    if memory is None:  # Not every backend tells.
        return Compiled(call, seconds, -1, -1)
    return Compiled(call, seconds, memory.temp_size_in_bytes, memory.argument_size_in_bytes)


def meta_train(
    estimators: Mapping[str, Estimator],
    theta: PyTree,
    data: Mapping[str, PyTree],
    key: PRNGKeyArray,
    *,
    outer_opt: optax.GradientTransformation,
    num_steps: int,
    probes: Mapping[str, Probe] | None = None,
    probe_every: int = 50,
    directory: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    checkpoint_every: int = 100,
    keep_last: int = 2,
    tensorboard: bool = False,
    place: Callable[[TrainState], TrainState] = lambda state: state,
    on_report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> TrainResult:
    """Meta-trains `theta`: estimates, averages over families, updates, probes, saves.

    With a `directory`, a run that was stopped in any way goes on from its last checkpoint and
    ends with the same bits as one that was not. SIGINT and SIGTERM save and return.

    Args:
        estimators: an estimator per family, by name.
        theta: initial meta-parameters: a pytree of floating-point arrays.
        data: a pool or a `metaopt.data.Stream` per family, by the same names.
        key: the run's key.
        outer_opt: the optimizer of theta: any optax chain.
        num_steps: outer steps in all, those before a resumption included.
        probes: held-out measurements, taken before the first step, every `probe_every` steps and
            at the end, always with the same tasks. The first one decides on the best theta.
        probe_every: outer steps between probes and between reports.
        directory: the run's folder, see `open_folder`; None: nothing is written.
        settings: what identifies the run; a folder with other settings is refused.
        checkpoint_every: outer steps between checkpoints.
        keep_last: checkpoints kept, besides the best one.
        tensorboard: whether to write TensorBoard events as well.
        place: puts a fresh state on devices; `task_sharding` makes one.
        on_report: called with the step and the newest metrics at every probe.

    Returns:
        The result. Metrics are in `directory/metrics.jsonl`.

    Raises:
        ValueError: for names that do not agree, counts below 1, an empty theta.
        RunFolderError: if the directory holds another run or cannot be written.
    """
    probes = probes or {}
    _check(estimators, data, num_steps, probe_every, checkpoint_every)
    _require_sound_cpu()
    pools = {name: _pool(source, 0) for name, source in data.items()}
    state = place(init_state(estimators, theta, pools, key, outer_opt=outer_opt))
    score = {name: jax.jit(probe.score) for name, probe in probes.items()}

    def measure(state):
        """Scores of the current theta, and the state with the best one kept."""
        scores = {
            name: score[name](state.theta, probe.data, jax.random.key(_PROBE_SEED))
            for name, probe in probes.items()
        }
        first = next(iter(scores.values()), None)
        return (state if first is None else keep_best(state, first)), scores

    with _Recorder(directory, settings or {}, state, keep_last, tensorboard) as record:
        state, start = record.state, int(record.state.step)
        # Programs in flight on several CPU devices compete for threads, and an all-reduce that
        # waits for a device whose program found none would never end.
        shares_cpu = len(state.step.devices()) > 1 and jax.default_backend() == "cpu"
        compiled = compile_step(estimators, outer_opt, state, pools)
        if start == 0:
            state, scores = measure(state)
            on_report(0, record.probe(0, scores))
        with StopRequest() as stop:
            began = time.perf_counter()
            step = start
            while step < num_steps and not stop.requested:
                pools = {name: _pool(source, step) for name, source in data.items()}
                state, metrics = compiled.call(state, pools)
                step += 1
                if shares_cpu:
                    jax.block_until_ready(state)
                record.step(step, metrics)
                if step % probe_every == 0 or step == num_steps:
                    state, scores = measure(state)
                    on_report(step, record.probe(step, scores))
                if step % checkpoint_every == 0:
                    record.save(step, state)
            jax.block_until_ready(state)
            seconds = time.perf_counter() - began
            record.save(step, state)
    speed = (step - start) / seconds if step > start else 0.0
    return TrainResult(state, step < num_steps, compiled, speed)


class _Files(NamedTuple):
    """Where a run with a folder writes."""

    folder: pathlib.Path
    checkpoints: Checkpoints
    metrics: Metrics


class _Recorder:
    """Everything a run writes; without a directory it only hands metrics on."""

    def __init__(self, directory, settings, state, keep_last, tensorboard):
        self.state, self._pending, self._newest = state, [], {}
        self._files = None
        if directory is not None:
            folder = open_folder(directory, settings)
            checkpoints = Checkpoints(folder / "checkpoints", keep_last=keep_last)
            restored = checkpoints.restore(state)
            self.state = state if restored is None else restored
            metrics = Metrics(folder, int(self.state.step), tensorboard=tensorboard)
            self._files = _Files(folder, checkpoints, metrics)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._files is not None:
            self._files.checkpoints.close()
            self._files.metrics.close()

    def step(self, step, metrics):
        """Notes a step's metrics without waiting for the device."""
        self._pending.append((step, metrics))

    def probe(self, step, scores):
        """Writes all that is pending and a probe's scores; returns the newest metrics."""
        self._flush()
        scores = {f"probe/{name}": float(value) for name, value in scores.items()}
        if self._files is not None and scores:
            self._files.metrics.write(step, scores)
            self._files.metrics.flush()
        return {**self._newest, **scores}

    def save(self, step, state):
        """Writes what is pending, then the state: a checkpoint never precedes its metrics."""
        self._flush()
        if self._files is not None:
            self._files.checkpoints.save(step, state, score=float(state.best_score))
            save_theta(self._files.folder / "theta.npz", state.best_theta)

    def _flush(self):
        for step, metrics in jax.device_get(self._pending):
            self._newest = {name: float(value) for name, value in metrics.items()}
            if self._files is not None:
                self._files.metrics.write(step, self._newest)
        self._pending = []
        if self._files is not None:
            self._files.metrics.flush()


def _require_sound_cpu():
    if jax.default_backend() == "cpu" and (error := doctor.canary()) > _SOUND:
        raise RuntimeError(
            f"meta_train: this jaxlib computes wrong numbers on this CPU (relative error "
            f"{error:.1g}); call metaopt.doctor.guard_cpu() before the first computation."
        )


def _pool(source, step):
    return source.pool(step) if isinstance(source, Stream) else source


def _check(estimators, data, num_steps, probe_every, checkpoint_every):
    if not estimators:
        raise ValueError("meta_train: estimators is empty; give at least one family.")
    if estimators.keys() != data.keys():
        raise ValueError(
            f"meta_train: estimators are named {sorted(estimators)} and data {sorted(data)}; "
            "use the same names."
        )
    counts = {
        "num_steps": num_steps,
        "probe_every": probe_every,
        "checkpoint_every": checkpoint_every,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"meta_train: {name} must be at least 1, got {count}.")
