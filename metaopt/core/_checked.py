"""Arguments of factories, checked against their annotations when a factory is called.

What a factory is given is used much later, inside a traced function, where a wrong kind of argument
ends in an error about something else, or in none at all. The annotation already says what is meant:
counts are integers, choices one of a few words, contracts what their factories return. Ranges and
shapes are each factory's own business.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.core
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a factory refuse arguments of the wrong kind: its name, the argument, the value.

    Integers, booleans, words, scalars (NaN is refused, a tracer is not looked into), callables and
    NamedTuples such as `metaopt.core.System` are checked; other annotations are not.

    Args:
        function: a factory whose signature is annotated.

    Returns:
        The same function, which raises a TypeError for a wrong kind and a ValueError for an unknown
        word or NaN.

    Raises:
        TypeError: if `function` is none.
    """
    if not callable(function):
        raise TypeError(f"checked: function must be a function, got {function!r}.")
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        kinds = _kinds(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in kinds:
                _check(function.__name__, name, value, kinds[name])
        return function(*args, **kwargs)

    return wrapper


@functools.cache
def _kinds(function) -> dict[str, tuple]:
    """For every argument with a kind that can be checked, the alternatives of its annotation."""
    hints = typing.get_type_hints(function)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    result = {}
    for name, parameter in inspect.signature(function).parameters.items():
        alternatives = _alternatives(hints.get(name, Any))
        if parameter.kind not in variadic and None not in alternatives:
            result[name] = alternatives
    return result


def _alternatives(annotation) -> tuple:
    """Pairs (what it is called, test); None for what is not checked."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return sum((_alternatives(part) for part in typing.get_args(annotation)), ())
    if origin is typing.Literal:
        return (_Words(typing.get_args(annotation)),)
    if origin is Callable or annotation is Callable:
        return (("a function", callable),)
    if annotation in _SIMPLE:
        return (_SIMPLE[annotation],)
    if getattr(annotation, "dims", None) == ():  # A scalar array of jaxtyping.
        return (_SIMPLE[float],)
    if inspect.isclass(annotation) and hasattr(annotation, "_fields"):
        return (_Contract(annotation),)
    return (None,)


class _Words(typing.NamedTuple):
    """One of a few values."""

    words: tuple

    def accepts(self, value) -> bool:
        return isinstance(value, str | bool | int | None) and value in self.words


class _Contract(typing.NamedTuple):
    """A NamedTuple, or anything with its fields: optax asks for no more."""

    type: Any

    def accepts(self, value) -> bool:
        return all(hasattr(value, field) for field in self.type._fields)


def _is_integer(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_scalar(value) -> bool:
    """A real number, or an array or tracer of one."""
    if isinstance(value, bool | str | bytes) or value is None:
        return False
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        return isinstance(value, int | float)
    real = jax.numpy.issubdtype(dtype, np.floating) or jax.numpy.issubdtype(dtype, np.integer)
    return shape == () and bool(real)


_SIMPLE: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("an integer", _is_integer),
    bool: ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    str: ("a string", lambda value: isinstance(value, str)),
    float: ("a real scalar", _is_scalar),
    jax.Array: ("a real scalar", _is_scalar),
    types.NoneType: ("None", lambda value: value is None),
}


def _check(function: str, name: str, value, alternatives) -> None:
    """Raises unless one alternative accepts the value."""
    wanted, words = [], []
    for alternative in alternatives:
        if isinstance(alternative, _Words):
            if alternative.accepts(value):
                return
            words += alternative.words
        elif isinstance(alternative, _Contract):
            if alternative.accepts(value):
                return
            wanted.append(f"a {alternative.type.__name__}")
        else:
            called, accepts = alternative
            if accepts(value):
                if accepts is _is_scalar:
                    _check_number(function, name, value)
                return
            wanted.append(called)
    if any(type(value) is type(word) for word in words):
        raise ValueError(f"{function}: {name}={value!r} is unknown; choose from {tuple(words)}.")
    wanted += [repr(word) for word in words]
    shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:56]} ..."
    raise TypeError(
        f"{function}: {name} must be {' or '.join(dict.fromkeys(wanted))}, got {shown} "
        f"of type {type(value).__name__}."
    )


def _check_number(function: str, name: str, value) -> None:
    if not isinstance(value, jax.core.Tracer) and math.isnan(float(value)):
        raise ValueError(f"{function}: {name} is NaN; pass a number.")
