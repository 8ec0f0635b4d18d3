"""Our learned optimizers against trajectories of the original implementations.

Each file of vectors holds the original's weights, and for five steps of seven tensors its
gradients, losses and parameters. The weights go through a msgpack checkpoint and
`metaopt.learned.load`, as published ones do. Two rollouts are compared: every step from the
original's parameters, and all five from our own.

    python benchmarks/parity.py --vectors FOLDER        (half a minute; writes results/parity.json)
"""

from metaopt import doctor

doctor.guard_cpu()

import argparse  # noqa: E402
import pathlib  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from metaopt import learned  # noqa: E402
from metaopt.core import LearnedOptimizer  # noqa: E402

NUM_STEPS = 5
_LOUD = {"step_mult": 0.1, "exp_mult": 0.1}
_SMALL = {"hidden_size": 16, "bank_size": 4}
# File of the vectors: the optimizer with the settings that they were made with.
CASES: dict[str, Callable[[], LearnedOptimizer]] = {
    "mlp_lopt_loud": lambda: learned.mlp(**_LOUD),
    "adafac_mlp_lopt": lambda: learned.adafac_mlp(),
    "adafac_mlp_lopt_loud": lambda: learned.adafac_mlp(**_LOUD),
    "adafac_nominal_loud": lambda: learned.adafac_nominal(
        step_mult=0.1, nominal_step=0.01, weight_decay=0.01, exp_mults=(0.1, 0.1, 0.1)
    ),
    "hyperv2_small": lambda: learned.velo(**_SMALL, loss_horizon=10),
    "hyperv2_small_loud": lambda: learned.velo(**_SMALL, **_LOUD, loss_horizon=10),
    "hyperv2_small_fixedloss_loud": lambda: learned.velo(**_SMALL, **_LOUD),
    "rnn_mlp_lopt_loud": lambda: learned.rnn_mlp(**_LOUD),
    "nn_adam_lr0.05": lambda: learned.nn_adam(),
    "celo_phase1_loud": lambda: learned.celo(phase=1, hidden_size=16, **_LOUD),
    "celo_phase2_loud": lambda: learned.celo(phase=2, hidden_size=16, **_LOUD),
    "celo2_base_loud": lambda: learned.celo2(0.1),
}


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """A file of vectors."""
    with np.load(file) as archive:
        return {name: archive[name] for name in archive.files}


def publish(archive, file: pathlib.Path) -> None:
    """Writes the original's weights as a msgpack checkpoint of nested dictionaries."""
    from flax import serialization

    theta: dict = {}
    for name, x in _subtree(archive, "theta").items():
        *parents, leaf = name.split("/")
        inner = theta
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = x
    file.write_bytes(serialization.msgpack_serialize(theta))


def difference(archive, optimizer: LearnedOptimizer, theta, *, rolling: bool) -> float:
    """The largest absolute difference of a parameter over all steps."""
    opt = optimizer.optimizer(theta, num_steps=100)
    update = jax.jit(lambda g, s, p, loss: opt.update(g, s, p, value=loss))
    params = _subtree(archive, "params/0")
    state, worst = opt.init(params), 0.0
    for t in range(NUM_STEPS):
        if not rolling:
            params = _subtree(archive, f"params/{t}")
        grads, loss = _subtree(archive, f"grads/{t}"), jnp.asarray(archive[f"loss/{t}"])
        updates, state = update(grads, state, params, loss)
        params = optax.apply_updates(params, updates)
        expected = _subtree(archive, f"params/{t + 1}")
        worst = max(worst, *(float(jnp.abs(params[k] - expected[k]).max()) for k in expected))
    return worst


def measure(file: pathlib.Path) -> dict:
    """Both differences for one file of vectors, and how far the original's parameters moved."""
    archive, optimizer = read(file), CASES[file.stem]()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = pathlib.Path(folder) / "theta.state"
        publish(archive, checkpoint)
        theta = learned.load(checkpoint, optimizer)
    start, end = _subtree(archive, "params/0"), _subtree(archive, f"params/{NUM_STEPS}")
    return {
        "stored": difference(archive, optimizer, theta, rolling=False),
        "rolling": difference(archive, optimizer, theta, rolling=True),
        "moved": max(float(jnp.abs(end[k] - start[k]).max()) for k in end),
    }


def _subtree(archive, prefix) -> dict:
    start = len(prefix) + 1
    return {k[start:]: jnp.asarray(x) for k, x in archive.items() if k.startswith(f"{prefix}/")}


def main() -> None:
    """Measures every file and writes the results."""
    import _measure

    from metaopt import train

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=pathlib.Path, required=True)
    vectors = parser.parse_args().vectors
    rows = {name: measure(vectors / f"{name}.npz") for name in CASES}
    for name, row in rows.items():
        print(f"{name:32s}" + "".join(f"{k:>10s} {v:.1e}" for k, v in row.items()))
    out = pathlib.Path(__file__).parent / "results" / "parity.json"
    train.write_json(out, {"rows": rows, "provenance": _measure.provenance()})


if __name__ == "__main__":
    main()
