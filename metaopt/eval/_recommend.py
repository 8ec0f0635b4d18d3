"""Advice from a diagnosis, in plain language.

The rules, after Metz et al. 2021, arXiv:2111.05803:

1. Where the Lyapunov exponent λ times the horizon T exceeds 3, derivatives through the whole
   trajectory carry mostly amplified noise; T ≤ 3/λ is the longest that does not.
2. Backpropagation is worth its exactness up to the horizon where its variance at equal compute is
   below that of the best unbiased estimator that uses values only.
3. An estimator whose relative bias is above a tenth, by more than three standard errors, follows
   another objective; of the others, the one with the least variance at equal compute is advised.
"""

import math

from metaopt.eval._diagnose import Diagnosis, EstimatorDiagnosis, HorizonDiagnosis

CHAOS = 3.0
MATERIAL_BIAS = 0.1
_ROUNDING = 1e-9
_SAME_DIRECTION = 0.95
_BY_DERIVATIVES = ("backprop", "forward")


def recommend(diagnosis: Diagnosis) -> list[str]:
    """What the numbers say, one sentence or two per finding.

    Args:
        diagnosis: from `diagnose`.

    Returns:
        Sentences: on each horizon, then on backpropagation, on bias and on the reference.
    """
    advice = [_choice(diagnosis, level) for level in diagnosis.horizons]
    advice += _chaos(diagnosis.horizons)
    advice += _derivatives(diagnosis)
    advice += _biases(diagnosis.estimators)
    advice += [text for level in diagnosis.horizons for text in _reference(level, diagnosis.sigma)]
    return advice


def is_biased(row: EstimatorDiagnosis) -> bool:
    """Whether the bias is significant and material."""
    return row.bias.significant and row.bias.magnitude > MATERIAL_BIAS


def is_exact(row: EstimatorDiagnosis) -> bool:
    """Whether its samples differ by rounding only."""
    return row.bias.variance < _ROUNDING


def _usable(rows) -> list[EstimatorDiagnosis]:
    return [row for row in rows if not is_biased(row) and math.isfinite(row.cost)]


def _choice(diagnosis: Diagnosis, level: HorizonDiagnosis) -> str:
    rows = [row for row in diagnosis.estimators if row.horizon == level.horizon]
    usable = _usable(rows)
    if not usable:
        return (
            f"Horizon {level.horizon}: every estimator is biased or not finite; try es, pes or "
            "nres, or more samples."
        )
    exact = [row for row in usable if is_exact(row)]
    if exact:
        fastest = min(exact, key=lambda row: row.seconds)
        return f"Horizon {level.horizon}: use {fastest.name}; its samples do not vary."
    best = min(usable, key=lambda row: row.cost)
    others = [row for row in usable if row is not best]
    text = f"Horizon {level.horizon}: use {best.name}"
    if others:
        second = min(others, key=lambda row: row.cost)
        ratio = second.cost / max(best.cost, 1e-300)
        if ratio < 1.5:
            return f"{text} or {second.name}; they have about the same variance per second."
        shown = f"{ratio:.1f}" if ratio < 1e4 else f"{ratio:.0e}"
        return f"{text}; per second its variance is {shown} times lower than that of {second.name}."
    return f"{text}, the only one without a material bias."


def _chaos(levels) -> list[str]:
    chaotic = [level for level in levels if level.exponent * level.horizon > CHAOS]
    if not chaotic:
        return []
    first = chaotic[0]
    longest = int(CHAOS / first.exponent)
    return [
        f"Inner training is chaotic from horizon {first.horizon} on: a small difference of states "
        f"grows by a factor e^{first.log_growth[-1]:.1f} "
        f"(Lyapunov exponent {first.exponent:.3g} per step). Backpropagate through at most "
        f"{longest} step{'s' if longest != 1 else ''}, or not at all."
    ]


def _derivatives(diagnosis: Diagnosis) -> list[str]:
    """Up to which horizon derivatives of whole trajectories beat values."""
    better, worse = [], []
    for level in diagnosis.horizons:
        usable = _usable([r for r in diagnosis.estimators if r.horizon == level.horizon])
        by_values = [r for r in usable if not r.name.endswith(_BY_DERIVATIVES)]
        exact = [r for r in diagnosis.estimators if r.horizon == level.horizon]
        exact = [r for r in exact if r.name in _BY_DERIVATIVES]
        if exact and by_values:
            wins = any(r in usable for r in exact) and min(
                r.cost for r in exact if math.isfinite(r.cost)
            ) < min(r.cost for r in by_values)
            (better if wins else worse).append(level.horizon)
    if not worse:
        return []
    if not better:
        return ["Derivatives of whole trajectories lose to loss values at every horizon measured."]
    below = [h for h in better if h < min(worse)]
    limit = f"only up to horizon {max(below)}" if below else "at none of the shorter horizons"
    return [
        f"Derivatives of whole trajectories pay off {limit}; at horizon {min(worse)} their "
        "variance at equal compute is above that of loss values."
    ]


def _biases(rows) -> list[str]:
    texts = []
    for name in dict.fromkeys(row.name for row in rows):
        biased = [row for row in rows if row.name == name and is_biased(row)]
        if not biased:
            continue
        worst = max(biased, key=lambda row: row.bias.magnitude)
        where = ", ".join(str(row.horizon) for row in biased)
        texts.append(
            f"{name} is biased at horizon {where}: by up to {worst.bias.magnitude:.0%} of the "
            f"gradient ({_kind(worst)})."
        )
    return texts


def _kind(row: EstimatorDiagnosis) -> str:
    if row.bias.cosine > _SAME_DIRECTION:
        return f"in length: cosine {row.bias.cosine:.2f}, {row.bias.projection:.2f} times as long"
    return f"in direction: cosine {row.bias.cosine:.2f}; it follows another objective"


def _reference(level: HorizonDiagnosis, sigma: float) -> list[str]:
    texts = []
    if level.reference == "es":
        noise = level.exact_noise
        known = f"is known to {noise:.0%} only" if math.isfinite(noise) else "is not finite"
        texts.append(
            f"The exact gradient at horizon {level.horizon} {known}, so estimates are "
            f"compared with that of the loss smoothed at sigma={sigma:g}; what smoothing itself "
            "changes is not counted as bias."
        )
    if level.reference_noise > MATERIAL_BIAS:
        texts.append(
            f"The reference at horizon {level.horizon} has a standard error of "
            f"{level.reference_noise:.0%}; smaller biases cannot be seen. Raise num_reference."
        )
    return texts
