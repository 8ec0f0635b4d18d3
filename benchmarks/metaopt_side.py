"""Times one PES meta-step of metaopt: our side of `throughput.py`, which starts it.

A meta-step is the PES estimate and an Adam step on theta in one compiled call, with the whole
carry donated; tasks, initialisations and batches are drawn inside. `floor` rules (`sgd`, `adam`)
put a hand-written optimizer, whose theta is its log learning rate, in the place of the learned
one: the rest of the program is the same.
"""

import importlib.metadata
import time
from functools import partial
from typing import Any, NamedTuple

import _measure
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import core, data, estimators, learned, tasks

FLOORS = {"sgd": optax.sgd, "adam": optax.adam}


class Carry(NamedTuple):
    """What one meta-step hands to the next."""

    theta: Any
    opt_state: optax.OptState
    state: Any
    key: jax.Array


def floor(alias) -> core.LearnedOptimizer:
    """A hand-written optimizer whose theta is its log learning rate."""

    def optimizer(theta, *, num_steps=None):
        del num_steps
        return optax.with_extra_args_support(alias(jnp.exp(theta["log_learning_rate"])))

    return core.LearnedOptimizer(lambda key: {"log_learning_rate": jnp.log(0.01)}, optimizer)


def make_optimizer(name: str) -> core.LearnedOptimizer:
    """A floor, or the learned optimizer of that name with its default settings."""
    return floor(FLOORS[name]) if name in FLOORS else getattr(learned, name)()


def make_family(batch_size: int) -> core.TaskFamily:
    """An MLP 64-32-10 on 8x8x1 images."""
    return tasks.mlp((8, 8, 1), 10, hidden=(32,), batch_size=batch_size)


def make_pool(size: int = 1797) -> data.Pool:
    """Random images and labels, drawn as on the peer's side."""
    rng = np.random.default_rng(0)
    images = rng.random((size, 8, 8, 1), dtype=np.float32)
    labels = rng.integers(0, 10, size, dtype=np.int32)
    return data.Pool(jnp.asarray(images), jnp.asarray(labels))


def make_meta_step(settings: dict):
    """The functions `init(pool, key) -> carry` and `meta_step(carry, pool) -> (carry, loss)`."""
    rule = make_optimizer(settings["optimizer"])
    estimator = estimators.pes(
        core.training(make_family(settings["batch_size"]), rule),
        sigma=settings["sigma"],
        truncation=settings["window"],
        horizon=settings["horizon"],
        num_tasks=settings["num_tasks"],
    )
    outer_opt = optax.adam(1e-4)

    def init(pool, key):
        key_theta, key_state, key_next = jax.random.split(key, 3)
        theta = rule.init(key_theta)
        state = estimator.init(theta, pool, key_state)
        return Carry(theta, outer_opt.init(theta), state, key_next)

    def meta_step(carry, pool):
        key_estimate, key_next = jax.random.split(carry.key)
        estimate, state = estimator.estimate(carry.theta, carry.state, pool, key_estimate)
        updates, opt_state = outer_opt.update(estimate.grad, carry.opt_state, carry.theta)
        theta = optax.apply_updates(carry.theta, updates)
        return Carry(theta, opt_state, state, key_next), estimate.loss

    return init, meta_step


def build(settings: dict):
    """Compiles one configuration; returns a blocking meta-step and the facts of its row."""
    init, meta_step = make_meta_step(settings)
    pool = make_pool()
    start = time.perf_counter()
    carry = jax.jit(init)(pool, jax.random.key(0))
    compiled = jax.jit(meta_step, donate_argnums=0).lower(carry, pool).compile()
    held = {"carry": carry}

    def step():
        held["carry"], loss = compiled(held["carry"], pool)
        loss.block_until_ready()

    step()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    facts = {
        **settings,
        "library": "metaopt",
        "versions": {
            name: importlib.metadata.version(name) for name in ("metaopt", "jax", "jaxlib", "optax")
        },
        "compile_s": round(compile_s, 2),
        "temp_bytes": memory.temp_size_in_bytes if memory is not None else 0,
        "inner_steps": 2 * settings["num_tasks"] * settings["window"],
    }
    return step, facts


def rule_alone(settings: dict):
    """The update of the learned rule, without an inner gradient, as often as in a meta-step."""
    rule, family = make_optimizer(settings["optimizer"]), make_family(settings["batch_size"])

    def run(key):
        key_theta, key_params = jax.random.split(key)
        theta = rule.init(key_theta)
        opt = optax.with_extra_args_support(rule.optimizer(theta, num_steps=settings["horizon"]))
        params = family.init(family.sample(key_params), jax.random.clone(key_params))

        def body(carry, _):
            params, opt_state = carry
            # Gradients that move with the carry: constant ones would be hoisted out of the loop.
            grads = jax.tree.map(lambda p: 0.1 * p + 0.01, params)
            updates, opt_state = opt.update(grads, opt_state, params, value=jnp.float32(1.0))
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(body, (params, opt.init(params)), length=settings["window"])[0]

    return run


def gradient_alone(settings: dict):
    """Batch, loss and inner gradient, followed by the cheapest update there is."""
    family, pool = make_family(settings["batch_size"]), make_pool()

    def run(key, pool):
        key_task, key_params, key_steps = jax.random.split(key, 3)
        task_params = family.sample(key_task)

        def body(params, key):
            key_batch, key_loss = jax.random.split(key)
            batch = family.batch(pool, task_params, key_batch)
            grads, _ = jax.grad(family.loss, has_aux=True)(params, task_params, batch, key_loss)
            return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), None

        params = family.init(task_params, key_params)
        return jax.lax.scan(body, params, jax.random.split(key_steps, settings["window"]))[0]

    return partial(run, pool=pool)


def profile(settings: dict, *, seconds: float) -> dict:
    """Milliseconds of a meta-step and of its two largest parts, each compiled on its own."""
    step, facts = build(settings)
    times = {"meta_step": _measure.time_steps(step, seconds=seconds)["ms"]}
    arms = 2 * settings["num_tasks"]
    for name, part in (("rule", rule_alone(settings)), ("gradient", gradient_alone(settings))):
        run = jax.jit(jax.vmap(part))
        keys = jax.random.split(jax.random.key(1), arms)
        jax.block_until_ready(run(keys))
        times[name] = _measure.time_steps(
            lambda run=run, keys=keys: jax.block_until_ready(run(keys)), seconds=seconds
        )["ms"]
    return {**facts, **{f"{name}_ms": float(np.median(ms)) for name, ms in times.items()}}


if __name__ == "__main__":
    _measure.serve(build)
