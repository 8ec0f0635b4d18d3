"""A learned policy gradient: a network meta-trained on bandits, against REINFORCE on new ones.

Command:   python experiments/learned_rl_rule.py
Hardware:  one core of an x86-64 CPU; about two minutes.
Expected:  regret on new bandits at most 1.15 of that of REINFORCE at the same learning rate in
           every seed; REINFORCE at a learning rate tuned for these bandits is not beaten

Oh et al. 2020, arXiv:2007.08794, made small: bandits with five normal arms, eight pulls per update,
64 agents with lifetimes of 100 updates, 5 of them per meta-update. Regret is what the best arm
would have brought more, in expectation, summed over the updates of a lifetime. REINFORCE has the
mean reward of the other pulls as its baseline.

Writes results/learned_rl_rule.json and a figure beside it.
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

NUM_PREDICTIONS = 8
BAR = 1.15


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    meta_updates: int = 600
    meta_rate: float = 3e-3
    num_agents: int = 64
    truncation: int = 5
    lifetime: int = 100
    num_arms: int = 5
    num_pulls: int = 8
    learning_rate: float = 1.0
    """Of the agents that learn by the rule."""
    baseline_rates: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    test_bandits: int = 500
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "learned_rl_rule.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls((0,), 2, num_agents=2, truncation=2, lifetime=4, baseline_rates=(1.0,),
                   test_bandits=3, out=folder / "tiny.json")  # fmt: skip


def agent_of(cfg: Config) -> algorithms.LPGAgent:
    """Biases alone matter, for there is nothing to observe; all are zero at first."""
    return algorithms.lpg_agent(1, cfg.num_arms, num_predictions=NUM_PREDICTIONS)


def regrets(cfg: Config, system: core.System, theta, key):
    """Regret of every update of lifetimes on new bandits, averaged over the bandits."""
    agent = agent_of(cfg)

    def lifetime(key):
        key_init, key_steps = jax.random.split(key)

        def one(state, key_data):
            key = jax.random.wrap_key_data(key_data)
            logits, _ = agent.apply(state.params, jnp.zeros(1))
            means = state.task_params.means
            regret = jnp.max(means) - jax.nn.softmax(logits) @ means
            return system.step(theta, state, (), key)[0], regret

        state = system.init(theta, (), key_init)
        # As raw numbers: under vmap their axes move, which counts as using keys.
        keys = jax.random.key_data(jax.random.split(key_steps, cfg.lifetime))
        return jax.lax.scan(one, state, keys)[1]

    return jnp.mean(jax.vmap(lifetime)(jax.random.split(key, cfg.test_bandits)), axis=0)


def learned(cfg: Config):
    """`(key, key_test) -> (meta-losses, regrets)`."""
    environment, agent = tasks.bandit(num_arms=cfg.num_arms), agent_of(cfg)
    rule = algorithms.lpg_rule(num_predictions=NUM_PREDICTIONS)
    system = algorithms.learned_policy_gradient(
        environment,
        agent,
        rule,
        optax.sgd(cfg.learning_rate),
        horizon=1,
        num_episodes=cfg.num_pulls,
    )
    estimator = estimators.truncated_backprop(
        system, truncation=cfg.truncation, horizon=cfg.lifetime, num_tasks=cfg.num_agents
    )
    outer_opt = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(cfg.meta_rate))

    def step(carry, key_data):
        theta, opt_state, state = carry
        key = jax.random.wrap_key_data(key_data)
        estimate, state = estimator.estimate(theta, state, (), key)
        updates, opt_state = outer_opt.update(estimate.grad, opt_state, theta)
        return (optax.apply_updates(theta, updates), opt_state, state), estimate.loss

    def whole(key, key_test):
        key_theta, key_init, key_train = jax.random.split(key, 3)
        theta = rule.init(key_theta)
        carry = (theta, outer_opt.init(theta), estimator.init(theta, (), key_init))
        keys = jax.random.key_data(jax.random.split(key_train, cfg.meta_updates))
        (theta, _, _), losses = jax.lax.scan(step, carry, keys)
        return losses, regrets(cfg, system, theta, key_test)

    return whole


def reinforce(cfg: Config, rate, key_test):
    """Regrets of REINFORCE at a learning rate."""
    agent = agent_of(cfg)
    family = algorithms.policy_gradient(
        tasks.bandit(num_arms=cfg.num_arms),
        tasks.policy_of_logits(agent.init, lambda params, x: agent.apply(params, x)[0]),
        horizon=1,
        num_episodes=cfg.num_pulls,
        baseline="mean",
    )
    system = core.adaptation(family, optax.sgd(rate), outer_loss="train")
    return regrets(cfg, system, agent.init(jax.random.key(0)), key_test)


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seeds))
    # The same bandits and draws for everybody, others for every seed.
    keys_test = jax.vmap(lambda seed: jax.random.key(1000 + seed))(jnp.asarray(config.seeds))
    losses, ours = jax.jit(jax.vmap(learned(config)))(keys, jax.random.clone(keys_test))
    rates = jnp.array(config.baseline_rates)
    others = jax.jit(
        jax.vmap(jax.vmap(lambda rate, key: reinforce(config, rate, key), (None, 0)), (0, None))
    )(rates, keys_test)
    totals = np.asarray(ours, float).sum(axis=1)
    baselines = {
        str(rate): np.asarray(x, float).sum(axis=1).tolist()
        for rate, x in zip(config.baseline_rates, others, strict=True)
    }
    same_rate = np.asarray(baselines[str(config.learning_rate)])
    found = record.write(
        {
            "bar": BAR,
            "regret, per seed": {"learned rule": totals.tolist(), "REINFORCE": baselines},
            "ratio at the same rate, per seed": (totals / same_rate).tolist(),
            "ratio to the best rate, per seed": (
                totals / np.min(list(baselines.values()), axis=0)
            ).tolist(),
            "reached, per seed": (totals / same_rate <= BAR).tolist(),
            "meta-losses": np.round(np.asarray(losses, float)[:, ::10], 4).tolist(),
            "regret by update": {
                "learned rule": np.round(np.mean(ours, axis=0), 4).tolist(),
                **{
                    f"REINFORCE, {rate}": np.round(np.mean(x, axis=0), 4).tolist()
                    for rate, x in zip(config.baseline_rates, others, strict=True)
                },
            },
        }
    )
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7.5, 3), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for losses in record["meta-losses"]:
        left.plot(10 * np.arange(len(losses)), losses, linewidth=0.8)
    left.set(xlabel="meta-update", ylabel="meta-loss")
    for name, curve in record["regret by update"].items():
        right.plot(curve, label=name)
    right.set(xlabel="update of an agent", ylabel="regret", yscale="log")
    right.legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
