"""A short training run, for tests that a family can be learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def losses_of_adam(family, pool, *, num_steps, learning_rate=1e-2) -> np.ndarray:
    """The minibatch losses of one run of Adam."""
    inner_opt = optax.adam(learning_rate)

    @jax.jit
    def train(pool, key):
        key_task, key_params, key_run = jax.random.split(key, 3)
        task_params = family.sample(key_task)
        params = family.init(task_params, key_params)

        def step(carry, index):
            params, opt_state = carry
            key_batch, key_loss = jax.random.split(jax.random.fold_in(key_run, index))
            batch = family.batch(pool, task_params, key_batch)
            value_and_grad = jax.value_and_grad(family.loss, has_aux=True)
            (loss, _), grads = value_and_grad(params, task_params, batch, key_loss)
            updates, opt_state = inner_opt.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        start = (params, inner_opt.init(params))
        return jax.lax.scan(step, start, jnp.arange(num_steps))[1]

    return np.asarray(train(pool, jax.random.key(0)))
