"""Direct feedback alignment (DFA): errors reach hidden layers through fixed random matrices.

    e = ∂L/∂outputs,    ∂L/∂hₗ := e Bₗ for hidden layers;    ∂L/∂Wₗ := ∂L/∂hₗ · ∂hₗ/∂Wₗ

Nøkland 2016, arXiv:1609.01596. No layer waits for another one's backward pass, nor knows its
weights; forward weights turn until their transposes agree with B, which takes hidden layers wider
than the number of outputs. One matrix that every layer reads a slice of: Launay et al. 2019,
arXiv:1906.04554.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import Batch, Scalar, checked
from metaopt.estimators._shared import check_positive


@checked
def random_feedback(
    num_outputs: int,
    widths: Sequence[int],
    key: PRNGKeyArray,
    *,
    variance: Scalar | None = None,
) -> tuple[Float[Array, "num_outputs width"], ...]:
    """Feedback matrices for hidden layers: slices of one random matrix.

    Args:
        num_outputs: outputs of the network, whose errors are fed back. Static.
        widths: numbers of values of the hidden layers, for one example each. Static.
        key: of the draw.
        variance: of the entries; None: 1/(num_outputs · width), so that the fed back error of a
            layer has the same length whatever its width. Traced.

    Returns:
        For each hidden layer B, normal.

    Raises:
        ValueError: if `num_outputs` or a width is below 1 or there is none, or if `variance` is
            not positive.
    """
    if num_outputs < 1 or not widths or min(widths) < 1:
        raise ValueError(
            f"random_feedback: num_outputs={num_outputs} and widths={tuple(widths)} must be at "
            "least 1, with at least one hidden layer."
        )
    if variance is not None:
        check_positive("random_feedback", variance=variance)
    whole = jax.random.normal(key, (num_outputs, max(widths)))

    def scale(width):
        return (1 / (num_outputs * width)) ** 0.5 if variance is None else jnp.sqrt(variance)

    return tuple(whole[:, :width] * scale(width) for width in widths)


@checked
def dfa_value_and_grad(layer_fns: Sequence[Callable], loss_fn: Callable) -> Callable:
    """The loss of a stack of layers and its gradients by direct feedback alignment.

    The last layer has its true gradient.

    Args:
        layer_fns: for each layer, `(layer_params, inputs) -> outputs`, activation included, with
            examples on the first axis. Static.
        loss_fn: `(outputs, targets) -> scalar`; the outputs are `[num_examples, num_outputs]`.

    Returns:
        `(params, feedback, batch) -> (loss, grads)` for a sequence of parameters, one element a
        layer, the matrices of `random_feedback`, and `batch = (inputs, targets)`; in the place of
        `jax.value_and_grad`.

    Raises:
        ValueError: if there are fewer than two layers; when called, if there is not one matrix for
            every hidden layer.
    """
    if len(layer_fns) < 2:
        raise ValueError(
            f"dfa_value_and_grad: {len(layer_fns)} layer_fns; without a hidden layer there is "
            "nothing to feed back to."
        )

    def value_and_grad(
        params: Sequence[PyTree], feedback: Sequence[Float[Array, "..."]], batch: Batch
    ) -> tuple[Float[Array, ""], PyTree]:
        if len(params) != len(layer_fns) or len(feedback) != len(layer_fns) - 1:
            raise ValueError(
                f"dfa_value_and_grad: {len(params)} params and {len(feedback)} feedback matrices "
                f"for {len(layer_fns)} layers; give one per layer, and per hidden layer."
            )
        x, targets = batch
        pulls = []
        for apply, layer in zip(layer_fns, params, strict=True):
            # Backwards through this layer alone: its inputs are constants.
            x, pull = jax.vjp(lambda p, apply=apply, x=x: apply(p, x), layer)
            pulls.append((pull, x.shape, x.dtype))
        loss, pull_loss = jax.vjp(lambda outputs: loss_fn(outputs, targets), x)
        (error,) = pull_loss(jnp.ones_like(loss))
        signals = [
            (error @ matrix.astype(error.dtype)).reshape(shape).astype(dtype)
            for matrix, (_, shape, dtype) in zip(feedback, pulls[:-1], strict=True)
        ]
        grads = [
            pull(signal)[0] for (pull, *_), signal in zip(pulls, [*signals, error], strict=True)
        ]
        # The same kind of sequence as the parameters: lists stay lists.
        outer = jax.tree.structure(params, is_leaf=lambda x: x is not params)
        return loss, jax.tree.unflatten(outer, grads)

    return value_and_grad
