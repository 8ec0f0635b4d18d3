"""Whether theta reaches a loss at all, read off the program of its derivative."""

from collections.abc import Callable

import jax
from jax.interpreters import partial_eval
from jaxtyping import PyTree


def check_reach(name: str, loss: Callable[..., jax.Array], theta: PyTree, *args) -> None:
    """Raises ValueError if the loss has no derivative by some leaf of theta, whatever its value.

    With first-order inner gradients everything that acts through the inner gradient alone is lost,
    such as the hyperparameters of an inner loss; a gradient of zeros would hide it.

    Args:
        name: the function on whose behalf errors speak.
        loss: `(theta, *args) -> scalar`. Traced once, forward mode; not run.
        theta: meta-parameters.
        *args: the other arguments of the loss.
    """

    def slope(tangent, theta, *args):
        return jax.jvp(lambda theta: loss(theta, *args), (theta,), (tangent,))[1]

    jaxpr = jax.make_jaxpr(slope)(theta, theta, *args).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(theta)]
    lost = [f"theta{path}" for path, is_used in zip(paths, used, strict=False) if not is_used]
    if lost:
        raise ValueError(
            f"{name}: gradient='first_order' leaves {', '.join(lost)} without any gradient: it "
            "acts through the inner gradient alone, which counts as a constant here; use "
            "gradient='reverse' or 'mixed'."
        )
