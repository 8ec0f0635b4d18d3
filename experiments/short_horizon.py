"""Short-horizon bias: the learning rate that meta-training finds depends on its horizon.

Command:   python experiments/short_horizon.py
Hardware:  one core of an x86-64 CPU; a minute.
Expected:  the best learning rate falls with the horizon, and so does the loss after 300 steps with
           it, from horizon 1 to 300 by a factor of at least 4; learning rates trained by
           backpropagation through the horizon end within one step of the grid of the best, in
           every seed

Wu et al. 2018, arXiv:1803.02021: a quadratic with 20 curvatures h from 1 to 0.01, whose gradients
carry noise of variance h, from a start of 3 in every coordinate. The best rates are exact, from the
recursion of the second moments, on a grid of ten per decade. Those found by meta-gradients start at
0.4 and are the geometric mean over the second half of the outer steps.

Writes results/short_horizon.json and a figure beside it.
"""

import dataclasses
import pathlib

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import core, estimators, eval, learned, train  # noqa: E402

CURVATURES = np.geomspace(1, 0.01, 20)
START = 3.0
GRID = 10 ** np.arange(-2, 0.31, 0.1)
RATIO_BAR = 4.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    horizons: tuple[int, ...] = (1, 5, 20, 100, 300)
    num_steps: int = 300
    """Steps after which rates are judged."""
    outer_steps: int = 150
    outer_rate: float = 0.05
    num_tasks: int = 32
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "short_horizon.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls((0,), (1, 3), 4, 4, num_tasks=2, out=folder / "tiny.json")


def expected_loss(rate: float, num_steps: int) -> float:
    """Mean loss after some steps, by the recursion of the second moments."""
    moments = np.full(len(CURVATURES), START**2)
    for _ in range(num_steps):
        moments = (1 - rate * CURVATURES) ** 2 * moments + rate**2 * CURVATURES
    return float(0.5 * CURVATURES @ moments)


def noisy_quadratic() -> core.TaskFamily:
    """The data are the scale of the noise: 1 in training, 0 in what is reported."""

    def loss(params, task_params, batch, key):
        quadratic = 0.5 * jnp.sum(jnp.asarray(CURVATURES, params.dtype) * params**2)
        return quadratic + batch @ params, ()

    def batch(data, task_params, key):
        noise = jax.random.normal(key, (len(CURVATURES),))
        return data * jnp.sqrt(jnp.asarray(CURVATURES, noise.dtype)) * noise

    return core.TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: jnp.full(len(CURVATURES), START),
        batch=batch,
        loss=loss,
    )


def trained_rates(cfg: Config, horizon: int) -> list[float]:
    """Learning rates that meta-gradients of the last loss lead to, one per seed."""
    optimizer = learned.hyperparameters(optax.sgd, learning_rate=learned.positive(0.4))
    system = core.training(noisy_quadratic(), optimizer, outer_loss="validation")
    estimator = estimators.backprop(
        system, horizon=horizon, num_tasks=cfg.num_tasks, objective="last"
    )
    outer_opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(cfg.outer_rate))
    data = core.Split(jnp.ones(()), jnp.zeros(()))

    def step(carry, key_data):
        theta, opt_state = carry
        key = jax.random.wrap_key_data(key_data)
        estimate, _ = estimator.estimate(theta, (), data, key)
        updates, opt_state = outer_opt.update(estimate.grad, opt_state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, opt_state), theta["learning_rate"]

    def whole(key):
        key_theta, key_train = jax.random.split(key)
        theta = optimizer.init(key_theta)
        # As raw numbers: under vmap their axes move, which counts as using keys.
        keys = jax.random.key_data(jax.random.split(key_train, cfg.outer_steps))
        _, logs = jax.lax.scan(step, (theta, outer_opt.init(theta)), keys)
        return jnp.exp(jnp.mean(logs[cfg.outer_steps // 2 :]))

    keys = jax.vmap(jax.random.key)(jnp.asarray(cfg.seeds))
    return np.asarray(jax.jit(jax.vmap(whole))(keys), float).tolist()


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    rows = {}
    for horizon in config.horizons:
        best = float(GRID[np.argmin([expected_loss(rate, horizon) for rate in GRID])])
        rates = trained_rates(config, horizon)
        rows[str(horizon)] = {
            "best rate": best,
            "loss with it": expected_loss(best, config.num_steps),
            "trained rate, per seed": rates,
            "loss with that, per seed": [expected_loss(x, config.num_steps) for x in rates],
            "grid steps off, per seed": [float(10 * np.log10(x / best)) for x in rates],
        }
    best, losses = ([x[k] for x in rows.values()] for k in ("best rate", "loss with it"))
    off = [abs(x) for row in rows.values() for x in row["grid steps off, per seed"]]
    found = record.write(
        {
            "results by horizon": rows,
            "ratio of first to last loss": losses[0] / losses[-1],
            "reached": {
                "rates fall": bool(np.all(np.diff(best) <= 0)),
                "losses fall": bool(np.all(np.diff(losses) <= 0)),
                "ratio": bool(losses[0] / losses[-1] >= RATIO_BAR),
                "trained within one grid step": bool(max(off) <= 1),
            },
        }
    )
    _figure(found, config)
    return found


def _figure(record: dict, config: Config) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5, 3.2), layout="constrained")
    axes = canvas.subplots()
    axes.plot(GRID, [expected_loss(rate, config.num_steps) for rate in GRID], color="grey")
    for horizon, row in record["results by horizon"].items():
        rates = row["trained rate, per seed"]
        axes.plot(rates, row["loss with that, per seed"], "o", label=f"horizon {horizon}")
    axes.set(xscale="log", yscale="log", xlabel="learning rate")
    axes.set(ylabel=f"loss after {config.num_steps} steps")
    axes.legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
