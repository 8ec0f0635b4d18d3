"""Symbolic update rules: programs over registers, run as optax transformations.

    (u, m, v, r) <- program(g, w, m, v, r),    p <- p - learning_rate · u

`_programs.py` has the language. A program that is known when a function is traced becomes
straight-line code; one that is traced itself is interpreted,

    registers[out_i] <- operation_i(registers[first_i], registers[second_i], constant_i),  i = 1 … L

so that one compiled function runs any program of L statements, and `vmap` a population of them.
`theta` is the constants: rules found by search are tuned further by any meta-gradient. Through
`sign` that gradient is 0; use evolution strategies, or `power` with a small exponent in its place.

Chen et al. 2023, arXiv:2302.06675, §2. Differs from the paper: see `_programs.py`; and gradients,
parameters and all results are clipped to ±1e9, roots and quotients are guarded at 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from metaopt.core import LearnedOptimizer, checked
from metaopt.learned._checked import checked_optimizer
from metaopt.learned._features import init_leaves, map_leaves, mean_square, zeros
from metaopt.learned._programs import (
    DIRECTION,
    FIRST_WRITABLE,
    MEMORY,
    OPERATIONS,
    REGISTERS,
    Program,
    check,
)

LIMIT = 1e9
ROOT_EPS = 1e-16
QUOTIENT_EPS = 1e-8
# Results beyond are clipped anyway; the derivative of an infinite exponential would be NaN.
MAX_EXPONENT = 21.0


class SymbolicState(NamedTuple):
    """The registers kept from step to step: for every tensor an array `[kept, *shape]`."""

    memory: PyTree


@checked
def symbolic(program: Program, *, learning_rate: optax.ScalarOrSchedule = 1e-3) -> LearnedOptimizer:
    """The optimizer that a program is, with its constants to be learned.

    Meta-gradients reach the constants that a statement uses, the others get 0. Memory: one number
    per parameter for each of `m`, `v`, `r` that the program writes (three for a traced program);
    `learned.simplify` removes what is written in vain.

    Args:
        program: `learned.program("lion")`, for example. Its code may be traced, so that a compiled
            function can be given any program of that length.
        learning_rate: multiplies the direction; a number or an optax schedule. Traced.

    Returns:
        A learned optimizer; `theta` is the program's constants, `[lines]`. `init(key)` does not
        depend on the key.

    Raises:
        ValueError: if the arrays are not a program (as far as they are not traced); in `update`, if
            it is not given the parameters.
    """
    is_traced = isinstance(program.code, Tracer)
    if is_traced:
        kept, run = MEMORY, _interpret
    else:
        check("symbolic", program)
        code = np.asarray(program.code)
        written = {REGISTERS[out] for operation, *_, out in code if operation}
        kept, run = tuple(name for name in MEMORY if name in written), _straight_line

    def optimizer(theta, *, num_steps=None):
        del num_steps

        def init(params):
            return init_leaves(lambda p: SymbolicState(zeros(p, len(kept))), params)

        def update(updates, state, params=None, **extra):
            del extra
            if params is None:
                raise ValueError(
                    "symbolic: update got no params; pass update(grads, state, params)."
                )

            def rule(grad, param, state):
                nothing = jnp.zeros_like(grad)
                start = dict.fromkeys(REGISTERS, nothing) | dict(
                    zip(kept, state.memory, strict=True)
                )
                start |= {"g": _clip(grad), "w": _clip(param)}
                constants = theta.astype(grad.dtype)
                end = run(program.code, constants, list(start.values()))
                memory = [end[REGISTERS.index(name)] for name in kept]
                memory = jnp.stack(memory) if memory else state.memory
                return end[REGISTERS.index(DIRECTION)], SymbolicState(memory)

            return map_leaves(rule, updates, params, state)

        return optax.chain(
            optax.GradientTransformationExtraArgs(init, update),
            optax.scale_by_learning_rate(learning_rate),
        )

    return checked_optimizer(
        "symbolic", lambda key: jnp.asarray(program.constants, float), optimizer
    )


def _straight_line(code, constants, registers: list[Array]) -> list[Array]:
    """Runs a program that is known."""
    for index, (operation, first, second, out) in enumerate(np.asarray(code)):
        function = FUNCTIONS[OPERATIONS[operation].name]
        if operation:
            result = function(registers[first], registers[second], constants[index])
            registers[out] = _clip(result)
    return registers


def _interpret(
    code: Int[Array | np.ndarray, "lines 4"],
    constants: Float[Array, "lines"],
    registers: list[Array],
) -> Float[Array, "registers ..."]:
    """Runs a program that is traced."""

    def branch(name):
        if name == "skip":
            return lambda x, y, old, constant: old
        return lambda x, y, old, constant: _clip(FUNCTIONS[name](x, y, constant))

    branches = [branch(operation.name) for operation in OPERATIONS]

    def read(registers, index):
        return jax.lax.dynamic_index_in_dim(registers, index, keepdims=False)

    def statement(registers, line):
        (operation, first, second, out), constant = line
        # Inputs stay what they are, whatever a malformed program says.
        out = jnp.clip(out, FIRST_WRITABLE, len(REGISTERS) - 1)
        operands = [read(registers, index) for index in (first, second, out)]
        result = jax.lax.switch(operation, branches, *operands, constant)
        return jax.lax.dynamic_update_index_in_dim(registers, result, out, 0), None

    return jax.lax.scan(statement, jnp.stack(registers), (code, constants))[0]


def _clip(x: Array) -> Array:
    return jnp.clip(x, -LIMIT, LIMIT)


def _root(x: Array) -> Array:
    return jnp.abs(x) * jax.lax.rsqrt(jnp.abs(x) + ROOT_EPS)


def _quotient(x: Array, y: Array) -> Array:
    guarded = jnp.where(jnp.abs(y) < QUOTIENT_EPS, jnp.where(y < 0, -1, 1) * QUOTIENT_EPS, y)
    return x / guarded.astype(x.dtype)


def _exp(x: Array) -> Array:
    return jnp.exp(jnp.clip(x, -MAX_EXPONENT, MAX_EXPONENT))


def _power(x: Array, constant: Array) -> Array:
    # The sign is 0 at 0, where the logarithm only has a guard.
    return jnp.sign(x) * _exp(constant * jnp.log(jnp.abs(x) + ROOT_EPS))


def _cosine(x: Array, y: Array) -> Array:
    inverse = jax.lax.rsqrt(_mean_square(x) + ROOT_EPS) * jax.lax.rsqrt(_mean_square(y) + ROOT_EPS)
    return jnp.full_like(x, jnp.mean(x * y) * inverse)


def _mean_square(x: Array) -> Array:
    return mean_square(x, x.ndim)


FUNCTIONS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "skip": lambda x, y, k: x,
    "copy": lambda x, y, k: x,
    "add": lambda x, y, k: x + y,
    "sub": lambda x, y, k: x - y,
    "mul": lambda x, y, k: x * y,
    "div": lambda x, y, k: _quotient(x, y),
    "min": lambda x, y, k: jnp.minimum(x, y),
    "max": lambda x, y, k: jnp.maximum(x, y),
    "abs": lambda x, y, k: jnp.abs(x),
    "sign": lambda x, y, k: jnp.sign(x),
    "sqrt": lambda x, y, k: _root(x),
    "square": lambda x, y, k: jnp.square(x),
    "exp": lambda x, y, k: _exp(x),
    "log": lambda x, y, k: jnp.log(jnp.abs(x) + QUOTIENT_EPS),
    "tanh": lambda x, y, k: jnp.tanh(x),
    "mean": lambda x, y, k: jnp.full_like(x, jnp.mean(x)),
    "rms": lambda x, y, k: jnp.full_like(x, _root(_mean_square(x))),
    "cosine": lambda x, y, k: _cosine(x, y),
    "set": lambda x, y, k: jnp.full_like(x, k),
    "scale": lambda x, y, k: k * x,
    "shift": lambda x, y, k: x + k,
    "power": lambda x, y, k: _power(x, k),
    "clip": lambda x, y, k: jnp.clip(x, -jnp.abs(k), jnp.abs(k)),
    "interp": lambda x, y, k: (1 - k) * x + k * y,
}
