"""Next-token prediction: what the language models share.

    L(params) = mean over windows and positions of -ln softmax(apply(params, x₁ … x_t))[x_{t+1}]

The cross-entropy is in nats per token; ln V is the loss of a uniform guess over V tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metaopt.core import TaskFamily
from metaopt.data import sample_windows
from metaopt.data._check import at_least_one
from metaopt.tasks._classification import Metrics
from metaopt.tasks._normalise import clip_classification


def language_family(
    function: str, init: Callable, apply: Callable, vocab_size: int, length: int, batch_size: int
) -> TaskFamily:
    """A family of `apply(params, tokens [n, t]) -> logits [n, t, vocab_size]` on a text.

    Errors carry the name of the `function` that makes the model.
    """
    at_least_one(function, length=length, batch_size=batch_size)
    if vocab_size < 2:
        raise ValueError(f"{function}: vocab_size={vocab_size} is below 2; there is no choice.")

    def batch(data, task_params, key):
        del task_params
        if not hasattr(data, "tokens"):
            raise ValueError(
                f"{function}: data is a {type(data).__name__} without tokens; pass a "
                "metaopt.data.TextPool, such as metaopt.data.text().train."
            )
        return sample_windows(data, key, batch_size=batch_size, length=length + 1)

    def loss(params, task_params, batch, key):
        del task_params, key
        logits, targets = apply(params, batch[:, :-1]), batch[:, 1:]
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        value = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        accuracy = (jnp.argmax(logits, axis=-1) == targets).astype(logits.dtype).mean()
        return value, Metrics(accuracy)

    return TaskFamily(
        sample=lambda key: (),
        init=lambda task_params, key: init(key),
        batch=batch,
        loss=loss,
        normalise=clip_classification(vocab_size),
    )


def embed(table, tokens):
    """Rows of a table, as a product: its derivative is one too, where a gather's is a scatter."""
    return jax.nn.one_hot(tokens, len(table), dtype=table.dtype) @ table


# The logits start near zero, and the loss near that of a uniform guess.
head_init = jax.nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
