"""Width parametrisation for K-FAC and Shampoo: what to tune on a narrow network serves wide ones.

    W ~ N(0, M^(-2b)),    lr · M^(-c),    ρ · M^(-d)        for hidden width M

    K-FAC    (B + ρ_B)^(-e) G (A + ρ_A)^(-e)      A = E[x xᵀ], B = E[δ δᵀ]
    Shampoo  (G Gᵀ + ρ)^(-e) G (Gᵀ G + ρ)^(-e)

              input    hidden    output
    b           0        1/2        1         as in μP; variance 1/fan_in at the input
    c K-FAC   e − 1       0       1 − e       e = 1: one learning rate for all widths
    c Shampoo 2e − 1      0       1 − 2e      e = 1/4: it falls at the output, rises at the input
    d K-FAC   A 0, B 1  A −1, B 1  A −1, B 0
    d Shampoo   1         0        −1

Ishikawa and Karakida 2024, arXiv:2312.12226. The exponents here are derived from the condition that
each layer's preactivations change by an amount that does not depend on M: activations are of order
1, signals that come back 1/M below the output, so eigenvalues of A are of order M but at the input,
those of B of order 1/M but at the output. A damping that is relative to the largest eigenvalue, as
the `ridge` of `metaopt.optimizers.shampoo`, needs no d. The length of a grafted step is that of the
other rule: these exponents are for `graft="none"`.
"""

from typing import Literal, NamedTuple

import jax
from jaxtyping import PyTree

from metaopt.core import Params, checked

ROLES = ("input", "hidden", "output", "bias", "output_bias")


class SecondOrderMup(NamedTuple):
    """Numbers for each tensor, as trees like the parameters.

    Attributes:
        init_scale: standard deviation of initial weights, 0 for biases. That of input weights is 1:
            divide it by the root of the fan-in.
        learning_rate: multiplies learning rates, for `metaopt.learned.scale_by_mup`.
        left_damping: multiplies ρ of B, or of G Gᵀ, with one row per unit of the layer.
        right_damping: multiplies ρ of A, or of Gᵀ G.
    """

    init_scale: PyTree
    learning_rate: PyTree
    left_damping: PyTree
    right_damping: PyTree


@checked
def mup_second_order(
    params: Params,
    roles: PyTree,
    *,
    width: int,
    method: Literal["shampoo", "kfac"] = "shampoo",
    exponent: float | None = None,
) -> SecondOrderMup:
    """Scales of a network's tensors for a second-order rule.

    Zero output weights, fine for first-order rules in μP, make K-FAC's first step that of a kernel
    method (the paper's remark); these are small but not zero.

    Args:
        params: arrays, or anything of the same structure.
        roles: the same structure with "input", "hidden", "output", "bias" (of input and hidden
            layers) or "output_bias" at its leaves.
        width: M, or the width relative to a base network. Static.
        method: the rule. Static.
        exponent: e; 1 for K-FAC and 1/4 for Shampoo by default. Static.

    Returns:
        The numbers, as Python floats.

    Raises:
        ValueError: if a role is unknown or `width` is below 1.
    """
    if width < 1:
        raise ValueError(f"mup_second_order: width must be at least 1, got {width}.")
    power = (1.0 if method == "kfac" else 0.25) if exponent is None else exponent
    # Of a bias, the input is the constant 1, as wide as the data are: it is an input weight.
    same = {"bias": "input", "output_bias": "none"}

    def numbers(role):
        if role not in ROLES:
            raise ValueError(f"mup_second_order: the role {role!r} is unknown; use one of {ROLES}.")
        layer = same.get(role, role)
        init = 0.0 if "bias" in role else width ** -_INIT[layer]
        slope = _RATE[layer] * (1 - power if method == "kfac" else 1 - 2 * power)
        left, right = _DAMPING[method][layer]
        return SecondOrderMup(init, width**-slope, width**-left, width**-right)

    rows = jax.tree.map(lambda _, role: numbers(role), params, roles)
    return jax.tree.transpose(
        jax.tree.structure(params), jax.tree.structure(SecondOrderMup(0, 0, 0, 0)), rows
    )


_INIT = {"input": 0.0, "hidden": 0.5, "output": 1.0}
# Of 1 − e, or of 1 − 2e.
_RATE = {"input": -1.0, "hidden": 0.0, "output": 1.0, "none": 0.0}
# Exponents d of the left and of the right factor.
_DAMPING = {
    "kfac": {"input": (1, 0), "hidden": (1, -1), "output": (0, -1), "none": (0, 0)},
    "shampoo": {"input": (1, 1), "hidden": (0, 0), "output": (-1, -1), "none": (0, 0)},
}
