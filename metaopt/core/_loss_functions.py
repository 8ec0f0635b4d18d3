"""What update rules beyond gradient descent ask for: the loss on the batch of the gradient.

Line searches, sharpness-aware and second-order rules evaluate the inner loss at points of their
own choice. They get functions of params, by the names under which optax's rules ask for them and a
few more; a rule that asks for none costs nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from metaopt.core._checked import checked
from metaopt.core._contracts import Params


@checked
def loss_functions(
    loss: Callable[[Params], Float[Array, ""]],
    value: Float[Array, ""],
    grads: PyTree,
    *,
    value_and_grad: Callable = jax.value_and_grad,
) -> dict[str, Any]:
    """The extra arguments of an optax `update` where the loss is at hand.

    Args:
        loss: `(params) -> scalar`, on the batch that the update is for.
        value: the loss at the current params.
        grads: its gradient there.
        value_and_grad: what differentiates the loss, as in the steps of `training`.

    Returns:
        `value`, `grad`, `value_fn(params)` and `obj_fn(params)` (the loss), `grad_fn(params, i=0)`,
        `value_and_grad_fn(params)` and `hvp_fn(params, v)`, the product of its Hessian with a tree
        like params.
    """

    # Line searches of optax insist that the loss takes every other extra argument, by name.
    def value_fn(params, *, obj_fn=None, grad_fn=None, value_and_grad_fn=None, hvp_fn=None):
        del obj_fn, grad_fn, value_and_grad_fn, hvp_fn
        return loss(params)

    def value_and_grad_fn(params):
        return value_and_grad(loss)(params)

    def grad_fn(params, i=0):
        del i  # Of a sequence of evaluations; all of them see the same batch.
        return value_and_grad_fn(params)[1]

    def hvp_fn(params, v):
        return jax.jvp(jax.grad(loss), (params,), (v,))[1]

    return {
        "value": value,
        "grad": grads,
        "value_fn": value_fn,
        "obj_fn": loss,
        "grad_fn": grad_fn,
        "value_and_grad_fn": value_and_grad_fn,
        "hvp_fn": hvp_fn,
    }
