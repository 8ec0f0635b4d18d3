"""Update steps of Google's learned_optimization: the peer's side of `overhead.py`.

Runs in the environment that `peer_learned_optimization.py` describes. "adafac_mlp_scalar" is the
peer's faster form of the same function, not its default.
"""
# pyright: reportMissingImports=false

import importlib.metadata
import time

import _measure
import jax
import jax.numpy as jnp
import numpy as np
from peer_learned_optimization import LEARNED

WIDTHS = {"1e5": 182, "1e6": 577, "1e7": 1825}


def layers(width: int, scale: float, seed: int) -> dict:
    """Three square layers with biases."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(scale * rng.standard_normal(shape, np.float32))

    return {f"layer_{i}": {"w": draw(width, width), "b": draw(width)} for i in range(3)}


def build(settings: dict):
    """Compiles one configuration; returns a blocking step and its facts."""
    width = WIDTHS[settings["size"]]
    learned = LEARNED[settings["rule"]]()
    opt = learned.opt_fn(learned.init(jax.random.PRNGKey(0)))
    grads, loss = layers(width, 0.01, 1), jnp.array(1.0)
    state = jax.jit(lambda params: opt.init(params, num_steps=1000))(layers(width, 0.05, 0))
    carry = {"state": state}

    def update(state, grads, loss):
        return opt.update(state, grads, loss)

    start = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=0).lower(state, grads, loss).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    assert memory is not None
    nbytes = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731

    def step():
        carry["state"] = jax.block_until_ready(compiled(carry["state"], grads, loss))

    step()
    return step, {
        "parameters": sum(x.size for x in jax.tree.leaves(grads)),
        "compile_s": round(seconds, 2),
        "temp_bytes": memory.temp_size_in_bytes,
        "state_bytes": nbytes(carry["state"]) - nbytes(grads),
        "bytes_moved": 2 * nbytes(carry["state"]) + nbytes(grads),
        "version": importlib.metadata.version("learned-optimization"),
    }


if __name__ == "__main__":
    _measure.serve(build)
