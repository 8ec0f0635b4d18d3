"""MAML for reinforcement learning: a point that finds an unseen goal after one policy gradient.

Command:   python experiments/navigation.py
Hardware:  one core of an x86-64 CPU; about two minutes.
Expected:  "naive": return after one step on new goals at least -1.2, and at least 0.6 above that
           of pretraining after the same step, in every seed. "dice": in most seeds. "emaml", whose
           score term has much variance, in none

Finn et al. 2017, arXiv:1703.03400, §5.3, made small: a goal in a square, 15 steps of at most 0.1, a
policy of two layers of 32 units; 20 episodes for an inner gradient, 16 goals for an outer one. Each
meta-gradient is trained from the same initial policies, and judged on the same new goals, with as
many inner steps as the table says.

Writes results/navigation.json and a figure beside it.
"""

import dataclasses
import pathlib
import time

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, estimators, eval, tasks, train  # noqa: E402

BARS = {"return after one step": -1.2, "above pretraining": 0.6}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ("pretraining", "naive", "dice", "emaml")
    outer_steps: int = 250
    outer_rate: float = 5e-3
    inner_rate: float = 0.1
    """For the mean over an episode's actions, as published; our loss is their sum."""
    num_tasks: int = 16
    num_episodes: int = 20
    horizon: int = 15
    test_steps: tuple[int, ...] = (0, 1, 3)
    test_tasks: int = 40
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "navigation.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls((0,), ("pretraining", "naive"), 2, num_tasks=2, num_episodes=2, horizon=3,
                   test_steps=(0, 1), test_tasks=2, out=folder / "tiny.json")  # fmt: skip


def learner(cfg: Config, method: str, num_steps: int = 1) -> algorithms.MetaLearner:
    """The learner; for pretraining, adaptation is that of the others and its meta-loss has none."""
    environment = tasks.navigation()
    policy = tasks.gaussian_policy(environment.observation_size, environment.action_size)
    sizes = {"horizon": cfg.horizon, "num_episodes": cfg.num_episodes}
    found = algorithms.maml_rl(
        environment,
        policy,
        optax.sgd(cfg.inner_rate / cfg.horizon),
        estimator="naive" if method == "pretraining" else method,
        num_steps=num_steps,
        num_tasks=cfg.num_tasks,
        **sizes,
    )
    if method != "pretraining":
        return found
    family = algorithms.policy_gradient(environment, policy, **sizes)

    def joint_loss(theta, data, key):
        key_task, key_loss = jax.random.split(key)
        return family.loss(theta, family.sample(key_task), (), key_loss)[0]

    return found._replace(estimator=estimators.backprop(joint_loss, num_tasks=cfg.num_tasks))


def run(cfg: Config, method: str):
    """`(seed) -> (losses, returns by number of steps)`."""
    estimator = learner(cfg, method).estimator
    outer_opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(cfg.outer_rate))
    environment = tasks.navigation()
    policy = tasks.gaussian_policy(environment.observation_size, environment.action_size)
    family = algorithms.policy_gradient(
        environment, policy, horizon=cfg.horizon, num_episodes=cfg.num_episodes
    )

    def test(theta, num_steps, key):
        adapt = lambda theta, task_params, support, key: theta  # noqa: E731
        if num_steps:
            adapt = learner(cfg, method, num_steps).adapt
        scores = algorithms.few_shot_scores(family, adapt, num_tasks=cfg.test_tasks)
        return jnp.mean(scores(theta, (), key).aux.episode_return)

    def step(carry, key):
        theta, opt_state = carry
        estimate, _ = estimator.estimate(theta, (), (), key)
        updates, opt_state = outer_opt.update(estimate.grad, opt_state, theta)
        return (optax.apply_updates(theta, updates), opt_state), estimate.loss

    @jax.jit
    def whole(key):
        key_theta, key_train, key_test = jax.random.split(key, 3)
        theta = learner(cfg, method).init(key_theta)
        keys = jax.random.split(key_train, cfg.outer_steps)
        (theta, _), losses = jax.lax.scan(step, (theta, outer_opt.init(theta)), keys)
        # The same goals for every number of steps.
        returns = [test(theta, steps, jax.random.clone(key_test)) for steps in cfg.test_steps]
        return losses, jnp.stack(returns)

    return lambda seed: whole(jax.random.key(seed))


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    returns, losses, seconds = {}, {}, {}
    for method in config.methods:
        before, play = time.perf_counter(), run(config, method)
        found = [jax.device_get(play(seed)) for seed in config.seeds]
        seconds[method] = round(time.perf_counter() - before, 1)
        losses[method] = [np.round(x[0], 4).tolist() for x in found]
        steps = map(str, config.test_steps)
        returns[method] = dict(zip(steps, np.stack([x[1] for x in found], 1).tolist(), strict=True))
    one_step = {name: x["1"] for name, x in returns.items()}
    pretrained = np.asarray(one_step["pretraining"])
    reached = {
        name: {
            "return after one step": [bool(x >= BARS["return after one step"]) for x in values],
            "above pretraining": (np.asarray(values) - pretrained).tolist(),
        }
        for name, values in one_step.items()
        if name != "pretraining"
    }
    found = record.write(
        {
            "seconds by method, shared machine": seconds,
            "bars": BARS,
            "returns by inner steps, per seed": returns,
            "reached, per seed": reached,
            "losses": losses,
        }
    )
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7.5, 3.2), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for name, by_steps in record["returns by inner steps, per seed"].items():
        steps, values = list(by_steps), np.asarray(list(by_steps.values()))
        left.errorbar(range(len(steps)), values.mean(1), values.std(1), marker="o", label=name)
        right.plot(-np.mean(record["losses"][name], axis=0), label=name, linewidth=0.8)
    left.axhline(record["bars"]["return after one step"], color="grey", linewidth=0.8)
    left.set_xticks(range(len(steps)), steps)
    left.set(xlabel="inner steps", ylabel="return on new goals")
    left.legend(frameon=False, fontsize="small")
    right.set(xlabel="outer step", ylabel="discounted return in training")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
