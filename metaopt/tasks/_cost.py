"""How many operations a function takes, counted in its traced program, before any compilation.

    product of matrices:    2 · entries of the result · length of the contraction
    loop of fixed length:   length · operations of its body
    anything else:          one per entry of its results

Loops whose length is not known count once, and of several branches the dearest one.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from metaopt.core import TaskFamily


def step_operations(family: TaskFamily, data: Any) -> float:
    """Operations of one batch and the gradient of its loss, for one task."""

    def step(params, task_params, data, key):
        key_batch, key_loss = jax.random.split(key)
        batch = family.batch(data, task_params, key_batch)
        return jax.grad(family.loss, has_aux=True)(params, task_params, batch, key_loss)[0]

    key = jax.random.key(0)
    task_params = jax.eval_shape(family.sample, key)
    params = jax.eval_shape(family.init, task_params, key)
    return operations(step, params, task_params, data, key)


def operations(function: Callable[..., Any], *args: Any) -> float:
    """Operations of a call; the arguments may be shapes."""
    return _total(jax.make_jaxpr(function)(*args).jaxpr)


def _total(jaxpr: Jaxpr) -> float:
    return sum(_count(equation) for equation in jaxpr.eqns)


def _count(equation: Any) -> float:
    bodies = [_total(body) for value in equation.params.values() for body in _bodies(value)]
    name, params = equation.primitive.name, equation.params
    if bodies:
        return max(bodies) if name == "cond" else sum(bodies) * params.get("length", 1)
    results = sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        return 2.0 * results * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    return float(results)


def _bodies(value: Any) -> Iterator[Jaxpr]:
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, ClosedJaxpr):
            yield item.jaxpr
        elif isinstance(item, Jaxpr):
            yield item
