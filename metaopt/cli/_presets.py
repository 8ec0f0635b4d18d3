"""Presets: published recipes of meta-training at a size that two cores take minutes for.

What each of them reduces is in its comment; names of settings are those of `_settings`.
"""

from typing import NamedTuple

from metaopt.cli._settings import (
    EstimatorSettings,
    EvalSettings,
    OptimizerSettings,
    OuterSettings,
    RunSettings,
    TaskSettings,
    known,
)


class Preset(NamedTuple):
    """Settings with what they are, in words."""

    settings: RunSettings
    text: str


_SHORT_EVAL = EvalSettings(grid_per_decade=2, tuning_seeds=3, seeds=5, held_out=())

_QUICK = RunSettings(
    estimator=EstimatorSettings(num_tasks=8), outer=OuterSettings(steps=400), eval=_SHORT_EVAL
)

# Andrychowicz et al. 2016, arXiv:1606.04474: 128 functions of 10 variables, windows of 20 of 100
# steps, Adam 1e-3. Reduced: 64 functions, 1,000 updates instead of 50,000.
_L2L = RunSettings(
    task=TaskSettings(names=("least_squares",)),
    optimizer=OptimizerSettings(name="lstm_raw", decay="none"),
    estimator=EstimatorSettings(
        name="truncated_backprop",
        truncation=20,
        horizon=(100, 100),
        num_tasks=64,
        gradient="first_order",
    ),
    outer=OuterSettings(steps=1000, learning_rate=1e-3, warmup=0, final_fraction=1.0, b2=0.999),
    eval=EvalSettings(
        horizon=100, grid=(1e-2, 10.0), grid_per_decade=2, tuning_seeds=10, seeds=20, held_out=()
    ),
)

# Thérien et al. 2024, arXiv:2406.00153 (muLO): perceptrons in muP, PES, AdamW with the clip after
# it. Reduced: digits instead of 32 x 32 images, width 32 instead of 128, batches of 64 instead of
# 4,096, trajectories up to 500 instead of 1,000 steps, 400 updates instead of 5,000.
_MULO = RunSettings(
    task=TaskSettings(names=("digits/mup_mlp",), hidden=(32, 32), batch_size=64),
    optimizer=OptimizerSettings(
        name="adafac_mlp", decay="none", hidden_size=32, step_mult=1e-2, mup=True
    ),
    estimator=EstimatorSettings(horizon=(100, 500), num_tasks=8),
    outer=OuterSettings(
        steps=400,
        learning_rate=3e-3,
        warmup=20,
        final_fraction=1 / 3,
        b2=0.999,
        optimizer="adamw",
        weight_decay=1e-4,
        clip=None,
        update_clip=1.0,
    ),
    eval=EvalSettings(grid_per_decade=2, tuning_seeds=3, seeds=5, held_out=("wider",)),
)

# Celo, 2025, arXiv:2501.12670, and Celo2, 2026, arXiv:2602.19142: four image sets at 8 x 8, one
# hidden layer of 32, batches of 64, one scale per task. Reduced: embedded and procedural pools
# instead of four image sets, scales within 0.1..10 instead of 1e-3..1e3, trajectories up to 500
# instead of 2,000 steps, a few hundred updates at 3e-3 instead of 100,000 at 3e-4 or less.
_FOUR_POOLS = TaskSettings(
    names=("digits/mlp", "strokes/mlp", "mixture/mlp", "teacher/mlp"),
    batch_size=64,
    augment=("rescale",),
)
_FOUR_PES = EstimatorSettings(horizon=(100, 500), num_tasks=8)
_CELO_OUTER = OuterSettings(
    steps=300, learning_rate=3e-3, warmup=20, optimizer="adamw", weight_decay=1e-4, clip=None
)
_CELO_1 = RunSettings(
    task=_FOUR_POOLS,
    optimizer=OptimizerSettings(name="celo", decay="none", phase=1),
    estimator=_FOUR_PES,
    outer=_CELO_OUTER,
    eval=_SHORT_EVAL,
)
_CELO_2 = RunSettings(
    task=_FOUR_POOLS,
    optimizer=OptimizerSettings(name="celo", decay="none", phase=2),
    estimator=_FOUR_PES,
    outer=_CELO_OUTER,
    eval=_SHORT_EVAL,
    seed=1,
)
_CELO2 = RunSettings(
    task=_FOUR_POOLS,
    optimizer=OptimizerSettings(name="celo2_mixed", learning_rate=1e-2, decay="none"),
    estimator=_FOUR_PES,
    outer=_CELO_OUTER,
    eval=_SHORT_EVAL,
)

# Metz et al. 2022, arXiv:2211.09760 (VeLO): families drawn from a distribution, whole trajectories,
# the sign of the difference of last losses, entries clipped to 3, gradients of 4 and then 10 steps
# averaged, Adam 3e-4; every phase draws new families, with a larger budget and longer trajectories.
# Reduced: an LSTM of 32 units and a bank of 8 instead of 512 and 256, four families at a time
# instead of 512, trajectories up to 100 and 300 instead of 20,000 steps, their last training loss
# instead of one over 100 batches, two phases of some hundred steps at 3e-3 instead of four of
# 100,000.
_VELO_1 = RunSettings(
    task=TaskSettings(batch_size=64, sampled=3, sampled_seed=1, sampled_seconds=1e-4),
    optimizer=OptimizerSettings(name="velo", decay="none", hidden_size=32, bank_size=8),
    estimator=EstimatorSettings(
        name="es", horizon=(20, 100), num_tasks=8, sign=True, objective="last"
    ),
    outer=OuterSettings(
        steps=200, learning_rate=3e-3, warmup=5, b2=0.999, clip=None, clip_value=3.0, accumulate=4
    ),
    eval=_SHORT_EVAL,
)
_VELO_2 = RunSettings(
    task=TaskSettings(batch_size=64, sampled=3, sampled_seed=2, sampled_seconds=4e-4),
    optimizer=_VELO_1.optimizer,
    estimator=EstimatorSettings(
        name="es", horizon=(20, 300), num_tasks=8, sign=True, objective="last"
    ),
    outer=OuterSettings(
        steps=100, learning_rate=1e-3, warmup=2, b2=0.999, clip=None, clip_value=3.0, accumulate=10
    ),
    eval=_SHORT_EVAL,
    seed=1,
)

PRESETS = {
    "quick": Preset(_QUICK, "the digits run in about three minutes on two cores"),
    "digits": Preset(
        RunSettings(), "a Celo2-style rule on embedded digits, within half an hour on two cores"
    ),
    "l2l": Preset(_L2L, "the coordinate-wise LSTM of L2L on random quadratics"),
    "mulo": Preset(_MULO, "muLO: an MLP rule on perceptrons in muP"),
    "celo2": Preset(_CELO2, "Celo2 on four pools: orthogonalised rule and Adam"),
    "celo_1": Preset(_CELO_1, "Celo, phase 1: the rule"),
    "celo_2": Preset(_CELO_2, "Celo, phase 2: the schedule; starts from the theta of phase 1"),
    "velo_1": Preset(_VELO_1, "VeLO, phase 1: short trajectories on sampled families"),
    "velo_2": Preset(_VELO_2, "VeLO, phase 2: longer ones on new, larger families"),
}

# Curricula: each phase starts from the best theta of the one before.
PHASES = {"celo": ("celo_1", "celo_2"), "velo": ("velo_1", "velo_2")}


def preset(name: str) -> RunSettings:
    """A preset's settings.

    Raises:
        ValueError: if there is none of that name; the message lists near matches.
    """
    return PRESETS[known("preset", name, PRESETS)].settings


def phase_names(name: str) -> tuple[str, ...]:
    """The presets behind a name: one, those of a curriculum, or those listed with commas.

    Raises:
        ValueError: if there is none of a name; the message lists near matches.
    """
    names = []
    for part in name.split(","):
        known("preset", part, (*PRESETS, *PHASES))
        names += PHASES.get(part, (part,))
    return tuple(names)
