"""What every estimator refuses: a theta without a gradient, and a key that is not one key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metaopt.core import Estimator
from metaopt.estimators._shared import check_theta


def checked_estimator(name: str, init: Callable, estimate: Callable) -> Estimator:
    """An estimator whose functions check theta and the key, in the name of its factory."""

    def checked_init(theta, data, key):
        check_theta(name, theta)
        check_key(name, key)
        return init(theta, data, key)

    def checked_estimate(theta, state, data, key):
        check_theta(name, theta)
        check_key(name, key)
        return estimate(theta, state, data, key)

    return Estimator(checked_init, checked_estimate)


def check_key(name: str, key) -> None:
    """Raises unless the key is one typed key; shapes are known while tracing, too."""
    if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        raise TypeError(
            f"{name}: key is {jnp.result_type(key)} of shape {jnp.shape(key)}; pass "
            "jax.random.key(seed), or wrap an old one by jax.random.wrap_key_data."
        )
    if jnp.shape(key):
        raise ValueError(
            f"{name}: key holds {jnp.shape(key)} keys; pass one of them, or jax.vmap over them."
        )
