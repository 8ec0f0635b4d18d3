"""Time of one inner step of one trajectory, by update rule.

The hot path of meta-training: a scan over 50 steps of [gradient of an MLP 64-32-10 at batch 32,
update by the rule], vmapped over tasks and two antithetic arms, each arm with its own theta.

    python benchmarks/learned_rules.py [--tasks 8 32]
"""

from metaopt import doctor

doctor.guard_cpu()

import argparse  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from metaopt.learned import adafac_mlp, celo2, mlp  # noqa: E402

NUM_STEPS, NUM_ARMS, BATCH, WIDTHS = 50, 2, 32, (64, 32, 10)


def rules():
    """Rules by name; the floor is everything but the rule."""
    return {
        "floor": (jnp.zeros(()), lambda theta: optax.scale(-1e-2)),
        "optax.adam": (jnp.zeros(()), lambda theta: optax.adam(1e-3 * jnp.exp(theta))),
        "celo2": learned(celo2()),
        "celo2 orthogonalised": learned(celo2(orthogonalise=True)),
        "mlp": learned(mlp()),
        "adafac_mlp": learned(adafac_mlp()),
    }


def learned(optimizer):
    return optimizer.init(jax.random.key(0)), optimizer.optimizer


def loss(params, inputs, targets):
    hidden = jax.nn.relu(inputs @ params["w0"] + params["b0"])
    logits = hidden @ params["w1"] + params["b1"]
    return optax.softmax_cross_entropy(logits, targets).mean()


def init(key):
    key_0, key_1 = jax.random.split(key)
    n, h, o = WIDTHS
    return {
        "w0": jax.random.normal(key_0, (n, h)) * n**-0.5,
        "b0": jnp.zeros(h),
        "w1": jax.random.normal(key_1, (h, o)) * h**-0.5,
        "b1": jnp.zeros(o),
    }


def unroll(make_optimizer, theta, params, batches):
    """One trajectory per leading entry of `theta` and `params`; all see the same batches."""

    def start(theta, params):
        return make_optimizer(theta).init(params)

    def step(theta, params, state, inputs, targets):
        grads = jax.grad(loss)(params, inputs, targets)
        updates, state = make_optimizer(theta).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def body(carry, batch):
        return jax.vmap(step, in_axes=(0, 0, 0, None, None))(theta, *carry, *batch), None

    carry = (params, jax.vmap(start)(theta, params))
    return jax.lax.scan(body, carry, batches)[0]


def measure(theta, make_optimizer, num_tasks, *, repeats=5):
    """Seconds to compile, and microseconds per inner step per trajectory (best of several)."""
    num = num_tasks * NUM_ARMS
    key_params, key_theta, key_inputs, key_labels = jax.random.split(jax.random.key(1), 4)
    params = jax.vmap(init)(jax.random.split(key_params, num))
    noise = 0.01 * jax.random.normal(key_theta, (num,))
    theta = jax.vmap(lambda scale: jax.tree.map(lambda x: x + scale, theta))(noise)
    inputs = jax.random.normal(key_inputs, (NUM_STEPS, BATCH, WIDTHS[0]))
    labels = jax.random.randint(key_labels, (NUM_STEPS, BATCH), 0, WIDTHS[-1])
    args = theta, params, (inputs, jax.nn.one_hot(labels, WIDTHS[-1]))

    start = time.perf_counter()
    run = jax.jit(lambda *args: unroll(make_optimizer, *args)).lower(*args).compile()
    compile_time = time.perf_counter() - start
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - start)
    return compile_time, 1e6 * min(times) / (NUM_STEPS * num)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 32])
    tasks = parser.parse_args().tasks
    print(f"{'rule':22s}{'tasks x arms':>14s}{'compile s':>12s}{'µs/step':>10s}")
    for name, (theta, make_optimizer) in rules().items():
        for num_tasks in tasks:
            compile_time, micros = measure(theta, make_optimizer, num_tasks)
            arms = f"{num_tasks} x {NUM_ARMS}"
            print(f"{name:22s}{arms:>14s}{compile_time:12.2f}{micros:10.1f}", flush=True)


if __name__ == "__main__":
    main()
