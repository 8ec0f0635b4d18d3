"""Meta-gradients of few-shot learners beside those of the PyTorch peers, on the same numbers.

    python benchmarks/few_shot_parity.py --peer peer/bin/python --learn2learn FOLDER

Four sinusoids of ten support and ten query points, a network 1-20-20-1 of tanh, float64. Five inner
steps of rate 0.02; iMAML solves its inner problem in 3,000 and its linear system to 1e-12. Every
library starts from the same weights and arrays and computes the gradient of the mean query loss;
the table has the largest difference over the largest entry. The peer's environment is that of
`peer_torch_maml.py`; the peers' side is `peer_torch_few_shot.py`.

Results: `results/few_shot_parity.json` with versions and commit.
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import _measure
import numpy as np
import tyro

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from metaopt import algorithms, core, implicit  # noqa: E402

HERE = Path(__file__).parent
WIDTHS = (1, 20, 20, 1)
SETTINGS = {"inner_lr": 0.02, "steps": 5, "penalty": 4.0, "solve_steps": 3000}


@dataclass(frozen=True)
class Config:
    """What to compare with.

    Attributes:
        peer: the interpreter of the peers' environment.
        learn2learn: folder of the unpacked source of learn2learn; None: left out.
        out: where the results go.
    """

    peer: str
    learn2learn: str | None = None
    out: Path = HERE / "results" / "few_shot_parity.json"


def make_arrays() -> dict[str, np.ndarray]:
    """Points of four tasks, weights, and a learning rate for each of them."""
    rng = np.random.default_rng(0)
    amplitude, phase = rng.uniform(0.1, 5, (4, 1, 1)), rng.uniform(0, np.pi, (4, 1, 1))
    arrays = {}
    for x, y in (("xs", "ys"), ("xq", "yq")):
        arrays[x] = rng.uniform(-5, 5, (4, 10, 1))
        arrays[y] = amplitude * np.sin(arrays[x] - phase)
    for index, shape in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
        arrays[f"w{index}"] = rng.normal(size=shape) / np.sqrt(shape[0])
        arrays[f"b{index}"] = 0.1 * rng.normal(size=shape[1])
    for name in [name for name in arrays if name[0] in "wb"]:
        arrays[f"rate_{name}"] = SETTINGS["inner_lr"] * rng.uniform(0.5, 1.5, arrays[name].shape)
    return arrays


def family() -> core.TaskFamily:
    """The network on one task, whose points are the data."""

    def loss(params, task_params, batch, key):
        hidden = batch[0]
        for layer in params[:-1]:
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"][None])
        outputs = hidden @ params[-1]["w"] + params[-1]["b"][None]
        return ((outputs - batch[1]) ** 2).mean(), ()

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: (),
        batch=lambda data, task_params, key: data,
        loss=loss,
    )


def ours(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Meta-gradients by method and name of the array."""

    def tree_of(prefix=""):
        return tuple(
            {name: jnp.asarray(arrays[f"{prefix}{name}{index}"]) for name in ("w", "b")}
            for index in range(len(WIDTHS) - 1)
        )

    def named(tree, prefix=""):
        return {
            f"{prefix}{name}{index}": np.asarray(layer[name])
            for index, layer in enumerate(tree)
            for name in layer
        }

    sgd, common = optax.sgd(SETTINGS["inner_lr"]), {"num_steps": SETTINGS["steps"], "num_tasks": 1}
    learners = {
        "MAML": algorithms.maml(family(), sgd, **common),
        "first-order MAML": algorithms.maml(family(), sgd, gradient="first_order", **common),
        "ANIL": algorithms.anil(family(), sgd, **common),
        "Meta-SGD": algorithms.meta_sgd(family(), **common),
        "iMAML": algorithms.imaml(
            family(),
            sgd,
            penalty=SETTINGS["penalty"],
            solver=implicit.cg(rtol=1e-12),
            num_steps=SETTINGS["solve_steps"],
            num_tasks=1,
        ),
    }
    pools = core.Split(*((arrays[f"x{s}"], arrays[f"y{s}"]) for s in "sq"))
    found = {}
    for name, learner in learners.items():
        theta = tree_of()
        if name == "Meta-SGD":
            rates = tree_of("rate_")
            theta = algorithms.MetaSGDTheta(theta, jax.tree.map(jnp.log, rates))

        def one_task(data, theta=theta, estimator=learner.estimator):
            state = estimator.init(theta, data, jax.random.key(0))
            return estimator.estimate(theta, state, data, jax.random.key(1))[0].grad

        grad = jax.tree.map(lambda g: g.mean(0), jax.jit(jax.vmap(one_task))(pools))
        if name == "Meta-SGD":
            # The peers differentiate by the rates themselves.
            by_rates = jax.tree.map(jnp.divide, grad.log_rates, rates)
            found[name] = named(grad.params) | named(by_rates, "rate_")
        else:
            found[name] = named(grad)
    return found


def difference(actual: dict, expected: dict) -> float:
    """The largest difference over the largest entry."""
    largest = max(np.abs(x).max() for x in expected.values())
    return float(max(np.abs(actual[k] - expected[k]).max() for k in expected) / largest)


def main(cfg: Config) -> dict:
    """Compares, prints and writes."""
    origin = _measure.provenance()
    arrays = make_arrays()
    with jax.enable_x64(True):
        mine = ours(arrays)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/arrays.npz", allow_pickle=False, **arrays)
        command = [cfg.peer, str(HERE / "peer_torch_few_shot.py"), "--folder", folder]
        command += ["--settings", json.dumps(SETTINGS)]
        if cfg.learn2learn is not None:
            command += ["--learn2learn", cfg.learn2learn]
        subprocess.run(command, check=True)
        versions = json.loads(Path(folder, "versions.json").read_text())
        rows = []
        for method in mine:
            for path in sorted(Path(folder).glob(f"{method} by *.npz")):
                library = path.stem.partition(" by ")[2]
                error = difference(mine[method], dict(np.load(path)))
                rows.append({"method": method, "library": library, "difference": error})
                print(f"{method:18s} {library:12s} {error:.1e}")
    results = {"settings": SETTINGS, "versions": versions, **origin, "rows": rows}
    cfg.out.parent.mkdir(exist_ok=True)
    cfg.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
