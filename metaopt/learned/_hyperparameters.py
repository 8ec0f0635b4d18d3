"""Learnable hyperparameters of any optax rule.

`theta` holds unconstrained numbers; a smooth bijection maps each to its hyperparameter, so that
any meta-gradient estimator may step freely:

    positive    h = exp(θ)               learning rates, weight decays, epsilons
    fraction    h = 1 / (1 + exp(-θ))    momenta and other decays: 1 - h is resolved in proportion
    real        h = θ                    anything else

Learning rates by gradient descent: Maclaurin et al. 2015, arXiv:1502.03492, §3; Baydin et al. 2018,
arXiv:1703.04782. Some optax rules take a square root of an accumulator that starts at 0:
`optax.adam` with its default `eps_root=0` has NaN meta-gradients as soon as one entry has only seen
zero gradients. Fix `eps_root` to something positive (below) wherever a rule has one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from metaopt import tree
from metaopt.core import LearnedOptimizer, checked
from metaopt.learned._checked import checked_optimizer


class Learnable(NamedTuple):
    """One learnable hyperparameter.

    Attributes:
        init: its part of `theta`: a tree of Python floats.
        value: `(theta, num_steps) -> ` the hyperparameter: a scalar, or an optax schedule.
    """

    init: PyTree
    value: Callable[[PyTree, Any], Any]


@checked
def hyperparameters(
    make_optimizer: Callable[..., optax.GradientTransformation], /, **settings: Any
) -> LearnedOptimizer:
    """An optax rule some of whose hyperparameters are learned.

    For example Adam, with the learning rate and both decays learned and `eps_root` fixed::

        hyperparameters(
            optax.adam,
            learning_rate=positive(1e-3),
            b1=fraction(0.9),
            b2=fraction(0.999),
            eps_root=1e-8,
        )

    Args:
        make_optimizer: `(**settings) -> optax.GradientTransformation`. Learned settings reach it as
            traced scalars, or as schedules.
        **settings: its keyword arguments. Those that are `Learnable` are learned, the others are
            fixed.

    Returns:
        A learned optimizer; `theta` is a dict from the learned settings' names to their `init`, as
        arrays of the default float dtype. `init(key)` does not depend on the key. Updates and the
        rule's state keep their dtypes, whatever those of `theta`.

    Raises:
        ValueError: if no setting is `Learnable`.
    """
    learnable = {name: x for name, x in settings.items() if isinstance(x, Learnable)}
    fixed = {name: x for name, x in settings.items() if not isinstance(x, Learnable)}
    if not learnable:
        raise ValueError(
            f"hyperparameters: settings={sorted(settings)} has nothing to learn; wrap at least one "
            "initial value, as in learning_rate=positive(1e-3)."
        )

    def init(key):
        del key
        return {
            name: jax.tree.map(lambda x: jnp.asarray(x, float), x.init)
            for name, x in learnable.items()
        }

    def optimizer(theta, *, num_steps=None):
        learned = {name: x.value(theta[name], num_steps) for name, x in learnable.items()}
        rule = optax.with_extra_args_support(make_optimizer(**fixed, **learned))

        def update(updates, state, params=None, **extra):
            new_updates, new_state = rule.update(updates, state, params, **extra)
            # Learned settings are arrays, and promote narrower gradients where numbers would not.
            return tree.cast_like(new_updates, updates), tree.cast_like(new_state, state)

        return optax.GradientTransformationExtraArgs(rule.init, update)

    return checked_optimizer("hyperparameters", init, optimizer)


@checked
def positive(value: float) -> Learnable:
    """A positive number, learned in log space.

    Args:
        value: where it starts.

    Raises:
        ValueError: if `value` is not positive.
    """
    return Learnable(log("positive", "value", value), lambda theta, _: jnp.exp(theta))


@checked
def fraction(value: float) -> Learnable:
    """A number between 0 and 1, learned as log-odds.

    Args:
        value: where it starts.

    Raises:
        ValueError: if `value` is not strictly between 0 and 1.
    """
    return Learnable(log_odds("fraction", "value", value), lambda theta, _: jax.nn.sigmoid(theta))


@checked
def real(value: float) -> Learnable:
    """Any number, learned as it is.

    Args:
        value: where it starts.
    """
    return Learnable(float(value), lambda theta, _: theta)


def log(function: str, name: str, value: float) -> float:
    """The parameter of a positive number, checked."""
    if not value > 0:
        raise ValueError(
            f"{function}: {name}={value} is not positive; start above 0, or use real(...)."
        )
    return math.log(value)


def log_odds(function: str, name: str, value: float) -> float:
    """The parameter of a number between 0 and 1, checked."""
    if not 0 < value < 1:
        raise ValueError(
            f"{function}: {name}={value} is not strictly between 0 and 1; start inside, or fix it."
        )
    return math.log(value) - math.log1p(-value)
