"""SMBi: model building with independent batches.

    trial on a batch:  w − α g if f(w − α g) ≤ f(w) − c α ‖g‖², else w stays and g is kept as g̃
    after a failure:   on the next batch, per leaf, with s = −α g, y = ∇f(w + s) − g of that batch,
    σ = ½ (‖s‖ (‖y‖ + ‖g‖/η) − yᵀs),    θ = (yᵀs + 2σ)² − ‖s‖² ‖y‖²
    step = c_s s + c_g g̃ + c_y y,       c_g = −‖s‖²/(2σ),
    c_s = c_g/θ · (−(yᵀs + 2σ) yᵀg̃ + ‖y‖² sᵀg̃),    c_y = c_g/θ · (−(yᵀs + 2σ) sᵀg̃ + ‖s‖² yᵀg̃)

Birbil, Martin, Onay and Öztoprak 2021, arXiv:2111.07058, after their program: the matrix that is
multiplied with g̃ does not depend on the batch of g̃, which is what their proof of convergence asks
for. With g̃ = g it is the step of `smb`. Written in the component of y along g and the rest, in
which no denominator vanishes but ‖g‖. Differs from the program as `smb` does: a leaf without a
gradient, or whose trial has none that is finite, stays where it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import require_params
from metaopt.optimizers._numerics import global_norm, known, moderate, wide_zeros, widen

# Lengths of y/|g| beyond which steps along it vanish anyway, while squares still are float32.
_LONGEST = 1e15


class SMBiState(NamedTuple):
    """Whether the last trial failed.

    Attributes:
        failed: whether this step is one of a model.
        rejected: the gradient of the failed trial, float32 at least.
    """

    failed: Bool[Array, ""]
    rejected: PyTree


@checked
def smbi(
    learning_rate: Scalar = 1.0, *, eta: Scalar = 0.99, c: Scalar = 0.1
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent whose failed steps are repaired on the next batch.

    Its `update` needs `value` and `value_and_grad_fn`, `(params) -> (loss, gradient)` on the batch
    of the gradient. A step costs one more loss, or after a failure one more gradient.

    Args:
        learning_rate: α of the trial. Traced.
        eta: η, in (0, 1), as in `smb`. Traced.
        c: the share of the decrease that a linear loss would have, for a trial to be accepted.
            Traced.

    Returns:
        An optimizer: its updates are final, with the dtypes of the gradients.

    Raises:
        ValueError: if `eta` or `c` is outside (0, 1); in `update` if an extra argument is missing.
    """
    for name, share in {"eta": eta, "c": c}.items():
        if known(share) and not 0 < share < 1:
            raise ValueError(f"smbi: {name} must be between 0 and 1, got {share}.")

    def init(params):
        return SMBiState(jnp.zeros((), bool), wide_zeros(params))

    def update(updates, state, params=None, *, value=None, value_and_grad_fn=None, **extra_args):
        del extra_args
        require_params("smbi", params)
        if value is None or value_and_grad_fn is None:
            raise ValueError(
                "smbi: update needs value and value_and_grad_fn, on the batch of the gradient; "
                "pass value=..., value_and_grad_fn=jax.value_and_grad(loss)."
            )
        grads = moderate(widen(updates))
        trial = jax.tree.map(lambda p, g: (p - learning_rate * g).astype(p.dtype), params, grads)

        def model():
            there = widen(value_and_grad_fn(trial)[1])
            step = jax.tree.map(
                lambda r, g, t: _model_step(r, g, t, learning_rate, eta),
                state.rejected,
                grads,
                there,
            )
            return step, jnp.zeros((), bool)

        def attempt():
            needed = value - c * learning_rate * global_norm(grads) ** 2
            accepted = value_and_grad_fn(trial)[0] <= needed
            step = jax.tree.map(
                # A gradient that is no number shows.
                lambda g: jnp.where(accepted | ~jnp.isfinite(g), -learning_rate * g, 0),
                grads,
            )
            return jax.tree.map(lambda s, g: s.astype(g.dtype), step, grads), ~accepted

        step, failed = jax.lax.cond(state.failed, model, attempt)
        new = jax.tree.map(lambda s, g: s.astype(g.dtype), step, updates)
        return new, SMBiState(failed, grads)

    return optax.GradientTransformationExtraArgs(init, update)


def _model_step(rejected, g, there, rate, eta):
    """The step of one leaf, from the rejected gradient and those at both ends of a new trial."""
    size = global_norm(g)
    usable = (size >= 1e-8) & jnp.all(jnp.isfinite(there))
    size = jnp.where(usable, size, 1)
    u = jnp.where(usable, g / size, 0)
    y = jnp.where(usable, (moderate(there) - g) / size, 0)
    n = global_norm(y)
    y = y * jnp.minimum(1, _LONGEST / jnp.where(n > 0, n, 1))
    n = jnp.minimum(n, _LONGEST)
    along = jnp.sum(u * y)
    across = y - along * u
    # n + (y along g), without cancellation where they are opposite.
    both = jnp.where(
        along < 0,
        jnp.sum(across**2) / jnp.where(along < 0, n - along, 1),
        n + along,
    )
    denominator, k = both + 1 / eta, eta / (2 * n + 1 / eta)
    p_along, p_across = jnp.sum(u * rejected), jnp.sum(across * rejected)
    # Products in an order in which none is larger than the result.
    in_u = (k * both * (both / denominator) + 2 * k * along / eta / denominator) * p_along
    in_u = in_u + k * p_across
    in_across = k * p_along + k * p_across / denominator
    step = -rate * (rejected / denominator + in_u * u + in_across * across)
    return jnp.where(usable, step, jnp.where(jnp.isfinite(g), 0, g)).astype(g.dtype)
