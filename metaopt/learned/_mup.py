"""Steps that transfer across widths: one constant per tensor, in the maximal-update form (μP).

    p <- p - κ · step,    κ = hidden_mult / fan_in^exponent   for hidden weights,
                          κ = 1    for input and output weights, embeddings, biases, norms

Together with a model in the same form (`metaopt.tasks.mup_mlp`: zero output weights, logits divided
by fan_in, weights of variance 1/fan_in) the change that a step makes to the activations no longer
depends on the width, so a rule meta-trained on narrow networks, or a learning rate tuned on one,
serves wide ones. Exponent 1 belongs to rules whose steps have entries of a size of their own, which
the gradients do not set: Adam and learned rules (Yang et al. 2022, arXiv:2203.03466, Table 8; for
learned optimizers Thérien et al. 2024, arXiv:2406.00153, "μLO"). A step orthogonalised and then
brought to unit root mean square is spread over all directions, its singular values being √width
instead of up to width: exponent 1/2 (the spectral condition of Yang et al. 2023, arXiv:2310.17813).

In this form all gradients shrink as 1/width, and not every rule is blind to that: the epsilons of
normalised features and of second moments drown small ones, so that wide networks are trained by
another rule than narrow ones. `gradient_scale` undoes that, with the width over a base width.

Differs from μLO: `gradient_scale`, which it does not have; and gradients that are not finite are
not replaced by zeros: they stay visible.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from metaopt.core import LearnedOptimizer, Params, Scalar, checked

ROLES = ("input", "embedding", "hidden", "output", "bias", "norm")


@checked
def mup(
    learned: LearnedOptimizer,
    scale: PyTree | Callable[[Params], PyTree],
    *,
    gradient_scale: PyTree | Callable[[Params], PyTree] | None = None,
) -> LearnedOptimizer:
    """The same learned optimizer, every tensor's update multiplied by a constant of its own.

    For example, one rule that serves networks of all widths::

        mup(adafac_mlp(hidden_size=32, step_mult=1e-2), lambda p: mup_scale(p, mlp_roles(p)))

    Args:
        learned: any learned optimizer; `theta` is its own.
        scale: κ, a tree of numbers shaped like the parameters, or `(params) -> tree`, which then
            serves networks of different shapes. A weight decay inside `learned` is scaled too.
        gradient_scale: what gradients are multiplied by before `learned` sees them, given as
            `scale` is; by default nothing.

    Returns:
        A learned optimizer; `update` raises a ValueError if a scale is a function and it is not
        given the parameters.
    """
    before = optax.identity() if gradient_scale is None else scale_by_mup(gradient_scale)

    def optimizer(theta, *, num_steps=None):
        rule = learned.optimizer(theta, num_steps=num_steps)
        return optax.chain(before, rule, scale_by_mup(scale))

    return LearnedOptimizer(learned.init, optimizer)


@checked
def scale_by_mup(
    scale: PyTree | Callable[[Params], PyTree],
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a constant per tensor: the last link of a chain, as for Adam.

    `optax.chain(optax.adam(1e-3), scale_by_mup(mup_scale(params, roles)))` is Adam in μP.

    Args:
        scale: as in `mup`.

    Returns:
        A transformation without state, which keeps the dtypes of the updates.
    """

    def update(updates, state, params=None, **extra):
        del extra
        if _is_function(scale) and params is None:
            raise ValueError(
                "scale_by_mup: update got no params, which its scale is a function of; pass "
                "update(grads, state, params)."
            )
        factors = scale(params) if _is_function(scale) else scale
        scaled = jax.tree.map(lambda u, factor: (factor * u).astype(u.dtype), updates, factors)
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def mup_scale(
    params: Params,
    roles: PyTree | Callable[[str, Array], str | int],
    *,
    hidden_mult: Scalar = 1.0,
    exponent: float = 1.0,
) -> PyTree:
    """κ for every tensor, from its role.

    For a transformer in Flax, say::

        def roles(path, param):
            if path.endswith(("bias", "scale")):
                return "bias"
            if "embed" in path:
                return "embedding"
            return "output" if "logits" in path else "hidden"

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`s.
        roles: a tree shaped like `params`, or a function of a tensor's path (`"layer/kernel"`) and
            of the tensor, that says "input", "embedding", "hidden", "output", "bias" or "norm". An
            integer stands for "hidden" and states the fan-in; otherwise it is the product of all
            axes but the last, the layout [..., fan_in, fan_out] of dense layers and convolutions.
        hidden_mult: multiplies κ of hidden weights. The width of a base model counts widths
            relative to it; 1 counts them absolutely. Traced.
        exponent: of the fan-in: 1, or 1/2 for orthogonalised steps. Static.

    Returns:
        A tree shaped like `params`, of numbers.

    Raises:
        ValueError: if a role is unknown, or a tensor below two axes is "hidden".
    """
    if not _is_function(roles):
        names = iter(jax.tree.leaves(jax.tree.map(lambda _, role: role, params, roles)))
        role_of: Callable = lambda path, param: next(names)  # noqa: E731
    else:
        role_of = roles

    def factor(path, param):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        fan_in = _fan_in(path, param, role_of(path, param))
        return 1.0 if fan_in is None else hidden_mult / fan_in**exponent

    return jax.tree_util.tree_map_with_path(factor, params)


def mlp_roles(params: Params) -> PyTree:
    """The roles of a chain of dense layers, in the order in which its tensors are flattened.

    Args:
        params: a tuple or list of layers, as `metaopt.tasks.mup_mlp` has them; a dictionary is
            flattened in the order of its sorted names.

    Returns:
        A tree shaped like `params`: the first tensor of two axes or more is "input", the last
        "output", those between are "hidden"; all others are "bias".
    """
    leaves, treedef = jax.tree.flatten(params)
    weights = [index for index, param in enumerate(leaves) if len(param.shape) >= 2]
    roles = ["hidden" if index in weights else "bias" for index in range(len(leaves))]
    if weights:
        roles[weights[0]] = "input"
        roles[weights[-1]] = "output"
    return treedef.unflatten(roles)


def _fan_in(path: str, param, role) -> int | None:
    """Of hidden weights; None for all other roles."""
    if isinstance(role, int) and role >= 1:
        return role
    if role not in ROLES:
        raise ValueError(
            f"mup_scale: the role of {path!r} is {role!r}; use one of {ROLES}, or the fan-in of a "
            "hidden tensor, at least 1."
        )
    if role != "hidden":
        return None
    shape = jnp.shape(param)
    if len(shape) < 2:
        raise ValueError(
            f"mup_scale: {path!r} of shape {shape} is 'hidden' but has no fan-in; name it 'bias', "
            "or give the fan-in as an integer."
        )
    return math.prod(shape[:-1])


def _is_function(x) -> bool:
    """Whether it is a function, not a tree: Equinox's trees can be called too."""
    return callable(x) and jax.tree_util.all_leaves([x])
