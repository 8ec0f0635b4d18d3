from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, PyTree

from metaopt.core import Scalar, checked


class Pair(NamedTuple):
    """A contract."""

    init: Callable
    step: Callable


@checked
def factory(
    pair: Pair,
    function: Callable,
    *,
    count: int = 1,
    flag: bool = False,
    scale: Scalar = 1.0,
    rate: Callable | float | jax.Array = 0.1,
    word: Literal["mean", "last"] = "mean",
    phase: Literal[1, 2] | None = None,
    tree: PyTree = None,
    vector: Float[Array, " n"] | None = None,
    **others: int,
) -> dict:
    """Says what it was given."""
    return dict(locals())


GOOD = Pair(len, len)


def test_good_arguments_arrive_unchanged():
    given = factory(GOOD, len, count=3, scale=jnp.array(2.0), word="last", phase=2, other="x")
    assert (given["count"], given["word"], given["phase"]) == (3, "last", 2)
    assert given["others"] == {"other": "x"}  # What is collected is the factory's to check.
    assert factory(GOOD, len, count=np.int64(2), flag=np.True_, scale=2, rate=len)["rate"] is len


def test_anything_with_the_fields_of_a_contract_is_one():
    class Duck:
        init = step = staticmethod(len)

    assert isinstance(factory(Duck(), len)["pair"], Duck)


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"pair": 3}, TypeError, "factory: pair must be a Pair, got 3 of type int."),
        ({"function": None}, TypeError, "factory: function must be a function, got None"),
        ({"count": 2.5}, TypeError, "factory: count must be an integer, got 2.5 of type float."),
        ({"count": True}, TypeError, "factory: count must be an integer, got True of type bool."),
        ({"count": None}, TypeError, "factory: count must be an integer, got None"),
        ({"flag": "yes"}, TypeError, "factory: flag must be True or False, got 'yes'"),
        ({"scale": "1"}, TypeError, "factory: scale must be a real scalar, got '1' of type str."),
        ({"scale": 1j}, TypeError, "factory: scale must be a real scalar"),
        ({"scale": np.ones(2)}, TypeError, "factory: scale must be a real scalar"),
        ({"scale": float("nan")}, ValueError, "factory: scale is NaN; pass a number."),
        ({"rate": "1"}, TypeError, "factory: rate must be a function or a real scalar, got '1'"),
        ({"word": "most"}, ValueError, "factory: word='most' is unknown; choose from ('mean', 'l"),
        ({"word": 3}, TypeError, "factory: word must be 'mean' or 'last', got 3 of type int."),
        ({"phase": 3}, ValueError, "factory: phase=3 is unknown; choose from (1, 2)."),
        ({"phase": "1"}, TypeError, "factory: phase must be None or 1 or 2, got '1'"),
    ],
)
def test_a_wrong_argument_is_named_with_what_it_should_be(changed, error, text):
    arguments = {"pair": GOOD, "function": len, **changed}
    with pytest.raises(error) as raised:
        factory(**arguments)
    assert text in str(raised.value)


def test_tracers_are_scalars_and_are_not_looked_into():
    def scaled(x):
        return factory(GOOD, len, scale=x)["scale"]

    assert jax.jit(scaled)(2.0) == 2.0
    np.testing.assert_array_equal(jax.vmap(scaled)(jnp.arange(3.0)), jnp.arange(3.0))
    with pytest.raises(TypeError, match="count must be an integer"):
        jax.jit(lambda n: factory(GOOD, len, count=n)["count"])(2)


def test_what_has_no_checkable_annotation_is_let_through():
    assert factory(GOOD, len, tree="anything", vector="anything")["vector"] == "anything"


def test_name_and_documentation_stay():
    assert factory.__name__ == "factory"
    assert factory.__doc__ == "Says what it was given."
