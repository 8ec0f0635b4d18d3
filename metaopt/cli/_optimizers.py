"""From settings to learned optimizers and to the optimizers of theta."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from metaopt import core, eval, learned, optimizers
from metaopt.cli._settings import OptimizerSettings, OuterSettings, RunSettings, known


class _Rule(NamedTuple):
    """A learned optimizer by its name.

    Attributes:
        make: `(learning_rate, **sizes) -> LearnedOptimizer`.
        sizes: those of `hidden_size`, `bank_size`, `step_mult` and `phase` that it has.
        tuned: whether the learning rate is its step size, which a comparison then tunes.
        own_schedule: whether it is used without the cosine of the others: it has a clock or a
            memory of its own, and was meta-trained without one.
    """

    make: Callable[..., core.LearnedOptimizer]
    sizes: tuple[str, ...] = ()
    tuned: bool = False
    own_schedule: bool = False


def _sgd(learning_rate):
    return learned.hyperparameters(
        optax.sgd, learning_rate=learned.positive(learning_rate), momentum=learned.fraction(0.9)
    )


def _adam(learning_rate):
    return learned.hyperparameters(
        optax.adam,
        learning_rate=learned.positive(learning_rate),
        b1=learned.fraction(0.9),
        b2=learned.fraction(0.999),
        eps_root=1e-8,
    )


def _without_rate(make: Callable[..., core.LearnedOptimizer]) -> Callable:
    return lambda learning_rate, **sizes: make(**sizes)


_RULES = {
    "celo2": _Rule(learned.celo2, ("hidden_size",), tuned=True),
    "celo2_mixed": _Rule(learned.celo2_mixed, ("hidden_size",), tuned=True),
    "adam_mlp": _Rule(learned.adam_mlp, ("hidden_size",), tuned=True),
    "mlp": _Rule(_without_rate(learned.mlp), ("hidden_size", "step_mult")),
    "adafac_mlp": _Rule(_without_rate(learned.adafac_mlp), ("hidden_size", "step_mult")),
    "velo": _Rule(
        _without_rate(learned.velo), ("hidden_size", "bank_size", "step_mult"), own_schedule=True
    ),
    "celo": _Rule(
        _without_rate(learned.celo),
        ("hidden_size", "bank_size", "step_mult", "phase"),
        own_schedule=True,
    ),
    "rnn_mlp": _Rule(
        _without_rate(learned.rnn_mlp), ("hidden_size", "step_mult"), own_schedule=True
    ),
    "nn_adam": _Rule(
        lambda learning_rate, **sizes: learned.nn_adam(learning_rate=learning_rate, **sizes),
        ("hidden_size",),
        own_schedule=True,
    ),
    "lstm": _Rule(_without_rate(learned.lstm), ("hidden_size",), own_schedule=True),
    "lstm_raw": _Rule(
        lambda learning_rate, **sizes: learned.lstm(preprocess="raw", output_scale=1.0, **sizes),
        ("hidden_size",),
        own_schedule=True,
    ),
    "sgd": _Rule(_sgd),
    "adam": _Rule(_adam),
}
OPTIMIZERS = tuple(_RULES)
_SIZES = ("hidden_size", "bank_size", "step_mult", "phase")


def make_optimizer(settings: RunSettings) -> core.LearnedOptimizer:
    """The learned optimizer of a run, as it is meta-trained.

    Raises:
        ValueError: for an unknown name, or a setting that the optimizer does not have.
    """
    chosen = settings.optimizer
    optimizer = _rule(chosen, chosen.learning_rate)
    return learned.cosine_decayed(optimizer) if chosen.decay == "cosine" else optimizer


def make_contender(settings: RunSettings, theta: Any, name: str, num_steps: int) -> eval.Baseline:
    """A theta as a contender: its updates follow the cosine that all contenders follow.

    A learning rate that is a step size is tuned like those of the baselines. Rules that schedule
    themselves are used as they were meta-trained.
    """
    trained = settings.optimizer
    rule = _RULES[known("optimizer", trained.name, OPTIMIZERS)]
    if rule.tuned:

        def make(learning_rate):
            schedule = eval.cosine(learning_rate, num_steps)
            return _rule(trained, schedule).optimizer(theta, num_steps=num_steps)

        return eval.Baseline(name, make)

    decay = trained.decay if rule.own_schedule else "cosine"
    used = dataclasses.replace(settings, optimizer=dataclasses.replace(trained, decay=decay))
    optimizer = make_optimizer(used).optimizer(theta, num_steps=num_steps)
    return eval.Baseline(name, lambda _: optimizer, learning_rate=trained.learning_rate)


def make_outer(settings: RunSettings) -> optax.GradientTransformation:
    """The optimizer of theta: clipping, Adam with warm-up and cosine, and what else is asked for.

    In the order: values clipped, the global norm clipped, gradients of several steps averaged,
    Adam (with weight decay), the norm of the update clipped; leaves that Celo's phase does not
    train stay as they are.

    Raises:
        ValueError: for numbers out of range, or a weight decay of plain Adam.
    """
    outer = settings.outer
    _check_outer(outer)
    updates = outer.steps // outer.accumulate
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        outer.learning_rate,
        min(outer.warmup, max(updates - 1, 0)),
        max(updates, 1),
        outer.final_fraction * outer.learning_rate,
    )
    if outer.optimizer == "adamw":
        rule = optax.adamw(schedule, b2=outer.b2, weight_decay=outer.weight_decay)
    elif outer.optimizer == "grams":
        rule = optimizers.grams(schedule, b2=outer.b2)
    elif outer.optimizer == "adagrad_norm":
        rule = optimizers.adagrad_norm(schedule)
    else:
        rule = optax.adam(schedule, b2=outer.b2)
    if outer.update_clip is not None:
        rule = optax.chain(rule, optax.clip_by_global_norm(outer.update_clip))
    if outer.accumulate > 1:
        rule = optax.MultiSteps(rule, outer.accumulate).gradient_transformation()
    if outer.clip is not None:
        rule = optax.chain(optax.clip_by_global_norm(outer.clip), rule)
    if outer.auto_clip is not None:
        rule = optax.chain(optimizers.auto_clip(percentile=outer.auto_clip), rule)
    if outer.clip_value is not None:
        rule = optax.chain(optax.clip(outer.clip_value), rule)
    chosen = settings.optimizer
    if chosen.name == "celo":
        return learned.train_only(rule, learned.celo_trainable(chosen.phase or 2))
    return rule


def _rule(
    chosen: OptimizerSettings, learning_rate: optax.ScalarOrSchedule
) -> core.LearnedOptimizer:
    rule = _RULES[known("optimizer", chosen.name, OPTIMIZERS)]
    if not chosen.learning_rate > 0:
        raise ValueError(f"optimizer.learning_rate must be positive, got {chosen.learning_rate}.")
    given = {name: getattr(chosen, name) for name in _SIZES if getattr(chosen, name) is not None}
    for name in given:
        if name not in rule.sizes:
            takes = f"it has {', '.join(rule.sizes)}" if rule.sizes else "it has no sizes"
            raise ValueError(f"{chosen.name} has no optimizer.{name}; {takes}.")
    optimizer = rule.make(learning_rate, **given)
    if not chosen.mup:
        return optimizer
    return learned.mup(optimizer, lambda p: learned.mup_scale(p, learned.mlp_roles(p)))


def _check_outer(outer: OuterSettings) -> None:
    if outer.steps < 1 or outer.warmup < 0:
        raise ValueError(
            f"outer.steps must be at least 1 and outer.warmup at least 0, "
            f"got {outer.steps} and {outer.warmup}."
        )
    if not 1 <= outer.accumulate <= outer.steps:
        raise ValueError(
            f"outer.accumulate must be between 1 and outer.steps={outer.steps}, "
            f"got {outer.accumulate}."
        )
    if not (outer.learning_rate > 0 and (outer.clip is None or outer.clip > 0)):
        raise ValueError(
            f"outer.learning_rate and outer.clip must be positive, "
            f"got {outer.learning_rate} and {outer.clip}."
        )
    if not (0 <= outer.final_fraction <= 1 and 0 <= outer.b2 < 1):
        raise ValueError(
            f"outer.final_fraction must be in [0, 1] and outer.b2 in [0, 1), "
            f"got {outer.final_fraction} and {outer.b2}."
        )
    if outer.auto_clip is not None and not 0 <= outer.auto_clip <= 100:
        raise ValueError(f"outer.auto_clip must be from 0 to 100, got {outer.auto_clip}.")
    for name in ("clip_value", "update_clip"):
        value = getattr(outer, name)
        if value is not None and not value > 0:
            raise ValueError(f"outer.{name} must be positive, got {value}.")
    if outer.weight_decay and outer.optimizer != "adamw":
        raise ValueError(
            f"outer.weight_decay={outer.weight_decay} needs outer.optimizer=adamw, "
            f"got {outer.optimizer}."
        )
