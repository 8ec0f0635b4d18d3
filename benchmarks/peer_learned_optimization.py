"""Times one PES meta-step of Google's learned_optimization: the peer's side of `throughput.py`.

Runs in an environment of its own, without metaopt (Python 3.11, jax 0.10.2). The release on the
package index pins packages that no longer install, so its dependencies are named by hand:

    python3.11 -m venv peer
    peer/bin/pip install jax==0.10.2 dm-haiku flax optax gin-config absl-py tqdm \
        tensorflow-cpu tensorboard tensorflow-datasets
    peer/bin/pip install --no-deps learned-optimization==0.0.1
    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= peer/bin/python \
        benchmarks/peer_learned_optimization.py --num-tasks 8 --windows 20

TensorFlow is needed by its imports only. The release calls functions that JAX has since renamed
(`jax.tree_map` and its kin); `_restore_names` puts the old names back and changes nothing else.

A meta-step is what its tutorials run: `SingleMachineGradientLearner.update` over one
`TruncatedPES`, whose batches come from a Python iterator (here: random rows of an array in
memory, so no decoding or augmentation is timed). One JSON line per configuration; `ms_data` is
the part of the median that goes to assembling batches on the host. `steps_per_jit` (10 unless
told) and `stack` (both antithetic arms in one program) are the peer's own settings.
"""
# pyright: reportMissingImports=false

import argparse
import importlib.metadata
import itertools
import json
import statistics
import time
import types

import _measure
import jax
import jax.core
import numpy as np


def _restore_names():
    names = ("flatten", "leaves", "map", "structure", "unflatten")
    aliases = [(jax, f"tree_{name}", getattr(jax.tree, name)) for name in names]
    aliases.append((jax, "tree_multimap", jax.tree.map))
    aliases.append((jax, "ShapedArray", jax.core.ShapedArray))
    aliases.append((jax.lib, "xla_client", types.SimpleNamespace(Device=jax.Device)))
    for module, name, value in aliases:
        setattr(module, name, value)


_restore_names()

from learned_optimization import training  # noqa: E402
from learned_optimization.learned_optimizers.adafac_mlp_lopt import AdafacMLPLOpt  # noqa: E402
from learned_optimization.learned_optimizers.mlp_lopt import MLPLOpt  # noqa: E402
from learned_optimization.optimizers import base as optimizers  # noqa: E402
from learned_optimization.outer_trainers import gradient_learner  # noqa: E402
from learned_optimization.outer_trainers.truncated_pes import TruncatedPES  # noqa: E402
from learned_optimization.outer_trainers.truncation_schedule import (  # noqa: E402
    ConstantTruncationSchedule,
)
from learned_optimization.tasks import base as tasks  # noqa: E402
from learned_optimization.tasks.datasets import base as datasets  # noqa: E402
from learned_optimization.tasks.fixed.image_mlp import _MLPImageTask  # noqa: E402

LEARNED = {
    "mlp": lambda: MLPLOpt(hidden_size=32),
    "mlp_no_summaries": lambda: MLPLOpt(hidden_size=32, compute_summary=False),
    "adafac_mlp": lambda: AdafacMLPLOpt(hidden_size=4),
    # Its faster form of the same function, not the default.
    "adafac_mlp_scalar": lambda: AdafacMLPLOpt(hidden_size=4, concat_weights=False),
}


def task_family(batch_size: int, pool_size: int = 1797):
    """An MLP 64-32-10 on 8x8x1 images, fed from memory."""
    rng = np.random.default_rng(0)
    images = rng.random((pool_size, 8, 8, 1), dtype=np.float32)
    labels = rng.integers(0, 10, pool_size, dtype=np.int32)

    def batches():
        while True:
            rows = rng.integers(0, pool_size, batch_size)
            yield {"image": images[rows], "label": labels[rows]}

    abstract = {
        "image": jax.ShapeDtypeStruct((batch_size, 8, 8, 1), np.float32),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }
    data = datasets.Datasets(
        *[batches() for _ in range(4)],
        extra_info={"num_classes": 10},
        abstract_batch=abstract,
    )
    return tasks.single_task_to_family(_MLPImageTask(data, [32]))


def build(settings: dict):
    """Compiles one configuration; returns a blocking meta-step and the facts of its row."""
    num_tasks, window = settings["num_tasks"], settings["window"]
    steps_per_jit = min(settings.get("steps_per_jit", 10), window)
    stack = settings.get("stack", False)
    family = task_family(settings["batch_size"])
    learned = LEARNED[settings["optimizer"]]()

    start = time.perf_counter()
    estimator = TruncatedPES(
        family,
        learned,
        ConstantTruncationSchedule(settings["horizon"]),
        num_tasks=num_tasks,
        trunc_length=window,
        random_initial_iteration_offset=settings["horizon"],
        std=settings["sigma"],
        steps_per_jit=steps_per_jit,
        stack_antithetic_samples=stack,
    )
    learner = gradient_learner.SingleMachineGradientLearner(
        learned, [estimator], optimizers.Adam(1e-4)
    )
    key, key_init = jax.random.split(jax.random.PRNGKey(0))
    state = learner.init(key_init)
    carry = {"state": state, "key": key}

    def step():
        carry["key"], key_step = jax.random.split(carry["key"])
        carry["state"], _, _ = learner.update(carry["state"], key_step)
        jax.block_until_ready(carry["state"])

    step()
    compile_s = time.perf_counter() - start
    step()  # The second call may still meet new argument types.

    def assemble():
        shape = (steps_per_jit, num_tasks)
        for _ in range(window // steps_per_jit):
            jax.block_until_ready(training.get_batches(family, shape, numpy=False))

    assemble()
    data_ms = _measure.time_steps(assemble, seconds=0.5)["ms"]
    facts = {
        **settings,
        "library": "learned_optimization",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("learned-optimization", "jax", "jaxlib", "dm-haiku")
        },
        "steps_per_jit": steps_per_jit,
        "stack": stack,
        "compile_s": round(compile_s, 2),
        "ms_data": round(statistics.median(data_ms), 3),
        "inner_steps": 2 * num_tasks * window,
    }
    return step, facts


def main():
    parser = argparse.ArgumentParser(description="PES meta-steps of learned_optimization")
    parser.add_argument("--optimizers", nargs="+", choices=LEARNED, default=["mlp", "adafac_mlp"])
    parser.add_argument("--num-tasks", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--windows", nargs="+", type=int, default=[20, 50])
    parser.add_argument("--horizon", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=0.01)
    parser.add_argument("--steps-per-jit", type=int, default=10)
    parser.add_argument("--stack", action="store_true", help="both arms in one program")
    parser.add_argument("--seconds", type=float, default=10.0, help="per configuration")
    parser.add_argument("--serve", action="store_true", help="answer requests of throughput.py")
    args = parser.parse_args()
    if args.serve:
        _measure.serve(build)
        return
    for optimizer, num_tasks, window in itertools.product(
        args.optimizers, args.num_tasks, args.windows
    ):
        step, facts = build(
            {
                "optimizer": optimizer,
                "num_tasks": num_tasks,
                "window": window,
                "horizon": args.horizon,
                "batch_size": args.batch_size,
                "sigma": args.sigma,
                "steps_per_jit": args.steps_per_jit,
                "stack": args.stack,
            }
        )
        times = _measure.time_steps(step, seconds=args.seconds)
        print(json.dumps(_measure.row(facts, times)), flush=True)


if __name__ == "__main__":
    main()
