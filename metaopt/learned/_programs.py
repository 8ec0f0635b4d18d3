"""A language for update rules: straight-line programs over registers.

A program is L statements, each an operation on at most two registers and one constant:

    out <- operation(first, second, constant)

`g` is the gradient and `w` the parameter, both read-only; `m`, `v`, `r` are kept from step to step
and start at 0; `u`, the direction, and `a`, `b`, `c`, `d` are 0 at the start of every step. The
program runs once per step on every tensor; a register holds an array of the tensor's shape.

The registers and functions are a subset of those in which Lion was found: Chen et al. 2023,
arXiv:2302.06675, §2 and App. A. Differs from the paper: a register holds one tensor, not a list; a
constant belongs to a statement; the learning rate multiplies the direction outside; no schedules.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from metaopt.core import checked

INPUTS = ("g", "w")
MEMORY = ("m", "v", "r")
DIRECTION = "u"
REGISTERS = (*INPUTS, *MEMORY, DIRECTION, "a", "b", "c", "d")
FIRST_WRITABLE = len(INPUTS)


class Operation(NamedTuple):
    """How a statement is written: name, registers read, and whether a constant follows them."""

    name: str
    num_operands: int
    has_constant: bool = False


OPERATIONS = (
    Operation("skip", 0),
    Operation("copy", 1),
    Operation("add", 2),
    Operation("sub", 2),
    Operation("mul", 2),
    Operation("div", 2),
    Operation("min", 2),
    Operation("max", 2),
    Operation("abs", 1),
    Operation("sign", 1),
    Operation("sqrt", 1),
    Operation("square", 1),
    Operation("exp", 1),
    Operation("log", 1),
    Operation("tanh", 1),
    Operation("mean", 1),
    Operation("rms", 1),
    Operation("cosine", 2),
    Operation("set", 0, True),
    Operation("scale", 1, True),
    Operation("shift", 1, True),
    Operation("power", 1, True),
    Operation("clip", 1, True),
    Operation("interp", 2, True),
)
SKIP, COPY = 0, 1

CANONICAL = {
    "sgd": "u = copy(g)",
    "momentum": """
        m = scale(m, 0.9)
        m = add(m, g)
        u = copy(m)""",
    "sign_sgd": "u = sign(g)",
    "rmsprop": """
        a = square(g)
        v = interp(a, v, 0.9)
        a = sqrt(v)
        a = shift(a, 1e-8)
        u = div(g, a)""",
    "adam": """
        m = interp(g, m, 0.9)
        a = square(g)
        v = interp(a, v, 0.999)
        a = sqrt(v)
        a = shift(a, 1e-8)
        u = div(m, a)""",
    "adamw": """
        m = interp(g, m, 0.9)
        a = square(g)
        v = interp(a, v, 0.999)
        a = sqrt(v)
        a = shift(a, 1e-8)
        u = div(m, a)
        b = scale(w, 0.01)
        u = add(u, b)""",
    "lion": """
        c = interp(g, m, 0.9)
        m = interp(g, m, 0.99)
        u = sign(c)""",
    "lionw": """
        c = interp(g, m, 0.9)
        m = interp(g, m, 0.99)
        u = sign(c)
        b = scale(w, 0.1)
        u = add(u, b)""",
}


class Program(NamedTuple):
    """A program as arrays, so that one compiled function runs them all; `str` makes it text.

    Attributes:
        code: for each statement the index of its operation, of the registers that it reads, and of
            the one that it writes. Numbers that an operation does not use may be anything.
        constants: one per statement.
    """

    code: Int[Array | np.ndarray, "lines 4"]
    constants: Float[Array | np.ndarray, "lines"]

    def __str__(self) -> str:
        """One statement per line; those that do nothing are left out."""
        rows = zip(np.asarray(self.code), np.asarray(self.constants, np.float64), strict=True)
        return "\n".join(_line(row, constant) for row, constant in rows if row[0] != SKIP)


@checked
def program(source: str, *, length: int | None = None) -> Program:
    """Reads a program: a text such as `str(program)` gives, or the name of a known rule.

    Known are `sgd`, `momentum`, `sign_sgd`, `rmsprop`, `adam` and `adamw` without correction of the
    bias, `lion`, and `lionw` with decoupled weight decay.

    Args:
        source: a name, or statements such as `m = interp(g, m, 0.9)`, one per line. With registers
            x and y and a number k: `copy(x)`, `add(x, y)`, `sub(x, y)`, `mul(x, y)`, `div(x, y)`,
            `min(x, y)`, `max(x, y)`, `abs(x)`, `sign(x)`, `sqrt(x)`, `square(x)`, `exp(x)`,
            `log(x)`, `tanh(x)`, `set(k)`, `scale(x, k)` (kx), `shift(x, k)` (x + k),
            `power(x, k)` (|x|^k with the sign of x), `clip(x, k)` (to ±k), `interp(x, y, k)`
            ((1 - k) x + k y), and over a tensor `mean(x)`, `rms(x)`, `cosine(x, y)`. Static.
        length: number of statements of the result, padded with some that do nothing; by default as
            many as there are. Static.

    Returns:
        A program of NumPy arrays.

    Raises:
        ValueError: if the text is no program, or has more than `length` statements.
    """
    text = CANONICAL.get(source, source)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    length = len(lines) if length is None else length
    if not 0 < len(lines) <= length:
        raise ValueError(
            f"program: source={source!r} has {len(lines)} statements; need at least one and at "
            f"most length={length}."
        )
    code, constants = np.zeros((length, 4), np.int32), np.zeros(length)
    for index, line in enumerate(lines):
        code[index], constants[index] = _statement(line)
    return Program(code, constants)


def check(function: str, program: Program) -> None:
    """Raises ValueError, on behalf of `function`, unless the arrays are a program."""
    code = np.asarray(program.code)
    if code.ndim != 2 or code.shape[1] != 4 or np.shape(program.constants) != code.shape[:1]:
        raise ValueError(
            f"{function}: program has code of shape {code.shape} and constants of shape "
            f"{np.shape(program.constants)}; need [lines, 4] and [lines], see learned.program."
        )
    bounds = np.array([len(OPERATIONS), *[len(REGISTERS)] * 3])
    wrong = (code < np.array([0, 0, 0, FIRST_WRITABLE])) | (code >= bounds)
    # A statement that does nothing writes nothing.
    wrong[code[:, 0] == SKIP] = False
    if wrong.any():
        raise ValueError(
            f"{function}: program has an invalid statement {code[wrong.any(axis=1)][0].tolist()}; "
            f"operations are below {bounds[0]}, registers below {bounds[1]}, and "
            f"{', '.join(INPUTS)} (0 and 1) are read-only."
        )


@checked
def simplify(program: Program) -> Program:
    """Removes the statements that no direction depends on.

    Needed at the end of a step are `u` and whatever of the memory a later step reads before it
    writes it: a fixed point, found by going backwards through the program.

    Args:
        program: concrete, not traced.

    Returns:
        A program of the same length that gives the same directions: what is left, in order, then
        statements that do nothing. Numbers that an operation does not use are 0.
    """
    code, constants = np.asarray(program.code), np.asarray(program.constants)
    wanted = {REGISTERS.index(DIRECTION)}
    memory = {REGISTERS.index(name) for name in MEMORY}
    while True:
        live, kept = set(wanted), []
        for index in reversed(range(len(code))):
            operation, first, second, out = (int(x) for x in code[index])
            does_nothing = operation == SKIP or (operation == COPY and first == out)
            if does_nothing or out not in live:
                continue
            kept.append(index)
            live.discard(out)
            live.update((first, second)[: OPERATIONS[operation].num_operands])
        if live & memory <= wanted:
            break
        wanted |= live & memory
    kept = kept[::-1]
    new_code, new_constants = np.zeros_like(code), np.zeros_like(constants)
    new_code[: len(kept)], new_constants[: len(kept)] = code[kept], constants[kept]
    for row, operation in enumerate(new_code[:, 0]):
        new_code[row, 1 + OPERATIONS[operation].num_operands : 3] = 0
        new_constants[row] *= OPERATIONS[operation].has_constant
    return Program(new_code, new_constants)


def _line(row: np.ndarray, constant: float) -> str:
    operation = OPERATIONS[row[0]]
    words = [REGISTERS[index] for index in row[1 : 1 + operation.num_operands]]
    words += [f"{constant:.6g}"] * operation.has_constant
    return f"{REGISTERS[row[3]]} = {operation.name}({', '.join(words)})"


def _statement(line: str) -> tuple[list[int], float]:
    """Row and constant of one line."""

    def fail(problem: str):
        return ValueError(f"program: in {line!r}, {problem}; write such as m = interp(g, m, 0.9).")

    match = re.fullmatch(r"(\w+)\s*=\s*(\w+)\((.*)\)", line)
    if not match:
        raise fail("there is no statement")
    out, name, inside = match.groups()
    names = [operation.name for operation in OPERATIONS]
    if name not in names[1:]:
        raise fail(f"{name!r} is none of {', '.join(names[1:])}")
    index = names.index(name)
    operation, words = OPERATIONS[index], [x.strip() for x in inside.split(",") if x.strip()]
    if len(words) != operation.num_operands + operation.has_constant:
        raise fail(
            f"{name} takes {operation.num_operands} registers"
            + (" and a number" if operation.has_constant else "")
        )
    if out not in REGISTERS[FIRST_WRITABLE:]:
        raise fail(f"{out!r} cannot be written; use one of {', '.join(REGISTERS[FIRST_WRITABLE:])}")
    operands = words[: operation.num_operands]
    if unknown := [x for x in operands if x not in REGISTERS]:
        raise fail(f"{unknown[0]!r} is none of the registers {', '.join(REGISTERS)}")
    try:
        constant = float(words[-1]) if operation.has_constant else 0.0
    except ValueError:
        raise fail(f"{words[-1]!r} is not a number") from None
    indices = [REGISTERS.index(x) for x in operands] + [0] * (2 - len(operands))
    return [index, *indices, REGISTERS.index(out)], constant
