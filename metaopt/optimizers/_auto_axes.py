"""Any optimizer on a mesh with explicit axes."""

import optax

from metaopt.core import checked
from metaopt.tree._explicit_axes import place_state, with_automatic_axes


@checked
def auto_axes(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Lets an optimizer contract, reshape and sort parameters whose axes are split explicitly.

    Where the axes of a mesh are explicit, as `jax.make_mesh` has them by default, JAX raises a
    ShardingTypeError for operations whose result could be split in several ways, and optimizers
    such as `optax.contrib.muon` or `shampoo` are full of them. Within `update` all axes become
    automatic; updates are then split as the gradients are, the new state as the old one. Without
    explicit axes nothing changes. The learned optimizers of `metaopt.learned` need no wrapper.

    Args:
        inner: any optax optimizer. Functions among its extra arguments must not close over arrays
            with explicit axes. Its `init` is called as it is; what it makes from nothing has a copy
            on every device.

    Returns:
        A transformation with the state of `inner`.
    """
    inner = optax.with_extra_args_support(inner)

    @with_automatic_axes
    def on_any_axes(context, updates, state, params, extra):
        del context
        return inner.update(updates, state, params, **extra)

    def init(params):
        return place_state(inner.init(params), params)

    def update(updates, state, params=None, **extra):
        return on_any_axes((), updates, state, params, extra)

    return optax.GradientTransformationExtraArgs(init, update)
