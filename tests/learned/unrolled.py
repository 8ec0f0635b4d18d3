"""Meta-losses of short unrolls with awkward gradients."""

import jax
import jax.numpy as jnp
import optax

SHAPES = {"matrix": (4, 3), "bias": (3,), "scalar": (), "kernel": (2, 3, 2, 2)}


def params_like(key, shapes=SHAPES, dtype=None):
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape, dtype)
        for (name, shape), k in zip(shapes.items(), keys, strict=True)
    }


def final_loss(learned, theta, grads, params):
    """Sum of squares after feeding `grads` (step axis first), plus a pull of each parameter."""
    num_steps = jax.tree.leaves(grads)[0].shape[0]
    opt = learned.optimizer(theta, num_steps=num_steps)

    def step(carry, grads):
        params, state = carry
        # The gradients also depend on the parameters, as in training.
        grads = jax.tree.map(lambda g, p: g * (1 + 0.1 * p), grads, params)
        updates, state = opt.update(grads, state, params, value=jnp.ones(()))
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, opt.init(params)), grads)
    return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))


def awkward_gradients(params, num_steps, key):
    """Dead rows; all zeros; 1e30; all zeros until late: `num_steps` of each, step axis first."""
    shapes = {name: (num_steps, *p.shape) for name, p in params.items()}
    noise = params_like(key, shapes)
    dead = jax.tree.map(lambda g: g.at[:, :1].set(0) if g.ndim > 1 else 0 * g, noise)
    zero = jax.tree.map(jnp.zeros_like, noise)
    huge = jax.tree.map(lambda g: 1e30 * jnp.sign(g), noise)
    late = jax.tree.map(lambda g: g.at[: num_steps // 2].set(0), noise)
    return jax.tree.map(lambda *x: jnp.stack(x), dead, zero, huge, late)
