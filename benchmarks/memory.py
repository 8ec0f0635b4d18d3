"""Memory of the meta-step, and whether it stays flat over 1,000 outer steps.

    python benchmarks/memory.py

Meta-training as in `metaopt train --preset digits` (Celo2, PES, 8 tasks, window 50, horizons of 50
to 500 steps), without probes and files. Memory of the compiled step is XLA's own account; resident
memory is the process's, sampled while it runs. Results: `results/memory.json`.
"""

import json
import pathlib
import platform

from metaopt import doctor

doctor.guard_cpu()
doctor.enable_compilation_cache()

import jax  # noqa: E402
import optax  # noqa: E402

from metaopt import core, data, estimators, learned, tasks, train, unroll  # noqa: E402

OUT = pathlib.Path(__file__).parent / "results" / "memory.json"


def resident_mib() -> float:
    """Resident memory of this process in MiB, from the kernel."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    optimizer = learned.celo2(0.01)
    family = tasks.mlp((8, 8, 1), 10, hidden=(32,), batch_size=32)
    estimator = estimators.pes(
        core.training(family, optimizer), truncation=50, horizon=unroll.log_uniform(50, 500)
    )
    samples = []

    def sample(step, metrics):
        samples.append(
            {"step": step, "resident_mib": resident_mib(), "live_arrays": len(jax.live_arrays())}
        )

    result = train.meta_train(
        {"digits": estimator},
        optimizer.init(jax.random.key(0)),
        {"digits": data.digits().train},
        jax.random.key(1),
        outer_opt=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3, b2=0.99)),
        num_steps=1000,
        probe_every=100,
        on_report=sample,
    )
    compiled = result.compiled
    record = {
        "temp_mib": compiled.temp_bytes / 2**20,
        "state_and_pool_mib": compiled.state_bytes / 2**20,
        "samples": samples,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
