"""What learned optimizers refuse: a theta of another rule, and parameters they cannot update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metaopt.core import LearnedOptimizer
from metaopt.tree._explicit_axes import place_state, with_automatic_axes


def checked_optimizer(name: str, init: Callable, optimizer: Callable) -> LearnedOptimizer:
    """A learned optimizer that checks theta and params, in the name of its factory."""

    def checked(theta, *, num_steps=None):
        _check_theta(name, init, theta)
        tx = optimizer(theta, num_steps=num_steps)

        def init_state(params):
            _check_params(name, params)
            return place_state(tx.init(params), params)

        def update(updates, state, params=None, **extra):
            return on_any_axes((theta, num_steps), updates, state, params, extra)

        return optax.GradientTransformationExtraArgs(init_state, update)

    @with_automatic_axes
    def on_any_axes(context, updates, state, params, extra):
        theta, num_steps = context
        return optimizer(theta, num_steps=num_steps).update(updates, state, params, **extra)

    return LearnedOptimizer(init, checked)


def _check_theta(name, init, theta):
    """Raises ValueError unless theta has the names and shapes of a fresh one."""
    expected = _shapes(jax.eval_shape(init, jax.random.key(0)))
    given = _shapes(theta)
    if expected == given:
        return
    differing = sorted(path for path in expected | given if expected.get(path) != given.get(path))
    told = [
        f"theta{path} should be {expected.get(path, 'absent')}, is {given.get(path, 'absent')}"
        for path in differing[:3]
    ]
    more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise ValueError(
        f"{name}: theta is not one of this rule with these settings: {'; '.join(told)}{more}. "
        "Use the settings that it was trained with."
    )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(p): jnp.shape(x) for p, x in jax.tree.leaves_with_path(tree)}


def _check_params(name, params):
    """Raises TypeError unless all parameters are floating-point."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name}: params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}; a learned "
                "rule updates real floating-point numbers: cast it, or keep it out by optax.masked."
            )
