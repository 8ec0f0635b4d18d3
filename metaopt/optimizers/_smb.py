"""SMB: a trial step, and where it fails a model of the loss built from it, without line search.

    s = −α g,    y = ∇f(w + s) − g,     s is the step if f(w + s) ≤ f(w) − c α ‖g‖²; else, per leaf,
    σ = ½ (‖s‖ (‖y‖ + ‖g‖/η) − yᵀs),    θ = (yᵀs + 2σ)² − ‖s‖² ‖y‖²
    step = c_s s + c_g g + c_y y,       c_g = −‖s‖²/(2σ),
    c_s = c_g/θ · (−(yᵀs + 2σ) yᵀg + ‖y‖² sᵀg),    c_y = c_g/θ · (−(yᵀs + 2σ) sᵀg + ‖s‖² yᵀg)

Birbil, Martin, Onay and Öztoprak 2021, arXiv:2111.07058, algorithm 1, with everything evaluated on
one batch. As s is a multiple of g, all of it comes to

    step = −α ((n + 1/η) g + y) / ((2n + 1/η)/η),       n = ‖y‖/‖g‖

which is what is computed: it is at most η times as long as the trial, no denominator can vanish but
‖g‖, and no large numbers cancel. Differs from the paper: a leaf without gradient, or whose trial
has none that is finite, stays where it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import Scalar, checked
from metaopt.optimizers._numerics import global_norm, known, moderate, widen

# Of the schedule: the share of model steps beyond which trials are too long, and the longest.
_RARE, _SHRINK, _LONGEST = 0.05, 0.9, 20.0


class SMBState(NamedTuple):
    """How trials went.

    Attributes:
        count: steps taken.
        num_models: model steps among those of the present period.
        scale: what the schedule has made of the learning rate, as a factor.
    """

    count: Int[Array, ""]
    num_models: Int[Array, ""]
    scale: Float[Array, ""]


@checked
def smb(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    eta: Scalar = 0.99,
    c: Scalar = 0.1,
    period: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent that repairs steps that are too long.

    Its `update` needs `value` and `value_and_grad_fn`, `(params) -> (loss, gradient)` on the batch
    of the gradient. A step costs one more loss, and one more gradient where the trial fails.

    Args:
        learning_rate: α of the trial, a scalar or a schedule. Traced.
        eta: η, in (0, 1): no model step is longer than η times the trial. Traced.
        c: the share of the decrease that a linear loss would have, for a trial to be accepted.
            Traced.
        period: steps, usually of an epoch, after which the learning rate is shortened by 0.9 if
            more than 5 % of them were model steps, and otherwise lengthened by 1/0.9, up to 20.
            None keeps it. Static.

    Returns:
        An optimizer: its updates are final, with the dtypes of the gradients.

    Raises:
        ValueError: if `eta` or `c` is outside (0, 1), or `period` is below 1; in `update` if an
            extra argument is missing.
    """
    for name, share in {"eta": eta, "c": c}.items():
        if known(share) and not 0 < share < 1:
            raise ValueError(f"smb: {name} must be between 0 and 1, got {share}.")
    if period is not None and period < 1:
        raise ValueError(f"smb: period must be at least 1, got {period}; None keeps the rate.")

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return SMBState(zero, zero, jnp.ones((), _scalar_dtype(params)))

    def update(updates, state, params=None, *, value=None, value_and_grad_fn=None, **extra_args):
        del extra_args
        _require(params=params, value=value, value_and_grad_fn=value_and_grad_fn)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        rate = (rate * state.scale).astype(state.scale.dtype)
        grads = moderate(widen(updates))
        trial = jax.tree.map(lambda p, g: (p - rate * g).astype(p.dtype), params, grads)
        decrease = c * rate * global_norm(grads) ** 2
        assert value_and_grad_fn is not None
        failed = ~(value_and_grad_fn(trial)[0] <= value - decrease)

        def model():
            # Without this branch the backward pass of the line above is not computed.
            there = widen(value_and_grad_fn(trial)[1])
            return jax.tree.map(lambda g, t: _model_step(g, t, rate, eta), grads, there)

        def accepted():
            return jax.tree.map(lambda g: (-rate * g).astype(g.dtype), grads)

        steps = jax.lax.cond(failed, model, accepted)
        new = jax.tree.map(lambda s, g: s.astype(g.dtype), steps, updates)
        return new, _scheduled(state, failed, rate, period)

    return optax.GradientTransformationExtraArgs(init, update)


def _require(**needed: Any) -> None:
    for name, value in needed.items():
        if value is None:
            raise ValueError(
                f"smb: update needs {name}, on the batch of the gradient; pass {name}=..."
            )


def _model_step(g, there, rate, eta):
    """The step of one leaf from the gradients at both ends of the trial."""
    size = global_norm(g)
    usable = (size >= 1e-8) & jnp.all(jnp.isfinite(there))
    size = jnp.where(usable, size, 1)
    y = jnp.where(usable, moderate(there) - g, 0)
    n = global_norm(y) / size
    step = -rate * eta / (2 * n + 1 / eta) * ((n + 1 / eta) * g + y)
    return jnp.where(usable, step, jnp.where(jnp.isfinite(g), 0, g)).astype(g.dtype)


def _scheduled(state, failed, rate, period):
    """The next state; at the end of a period the scale changes and counting starts anew."""
    count, num_models = state.count + 1, state.num_models + failed.astype(jnp.int32)
    if period is None:
        return SMBState(count, num_models, state.scale)
    ends = count % period == 0
    longer = jnp.minimum(1 / _SHRINK, jnp.maximum(_LONGEST / rate, 1.0))
    factor = jnp.where(num_models > _RARE * period, _SHRINK, longer)
    scale = jnp.where(ends, state.scale * factor, state.scale).astype(state.scale.dtype)
    return SMBState(count, jnp.where(ends, 0, num_models), scale)


def _scalar_dtype(params: PyTree):
    return jnp.result_type(jnp.float32, *jax.tree.leaves(params))
