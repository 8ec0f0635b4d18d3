"""A recurrent network per tensor that talks to an MLP per entry (RNNMLPLOpt).

For every tensor, from its gradient g clipped entrywise to ten times a running size of gradients,
momenta m and second moments r (decays 0.5, 0.9, 0.99, 0.999, 0.9999):

    h, c <- LSTM(z, message to all, message from its MLP, features of the tensor; h, c)
    message to all  <- mean over tensors of W_1 h + b_1,     v = W_2 h + b_2
    (a, s, out) = network(n(g), n(p), n(ln(|p| + 1e-8)), n(m), n(r), n(mρ), n(ρ), sin(t/(π τ_1)),
                          ..., sin(t/(π τ_11)), ln(tensors) - 1, ln(‖p‖ + 1e-8), ln(entries), v)
    p <- p - step_mult · a · exp(exp_mult · s),     message from the MLP <- mean over entries of out

with n(x) = x / √(1e-5 + mean(x²)) over the tensor, ρ = 1/√(r + 1e-6) and t the steps taken before
this one. z holds the training loss l and an average of validation losses (decay 0.95; 0 if there
were none), both on the scale of recent training losses: z(x) = clip((x - μ)/√(σ² + 1e-8), ±5), with
averages of decay 0.9, μ of l and σ² of (l - μ)², corrected for their bias.

Features of the tensor, with L(x) = clip(ln(1e-8 + |x|), ±5), means and variances over entries and
decays: L(‖g‖); ±1 for a scalar or not; L and sign of mean m, of mean r, of mean p; L(‖p‖);
ln(length) - 1 of four axes; z; L(var m), L(var r), L(var p). The order of the inputs is that of the
original. The clip's size V starts as the average of one gradient of size 1 and takes in, after
clipping, √(1e-8 + mean over tensors of mean(g²)), at decay 0.99.

Metz et al. 2020, arXiv:2009.11243. Differs from the public code: a validation loss comes with a
training step, so it does not advance t; corrections of bias are exact (1e-8 was added to 1 - 0.9ⁿ).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import LearnedOptimizer, Scalar, checked
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import CLOCK_SCALES, ema, init_leaves, map_leaves, zeros
from metaopt.learned._network import (
    after_first,
    bias,
    hidden_sizes,
    mix,
    mix_normalised,
    network_init,
)
from metaopt.learned._recurrent import LSTMState, dense, dense_init, lstm, lstm_init

DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
NUM_PLANES, NUM_TENSOR_FEATURES, NUM_CONSTANTS = 3 + 4 * len(DECAYS), 18, 14
MAX_AXES = 4
# Numbers in the messages: to all tensors, from a tensor's MLP, to it.
TO_ALL, FROM_MLP, TO_MLP = 18, 16, 17


class RNNMLPMoments(NamedTuple):
    """Averages of gradients and of their squares; in the state, trees like the parameters."""

    momenta: Float[Array, "5 ..."]
    second: Float[Array, "5 ..."]


class LossAverage(NamedTuple):
    """Averages of a loss and of its squared deviations, before correction of their bias."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    count: Int[Array, ""]


class RNNMLPState(NamedTuple):
    """What the optimizer carries; tensors are in the order of the tree's leaves.

    Attributes:
        count: steps taken.
        moments: see `RNNMLPMoments`.
        carry: the recurrent network's memory of every tensor.
        from_mlp: messages from each tensor's MLP.
        to_all: the message to all tensors.
        train, validation: averages of losses.
        size: running size of gradients, which they are clipped by.
    """

    count: Int[Array, ""]
    moments: RNNMLPMoments
    carry: LSTMState
    from_mlp: Float[Array, "tensors 16"]
    to_all: Float[Array, "18"]
    train: LossAverage
    validation: LossAverage
    size: Float[Array, ""]


@checked
def rnn_mlp(
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    lstm_size: int = 64,
    step_mult: Scalar = 1e-3,
    exp_mult: Scalar = 1e-3,
) -> LearnedOptimizer:
    """An LSTM per tensor and an MLP per entry, which exchange messages: some 36 000 weights.

    Its `update` needs `value=`, the training loss, and takes `validation_value=`, a validation
    loss, with the steps for which there is one. Memory: ten numbers per parameter.

    Args:
        hidden_size: width of the MLP's hidden layers. Static.
        hidden_layers: their number. Static.
        lstm_size: of the recurrent network. Static.
        step_mult: multiplies steps. Traced.
        exp_mult: multiplies the second output before the exponential. Traced.

    Returns:
        A learned optimizer. `theta` is `{"lstm": {"w": (52 + s, 4s), "b": (4s,)}, "to_all": {"w":
        (s, 18), ...}, "to_mlp": {"w": (s, 17), ...}, "mlp": {"linear_0": {"w": (54, h), ...},
        ..., "linear_2": {"w": (h, 18), ...}}, "state": {"hidden": (s,), "cell": (s,), "from_mlp":
        (16,), "to_all": (18,)}}`; "state" is where memories and messages start.

    Raises:
        ValueError: if a size is below 1; in `update`, if it is not given the parameters and the
            loss, or a tensor has more than four axes.
    """
    widths = hidden_sizes("rnn_mlp", hidden_size, hidden_layers)
    sizes = (NUM_PLANES + NUM_CONSTANTS + TO_MLP, *widths, 2 + FROM_MLP)
    if lstm_size < 1:
        raise ValueError(f"rnn_mlp: lstm_size={lstm_size} is below 1; use a positive size.")

    def init_theta(key):
        key_lstm, key_all, key_mlp, key_network, key_from, key_to = jax.random.split(key, 6)
        num_inputs = TO_ALL + FROM_MLP + NUM_TENSOR_FEATURES
        return {
            "lstm": lstm_init(key_lstm, num_inputs, lstm_size),
            "to_all": dense_init(key_all, lstm_size, TO_ALL),
            "to_mlp": dense_init(key_mlp, lstm_size, TO_MLP),
            "mlp": network_init(key_network, sizes),
            "state": {
                "hidden": jnp.zeros(lstm_size),
                "cell": jnp.zeros(lstm_size),
                "from_mlp": dense_init(key_from, FROM_MLP, 1)["w"][:, 0],
                "to_all": dense_init(key_to, TO_ALL, 1)["w"][:, 0],
            },
        }

    def optimizer(theta, *, num_steps=None):
        del num_steps

        def update(updates, state, params=None, *, value=None, validation_value=None, **extra):
            del extra
            _check_update(params, value)
            if not jax.tree.leaves(updates):
                return updates, state
            return _update(
                theta, state, updates, params, value, validation_value, step_mult, exp_mult
            )

        return optax.GradientTransformationExtraArgs(lambda params: _init(theta, params), update)

    return checked_optimizer("rnn_mlp", init_theta, optimizer)


def _check_update(params, value):
    if params is None or value is None:
        raise ValueError(
            "rnn_mlp: update needs params and the loss; pass update(grads, state, params, value=)."
        )
    if any(jnp.ndim(p) > MAX_AXES for p in jax.tree.leaves(params)):
        raise ValueError(f"rnn_mlp: a tensor has more than {MAX_AXES} axes; merge some.")


def _init(theta, params) -> RNNMLPState:
    leaves = jax.tree.leaves(params)
    dtype = jnp.result_type(jnp.float32, *leaves)
    start = jax.tree.map(lambda x: x.astype(dtype), theta["state"])
    repeated = {name: jnp.tile(x[None], (len(leaves), 1)) for name, x in start.items()}

    def average():
        return LossAverage(jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.zeros((), jnp.int32))

    return RNNMLPState(
        count=jnp.zeros((), jnp.int32),
        moments=init_leaves(
            lambda p: RNNMLPMoments(zeros(p, len(DECAYS)), zeros(p, len(DECAYS))), params
        ),
        carry=LSTMState(repeated["hidden"], repeated["cell"]),
        from_mlp=repeated["from_mlp"],
        to_all=start["to_all"],
        train=average(),
        validation=average(),
        size=jnp.asarray(0.01, dtype),
    )


def _update(theta, state, grads, params, value, validation_value, step_mult, exp_mult):
    dtype = state.size.dtype
    theta = jax.tree.map(lambda x: x.astype(dtype), theta)
    train, validation, losses = _losses(state, value, validation_value)
    # The bias correction counts one more gradient than there were: the size starts as that of one.
    limit = 10 * state.size / (1 - 0.99 ** (state.count + 1).astype(dtype))
    leaves, shapes = jax.tree.leaves(params), [p.shape for p in jax.tree.leaves(params)]
    clipped, moments, features = [], [], []

    def accumulate(grad, param, moments):
        bound = limit.astype(grad.dtype)
        grad = jnp.clip(grad, -bound, bound)
        moments = RNNMLPMoments(
            ema(moments.momenta, grad, DECAYS), ema(moments.second, jnp.square(grad), DECAYS)
        )
        clipped.append(grad)
        features.append(_tensor_features(grad, param, moments, losses, shapes[len(features)]))
        return grad, moments

    _, moments = map_leaves(accumulate, grads, params, state.moments)
    mean_square = sum(jnp.mean(jnp.square(g)).astype(dtype) for g in clipped) / len(clipped)
    inputs = [
        jnp.broadcast_to(state.to_all[None], (len(leaves), TO_ALL)),
        state.from_mlp,
        jnp.stack([f.astype(dtype) for f in features]),
    ]
    outputs, carry = lstm(theta["lstm"], state.carry, jnp.concatenate(inputs, axis=-1))
    messages, from_mlp = iter(dense(theta["to_mlp"], outputs)), []
    gradients = iter(clipped)

    def step(_, param, moments):
        constants = _constants(param, state.count, len(leaves), next(messages))
        out = _outputs(theta["mlp"], next(gradients), param, moments, constants)
        from_mlp.append(jnp.mean(out[2:], axis=tuple(range(1, out.ndim))).astype(dtype))
        return -step_mult * out[0] * jnp.exp(exp_mult * out[1]), moments

    updates, moments = map_leaves(step, grads, params, moments)
    return updates, RNNMLPState(
        count=jnp.asarray(optax.safe_increment(state.count)),
        moments=moments,
        carry=carry,
        from_mlp=jnp.stack(from_mlp),
        to_all=jnp.mean(dense(theta["to_all"], outputs), axis=0),
        train=train,
        validation=validation,
        size=0.99 * state.size + 0.01 * jnp.sqrt(1e-8 + mean_square),
    )


def _losses(state: RNNMLPState, value, validation_value):
    """The averages after this step's losses, and the two features z."""
    dtype = state.size.dtype
    value = jnp.asarray(value, dtype)
    train, validation = _average(state.train, value, 0.9), state.validation
    if validation_value is not None:
        validation = _average(validation, jnp.asarray(validation_value, dtype), 0.95)

    def corrected(average, x, decay):
        count = jnp.maximum(average.count, 1).astype(dtype)
        return x / (1 - decay**count)

    mean, variance = (corrected(train, x, 0.9) for x in (train.mean, train.variance))

    def relative(loss):
        return jnp.clip((loss - mean) * jax.lax.rsqrt(variance + 1e-8), -5, 5)

    return (
        train,
        validation,
        [relative(value), relative(corrected(validation, validation.mean, 0.95))],
    )


def _average(average: LossAverage, loss, decay) -> LossAverage:
    mean = decay * average.mean + (1 - decay) * loss
    variance = decay * average.variance + (1 - decay) * jnp.square(mean - loss)
    return LossAverage(mean, variance, average.count + 1)


def _tensor_features(grad, param, moments, losses, shape) -> Float[Array, "18"]:
    means, variances = [], []
    for x in (*moments, param):
        means.append(jnp.mean(x))
        variances.append(jnp.mean(jnp.square(x - means[-1])))
    lengths = [*shape, *[1] * (MAX_AXES - len(shape))]
    features = [
        _log_size(_norm(grad)),
        1.0 if shape == () else -1.0,
        *[f(mean) for mean in means for f in (_log_size, jnp.sign)],
        _log_size(_norm(param)),
        *(jnp.log(jnp.asarray(lengths, grad.dtype)) - 1),
        *losses,
        *[_log_size(variance) for variance in variances],
    ]
    return jnp.stack([jnp.asarray(x, grad.dtype) for x in features])


def _constants(param, count, num_tensors, message) -> Float[Array, "31"]:
    """The MLP's inputs that are the same for all entries of a tensor."""
    time = count.astype(param.dtype) / (jnp.pi * jnp.asarray(CLOCK_SCALES, param.dtype))
    scalars = [jnp.log(float(num_tensors)) - 1, jnp.log(_norm(param) + 1e-8)]
    scalars.append(jnp.log(float(param.size)))
    return jnp.concatenate(
        [jnp.sin(time), jnp.stack(scalars).astype(param.dtype), message.astype(param.dtype)]
    )


def _outputs(theta: PyTree, grad, param, moments: RNNMLPMoments, constants) -> Array:
    theta = jax.tree.map(lambda x: x.astype(grad.dtype), theta)
    m, r = moments
    rsqrt = jax.lax.rsqrt(r + 1e-6)
    log_param = jnp.log(jnp.abs(param) + 1e-8)
    # In the order of the original, so that its weights fit.
    planes = jnp.concatenate([grad[None], param[None], log_param[None], m, r, m * rsqrt, rsqrt])
    weights, offset = theta["linear_0"]["w"], theta["linear_0"]["b"]
    offset = offset + mix(weights[NUM_PLANES:], constants)
    hidden = mix_normalised(weights[:NUM_PLANES], planes, eps=1e-5, num_axes=grad.ndim)
    return after_first(theta, hidden + bias(offset, hidden), num_outputs=2 + FROM_MLP)


def _norm(x: Array) -> Array:
    """The Euclidean norm, with derivative 0 at 0."""
    square = jnp.sum(jnp.square(x))
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.sqrt(safe), 0)


def _log_size(x: Array) -> Array:
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5, 5)
