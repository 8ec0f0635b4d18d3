"""Meta-gradient reinforcement learning: a critic learns the discount and trace it learns from.

Command:   python experiments/learned_return.py
Hardware:  one core of an x86-64 CPU; half a minute.
Expected:  discount from 0.7 to at least 0.95; root mean squared error of the values at most 0.2 and
           at most 0.4 of that with the settings fixed, in every seed

Xu et al. 2018, arXiv:1805.09801, made small: values of a random walk over ten states with a reward
behind the right end, from 32 episodes of at most 60 steps per update, a table updated by gradient
descent. The true value of state i is i/11. The return of the outer loss has no discount and no
bootstrapping. The fixed agents differ only in the settings, which stay as they start.

Writes results/learned_return.json and a figure beside it.
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

from metaopt import algorithms, core, estimators, eval, tasks, train  # noqa: E402

NUM_STATES = 10
BARS = {"discount": 0.95, "error": 0.2, "error over fixed": 0.4}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    updates: int = 400
    inner_rate: float = 1.0
    outer_rate: float = 0.05
    num_episodes: int = 32
    horizon: int = 60
    discount: float = 0.7
    trace: float = 0.5
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "learned_return.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls((0, 1), 3, num_episodes=2, horizon=5, out=folder / "tiny.json")


def true_values() -> np.ndarray:
    """Of the states from left to right."""
    return np.arange(1, NUM_STATES + 1) / (NUM_STATES + 1)


def run(cfg: Config, outer_rate):
    """`(key) -> (discounts, traces, errors)` over the updates."""
    table = tasks.ValueFunction(
        lambda key: jnp.zeros(NUM_STATES), lambda params, observation: params @ observation
    )
    problem = algorithms.meta_gradient_rl(
        tasks.random_walk(num_states=NUM_STATES),
        tasks.uniform_policy(2),
        table,
        horizon=cfg.horizon,
        num_episodes=cfg.num_episodes,
        value_weight=1.0,
    )
    system = core.bilevel_training(problem, optax.sgd(cfg.inner_rate))
    estimator = estimators.truncated_backprop(system, truncation=1, horizon=None, num_tasks=1)
    outer_opt = optax.adam(outer_rate)

    def step(carry, key_data):
        theta, opt_state, state = carry
        key = jax.random.wrap_key_data(key_data)
        estimate, state = estimator.estimate(theta, state, (), key)
        updates, opt_state = outer_opt.update(estimate.grad, opt_state, theta)
        theta = optax.apply_updates(theta, updates)
        values = state.episode.state.inner.params.value[0]
        error = jnp.sqrt(jnp.mean((values - true_values()) ** 2))
        return (theta, opt_state, state), (*algorithms.return_settings(theta), error)

    def whole(key):
        key_init, key_train = jax.random.split(key)
        theta = algorithms.return_theta(cfg.discount, cfg.trace)
        carry = (theta, outer_opt.init(theta), estimator.init(theta, (), key_init))
        # As raw numbers: under vmap their axes move, which counts as using keys.
        keys = jax.random.key_data(jax.random.split(key_train, cfg.updates))
        return jax.lax.scan(step, carry, keys)[1]

    return whole


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    # A rate of zero leaves the settings as they are, in the same program.
    pairs = [(rate, seed) for rate in (config.outer_rate, 0.0) for seed in config.seeds]
    rates, seeds = (jnp.asarray(x) for x in zip(*pairs, strict=True))
    both = jax.vmap(lambda rate, seed: run(config, rate)(jax.random.key(seed)))
    curves = [np.asarray(x, float) for x in jax.jit(both)(rates, seeds)]
    curves = [x.reshape(2, len(config.seeds), -1) for x in curves]
    learned, fixed = ([x[i] for x in curves] for i in range(2))
    discounts, traces, errors = (x[:, -1] for x in learned)
    ratios = errors / fixed[2][:, -1]
    found = record.write(
        {
            "bars": BARS,
            "results, per seed": {
                "discount": discounts.tolist(),
                "trace": traces.tolist(),
                "error": errors.tolist(),
                "error with fixed settings": fixed[2][:, -1].tolist(),
                "error over fixed": ratios.tolist(),
            },
            "reached, per seed": {
                "discount": (discounts >= BARS["discount"]).tolist(),
                "error": (errors <= BARS["error"]).tolist(),
                "error over fixed": (ratios <= BARS["error over fixed"]).tolist(),
            },
            "curves": {
                name: np.round(x[:, ::5], 4).tolist()
                for name, x in (
                    ("discount", learned[0]),
                    ("trace", learned[1]),
                    ("error", learned[2]),
                    ("error with fixed settings", fixed[2]),
                )
            },
        }
    )
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7.5, 3), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for axes, names in (
        (left, ("discount", "trace")),
        (right, ("error", "error with fixed settings")),
    ):
        for name in names:
            curves = np.asarray(record["curves"][name])
            updates = 5 * np.arange(curves.shape[1])
            mean, spread = curves.mean(0), curves.std(0)
            axes.plot(updates, mean, label=name)
            axes.fill_between(updates, mean - spread, mean + spread, alpha=0.2)
        axes.set(xlabel="update", ylim=(0, None))
        axes.legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
