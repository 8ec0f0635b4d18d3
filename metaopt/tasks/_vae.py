"""Variational autoencoders: a perceptron encodes, noise is added, another one decodes.

    L = (E_q[-ln p(x | z)] + KL(q ‖ N(0, I))) / pixels,    z = μ + exp(½ s) ε,    ε ~ N(0, I)
    KL = ½ Σ (μ² + exp(s) - 1 - s),    (μ, s) = encoder(x)

    bernoulli:  -ln p(x | z) = Σ -x ln σ(o) - (1 - x) ln(1 - σ(o)),    o = decoder(z)
    gaussian:   -ln p(x | z) = Σ (x - o)² / (2 noise²)

This is the negative evidence lower bound, per pixel, with one ε per example. Kingma and Welling
2014, arXiv:1312.6114, eq. 10. The Gaussian lacks its constant, ½ ln(2π noise²) per pixel, so that
no loss is negative.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metaopt.core import Scalar, TaskFamily, checked
from metaopt.data._check import above_zero, at_least_one
from metaopt.tasks._classification import batch_from_pool, check_shape
from metaopt.tasks._mlp import dense_layers
from metaopt.tasks._normalise import relative_log

Likelihood = Literal["bernoulli", "gaussian"]


class ELBO(NamedTuple):
    """The two terms of the loss, in nats per pixel.

    Attributes:
        reconstruction: -ln p(x | z).
        divergence: KL(q ‖ N(0, I)).
    """

    reconstruction: Float[Array, ""]
    divergence: Float[Array, ""]


@checked
def vae(
    input_shape: tuple[int, ...],
    *,
    hidden: Sequence[int] = (32,),
    latent: int = 8,
    activation: str = "tanh",
    likelihood: Likelihood = "bernoulli",
    noise: Scalar = 0.3,
    batch_size: int = 64,
) -> TaskFamily:
    """A variational autoencoder of inputs in [0, 1]; labels are not used.

    The normaliser is `relative_log` of the loss of zero weights and half-grey inputs: ln 2
    (Bernoulli), 1 / (8 noise²) for the guess ½ on binary ones (Gaussian).

    Args:
        input_shape: shape of one input, flattened. Static.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse. Static.
        latent: dimension of z. Static.
        activation: as in `mlp`. Static.
        likelihood: above. Static.
        noise: standard deviation of a pixel, for the Gaussian. Traced.
        batch_size: examples in a minibatch, drawn with replacement. Static.

    Returns:
        A family with `data` a `metaopt.data.Pool`, `task_params = ()`, `params` a dict of
        `"encoder"` and `"decoder"`, each as in `mlp`, and `aux` of type `ELBO`. The key of its
        loss draws ε.

    Raises:
        ValueError: as in `mlp`; or if `latent` is below 1, `likelihood` is unknown or `noise` is
            not positive.
    """
    if likelihood not in get_args(Likelihood):
        raise ValueError(
            f"vae: likelihood={likelihood!r} is unknown; choose from {get_args(Likelihood)}."
        )
    at_least_one("vae", latent=latent, batch_size=batch_size)
    above_zero("vae", noise=noise)
    size = check_shape("vae", input_shape)
    hidden = tuple(hidden)
    init_encoder, encode = dense_layers("vae", (size, *hidden, 2 * latent), activation)
    init_decoder, decode = dense_layers("vae", (latent, *hidden[::-1], size), activation)
    bernoulli = likelihood == "bernoulli"

    def init(task_params, key):
        del task_params
        key_encoder, key_decoder = jax.random.split(key)
        return {"encoder": init_encoder(key_encoder), "decoder": init_decoder(key_decoder)}

    def loss(params, task_params, batch, key):
        del task_params
        targets = batch.inputs.reshape(len(batch.inputs), -1)
        code = _widen(encode(params["encoder"], targets))
        mean, log_variance = code[:, :latent], code[:, latent:]
        eps = jax.random.normal(key, mean.shape, mean.dtype)
        sample = mean + jnp.exp(0.5 * log_variance) * eps
        outputs = _widen(decode(params["decoder"], sample.astype(targets.dtype)))
        if bernoulli:
            surprise = optax.sigmoid_binary_cross_entropy(outputs, targets)
        else:
            surprise = 0.5 * ((targets - outputs) / noise) ** 2
        divergence = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        terms = ELBO(surprise.mean(), divergence.sum(axis=-1).mean() / size)
        return terms.reconstruction + terms.divergence, terms

    return TaskFamily(
        sample=lambda key: (),
        init=init,
        batch=batch_from_pool("vae", input_shape, batch_size),
        loss=loss,
        normalise=relative_log(lambda task_params: math.log(2) if bernoulli else 0.125 / noise**2),
    )


def _widen(values):
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
