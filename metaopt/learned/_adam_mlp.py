"""Adam, or its orthogonalised sibling, plus what a small network adds to it.

For every entry of a tensor, with Adam's moments m and r corrected for their start at 0, gradients g
clipped to ±1000, and b = m, or Nesterov's b = 0.9 m + 0.1 g / (1 - 0.9ᵗ):

    u       = b / √(r + ε)                                      Adam's direction
    (a, s)  = network(n(x_1), ..., n(x_18))                     zero at first
    z       = u · exp(s) + a                                    or, if orthogonalising, for matrices
    z       = n(b) · exp(s) + a,   z <- (1 - β) n(NewtonSchulz(z)) + β n(z)
    p      <- p - learning_rate · (1 - t/T)^power · (exp(c) · z + weight_decay · p)

n(x) divides x by its root mean square over the tensor. Features x: g, p, three momenta m, m/√r,
g/√r, Fg and Fm with the factored preconditioner F, 1/√(r + ε), u, b. The size exp(c) and the blend
β of a tensor come from a second network, zero at first too, of the tensor as a whole: mean(m²/r),
the agreement of momenta and gradient, its root mean square, axes and sizes, t and t/T. A kernel of
more than two axes counts as one matrix, its last axis the columns.

At first, with default settings, this is Adam; with `nesterov`, `orthogonalise` and a decay, a
variant of Muon. A learned term beside a fixed one: Metz et al. 2022, arXiv:2203.11860; Muon: Jordan
et al. 2024; steps of fixed size: Celo2, arXiv:2602.19142. The combination is ours.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._celo2 import newton_schulz
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._entry_network import DECAYS, EntryMoments, accumulate, zero_moments
from metaopt.learned._features import (
    clip_gradient,
    factored_rsqrt,
    init_leaves,
    map_leaves,
    mean,
    mean_square,
    normalise,
)
from metaopt.learned._network import (
    after_first,
    bias,
    hidden_sizes,
    mix,
    mix_normalised,
    network_init,
)

NUM_FEATURES, NUM_TENSOR_FEATURES = 18, 16
EPS = 1e-16
# Up to so many entries all tensors go through one call of the network.
JOINT_ENTRIES = 2**16
LIMIT = 3.0  # of learned exponents
BLEND = 3.0  # -log-odds of β at first


class AdamMLPState(NamedTuple):
    """Steps taken, and the accumulators."""

    count: Int[Array, ""]
    moments: EntryMoments


class _View(NamedTuple):
    """One tensor as the networks see it."""

    hidden: Float[Array, "hidden ..."] | None
    tensor: Float[Array, "features"]
    direction: Float[Array, "..."]
    base: Float[Array, "..."]


@checked
def adam_mlp(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    *,
    hidden_size: int = 8,
    residual: bool = True,
    nesterov: bool = False,
    orthogonalise: bool = False,
    normalise_output: bool = False,
    vector_mult: float = 1.0,
    decay_power: float | None = None,
    b2: Scalar = 0.999,
    weight_decay: Scalar = 0.0,
) -> LearnedOptimizer:
    """Adam with a learned residual, a learned size per tensor and, if asked, a learned decay.

    Every learned part is zero at first, so that meta-training starts from a working optimizer.
    Memory: five numbers per parameter, seven below two axes.

    Args:
        learning_rate: a number or an optax schedule. With `orthogonalise` and `normalise_output` it
            is the root mean square of a matrix's first steps. Traced.
        hidden_size: width of both networks. Static.
        residual: whether there is a network of entries, that is (a, s); without it `theta` has no
            "network", and an update costs little more than the rule it starts as. Static.
        nesterov: whether the momentum looks one gradient ahead. Static.
        orthogonalise: apply Newton-Schulz iterations to tensors of two axes or more. Static.
        normalise_output: give the step of every tensor the same size, before exp(c). Static.
        vector_mult: what steps of tensors below two axes are multiplied by at first; learned.
        decay_power: initial power of the decay (1 - t/T)^power over the planned number of steps,
            learned; None: no decay, for use with a schedule. With it `optimizer` needs `num_steps`.
        b2: decay of Adam's second moment. Traced.
        weight_decay: decoupled, times the learning rate and the decay. Traced.

    Returns:
        A learned optimizer. `theta` is `{"network": {"linear_0": {"w": (18, h), ...}, ...,
        "linear_2": {"w": (h, 2), ...}}, "tensor": {"linear_0": {"w": (16, h), ...}, "linear_1":
        {"w": (h, 2), ...}}, "vector": (), "blend": ()}` and, with `decay_power`, `"decay": ()`.

    Raises:
        ValueError: if `hidden_size` is below 1 or `vector_mult` or `decay_power` is not positive;
            in `optimizer`, without the `num_steps` that a decay spans; in `update`, if it is not
            given the parameters.
    """
    (width, _) = hidden_sizes("adam_mlp", hidden_size, 2)
    for setting, value in (("vector_mult", vector_mult), ("decay_power", decay_power)):
        if value is not None and not value > 0:
            raise ValueError(f"adam_mlp: {setting}={value} is not positive; start above 0.")

    def init_theta(key):
        key_network, key_tensor = jax.random.split(key)
        theta = {
            "tensor": _silent(key_tensor, (NUM_TENSOR_FEATURES, width, 2)),
            "vector": jnp.log(vector_mult),
            "blend": jnp.zeros(()),
        }
        if residual:
            theta["network"] = _silent(key_network, (NUM_FEATURES, width, width, 2))
        if decay_power is not None:
            theta["decay"] = jnp.log(decay_power)
        return theta

    def optimizer(theta, *, num_steps=None):
        if decay_power is not None and num_steps is None:
            raise ValueError(
                "adam_mlp: num_steps=None, but the decay spans the training; pass "
                "optimizer(theta, num_steps=...)."
            )

        def progress(count):
            return jnp.zeros(()) if num_steps is None else jnp.clip(count / num_steps, 0, 1)

        def direction(theta, view, entry, tensor):
            return _direction(theta, view, entry, tensor, orthogonalise, normalise_output)

        def init(params):
            return AdamMLPState(jnp.zeros((), jnp.int32), init_leaves(zero_moments, params))

        def update(updates, state, params=None, **extra):
            del extra
            if params is None:
                raise ValueError(
                    "adam_mlp: update got no params; pass update(grads, state, params)."
                )
            if not jax.tree.leaves(updates):
                return updates, state
            count, views = jnp.asarray(optax.safe_increment(state.count)), []
            clock = _clock(count, progress(state.count))

            def look(grad, param, moments):
                grad = clip_gradient(grad)
                moments = accumulate(moments, grad, second_decay=b2)
                views.append(_view(theta, grad, param, moments, count, clock, b2, nesterov))
                return grad, moments

            _, moments = map_leaves(look, updates, params, state.moments)
            hidden = [view.hidden for view in views]
            entries = _entry_outputs(theta["network"], hidden) if residual else [None] * len(views)
            tensors = _tensor_outputs(theta["tensor"], [view.tensor for view in views])
            leaves, treedef = jax.tree.flatten(params)
            steps = [
                direction(theta, *seen).reshape(jnp.shape(leaf)).astype(leaf.dtype)
                for leaf, *seen in zip(leaves, views, entries, tensors, strict=True)
            ]
            return treedef.unflatten(steps), AdamMLPState(count, moments)

        decay = []
        if decay_power is not None:
            decay = [
                optax.scale_by_schedule(lambda n: (1 - progress(n)) ** jnp.exp(theta["decay"]))
            ]
        return optax.chain(
            optax.GradientTransformationExtraArgs(init, update),
            optax.add_decayed_weights(weight_decay),
            *decay,
            optax.scale_by_learning_rate(learning_rate),
        )

    return checked_optimizer("adam_mlp", init_theta, optimizer)


def _silent(key, sizes):
    """A network whose outputs are zero at first."""
    network = network_init(key, sizes)
    last = f"linear_{len(sizes) - 2}"
    return {**network, last: jax.tree.map(jnp.zeros_like, network[last])}


def _clock(count, progress):
    t = count.astype(progress.dtype)
    return jnp.stack([0.1 * jnp.log(t), 1 / t, progress, jnp.square(progress)])


def _view(theta, grad, param, moments, count, clock, b2, nesterov) -> _View:
    num_axes, t = grad.ndim, count.astype(grad.dtype)

    def corrected(average, decay):
        decays = jnp.asarray(decay, grad.dtype).reshape((-1,) + (1,) * num_axes)
        return average / (1 - decays**t)

    m = corrected(moments.momenta, DECAYS)
    rsqrt = jax.lax.rsqrt(corrected(moments.second, (b2,)) + EPS)
    base = 0.9 * m[:1] + 0.1 / (1 - 0.9**t) * grad[None] if nesterov else m[:1]
    g, p, direction = grad[None], param[None], base * rsqrt
    agreement = normalise(g, eps=EPS, num_axes=num_axes) * normalise(m, eps=EPS, num_axes=num_axes)
    whole = [
        mean(jnp.square(m * rsqrt), num_axes),
        mean(agreement, num_axes),
        0.1 * jnp.log(mean_square(p, num_axes) + 1e-12),
        jnp.asarray(_shape_features(grad.shape), grad.dtype),
        clock.astype(grad.dtype),
    ]
    hidden = None
    if "network" in theta:
        preconditioner = factored_rsqrt(moments.factored, grad.shape)
        planes = [g, p, m, m * rsqrt, g * rsqrt, preconditioner * g, preconditioner * m, rsqrt]
        planes = jnp.concatenate([*planes, direction, base])
        first = jax.tree.map(lambda x: x.astype(grad.dtype), theta["network"]["linear_0"])
        hidden = mix_normalised(first["w"], planes, eps=EPS, num_axes=num_axes)
        hidden = hidden + bias(first["b"], hidden)
    return _View(hidden, jnp.concatenate(whole), direction[0], base[0])


def _shape_features(shape: tuple[int, ...]) -> list[float]:
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1]
    axes = [float(len(shape) == 1), float(len(shape) == 2), float(len(shape) > 2)]
    return [*axes, 0.2 * math.log(fan_in), 0.2 * math.log(fan_out)]


def _entry_outputs(network, hidden: list[Array]) -> list[Array]:
    """The network's two outputs for every entry of every tensor."""
    network = jax.tree.map(lambda x: x.astype(hidden[0].dtype), network)
    sizes = [x[0].size for x in hidden]
    if sum(sizes) > JOINT_ENTRIES or len({x.dtype for x in hidden}) > 1:
        return [after_first(network, x, num_outputs=2) for x in hidden]
    flat = jnp.concatenate([x.reshape(len(x), -1) for x in hidden], axis=1)
    outputs = jnp.split(after_first(network, flat, num_outputs=2), np.cumsum(sizes)[:-1], axis=1)
    return [y.reshape(2, *x.shape[1:]) for x, y in zip(hidden, outputs, strict=True)]


def _tensor_outputs(network, features: list[Array]) -> Array:
    """The logarithmic size and the blend's log-odds of every tensor, one row each."""
    inputs = jnp.stack(features, axis=1)
    network = jax.tree.map(lambda x: x.astype(inputs.dtype), network)
    hidden = mix(network["linear_0"]["w"], inputs)
    hidden = hidden + bias(network["linear_0"]["b"], hidden)
    return after_first(network, hidden, num_outputs=2).T


def _direction(theta, view: _View, entry, tensor, orthogonalise, normalise_output) -> Array:
    def unit(y):
        return normalise(y[None], eps=EPS, num_axes=y.ndim)[0]

    def corrected(direction):
        if entry is None:
            return direction
        return direction * jnp.exp(jnp.clip(entry[1], -LIMIT, LIMIT)) + entry[0]

    log_size, odds = tensor
    size = jnp.clip(log_size, -LIMIT, LIMIT)
    if view.direction.ndim < 2:
        z = corrected(view.direction)
        return (unit(z) if normalise_output else z) * jnp.exp(size + theta["vector"])
    if orthogonalise:
        z = corrected(unit(view.base))
        matrix = z.reshape(-1, z.shape[-1])
        blend = jax.nn.sigmoid(odds + theta["blend"] - BLEND)
        z = (1 - blend) * unit(newton_schulz(matrix)).reshape(z.shape) + blend * unit(z)
    else:
        z = corrected(view.direction)
        z = unit(z) if normalise_output else z
    return z * jnp.exp(size)
