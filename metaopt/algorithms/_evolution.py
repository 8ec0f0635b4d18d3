"""Regularised evolution of symbolic update rules.

    parent = best of a random tournament,    child = mutate(parent),    the oldest member dies

Real et al. 2019, arXiv:1802.01548, Alg. 1 (the search); Chen et al. 2023, arXiv:2302.06675, §2 (the
programs, their mutations, skipping those that behave alike, the funnel). A child is run on a few
fixed gradients first: if it does what a known program did, or is not finite, or does the same for
the negated gradients, it is dropped. Only the rest are trained with. Differs from the papers: a
child that behaves like a known program does not join (it would inherit the score, and copies of the
best program with various dead statements soon fill the population); children are scored in batches,
so that a few join late; no restarts.
"""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metaopt.core import checked
from metaopt.learned import Program, simplify, symbolic
from metaopt.learned._programs import FIRST_WRITABLE, OPERATIONS, REGISTERS, SKIP, check

# Steps of the probe: memory has to be written, read and overwritten.
PROBE_STEPS = 5
# Fields of a statement that a mutation may change; the last one is its constant.
NUM_FIELDS = 5
# A population may have too few new neighbours to fill a batch: then part of one is scored.
PATIENCE = 100


class EvolutionCounts(NamedTuple):
    """What became of the children.

    Attributes:
        proposed: children made; the sum of the others, but for those not yet scored at the end.
        duplicates: behaved like a program seen before.
        invalid: gave something not finite, or the same for the negated gradients.
        filtered: failed the proxy.
        evaluated: trained with.
    """

    proposed: int
    duplicates: int
    invalid: int
    filtered: int
    evaluated: int


class EvolutionResult(NamedTuple):
    """What a search found.

    Attributes:
        program: the best program, simplified.
        score: its score.
        ranking: the best programs that behave differently, simplified, with their scores, in order.
        best_scores: the best score after each evaluated program, the starting one included.
        counts: see `EvolutionCounts`.
    """

    program: Program
    score: float
    ranking: tuple[tuple[Program, float], ...]
    best_scores: Float[np.ndarray, "evaluated"]
    counts: EvolutionCounts


class _Member(NamedTuple):
    program: Program
    score: float
    proxy: float


def mutate(program: Program, key: PRNGKeyArray) -> Program:
    """Inserts a random statement, removes one, or changes one of its five parts.

    The three are equally likely; an empty program gets an insertion, and a full one a change in
    place of an insertion. A changed constant is a fresh one (10^-3 to 3, or 1 minus 10^-3 to 1), or
    the old k as f·k or 1 - f·(1 - k), f from 1/4 to 4, so that decays move as freely as scales.

    Args:
        program: may be traced.
        key: which mutation.

    Returns:
        A program of the same length. It is always valid: every register fits every operation.
    """
    # One draw for all choices: many small ones would take long to compile.
    choices = jax.random.uniform(key, (11,))
    code, constants = jnp.asarray(program.code), jnp.asarray(program.constants)
    lines = jnp.arange(len(code))
    order = jnp.argsort(code[:, 0] == SKIP, stable=True)
    code, constants = code[order], constants[order]
    length = jnp.sum(code[:, 0] != SKIP)

    kind = _choose(choices[0], 0, 3)
    kind = jnp.where(length == 0, 0, jnp.where((length == len(code)) & (kind == 0), 2, kind))
    is_insertion, is_removal = kind == 0, kind == 1
    index = _choose(choices[1], 0, length + is_insertion)
    # Later statements move by one; what an insertion leaves at the index is then written.
    source = jnp.where(is_insertion & (lines > index), lines - 1, lines)
    source = jnp.where(is_removal & (lines >= index), lines + 1, source)
    code = jnp.take(code, source, axis=0, mode="fill", fill_value=SKIP)
    constants = jnp.take(constants, source, mode="fill", fill_value=0)

    is_changed = is_insertion | (_choose(choices[2], 0, NUM_FIELDS) == np.arange(NUM_FIELDS))
    low = np.array([SKIP + 1, 0, 0, FIRST_WRITABLE])
    high = np.array([len(OPERATIONS), *[len(REGISTERS)] * 3])
    fresh = _choose(choices[3:7], low, high)
    line = jnp.where(is_changed[:-1], fresh.astype(code.dtype), code[index])
    fresh = _changed_constant(choices[7:], constants[index], is_insertion)
    constant = jnp.where(is_changed[-1], fresh.astype(constants.dtype), constants[index])
    here = (lines == index) & ~is_removal
    return Program(jnp.where(here[:, None], line[None], code), jnp.where(here, constant, constants))


def _choose(uniform, low, high):
    """An integer from low up to high, exclusive."""
    return jnp.minimum(low + jnp.floor(uniform * (high - low)).astype(int), high - 1)


def _changed_constant(choices, old, must_be_fresh):
    is_fresh, is_decay = must_be_fresh | (choices[0] < 0.5), choices[1] < 0.5
    magnitude = 10 ** (3.5 * choices[2] - 3)
    fresh = jnp.where(is_decay, 1 - jnp.minimum(magnitude, 1), magnitude)
    factor = 2 ** (4 * choices[3] - 2)
    moved = jnp.where(is_decay, 1 - (1 - old) * factor, old * factor)
    return jnp.where(is_fresh, fresh, moved)


def behaviour(program: Program) -> Float[Array, "2 steps numbers"]:
    """What a program does: its directions for fixed gradients of one tensor, and their negatives.

    Programs that compute the same, in whatever order and with whatever dead statements, behave the
    same, to the last bit where no arithmetic is reordered.

    Args:
        program: may be traced.

    Returns:
        The directions of five steps, for six numbers; the second half is for negated gradients.
    """
    params = jnp.linspace(-1.0, 0.7, 6)
    tx = symbolic(program, learning_rate=-1.0).optimizer(jnp.asarray(program.constants))

    def run(sign):
        def step(carry, index):
            params, state = carry
            # Of both signs and several magnitudes, and different in every step.
            grads = jnp.sin(7 * params + 3 * index) * 10 ** jnp.cos(5 * params + index) / 10
            directions, state = tx.update(sign * grads, state, params)
            params = params + 0.1 * jnp.cos(9 * params + index)
            return (params, state), jnp.asarray(directions)

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(PROBE_STEPS) * 1.0)[1]

    return jax.vmap(run)(jnp.array([1.0, -1.0]))


def fingerprint(directions: Float[np.ndarray, "..."]) -> bytes:
    """A hash of a behaviour: its numbers to twelve bits, those below 1e-10 as 0."""
    numbers = np.asarray(directions, np.float64)
    mantissa, exponent = np.frexp(np.where(np.abs(numbers) < 1e-10, 0, numbers))
    rounded = np.round(mantissa * 2**12).astype(np.int32)
    return rounded.tobytes() + exponent.astype(np.int16).tobytes()


@checked
def evolve(
    evaluate: Callable[[Program, Any], Float[Array, ""]],
    start: Program,
    data: Any,
    key: PRNGKeyArray,
    *,
    population: int = 64,
    tournament: int = 16,
    num_evaluations: int = 1500,
    num_children: int = 16,
    batch_size: int | None = None,
    proxy: Callable[[Program, Any], Float[Array, ""]] | None = None,
    num_ranked: int = 16,
) -> EvolutionResult:
    """Searches for a program with a low score, from one that is known.

    Host-side orchestration like a training driver: it compiles by itself, three functions once.
    The score should be that of the best of several learning rates: what a rule is worth shows at
    its own. A rule is fitted to what it was scored on; choose from `ranking` on other problems.

    Args:
        evaluate: `(program, data) -> scalar`, pure, of a traced program; lower is better, and what
            is not finite counts as infinite. Use `learned.symbolic`.
        start: the first program; all programs have its length, so pad it (`learned.program`).
        data: passed to `evaluate` and `proxy`.
        key: randomness of the search.
        population: members at a time. Static.
        tournament: members among which a parent is the best. Static.
        num_evaluations: programs to train with, the starting one included. Static.
        num_children: children made, and programs scored, at a time. Static.
        batch_size: programs vectorised together when they are scored; None takes one after the
            other, which executes one branch per statement, where vectors execute all. Static.
        proxy: a cheaper score. A child whose proxy is above the population's median is dropped.
        num_ranked: programs in `ranking`. Static.

    Returns:
        What was found; deterministic in the arguments.

    Raises:
        ValueError: if `start` is no program, or a count is out of range.
    """
    check("evolve", start)
    counts = {
        "population": population,
        "tournament": tournament,
        "num_evaluations": num_evaluations,
        "num_children": num_children,
        "num_ranked": num_ranked,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"evolve: {name}={count} is below 1; use a positive number.")
    if tournament > population:
        raise ValueError(
            f"evolve: tournament={tournament} is larger than population={population}; "
            f"try tournament={max(1, population // 4)}."
        )
    functions = _compiled(evaluate, proxy, batch_size)
    search = _Search(start, data, functions, population, num_children)
    generation = 0
    # A search that only finds what it knows must end as well.
    while len(search.best) < num_evaluations and generation < 100 * num_evaluations:
        key_generation = jax.random.fold_in(key, generation)
        search.advance(key_generation, tournament, num_evaluations)
        generation += 1
    return search.result(num_ranked)


class _Functions(NamedTuple):
    """Compiled functions of many programs at a time."""

    breed: Callable
    screen: Callable
    score: Callable


def _compiled(evaluate, proxy, batch_size) -> _Functions:
    def in_turn(function):
        return jax.jit(
            lambda programs, data: jax.lax.map(
                lambda program: function(program, data), programs, batch_size=batch_size
            )
        )

    def screen(program, data):
        return behaviour(program), jnp.zeros(()) if proxy is None else proxy(program, data)

    return _Functions(jax.jit(jax.vmap(mutate)), in_turn(screen), in_turn(evaluate))


class _Search:
    """The population and what is known of programs, on the host."""

    def __init__(self, start, data, functions, population, num_children):
        self.data, self.functions, self.num_children = data, functions, num_children
        start = Program(np.asarray(start.code, np.int32), np.asarray(start.constants, np.float32))
        (first,) = self._scores([start])
        directions, proxies = jax.device_get(functions.screen(_stack([start] * num_children), data))
        member = _Member(start, first, float(proxies[0]))
        self.members = collections.deque([member] * population, maxlen=population)
        self.known = {fingerprint(directions[0]): member}
        self.pending: dict[bytes, _Member] = {}
        self.best = [first]
        self.waited = 0
        self.proposed = self.duplicates = self.invalid = self.filtered = 0

    def advance(self, key, tournament, num_evaluations):
        """Makes children; scores those that wait, once there are enough of them."""
        key_parents, key_mutations = jax.random.split(key)
        shape = (self.num_children, tournament)
        drawn = np.asarray(jax.random.randint(key_parents, shape, 0, len(self.members)))
        scores = np.array([member.score for member in self.members])
        chosen = drawn[np.arange(len(drawn)), np.argmin(scores[drawn], axis=1)]
        parents = _stack([self.members[index].program for index in chosen])
        children = self.functions.breed(parents, jax.random.split(key_mutations, len(chosen)))
        screened = self.functions.screen(children, self.data)
        children, (directions, proxies) = jax.device_get((children, screened))
        median = np.median([member.proxy for member in self.members])
        for index in range(self.num_children):
            child = Program(children.code[index], children.constants[index])
            self._admit(child, directions[index], float(proxies[index]), float(median))
        self.waited += 1
        batch = min(self.num_children, num_evaluations - len(self.best))
        if len(self.pending) >= batch or (self.pending and self.waited >= PATIENCE):
            self.waited = 0
            digests = list(self.pending)[:batch]
            members = [self.pending.pop(digest) for digest in digests]
            found = self._scores([member.program for member in members])
            for digest, member, value in zip(digests, members, found, strict=True):
                self.known[digest] = member._replace(score=value)
                self.members.append(self.known[digest])
                self.best.append(min(self.best[-1], value))

    def _admit(self, child, directions, proxy, median):
        self.proposed += 1
        digest = fingerprint(directions)
        ignores_sign = fingerprint(directions[0]) == fingerprint(directions[1])
        if not np.isfinite(directions).all() or ignores_sign:
            self.invalid += 1
        elif digest in self.known or digest in self.pending:
            self.duplicates += 1
        elif not proxy <= median:
            self.filtered += 1
        else:
            self.pending[digest] = _Member(child, np.inf, proxy)

    def _scores(self, programs) -> list[float]:
        padded = [*programs, *[programs[0]] * (self.num_children - len(programs))]
        scores = np.asarray(self.functions.score(_stack(padded), self.data), np.float64)
        return [float(x) if np.isfinite(x) else np.inf for x in scores[: len(programs)]]

    def result(self, num_ranked) -> EvolutionResult:
        """The best of all that was scored."""
        ranked = sorted(self.known.values(), key=lambda member: member.score)[:num_ranked]
        ranking = tuple((simplify(member.program), member.score) for member in ranked)
        counts = EvolutionCounts(
            self.proposed, self.duplicates, self.invalid, self.filtered, len(self.best)
        )
        return EvolutionResult(*ranking[0], ranking, np.array(self.best), counts)


def _stack(programs) -> Program:
    return Program(
        np.stack([program.code for program in programs]),
        np.stack([program.constants for program in programs]),
    )
