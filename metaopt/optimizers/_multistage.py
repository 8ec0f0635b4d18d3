"""Multi-stage training: each network fits what the ones before it left, at its own frequency.

    e₀ = y,    eₙ = eₙ₋₁ − sₙ netₙ(x),    sₙ = rms(eₙ₋₁)        netₙ is fitted to eₙ₋₁/sₙ
    first layer of netₙ: tanh(z) for n = 1, else sin(κₙ z),    κₙ = 3 · (sign changes of eₙ₋₁)
    prediction = Σₙ sₙ netₙ(x)

Wang and Lai 2024 (J. Comput. Phys.), arXiv:2307.08934: one network of any size stops at an error of
about 1e-5, since small residues are of high frequency and small scale; a few stages come near the
precision of float64. Functions of one variable; inputs are mapped to [-1, 1], hidden layers after
the first one have tanh, weights start as truncated normal with Glorot's variance. Differs from the
published programs: κ by sign changes in every stage.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from metaopt import tree
from metaopt.core import Scalar, checked
from metaopt.optimizers._neighbourhood import check_sign


class MultistageFit(NamedTuple):
    """A sum of networks; all leaves but the bounds have a leading axis of stages.

    Attributes:
        params: layers `{"w": [stages, fan_in, fan_out], "b": [stages, fan_out]}`.
        frequencies: κ of each stage, 0 for the first one.
        scales: s of each stage.
        errors: root mean square of what each stage left.
        bounds: the smallest and the largest input.
    """

    params: PyTree
    frequencies: Float[Array, " stages"]
    scales: Float[Array, " stages"]
    errors: Float[Array, " stages"]
    bounds: Float[Array, "2"]


@checked
def multistage_fit(
    inputs: Float[Array, " examples"],
    targets: Float[Array, " examples"],
    key: PRNGKeyArray,
    *,
    num_stages: int = 3,
    hidden: tuple[int, ...] = (20, 20, 20),
    num_steps: int = 2500,
    memory_size: int = 30,
    num_adam_steps: int = 0,
    learning_rate: Scalar = 1e-3,
    frequency_factor: Scalar = 3.0,
) -> MultistageFit:
    """Fits a function of one variable to high precision, by L-BFGS in stages.

    All stages run in one compiled loop. The line search has no reverse-mode derivative, nor has
    the fit.

    Args:
        inputs: points, several for each sign change that any residue will have.
        targets: values there.
        key: of the initial weights.
        num_stages: networks. Static.
        hidden: their widths. Static.
        num_steps: L-BFGS iterations of each stage. Static.
        memory_size: pairs that L-BFGS remembers. Static.
        num_adam_steps: steps of Adam before it. Static.
        learning_rate: of Adam. Traced.
        frequency_factor: κ over the number of sign changes. Traced.

    Returns:
        The networks, for `multistage_predict`.

    Raises:
        ValueError: if the numbers are not float64, are not two vectors of one length or a count is
            below its least value.
    """
    _check_problem(inputs, targets)
    _check_counts(num_stages, hidden, num_steps, memory_size, num_adam_steps)
    check_sign("multistage_fit", strict=True, frequency_factor=frequency_factor)
    order = jnp.argsort(inputs)
    inputs, targets = inputs[order], targets[order]
    bounds = jnp.stack([inputs[0], inputs[-1]])
    x = _centred(inputs, bounds)

    def stage(residue, index_and_key):
        index, key = index_and_key
        scale = jnp.sqrt(jnp.mean(residue**2))
        scale = jnp.where(scale > 0, scale, 1.0)
        changes = jnp.sum(residue[1:] * residue[:-1] < 0)
        frequency = jnp.where(index > 0, frequency_factor * jnp.maximum(changes, 1), 0.0)

        def loss(params):
            return jnp.mean((_network(params, frequency, x) - residue / scale) ** 2)

        params = _init((1, *hidden, 1), key, x.dtype)
        params = _train(loss, params, optax.adam(learning_rate), num_adam_steps)
        params = _train(loss, params, optax.lbfgs(memory_size=memory_size), num_steps)
        left = residue - scale * _network(params, frequency, x)
        error = jnp.sqrt(jnp.mean(left**2))
        return left, (params, frequency, scale, error)

    keys = jax.random.split(key, num_stages)
    _, found = jax.lax.scan(stage, targets, (jnp.arange(num_stages), keys))
    return MultistageFit(*found, bounds)


@checked
def multistage_predict(
    fit: MultistageFit, inputs: Float[Array, " examples"]
) -> Float[Array, " examples"]:
    """The sum of all stages.

    Args:
        fit: what `multistage_fit` returns.
        inputs: points between the bounds of the fit.

    Returns:
        Values there.
    """
    x = _centred(inputs, fit.bounds)
    values = jax.vmap(lambda p, k, s: s * _network(p, k, x))(
        fit.params, fit.frequencies, fit.scales
    )
    return values.sum(axis=0)


def _centred(inputs, bounds):
    low, high = bounds
    return 2 * (inputs - low) / (high - low) - 1


def _init(widths, key, dtype):
    glorot = jax.nn.initializers.glorot_normal()
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"w": glorot(k, shape, dtype), "b": jnp.zeros(shape[1], dtype)}
        for k, shape in zip(keys, zip(widths[:-1], widths[1:], strict=True), strict=True)
    ]


def _network(params, frequency, x):
    first, *middle, last = params
    z = x[:, None] @ first["w"] + first["b"][None]
    h = jnp.where(frequency > 0, jnp.sin(frequency * z), jnp.tanh(z))
    for layer in middle:
        h = jnp.tanh(h @ layer["w"] + layer["b"][None])
    return (h @ last["w"] + last["b"][None])[:, 0]


def _train(
    loss: Callable, params: PyTree, opt: optax.GradientTransformation, num_steps: int
) -> PyTree:
    """The best parameters that an optimizer comes across."""
    opt = optax.with_extra_args_support(opt)

    def step(carry, _):
        params, state, best, lowest = carry
        # L-BFGS keeps them from its line search.
        if optax.tree.get(state, "grad") is None:
            value, grads = jax.value_and_grad(loss)(params)
        else:
            value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        best = tree.where(value < lowest, params, best)
        updates, state = opt.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        params = optax.apply_updates(params, updates)
        return (params, state, best, jnp.minimum(value, lowest)), None

    carry = (params, opt.init(params), params, jnp.full_like(loss(params), jnp.inf))
    (params, _, best, lowest), _ = jax.lax.scan(step, carry, length=num_steps)
    return tree.where(loss(params) < lowest, params, best)


def _check_problem(inputs, targets):
    for name, value in {"inputs": inputs, "targets": targets}.items():
        if jnp.result_type(value) != jnp.float64:
            raise ValueError(
                f"multistage_fit: {name} are {jnp.result_type(value)}; residues of a second stage "
                "need float64: run under jax.enable_x64(True)."
            )
    if jnp.ndim(inputs) != 1 or jnp.shape(inputs) != jnp.shape(targets) or len(inputs) < 2:
        raise ValueError(
            "multistage_fit: inputs and targets must be vectors of one length of at least 2, got "
            f"{jnp.shape(inputs)} and {jnp.shape(targets)}."
        )


def _check_counts(num_stages, hidden, num_steps, memory_size, num_adam_steps):
    if not hidden or min(hidden) < 1:
        raise ValueError(f"multistage_fit: hidden={hidden} must name at least one width above 0.")
    counts = {"num_stages": (num_stages, 1), "memory_size": (memory_size, 1)}
    counts |= {"num_steps": (num_steps, 0), "num_adam_steps": (num_adam_steps, 0)}
    for name, (count, least) in counts.items():
        if count < least:
            raise ValueError(f"multistage_fit: {name} must be at least {least}, got {count}.")
