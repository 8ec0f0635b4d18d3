"""Times one second-order MAML meta-step in JAX: our side of `maml.py`, which starts it.

`metaopt` is `metaopt.algorithms.maml` and an Adam step in one compiled call, with the convolutions
of `metaopt.tasks`; it draws its tasks from those of the shared file. The hand-written programs take
all tasks of the file as arrays: `jax hand` is `jit(vmap(scan))`; for images it maps over tasks,
unrolls the inner steps and writes convolutions as matrix products, and `jax obvious` is
`jit(vmap(scan))` with XLA's convolution.
"""

import functools
import importlib.metadata
import time

import _measure
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import algorithms, core, tasks

LEARNING_RATE = 1e-3


def xla_convolution(x, w):
    """A 3 x 3 "SAME" convolution; slow on CPU under vmap and inside loops."""
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def nine_slices(x, w):
    """The same as one matrix product of nine shifted images."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    patches = [padded[:, i : i + height, j : j + width] for i, j in shifts]
    return jnp.concatenate(patches, axis=-1) @ w.reshape(-1, w.shape[-1])


def halve(x):
    """Largest of 2 x 2 neighbours. XLA's own reduction over windows is slow to differentiate."""
    height, width = 2 * (x.shape[1] // 2), 2 * (x.shape[2] // 2)
    x = x[:, :height, :width]
    x = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(x[:, :, 0::2], x[:, :, 1::2])


def apply(params, x, convolve):
    """Dense layers on [n, 1], or convolutions on [n, h, w, 1] with a dense head."""
    for w, b in params[:-1]:
        x = jax.nn.relu((halve(convolve(x, w)) if w.ndim == 4 else x @ w) + b)
    w, b = params[-1]
    return x.reshape(x.shape[0], -1) @ w + b


def loss(params, x, y, convolve=nine_slices):
    """Squared error of sinusoids, cross-entropy of images."""
    outputs = apply(params, x, convolve)
    if jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.mean((outputs - y) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def convolve(x, w):
    """That of metaopt."""
    return tasks.convolve(x, w, stride=1)


def family(num_tasks: int) -> core.TaskFamily:
    """The tasks of the file; a task is its index, and its batch lies ready."""

    def batch(data, task, key):
        return jax.tree.map(lambda x: x[task], data)

    return core.TaskFamily(
        sample=lambda key: jax.random.randint(key, (), 0, num_tasks),
        init=lambda task, key: (),
        batch=batch,
        loss=lambda params, task, batch, key: (loss(params, *batch, convolve), ()),
    )


def with_metaopt(theta, pools, s):
    """The library."""
    num_tasks = len(pools.inner[0])
    estimator = algorithms.maml(
        family(num_tasks),
        optax.sgd(s["inner_lr"]),
        num_steps=s["steps"],
        num_tasks=num_tasks,
        # All at once, what is between the convolutions of images leaves the cache.
        tasks_at_once=1 if s["problem"] == "images" else None,
    ).estimator

    def gradient(theta, key):
        estimate, _ = estimator.estimate(theta, (), pools, key)
        return estimate.loss, estimate.grad

    return gradient


def by_hand(theta, pools, s, *, over_tasks, loop, convolve=nine_slices):
    """Plain JAX without a library."""
    of_batch = functools.partial(loss, convolve=convolve)

    def task_loss(theta, xs, ys, xq, yq):
        def step(params, _):
            grads = jax.grad(of_batch)(params, xs, ys)
            return jax.tree.map(lambda p, g: p - s["inner_lr"] * g, params, grads), None

        params = theta
        if loop == "scan":
            params, _ = jax.lax.scan(step, params, length=s["steps"])
        else:
            for _ in range(s["steps"]):
                params, _ = step(params, None)
        return of_batch(params, xq, yq)

    tasks = (*pools.inner, *pools.outer)

    def gradient(theta, key):
        if over_tasks == "vmap":
            mean = lambda t: jax.vmap(task_loss, in_axes=(None, 0, 0, 0, 0))(t, *tasks).mean()  # noqa: E731
            return jax.value_and_grad(mean)(theta)
        one = lambda task: jax.value_and_grad(task_loss)(theta, *task)  # noqa: E731
        losses, grads = jax.lax.map(one, tasks)
        return losses.mean(), jax.tree.map(lambda g: g.mean(axis=0), grads)

    return gradient


def build(settings: dict):
    """A compiled meta-step, and the loss of the given weights."""
    arrays = dict(np.load(settings["file"]))
    count = sum(name.startswith("w") for name in arrays)
    theta = [(jnp.asarray(arrays[f"w{i}"]), jnp.asarray(arrays[f"b{i}"])) for i in range(count)]
    xs, ys, xq, yq = (jnp.asarray(arrays[name]) for name in ("xs", "ys", "xq", "yq"))
    pools = core.Split((xs, ys), (xq, yq))
    images, library = settings["problem"] == "images", settings["library"]

    def gradient(theta, pools, key):
        if library == "metaopt":
            return with_metaopt(theta, pools, settings)(theta, key)
        kind = {"over_tasks": "vmap", "loop": "scan"}
        if library == "jax obvious":
            kind["convolve"] = xla_convolution
        elif images:
            kind = {"over_tasks": "map", "loop": "unrolled"}
        return by_hand(theta, pools, settings, **kind)(theta, key)

    outer = optax.adam(LEARNING_RATE)

    def meta_step(carry, pools):
        theta, opt_state, key = carry
        key_estimate, key_next = jax.random.split(key)
        value, grads = gradient(theta, pools, key_estimate)
        updates, opt_state = outer.update(grads, opt_state)
        return (optax.apply_updates(theta, updates), opt_state, key_next), value

    adapted = algorithms.adapt(
        family(len(xs)), optax.sgd(settings["inner_lr"]), num_steps=settings["steps"]
    )

    def query_loss(theta, support, query):
        return loss(adapted(theta, (), support, jax.random.key(0)), *query)

    first_loss = jax.jit(lambda theta: jax.lax.map(lambda t: query_loss(theta, *t), pools).mean())
    start = time.perf_counter()
    carry = (theta, outer.init(theta), jax.random.key(0))
    compiled = jax.jit(meta_step).lower(carry, pools).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    held = {"carry": carry}

    def step():
        held["carry"], value = compiled(held["carry"], pools)
        value.block_until_ready()

    step()
    return step, {
        "library": library,
        "problem": settings["problem"],
        "version": importlib.metadata.version("metaopt" if library == "metaopt" else "jax"),
        "first_loss": float(first_loss(theta)),
        "compile_s": round(compile_s, 2),
        "temp_bytes": memory.temp_size_in_bytes if memory is not None else 0,
        "inner_steps": len(xs) * settings["steps"],
    }


if __name__ == "__main__":
    _measure.serve(build)
