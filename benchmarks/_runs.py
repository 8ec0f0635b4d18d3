"""Small runs as processes of their own, for drivers that disturb, spread or watch them.

    python benchmarks/_runs.py '{"folder": "runs/x", "num_steps": 20}'

trains, and prints what came out as one line of JSON. Drivers use `start`, `start_together` and
`answer`.
"""

import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# What a worker is told, and what it does if not told.
DEFAULTS = {
    "folder": None,
    "problem": "quadratic",  # or "digits", or "bowl", some of whose tasks are NaN
    "num_steps": 20,
    "num_tasks": 8,
    "probe_every": 10,
    "checkpoint_every": 5,
    "sleep": 0.0,  # seconds before each step
    "distributed": False,
    "timeout": 60,
    "stream_fails_at": None,
    "nan_share": 0.0,
    "nan_theta": False,
}


def start(settings: dict, *, devices: int = 1, environment: dict | None = None):
    """Starts a run with so many forced CPU devices."""
    flags = [word for word in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in word]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(settings)],
        env={**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_together(settings: dict, *, count: int, devices: int, environment: dict | None = None):
    """Starts the processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        start(
            settings | {"distributed": True},
            devices=devices,
            environment={
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            | (environment or {}),
        )
        for index in range(count)
    ]


def answer(process, timeout: float = 1800) -> dict:
    """What a run printed; its error under `error` if it ended with one."""
    out, err = process.communicate(timeout=timeout)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    # jax ends a process whose partner is lost from within, where no Python runs any more.
    last = [line for line in err.splitlines() if line.strip()] or [""]
    told = [line for line in last if "Terminating process" in line] or last[-1:]
    return {"error": told[0].partition("] ")[2][:300] or told[0], "status": process.returncode}


def digest(tree) -> str:
    """A hash of all bits of a tree."""
    import jax
    import numpy as np

    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def make(settings: dict):
    """Estimators, theta and probes of a problem."""
    import jax
    import jax.numpy as jnp
    import optax

    from metaopt import core, estimators, eval, learned, tasks, train

    num_tasks = settings["num_tasks"]
    if settings["problem"] == "bowl":

        def meta_loss(theta, data, key):
            broken = jax.random.bernoulli(key, settings["nan_share"])
            return jnp.where(broken, jnp.nan, jnp.sum((theta - 1) ** 2))

        theta = jnp.array([4.0, jnp.nan if settings["nan_theta"] else -3.0])
        probe = train.Probe(lambda theta, data, key: jnp.sum((theta - 1) ** 2))
        return estimators.es(meta_loss, sigma=0.1, num_tasks=num_tasks), theta, probe, ()
    if settings["problem"] == "digits":
        from metaopt import data

        family, optimizer = (
            tasks.mlp((8, 8, 1), 10, hidden=(32,), batch_size=32),
            learned.celo2(0.02),
        )
        pool, window = data.digits().train, {"truncation": 20, "horizon": 100}
    else:
        family, pool, window = tasks.quadratic(dim=3), (), {"truncation": 5, "horizon": 20}
        optimizer = learned.hyperparameters(
            optax.sgd, learning_rate=learned.positive(0.05), momentum=learned.fraction(0.5)
        )
    system = core.training(family, optimizer)
    estimator = estimators.pes(system, sigma=0.02, num_tasks=num_tasks, **window)
    probe = train.Probe(eval.probe(family, optimizer, num_steps=20, num_tasks=4), pool)
    return estimator, optimizer.init(jax.random.key(0)), probe, pool


def work(settings: dict) -> dict:
    """Trains and says what came out."""
    from metaopt import doctor

    doctor.guard_cpu()
    doctor.enable_compilation_cache()
    import jax
    import optax

    from metaopt import data, train

    if settings["distributed"]:
        train.initialize_distributed(timeout=settings["timeout"])
    estimator, theta, probe, pool = make(settings)
    times = []

    def pool_at(step):
        times.append(time.perf_counter())
        if step == settings["stream_fails_at"]:
            raise OSError("no route to host")
        time.sleep(settings["sleep"])
        return pool

    try:
        result = train.meta_train(
            {"task": estimator},
            theta,
            {"task": data.Stream(pool_at, 10, (8, 8, 1))},
            jax.random.key(1),
            outer_opt=optax.adam(0.02),
            num_steps=settings["num_steps"],
            probes={"task": probe},
            probe_every=settings["probe_every"],
            directory=settings["folder"],
            checkpoint_every=settings["checkpoint_every"],
            settings={name: settings[name] for name in ("problem", "num_tasks")},
            place=train.task_sharding() if jax.device_count() > 1 else lambda state: state,
        )
    except (train.RunError, ValueError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}", "status": 1}), flush=True)
        os._exit(1)
    return {
        "step": int(result.state.step),
        "interrupted": result.interrupted,
        "digest": digest(result.state),
        "devices": jax.device_count(),
        "compile_s": result.compiled.seconds,
        "steps_per_s": result.steps_per_second,
        "step_times_s": [b - a for a, b in zip(times[1:], times[2:], strict=False)],
    }


if __name__ == "__main__":
    print(json.dumps(work(DEFAULTS | json.loads(sys.argv[1]))), flush=True)
