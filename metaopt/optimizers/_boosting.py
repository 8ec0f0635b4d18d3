"""Networks trained a few units at a time, each on what the ones before left over.

    F₀ = 0,    p = softmax(F),    R = Y − p
    f: a network of J hidden units, fitted to R on a part of the examples
    F ← F + ρ f,    ρ = η Σ f R / Σ f² p (1 − p)

Gradient boosting with small networks: Emami and Martínez-Muñoz 2023, arXiv:1909.12098. The sum of
T of them is one network with one hidden layer of T J units, which can be cut short after any stage.
Hidden units are logistic; each stage is fitted by L-BFGS with a little weight decay, as in the
published program. Two classes are two outputs here, there one with a loss of its own; regression,
whose step is η, is left out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt.core import Params, Scalar, checked
from metaopt.optimizers._neighbourhood import check_sign


class BoostedUnits(NamedTuple):
    """A sum of small networks.

    Attributes:
        params: layers `{"w": [stages, fan_in, fan_out], "b": [stages, fan_out]}`, two of them.
        steps: ρ of each stage.
    """

    params: PyTree
    steps: Float[Array, " stages"]


@checked
def boost_units(
    inputs: Float[Array, "examples features"],
    targets: Float[Array, "examples classes"],
    key: PRNGKeyArray,
    *,
    num_stages: int = 40,
    units: int = 1,
    rate: Scalar = 0.5,
    share: float = 0.5,
    num_steps: int = 200,
    decay: Scalar = 1e-4,
) -> BoostedUnits:
    """Trains the units of one hidden layer a few at a time.

    All stages run in one compiled loop. The line search has no reverse-mode derivative, nor has
    the result.

    Args:
        inputs: standardised features.
        targets: one-hot labels.
        key: of initial weights and of the parts.
        num_stages: T. Static.
        units: J. Static.
        rate: η. Traced.
        share: of the examples that a stage is fitted to. Static.
        num_steps: L-BFGS iterations of a stage. Static.
        decay: of the weights of a stage, divided by the number of its examples. Traced.

    Returns:
        The stages, for `assemble_units`.

    Raises:
        ValueError: if a count is below 1, `share` outside (0, 1], or `rate` or `decay` negative.
    """
    for name, count in {"num_stages": num_stages, "units": units, "num_steps": num_steps}.items():
        if count < 1:
            raise ValueError(f"boost_units: {name} must be at least 1, got {count}.")
    if not 0 < share <= 1:
        raise ValueError(f"boost_units: share must be in (0, 1], got {share}; 1 takes all.")
    check_sign("boost_units", strict=False, rate=rate, decay=decay)
    num_rows = max(1, int(share * len(inputs)))

    def stage(outputs, key):
        key_rows, key_fit = jax.random.split(key)
        probs = jax.nn.softmax(outputs)
        residue = targets - probs
        rows = jax.random.permutation(key_rows, len(inputs))[:num_rows]
        start = _init((inputs.shape[1], units, targets.shape[1]), key_fit, inputs.dtype)
        params = _fit(start, inputs[rows], residue[rows], decay, num_steps)
        f = _outputs(params, inputs)
        slope, bend = jnp.sum(f * residue), jnp.sum(f**2 * probs * (1 - probs))
        step = (rate * slope / jnp.where(bend > 0, bend, 1)).astype(inputs.dtype)
        return outputs + step * f, (params, step)

    begin = jnp.zeros(targets.shape, inputs.dtype)
    _, (params, steps) = jax.lax.scan(stage, begin, jax.random.split(key, num_stages))
    return BoostedUnits(params, steps)


@checked
def assemble_units(fit: BoostedUnits) -> Params:
    """The network with one hidden layer that a sum of small ones is.

    Args:
        fit: what `boost_units` returns, or its first stages.

    Returns:
        `[{"w": [features, stages·units], "b": ...}, {"w": [stages·units, outputs], "b": ...}]`, for
        `sigmoid(x @ w + b) @ w + b`.
    """
    first, last = fit.params
    weights = jnp.moveaxis(first["w"], 0, 1)
    scaled = jax.tree.map(lambda x: jax.vmap(jnp.multiply)(fit.steps, x), last)
    return [
        {"w": weights.reshape(len(weights), -1), "b": first["b"].ravel()},
        {"w": scaled["w"].reshape(-1, scaled["w"].shape[-1]), "b": scaled["b"].sum(axis=0)},
    ]


def _outputs(params, x):
    first, last = params
    return jax.nn.sigmoid(x @ first["w"] + first["b"][None]) @ last["w"] + last["b"][None]


def _init(widths, key, dtype):
    glorot = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(key, len(widths) - 1)
    shapes = zip(widths[:-1], widths[1:], strict=True)
    return [
        {"w": glorot(k, shape, dtype), "b": jnp.zeros(shape[1], dtype)}
        for k, shape in zip(keys, shapes, strict=True)
    ]


def _fit(params, inputs, residue, decay, num_steps):
    """Least squares by L-BFGS."""

    def loss(params):
        squares = jnp.sum((_outputs(params, inputs) - residue) ** 2)
        weights = sum(jnp.sum(layer["w"] ** 2) for layer in params)
        return 0.5 * (squares + decay * weights) / len(inputs)

    opt = optax.lbfgs(memory_size=10)

    def step(carry, _):
        params, state = carry
        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = opt.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, opt.init(params)), length=num_steps)[0][0]
