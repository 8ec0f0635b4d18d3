"""Hessian-vector products from the extra arguments of an update."""

from collections.abc import Callable
from typing import Any

import jax

from metaopt.core import Params


def hvp_from(
    function: str, params: Params | None, extra_args: dict[str, Any]
) -> Callable[[Params, Params], Params]:
    """The `hvp_fn(params, v)` that is given, or that of `obj_fn(params)`, forward over reverse.

    Args:
        function: the name of the rule, for messages.
        params: what its `update` got.
        extra_args: so too.

    Returns:
        The function.

    Raises:
        ValueError: if the parameters or both functions are missing.
    """
    if params is None:
        raise ValueError(
            f"{function}: update got no params, at which the Hessian is taken; pass "
            "update(grads, state, params, obj_fn=loss)."
        )
    if extra_args.get("hvp_fn") is not None:
        return extra_args["hvp_fn"]
    loss = extra_args.get("obj_fn")
    if loss is None:
        raise ValueError(
            f"{function}: update misses the extra argument obj_fn, (params) -> loss, or hvp_fn, "
            "(params, v) -> H v; pass update(grads, state, params, obj_fn=loss)."
        )
    return lambda at, v: jax.jvp(jax.grad(loss), (at,), (v,))[1]
