import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.learned import Program, program, simplify, symbolic
from metaopt.learned._programs import CANONICAL, OPERATIONS
from metaopt.learned._symbolic import FUNCTIONS


@pytest.mark.parametrize("name", CANONICAL)
def test_text_of_a_program_is_read_back_as_the_same_program(name):
    first = program(name)
    second = program(str(first))
    np.testing.assert_array_equal(first.code, second.code)
    np.testing.assert_allclose(first.constants, second.constants, rtol=1e-6)
    assert str(second) == str(first)


def test_lion_reads_as_in_its_paper():
    assert str(program("lion", length=8)) == (
        "c = interp(g, m, 0.9)\nm = interp(g, m, 0.99)\nu = sign(c)"
    )


def test_code_names_operations_and_registers_by_their_places():
    lines = program("m = interp(g, w, 0.5)\n\n u=sign( m )", length=3)
    np.testing.assert_array_equal(lines.code, [[23, 0, 1, 2], [9, 2, 0, 5], [0, 0, 0, 0]])
    np.testing.assert_array_equal(lines.constants, [0.5, 0, 0])


def test_every_operation_has_a_function():
    assert list(FUNCTIONS) == [operation.name for operation in OPERATIONS]


def test_simplify_removes_what_no_direction_depends_on():
    lines = program(
        """
        a = square(g)
        v = interp(a, v, 0.9)
        b = exp(r)
        r = add(r, g)
        u = tanh(w)
        c = copy(c)
        d = sign(m)
        u = interp(g, d, 0.5)
        m = scale(g, 2)
        d = copy(u)
        u = copy(u)"""
    )
    simple = simplify(lines)
    # `v` and `r` feed themselves only; `m` is read by the next step; the first `u` is overwritten.
    assert str(simple) == "d = sign(m)\nu = interp(g, d, 0.5)\nm = scale(g, 2)"
    assert simple.code.shape == lines.code.shape
    assert str(simplify(simple)) == str(simple)


def test_simplify_follows_memory_through_several_steps():
    chain = "u = copy(m)\nm = copy(v)\nv = copy(r)\nr = copy(g)"
    assert str(simplify(program(chain))) == chain
    assert str(simplify(program("m = copy(g)\nu = copy(m)\nr = copy(m)"))) == (
        "m = copy(g)\nu = copy(m)"
    )


def test_simplify_forgets_numbers_that_are_not_used():
    noisy = Program(np.array([[9, 0, 4, 5]], np.int32), np.array([0.3]))
    simple = simplify(noisy)
    np.testing.assert_array_equal(simple.code, [[9, 0, 0, 5]])
    np.testing.assert_array_equal(simple.constants, [0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 statements"),
        ("u = g", "there is no statement"),
        ("u = sine(g)", "'sine' is none of copy"),
        ("u = skip()", "'skip' is none of copy"),
        ("u = add(g)", "takes 2 registers"),
        ("u = scale(g)", "takes 1 registers and a number"),
        ("g = copy(w)", "'g' cannot be written"),
        ("u = copy(x)", "'x' is none of the registers"),
        ("u = scale(g, w)", "'w' is not a number"),
    ],
)
def test_mistakes_in_a_text_are_named(text, message):
    with pytest.raises(ValueError, match=r"program: .*") as info:
        program(text)
    assert message in str(info.value)


def test_a_program_must_fit_its_length():
    with pytest.raises(ValueError, match="at most length=2"):
        program("lion", length=2)


@pytest.mark.parametrize("statement", [[24, 0, 0, 5], [1, 0, 0, 1], [1, 10, 0, 5], [1, 0, -1, 5]])
def test_arrays_that_are_no_program_are_refused(statement):
    with pytest.raises(ValueError, match="symbolic: program has an invalid statement"):
        symbolic(Program(jnp.array([statement]), jnp.zeros(1)))


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"code of shape \(2, 3\)"):
        symbolic(Program(np.zeros((2, 3), np.int32), np.zeros(2)))
