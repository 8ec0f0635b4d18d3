"""Rules that optax has, made safe to differentiate through.

Each is optax's factory of the same name, with its arguments and updates, inside
`metaopt.unroll.differentiable`: a coordinate that never sees a gradient, or a gradient that is zero
altogether, no longer turns a meta-gradient into NaN. What a rule computes is documented there.
The updates of a few are not finite at such points themselves, which is met where it begins:
Prodigy and D-Adaptation divide by a sum of gradients, so they begin with the first one that is not
zero (a schedule that begins at 0 makes NaN of it all the same: begin above, or pass
`safeguard_warmup=True` to `prodigy`); gradients of Yogi and of simplified AdEMAMix are clipped
where their squares overflow, at 1e16 in float32. `sm3` takes scalars, too.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import optax
import optax.contrib

from metaopt.optimizers._guards import (
    from_first_gradient,
    with_moderate_gradients,
    without_scalars,
)
from metaopt.unroll import differentiable

P = ParamSpec("P")
Guard = Callable[[optax.GradientTransformationExtraArgs], optax.GradientTransformationExtraArgs]


def _safe(
    factory: Callable[P, optax.GradientTransformation], guard: Guard | None = None
) -> Callable[P, optax.GradientTransformationExtraArgs]:
    @functools.wraps(factory)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> optax.GradientTransformationExtraArgs:
        rule = differentiable(factory(*args, **kwargs))
        return rule if guard is None else guard(rule)

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
cocob = _safe(optax.contrib.cocob)
dadapt_adamw = _safe(optax.contrib.dadapt_adamw, from_first_gradient)
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
prodigy = _safe(optax.contrib.prodigy, from_first_gradient)
radam = _safe(optax.radam)
rmsprop = _safe(optax.rmsprop)
rprop = _safe(optax.rprop)
schedule_free_adamw = _safe(optax.contrib.schedule_free_adamw)
schedule_free_sgd = _safe(optax.contrib.schedule_free_sgd)
sgd = _safe(optax.sgd)
sign_sgd = _safe(optax.sign_sgd)
simplified_ademamix = _safe(optax.contrib.simplified_ademamix, with_moderate_gradients)
sm3 = _safe(optax.sm3, without_scalars)
yogi = _safe(optax.yogi, with_moderate_gradients)
