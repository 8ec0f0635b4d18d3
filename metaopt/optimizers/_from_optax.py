"""Rules that optax has, made safe to differentiate through.

Each is optax's factory of the same name, with its arguments and updates, inside
`metaopt.unroll.differentiable`: a coordinate that never sees a gradient, or a gradient that is zero
altogether, no longer turns a meta-gradient into NaN. What a rule computes is documented there.
Left out are rules whose updates themselves are not finite at such points (Prodigy and D-Adaptation
where all gradients are zero, Yogi and simplified AdEMAMix where they are huge), COCOB, which has no
learning rate, and SM3, which takes no scalars.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import optax
import optax.contrib

from metaopt.unroll import differentiable

P = ParamSpec("P")


def _safe(
    factory: Callable[P, optax.GradientTransformation],
) -> Callable[P, optax.GradientTransformationExtraArgs]:
    @functools.wraps(factory)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> optax.GradientTransformationExtraArgs:
        return differentiable(factory(*args, **kwargs))

    wrapper.__module__ = __name__
    return wrapper


acprop = _safe(optax.contrib.acprop)
adabelief = _safe(optax.adabelief)
adadelta = _safe(optax.adadelta)
adafactor = _safe(optax.adafactor)
adagrad = _safe(optax.adagrad)
adam = _safe(optax.adam)
adamax = _safe(optax.adamax)
adamw = _safe(optax.adamw)
adan = _safe(optax.adan)
ademamix = _safe(optax.contrib.ademamix)
adopt = _safe(optax.contrib.adopt)
amsgrad = _safe(optax.amsgrad)
dog = _safe(optax.contrib.dog)
dowg = _safe(optax.contrib.dowg)
fromage = _safe(optax.fromage)
lamb = _safe(optax.lamb)
lars = _safe(optax.lars)
lion = _safe(optax.lion)
madgrad = _safe(optax.contrib.madgrad)
momo = _safe(optax.contrib.momo)
momo_adam = _safe(optax.contrib.momo_adam)
muon = _safe(optax.contrib.muon)
nadam = _safe(optax.nadam)
nadamw = _safe(optax.nadamw)
novograd = _safe(optax.novograd)
optimistic_adam = _safe(optax.optimistic_adam_v2)
polyak_sgd = _safe(optax.polyak_sgd)
radam = _safe(optax.radam)
rmsprop = _safe(optax.rmsprop)
rprop = _safe(optax.rprop)
schedule_free_adamw = _safe(optax.contrib.schedule_free_adamw)
schedule_free_sgd = _safe(optax.contrib.schedule_free_sgd)
sgd = _safe(optax.sgd)
sign_sgd = _safe(optax.sign_sgd)
