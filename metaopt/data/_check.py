"""Checks of settings, made when a factory is called."""

from jax.core import Tracer


def at_least_one(function: str, **sizes: int) -> None:
    """Raises unless every size is at least 1; `function` is whom the message names."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{function}: {name}={value} is below 1; use a positive size.")


def above_zero(function: str, **values) -> None:
    """Raises unless every value is above 0. A traced value cannot be checked and passes."""
    for name, value in values.items():
        if not isinstance(value, Tracer) and not value > 0:
            raise ValueError(f"{function}: {name}={value} is not positive; use a value above 0.")


def ordered(function: str, **bounds) -> None:
    """Raises unless both bounds are above 0 and the first does not exceed the second.

    Traced values cannot be checked and pass.
    """
    above_zero(function, **bounds)
    (low_name, low), (high_name, high) = bounds.items()
    if isinstance(low, Tracer) or isinstance(high, Tracer):
        return
    if low > high:
        raise ValueError(f"{function}: {low_name}={low} is above {high_name}={high}; swap them.")
