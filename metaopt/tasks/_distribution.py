"""A distribution over task families, sampled on the host: the design of VeLO's.

Three nested draws: a budget of time per inner step; a model class, uniformly among those that the
pools allow; and sizes of that class, drawn anew until the estimated time is within the budget.

    estimated seconds = operations of a loss and its gradient / operations per second

What is drawn here is static, one compiled program per family; what distinguishes the tasks of a
family, such as the scale of their initial parameters, is traced. Metz et al. 2022,
arXiv:2211.09760, and its public code. Differs: times come from a count of operations instead of a
learned timing network; networks are smaller, as are the pools; residual networks and the training
of another learned optimizer are not among the classes, logistic regression and quadratics are;
families with several activations in one program are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.core import TaskFamily, checked
from metaopt.data import Pool, TextPool
from metaopt.data._check import above_zero, at_least_one
from metaopt.tasks._augment import scaled_init
from metaopt.tasks._augmented import log_integer
from metaopt.tasks._autoencoder import autoencoder
from metaopt.tasks._convnet import convnet
from metaopt.tasks._cost import step_operations
from metaopt.tasks._logistic import logistic
from metaopt.tasks._mlp import mlp
from metaopt.tasks._normalise import velo_classification
from metaopt.tasks._quadratic import quadratic
from metaopt.tasks._rnn_lm import rnn_lm
from metaopt.tasks._transformer_lm import transformer_lm
from metaopt.tasks._vae import vae
from metaopt.tasks._vision_transformer import vision_transformer

_ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "leaky_relu", "sigmoid")
_MAX_ATTEMPTS = 512
_LANGUAGE_SECONDS = 1e-4  # VeLO draws language models from this budget on.


class SampledFamily(NamedTuple):
    """What `sample_family` draws.

    Attributes:
        name: class and pool, such as `"mlp/digits"`.
        family: the family.
        data: its pool, on the device; images may be smaller than the original ones.
        seconds: estimated time of an inner step of one task, without the optimizer.
        settings: what was drawn, in plain Python, for a record.
    """

    name: str
    family: TaskFamily
    data: Any
    seconds: float
    settings: dict[str, Any]


@checked
def sample_family(
    pools: Mapping[str, Pool | TextPool],
    rng: np.random.Generator,
    *,
    seconds: float | Mapping[float, float] = 1e-4,
    operations_per_second: float = 5e9,
    classes: Sequence[str] | None = None,
    max_batch_size: int = 512,
) -> SampledFamily:
    """Draws a task family within a budget of time per inner step.

    Sizes are log-uniform integers: widths 8 to 128, batches 4 to `max_batch_size`, image sides 4 to
    that of the pool. Initial parameters are scaled per task by 0.5 to 2, log-uniformly. Losses of
    classifiers and language models are normalised by `velo_classification`.

    Args:
        pools: labelled pools and texts, by name. Images have shape [n, height, width, channels]
            and values in [0, 1]; other inputs serve perceptrons and logistic regression alone.
        rng: NumPy's generator.
        seconds: budget, or several with their weights, which need not sum to 1. VeLO's first phase
            has `{2e-5: 0.65, 1e-4: 0.3, 4e-4: 0.1, 1e-3: 0.05}`.
        operations_per_second: what the budget counts on; about one CPU core at these sizes.
        classes: those to draw from: mlp, convnet, autoencoder, vae, vision_transformer, logistic,
            rnn_lm, transformer_lm, quadratic; None: all that the pools allow, language models from
            a budget of 1e-4 s on.
        max_batch_size: largest batch.

    Returns:
        The family with its pool.

    Raises:
        ValueError: if a class is unknown or the pools do not allow any, a number is not positive,
            or 512 draws of the class were all above the budget.
    """
    above_zero("sample_family", operations_per_second=operations_per_second)
    at_least_one("sample_family", max_batch_size=max_batch_size)
    budget = _draw_budget(seconds, rng)
    name = _draw_class(pools, classes, budget, rng)
    make = _CLASSES[name].make
    cheapest = float("inf")
    for _ in range(_MAX_ATTEMPTS):
        batch_size = log_integer(rng, min(4, max_batch_size), max_batch_size)
        choices = [key for key, pool in pools.items() if _allows(name, pool)]
        pool_name = str(rng.choice(choices)) if choices else ""
        family, data, settings = make(pools.get(pool_name, ()), batch_size, rng)
        estimate = step_operations(family, data) / operations_per_second
        cheapest = min(cheapest, estimate)
        if estimate <= budget:
            if "input_shape" in settings:  # Until now the smaller images were shapes alone.
                images: Any = pools[pool_name]
                data = _resized(images, settings["input_shape"])
            label = f"{name}/{pool_name}" if pool_name else name
            settings = {"class": name, "pool": pool_name, "budget": budget, **settings}
            return SampledFamily(label, scaled_init(family), data, estimate, settings)
    raise ValueError(
        f"sample_family: {_MAX_ATTEMPTS} draws of {name!r} take at least {cheapest:.1e} s a step, "
        f"the budget is {budget:.1e} s; raise seconds, or leave the class out of classes."
    )


class _Class(NamedTuple):
    """A model class.

    Attributes:
        needs: "images", "labels", "text" or "nothing".
        make: `(pool, batch_size, rng) -> (family, data, settings)`.
    """

    needs: str
    make: Callable[..., tuple[TaskFamily, Any, dict[str, Any]]]


def _on_images(draw: Callable) -> Callable:
    """A class on images of a drawn side; `draw(shape, num_classes, rng) -> (factory, settings)`."""

    def make(pool, batch_size, rng):
        num, *shape = pool.inputs.shape
        if len(shape) == 3:
            side = log_integer(rng, min(4, shape[0]), shape[0])
            shape = (side, side, shape[2])
        pool = pool._replace(inputs=jax.ShapeDtypeStruct((num, *shape), pool.inputs.dtype))
        num_classes = int(np.max(np.asarray(pool.labels))) + 1
        shape = tuple(shape)
        factory, settings = draw(shape, num_classes, rng)
        family = factory(**settings, batch_size=batch_size)
        return family, pool, {"input_shape": shape, "batch_size": batch_size, **settings}

    return make


def _draw_mlp(shape, num_classes, rng):
    hidden = (log_integer(rng, 8, 128),) * int(rng.integers(5))
    return _classifier(mlp, shape, num_classes), {"hidden": hidden, "activation": _activation(rng)}


def _draw_logistic(shape, num_classes, rng):
    return _classifier(logistic, shape, num_classes), {"l2": float(10 ** rng.uniform(-5, -1))}


def _draw_convnet(shape, num_classes, rng):
    channels = tuple(log_integer(rng, 4, 32) for _ in range(rng.integers(1, 4)))
    settings = {"channels": channels, "activation": _activation(rng)}
    return _classifier(convnet, shape, num_classes), settings


def _draw_vision_transformer(shape, num_classes, rng):
    patches = [p for p in (1, 2, 4) if shape[0] % p == 0 and shape[1] % p == 0]
    heads = int(2 ** rng.integers(3))
    settings = {
        "patch": int(rng.choice(patches)),
        "depth": int(rng.integers(1, 4)),
        "width": heads * log_integer(rng, 4, 16),
        "heads": heads,
    }
    return _classifier(vision_transformer, shape, num_classes), settings


def _draw_autoencoder(shape, num_classes, rng):
    del num_classes
    outer, code = log_integer(rng, 8, 128), log_integer(rng, 2, 16)
    middle = (outer,) * int(rng.integers(3))
    loss = ("squared_error", "cross_entropy")[rng.integers(2)]
    settings = {
        "hidden": (*middle, code, *middle),
        "activation": _activation(rng),
        "reconstruction": loss,
    }
    return lambda **settings: autoencoder(shape, **settings), settings


def _draw_vae(shape, num_classes, rng):
    del num_classes
    hidden = (log_integer(rng, 8, 128),) * int(rng.integers(1, 3))
    settings = {
        "hidden": hidden,
        "latent": log_integer(rng, 2, 16),
        "activation": _activation(rng),
    }
    return lambda **settings: vae(shape, **settings), settings


def _make_rnn_lm(pool, batch_size, rng):
    settings = {
        "cell": ("vanilla", "gru", "lstm")[rng.integers(3)],
        "hidden": log_integer(rng, 8, 64),
        "embed": log_integer(rng, 8, 64),
        "length": log_integer(rng, 8, 32),
    }
    return _language_model(rnn_lm, pool, batch_size, settings)


def _make_transformer_lm(pool, batch_size, rng):
    heads = int(2 ** rng.integers(3))
    settings = {
        "depth": int(rng.integers(1, 4)),
        "width": heads * log_integer(rng, 4, 16),
        "heads": heads,
        "length": log_integer(rng, 8, 32),
    }
    return _language_model(transformer_lm, pool, batch_size, settings)


def _make_quadratic(pool, batch_size, rng):
    del pool, batch_size
    settings = {"dim": log_integer(rng, 2, 64), "min_eig": float(10 ** rng.uniform(-4, -1))}
    return quadratic(**settings), (), settings


_CLASSES = {
    "mlp": _Class("labels", _on_images(_draw_mlp)),
    "convnet": _Class("images", _on_images(_draw_convnet)),
    "autoencoder": _Class("images", _on_images(_draw_autoencoder)),
    "vae": _Class("images", _on_images(_draw_vae)),
    "vision_transformer": _Class("images", _on_images(_draw_vision_transformer)),
    "logistic": _Class("labels", _on_images(_draw_logistic)),
    "rnn_lm": _Class("text", _make_rnn_lm),
    "transformer_lm": _Class("text", _make_transformer_lm),
    "quadratic": _Class("nothing", _make_quadratic),
}


def _classifier(factory, shape, num_classes):
    def make(**settings):
        family = factory(shape, num_classes, **settings)
        return family._replace(normalise=velo_classification(num_classes))

    return make


def _language_model(factory, pool, batch_size, settings):
    vocab_size = int(np.max(np.asarray(pool.tokens))) + 1
    # A window is as much work as that many images.
    batch_size = max(1, batch_size // settings["length"])
    family = factory(vocab_size, **settings, batch_size=batch_size)
    family = family._replace(normalise=velo_classification(vocab_size))
    return family, pool, {"vocab_size": vocab_size, "batch_size": batch_size, **settings}


def _activation(rng) -> str:
    return _ACTIVATIONS[rng.integers(len(_ACTIVATIONS))]


def _resized(pool: Pool, shape: tuple[int, ...]) -> Pool:
    if pool.inputs.shape[1:] == shape:
        return pool
    inputs = jnp.asarray(pool.inputs)
    return pool._replace(inputs=jax.image.resize(inputs, (len(inputs), *shape), "linear"))


def _allows(name: str, pool: Any) -> bool:
    needs = _CLASSES[name].needs
    if needs == "text":
        return hasattr(pool, "tokens")
    if needs == "labels":
        return hasattr(pool, "labels")
    return needs == "images" and hasattr(pool, "labels") and pool.inputs.ndim == 4


def _draw_budget(seconds: float | Mapping[float, float], rng) -> float:
    budgets = seconds if isinstance(seconds, Mapping) else {seconds: 1.0}
    for budget, weight in budgets.items():
        above_zero("sample_family", seconds=budget, weight=weight)
    weights = np.array(list(budgets.values()), float)
    return float(rng.choice(list(budgets), p=weights / weights.sum()))


def _draw_class(pools, classes, budget: float, rng) -> str:
    for name in classes or ():
        if name not in _CLASSES:
            raise ValueError(f"sample_family: unknown class {name!r}; choose from {[*_CLASSES]}.")
    allowed = [
        name
        for name in classes or _CLASSES
        if _CLASSES[name].needs == "nothing" or any(_allows(name, p) for p in pools.values())
    ]
    if classes is None and budget < _LANGUAGE_SECONDS:
        allowed = [name for name in allowed if _CLASSES[name].needs != "text"]
    if not allowed:
        raise ValueError(
            f"sample_family: the pools {[*pools]} serve none of the classes {list(classes or ())}; "
            "add labelled images or a text."
        )
    return allowed[rng.integers(len(allowed))]
