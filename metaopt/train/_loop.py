"""The driver: a loop around one compiled meta-step, with probes, metrics and checkpoints."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from metaopt import doctor
from metaopt.core import Estimator, MetaLoss
from metaopt.data import Stream
from metaopt.train._checkpoint import why
from metaopt.train._distributed import any_process, everywhere, require_placed
from metaopt.train._profile import Profiler
from metaopt.train._progress import device_peak_bytes
from metaopt.train._recorder import Recorder
from metaopt.train._run_folder import RunError
from metaopt.train._signals import StopRequest
from metaopt.train._state import TrainState, init_state, keep_best, meta_step

_PROBE_SEED = 0x9E37  # Probes of every run see the same held-out tasks.
_SOUND = 1e-3
_AGREE_EVERY = 10  # Outer steps between looks at the signals of other processes.


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
        device_peak_bytes: the most memory that any device of this process used; -1 where the
            backend does not tell.
    """

    state: TrainState
    interrupted: bool
    compiled: Compiled
    steps_per_second: float
    device_peak_bytes: int = -1


def compile_step(
    estimators: Mapping[str, Estimator],
    outer_opt: optax.GradientTransformation,
    state: TrainState,
    data: Mapping[str, PyTree],
) -> Compiled:
    """Compiles the meta-step ahead of time for the shapes and placement of `state` and `data`."""
    start = time.perf_counter()
    # The state is carried from call to call, so its placement must not change on the way; and
    # every process must be able to read the metrics.
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        meta_step(estimators, outer_opt),
        donate_argnums=0,
        out_shardings=(shardings, state.step.sharding),
    )
    # Estimators without a state learn from the mesh that there are devices to share their tasks.
    mesh = getattr(state.step.sharding, "mesh", None)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
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
    profile: str | os.PathLike | None = None,
    place: Callable[[TrainState], TrainState] = lambda state: state,
    on_report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> TrainResult:
    """Meta-trains `theta`: estimates, averages over families, updates, probes, saves.

    With a `directory`, a run that was stopped in any way goes on from its last checkpoint and
    ends with the same bits as one that was not. SIGINT and SIGTERM save and return. Processes
    that joined by `initialize_distributed` all make this call, with the same arguments.

    Args:
        estimators: an estimator per family, by name.
        theta: initial meta-parameters: a pytree of finite floating-point arrays.
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
        profile: where to write a profile of a few outer steps after the first one.
        place: puts a fresh state on devices; `task_sharding` makes one. Several processes need it.
        on_report: called with the step and the newest metrics at every probe.

    Returns:
        The result. Metrics are in `directory/metrics.jsonl`.

    Raises:
        ValueError: for names that do not agree, counts below 1, a theta that is empty or not
            finite, a state that is not on the devices of all processes.
        RunFolderError: if the directory holds another run, another process runs it, or it cannot
            be written.
        RunError: if a stream raises, a save fails or another process is lost; the message tells
            what is saved.
    """
    _check(estimators, data, num_steps, probe_every, checkpoint_every)
    _check_theta(theta)
    _require_sound_cpu()
    pools = _read(data, 0)
    state = place(init_state(estimators, theta, pools, key, outer_opt=outer_opt))
    require_placed(state.step.sharding)
    measure = _measurement(probes or {}, state)

    def run(record):
        state, start = record.state, int(record.state.step)
        compiled = compile_step(estimators, outer_opt, state, _placed(pools, state))
        if start == 0:
            state, scores = measure(state)
            on_report(0, record.probe(0, scores))
        record.begin(compiled.seconds)
        with StopRequest() as stop, Profiler(profile, start) as profiler:
            began, step = time.perf_counter(), start
            feed = _feed(data, state, record)
            while step < num_steps and not _stops(stop, step):
                batch = feed(step, state)
                profiler.before(step, state)
                state, metrics = compiled.call(state, batch)
                if _shares_cpu(state):
                    jax.block_until_ready(state)
                profiler.after(step, state)
                step += 1
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
        return TrainResult(state, step < num_steps, compiled, speed, device_peak_bytes())

    with Recorder(
        directory,
        settings or {},
        state,
        num_steps=num_steps,
        keep_last=keep_last,
        tensorboard=tensorboard,
    ) as record:
        try:
            return run(record)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1:
                raise
            raise RunError(
                f"meta_train: process {jax.process_index()} of {jax.process_count()} lost the "
                f"others, or a device failed ({why(error)}). {record.rescue(0, state)}"
            ) from error


def _measurement(probes, like):
    """`state -> (state, scores)`: the state has the current theta as the best one if it is."""
    sharding = like.step.sharding
    score = {name: jax.jit(probe.score) for name, probe in probes.items()}
    data = {name: everywhere(probe.data, sharding) for name, probe in probes.items()}
    keep = jax.jit(keep_best, out_shardings=jax.tree.map(lambda x: x.sharding, like))

    def measure(state):
        key = everywhere(jax.random.key(_PROBE_SEED), sharding)
        scores = {
            name: score[name](state.theta, data[name], jax.random.clone(key)) for name in probes
        }
        first = next(iter(scores.values()), None)
        return (state if first is None else keep(state, first)), scores

    return measure


def _read(data, step):
    """The pool of each family at a step."""
    pools = {}
    for name, source in data.items():
        try:
            pools[name] = source.pool(step) if isinstance(source, Stream) else source
        except Exception as error:
            raise RunError(
                f"meta_train: the stream of {name!r} raised {type(error).__name__} at outer step "
                f"{step} ({error})."
            ) from error
    return pools


def _placed(pools, state):
    return everywhere(pools, state.step.sharding)


def _feed(data, state, record):
    """`(step, state) -> pools` on the devices; saves the state where a stream raises."""
    constant = {name: s for name, s in data.items() if not isinstance(s, Stream)}
    constant = _placed(constant, state)
    streams = {name: s for name, s in data.items() if isinstance(s, Stream)}

    def feed(step, state):
        try:
            fresh = _read(streams, step)
        except RunError as error:
            raise RunError(f"{error} {record.rescue(step, state)}") from error.__cause__
        return constant | _placed(fresh, state)

    return feed


def _stops(stop, step):
    if jax.process_count() == 1:
        return stop.requested
    return step % _AGREE_EVERY == 0 and any_process(stop.requested)


def _shares_cpu(state):
    # Programs in flight on several CPU devices compete for threads, and an all-reduce that waits
    # for a device whose program found none would never end.
    return len(state.step.devices()) > 1 and jax.default_backend() == "cpu"


def _require_sound_cpu():
    if jax.default_backend() == "cpu" and (error := doctor.canary()) > _SOUND:
        raise RuntimeError(
            f"meta_train: this jaxlib computes wrong numbers on this CPU (relative error "
            f"{error:.1g}); call metaopt.doctor.guard_cpu() before the first computation."
        )


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


def _check_theta(theta):
    for path, leaf in jax.tree.leaves_with_path(theta):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            bad = int(np.sum(~np.isfinite(np.asarray(leaf, np.float64))))
            if bad:
                raise ValueError(
                    f"meta_train: theta{jax.tree_util.keystr(path)} has {bad} of {np.size(leaf)} "
                    "numbers that are not finite; start from a sound theta."
                )
