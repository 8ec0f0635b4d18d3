import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.algorithms import _evolution, behaviour, evolve, mutate
from metaopt.algorithms._evolution import fingerprint
from metaopt.learned import Program, program, simplify
from metaopt.learned._programs import OPERATIONS, check
from tests import helpers

LENGTH = 8


def stacked(name, length, num):
    lines = program(name, length=length)
    return Program(
        np.broadcast_to(lines.code, (num, length, 4)),
        np.broadcast_to(lines.constants, (num, length)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def lineages():
    """Fifty mutations in turn of 200 copies of a full program, a shorter and the shortest one."""

    @jax.jit
    def breed(programs, key):
        def generation(programs, index):
            keys = jax.random.split(jax.random.fold_in(key, index), 200)
            children = jax.vmap(mutate)(programs, keys)
            return children, children

        return jax.lax.scan(generation, programs, jnp.arange(50))[1]

    groups = [stacked(name, LENGTH, 200) for name in ("adamw", "lion", "sgd")]
    return [
        jax.device_get((group, breed(group, jax.random.key(seed))))
        for seed, group in enumerate(groups)
    ]


def test_three_times_ten_thousand_mutations_are_valid(lineages):
    for _, children in lineages:
        code = children.code.reshape(-1, 4)
        check("test", Program(code, children.constants.reshape(-1)))
        assert np.isfinite(children.constants).all()
        # Statements that do nothing come last, so a length says where a program ends.
        empty = children.code[..., 0] == 0
        assert (np.diff(empty.astype(int), axis=-1) >= 0).all()


def test_mutations_are_insertions_removals_and_changes_in_equal_parts(lineages):
    parents, children = lineages[1]
    programs = np.concatenate([parents.code[None], children.code])
    length = (programs[..., 0] != 0).sum(axis=-1)
    inside = (length[:-1] > 0) & (length[:-1] < LENGTH)
    change = np.diff(length, axis=0)[inside]
    for difference in (-1, 0, 1):
        assert helpers.standard_errors(change == difference, 1 / 3) < 4
        assert helpers.standard_errors(change == difference, 0.3) > 4
    assert set(np.unique(change)) == {-1, 0, 1}


def test_insertions_and_removals_keep_the_other_statements_in_order(lineages):
    parents, children = lineages[1]
    for before, after in zip(parents.code, children.code[0], strict=True):
        before, after = before[before[:, 0] != 0], after[after[:, 0] != 0]
        longer, shorter = (before, after) if len(before) > len(after) else (after, before)
        if len(longer) == len(shorter):
            assert (longer != shorter).any(axis=1).sum() <= 1
        else:
            assert any(
                np.array_equal(np.delete(longer, i, axis=0), shorter) for i in range(len(longer))
            )


def test_every_operation_and_constants_of_both_kinds_are_drawn(lineages):
    _, children = lineages[1]
    assert set(np.unique(children.code[..., 0])) == set(range(len(OPERATIONS)))
    constants = np.abs(children.constants[children.constants != 0])
    assert (constants < 0.01).any()
    assert ((constants > 0.99) & (constants < 1)).any()


def hashes(programs):
    run = jax.jit(lambda programs: jax.lax.map(behaviour, programs))
    return [fingerprint(x) for x in jax.device_get(run(programs))]


def stack(*programs):
    return Program(*(np.stack(x) for x in zip(*programs, strict=True)))


ADAM = str(program("adam"))
REORDERED = """
    a = square(g)
    v = interp(a, v, 0.999)
    b = sqrt(v)
    b = shift(b, 1e-8)
    r = add(r, b)
    m = interp(g, m, 0.9)
    d = exp(w)
    u = div(m, b)
"""
OTHERS = [
    ADAM.replace("0.999", "0.99"),
    ADAM.replace("0.9)", "0.91)"),
    ADAM.replace("interp(g, m", "interp(w, m"),
    ADAM + "\nu = sign(u)",
    str(program("adamw")),
    str(program("lion")),
    str(program("sgd")),
]


def test_programs_hash_alike_exactly_if_they_do_the_same():
    programs = [program(text, length=LENGTH) for text in (ADAM, REORDERED, *OTHERS)]
    found = hashes(stack(*programs))
    assert found[0] == found[1]
    assert len(set(found)) == 1 + len(OTHERS)


def test_hashes_survive_rounding_errors():
    numbers = np.array([0.123, -4.56, 1e-30, 0.0, 7e8])
    assert fingerprint(numbers) == fingerprint(np.float32(numbers) * np.float32(1 + 1e-7))
    assert fingerprint(numbers) == fingerprint(numbers * [1, 1, -1, 1, 1])
    for index in (0, 1, 4):
        changed = numbers.copy()
        changed[index] *= 1.001
        assert fingerprint(changed) != fingerprint(numbers)
    assert fingerprint(-numbers) != fingerprint(numbers)


def test_removal_of_dead_statements_keeps_the_directions(lineages):
    _, children = lineages[0]
    programs = [Program(*x) for x in zip(*(x[10] for x in children), strict=True)]
    simple = [simplify(p) for p in programs]
    run = jax.jit(lambda programs: jax.lax.map(behaviour, programs))
    directions = np.asarray(run(stack(*programs)))
    assert np.mean(np.abs(directions).max(axis=(1, 2)) > 0) > 0.4
    np.testing.assert_array_equal(run(stack(*simple)), directions)
    lengths = [np.mean([np.sum(p.code[:, 0] != 0) for p in x]) for x in (simple, programs)]
    assert lengths[0] < 0.8 * lengths[1]


def distance(lines, target):
    return jnp.mean(jnp.abs(behaviour(lines) - target))


TARGET = "u = sign(g)\nb = scale(w, 0.1)\nu = add(u, b)"


def search(seed=0, **settings):
    settings = {"population": 16, "tournament": 4, **settings}
    target = jax.jit(behaviour)(program(TARGET))
    return evolve(distance, program("sgd", length=5), target, jax.random.key(seed), **settings)


@pytest.fixture(scope="module")
def found():
    return search(num_evaluations=300)


@pytest.mark.compiles
def test_finds_a_rule(found):
    assert found.score < 0.2 * found.best_scores[0]
    target = jax.jit(behaviour)(program(TARGET))
    np.testing.assert_allclose(jax.jit(distance)(found.program, target), found.score, rtol=1e-5)
    assert (np.diff(found.best_scores) <= 0).all()


@pytest.mark.compiles
def test_ranks_programs_that_behave_differently(found):
    scores = [score for _, score in found.ranking]
    assert scores == sorted(scores)
    assert scores[0] == found.score == found.best_scores[-1]
    assert len(set(hashes(stack(*(p for p, _ in found.ranking))))) == len(found.ranking) == 16


def test_reports_what_became_of_the_children(found):
    counts = found.counts
    assert counts.evaluated == len(found.best_scores) == 300
    # The starting program is no child; a few children may still wait to be scored.
    assert 0 <= counts.proposed + 1 - sum(counts[1:]) < 32
    assert counts.duplicates > 0.1 * counts.proposed
    assert counts.filtered == 0


@pytest.mark.compiles
def test_a_search_is_a_function_of_its_key(found):
    shorter, other = (search(seed, num_evaluations=100) for seed in (0, 1))
    np.testing.assert_array_equal(shorter.best_scores[:96], found.best_scores[:96])
    assert not np.array_equal(shorter.best_scores, other.best_scores)


def test_a_proxy_filters_what_it_dislikes(found, monkeypatch):
    # So much is filtered that no batch is ever full near the first program: it is not waited for.
    monkeypatch.setattr(_evolution, "PATIENCE", 5)
    # Operations from this one on take a constant.
    first = [operation.has_constant for operation in OPERATIONS].index(True)

    def proxy(lines, target):
        return jnp.any(lines.code[:, 0] >= first) * 1.0

    filtered = search(proxy=proxy, num_evaluations=60)
    assert filtered.counts.filtered > 10
    assert filtered.counts.evaluated == 60
    assert all(lines.code[:, 0].max() < first for lines, _ in filtered.ranking)
    assert any(lines.code[:, 0].max() >= first for lines, _ in found.ranking)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 0}, "population=0 is below 1"),
        ({"tournament": 17}, "tournament=17 is larger than population=16"),
        ({"num_children": 0}, "num_children=0 is below 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"evolve: {message}"):
        search(**settings)
