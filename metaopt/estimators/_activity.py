"""Forward gradients along perturbed activities: a direction for every example and hidden unit.

    v_bl random for every example b and hidden layer l,    c_b = Σₗ ⟨∂L_b/∂h_bl, v_bl⟩, forward
    ∂L_b/∂h_bl := c_b v_bl,    ∂L/∂Wₗ := mean over b of (c_b v_bl) · ∂h_bl/∂Wₗ

Ren et al. 2023 (ICLR), arXiv:2210.03310. Unbiased, as directions along weights are, but those are
as many as there are weights and are shared by the batch: the variance here grows with the number of
hidden units alone and falls with the number of examples. For one layer of linear units with random
signs it is Σ_b (units − 1) |x_b|² |δ_b|² / batch², for signs along its weights (weights − 1) |g|².
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import Batch, checked
from metaopt.estimators._columns import Directions


@checked
def activity_value_and_grad(
    layer_fns: Sequence[Callable], loss_fn: Callable, *, directions: Directions = "rademacher"
) -> Callable:
    """The loss of a stack of layers and unbiased gradients from one forward pass.

    The last layer has its true gradient, which needs no pass backward through other layers.

    Args:
        layer_fns: for each layer, `(layer_params, inputs) -> outputs` with examples on the first
            axis, which a layer must not mix. Perturbed are outputs of hidden layers; for
            perturbations of what goes into an activation let the layer after it apply it. Static.
        loss_fn: `(outputs, targets) -> losses`, one for each example.
        directions: "rademacher", random signs, which have the smaller variance, or "normal".
            Static.

    Returns:
        `(params, batch, key) -> (loss, grads)` for a sequence of parameters, one element a layer,
        and `batch = (inputs, targets)`; the loss is the mean over examples.

    Raises:
        ValueError: if there are fewer than two layers; when called, if there is not one loss for
            every example.
    """
    if len(layer_fns) < 2:
        raise ValueError(
            f"activity_value_and_grad: {len(layer_fns)} layer_fns; without a hidden layer there is "
            "nothing to perturb."
        )
    draw = jax.random.rademacher if directions == "rademacher" else jax.random.normal

    def value_and_grad(
        params: Sequence[PyTree], batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], PyTree]:
        x, targets = batch
        tangent, hidden = jnp.zeros_like(x), []
        *layers, last = zip(layer_fns, params, strict=True)
        for (apply, layer), key_layer in zip(
            layers, jax.random.split(key, len(layers)), strict=True
        ):
            _, pull = jax.vjp(lambda p, apply=apply, x=x: apply(p, x), layer)
            x, tangent = _moved(apply, layer, x, tangent)
            v = draw(key_layer, x.shape, x.dtype)
            tangent = tangent + v
            hidden.append((pull, v))
        apply, layer = last
        _, pull_last = jax.vjp(lambda p, x=x: apply(p, x), layer)
        x, tangent = _moved(apply, layer, x, tangent)
        losses, slopes = jax.jvp(lambda outputs: loss_fn(outputs, targets), (x,), (tangent,))
        _check_losses(losses, x)
        error = jax.grad(lambda outputs: jnp.mean(loss_fn(outputs, targets)))(x)
        grads = [pull(_weighted(slopes / len(slopes), v))[0] for pull, v in hidden]
        # The same kind of sequence as the parameters: lists stay lists.
        outer = jax.tree.structure(params, is_leaf=lambda x: x is not params)
        return jnp.mean(losses), jax.tree.unflatten(outer, [*grads, pull_last(error)[0]])

    return value_and_grad


def _moved(apply, layer, x, tangent):
    """Outputs of a layer, and where a tangent of its inputs leads."""
    return jax.jvp(lambda x: apply(layer, x), (x,), (tangent,))


def _weighted(weights, v):
    return weights.reshape(-1, *[1] * (v.ndim - 1)).astype(v.dtype) * v


def _check_losses(losses, outputs):
    if losses.shape != outputs.shape[:1]:
        raise ValueError(
            "activity_value_and_grad: loss_fn must return one loss for every example, "
            f"{outputs.shape[:1]}; got {losses.shape}: do not average over examples."
        )
