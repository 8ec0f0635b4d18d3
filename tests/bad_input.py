"""Bad input for every public factory, made from the rows of the registry.

Each row calls factories with good arguments; these calls are recorded and repeated with one
argument of a wrong kind at a time. What rows build is then used with a wrong theta, key, loss,
step or params. Nothing is compiled: errors belong to the time of building or tracing.

An attempt ends as "clear" (a ValueError or TypeError that names the argument), "error" (one that
does not) or "accepted".
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import pathlib
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt import core
from tests import registry

FACTORIES = (
    "core", "unroll", "tasks", "estimators", "learned", "optimizers", "aggregators", "algorithms",
)  # fmt: skip


class Attempt(NamedTuple):
    """One bad call.

    Attributes:
        factory: public name.
        what: the argument, or what was wrong about it.
        value: as text.
        outcome: "clear", "error" or "accepted".
        message: the first line of the error.
    """

    factory: str
    what: str
    value: str
    outcome: str
    message: str


def attempt(
    factory: str, what: str, value: str, words: tuple[str, ...], call: Callable, *args
) -> Attempt:
    """Calls, and judges the error: it must name one of the words."""
    try:
        call(*args)
    except (ValueError, TypeError) as error:
        line = str(error).partition("\n")[0]
        outcome = "clear" if any(word in line for word in words) else "error"
        return Attempt(factory, what, value, outcome, line)
    except Exception as error:
        return Attempt(factory, what, value, "error", f"{type(error).__name__}: {error}")
    return Attempt(factory, what, value, "accepted", "")


# Settings -------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A recorded good call of a factory."""

    name: str
    factory: Callable
    arguments: dict[str, Any]

    def with_changed(self, name: str, value: Any) -> Any:
        """The same call with another value of one argument."""
        positional, named = [], {}
        for argument, parameter in inspect.signature(self.factory).parameters.items():
            if argument not in self.arguments and argument != name:
                continue
            given = value if argument == name else self.arguments[argument]
            if parameter.kind == parameter.VAR_POSITIONAL:
                positional += given
            elif parameter.kind == parameter.VAR_KEYWORD:
                named |= given
            elif parameter.kind == parameter.KEYWORD_ONLY:
                named[argument] = given
            else:
                positional.append(given)
        return self.factory(*positional, **named)


def recorded_calls(monkeypatch) -> list[Call]:
    """One good call of every factory that the rows use."""
    calls: dict[str, Call] = {}

    def recording(name, factory):
        @functools.wraps(factory)
        def wrapper(*args, **kwargs):
            arguments = inspect.signature(factory).bind(*args, **kwargs).arguments
            calls.setdefault(name, Call(name, factory, dict(arguments)))
            return factory(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for package in FACTORIES:
            module = importlib.import_module(f"metaopt.{package}")
            for name in module.__all__:
                value = getattr(module, name)
                if inspect.isfunction(value):
                    patch.setattr(module, name, recording(f"{package}.{name}", value))
        for row in registry.ROWS:
            row.make()
    return list(calls.values())


def bad_values(annotation) -> list:
    """Values that no alternative of an annotation allows."""
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = list(typing.get_args(annotation))
    kinds = {_kind(part) for part in parts}
    if "unknown" in kinds:
        return []
    bad: list = [{1, 2}]
    bad += [] if "word" in kinds else ["nonsense"]
    bad += [] if kinds & {"integer", "scalar", "contract"} - {"contract"} else [3]
    bad += [2.5] if kinds == {"integer"} else []
    bad += [float("nan"), 1j] if "scalar" in kinds else []
    bad += ["nonsense"] if kinds == {"word"} else []
    return bad if "None" in kinds else [*bad, None]


def _kind(annotation) -> str:
    simple = {int: "integer", bool: "flag", float: "scalar", jax.Array: "scalar"}
    if annotation in simple:
        return simple[annotation]
    if annotation is types.NoneType:
        return "None"
    if typing.get_origin(annotation) is typing.Literal:
        return "word"
    if annotation is Callable or typing.get_origin(annotation) is Callable:
        return "function"
    if getattr(annotation, "dims", None) == ():
        return "scalar"
    if inspect.isclass(annotation) and hasattr(annotation, "_fields"):
        return "contract"
    return "unknown"


def settings(calls: list[Call]) -> Iterator[Attempt]:
    """Every checkable argument of every recorded call, with values of a wrong kind."""
    for call in calls:
        hints = typing.get_type_hints(call.factory)
        for name, parameter in inspect.signature(call.factory).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            for bad in bad_values(hints.get(name, Any)):
                yield attempt(call.name, name, repr(bad), (name,), call.with_changed, name, bad)


# Values ---------------------------------------------------------------------------------------

KEY = 0


def cast(tree, dtype):
    """All leaves in one dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), tree)


def estimators() -> Iterator[Attempt]:
    """Every estimator with a wrong theta or key."""
    for row in registry.ROWS:
        made = row.make()
        if not (isinstance(made, tuple) and isinstance(made[0], core.Estimator)):
            continue
        estimator, theta, data = made
        key = jax.random.key(KEY)

        def start(theta, key, data=data, estimator=estimator):
            return jax.eval_shape(lambda theta, key: estimator.init(theta, data, key), theta, key)

        def step(theta, key, data=data, estimator=estimator, good=theta):
            def both(theta, key):
                state = estimator.init(good, data, jax.random.key(KEY))
                return estimator.estimate(theta, state, data, key)

            return jax.eval_shape(both, theta, key)

        thetas = {
            "empty": (),
            "int32": cast(theta, jnp.int32),
            "complex64": cast(theta, jnp.complex64),
        }
        keys = {"old": jax.random.PRNGKey(KEY), "batched": jax.random.split(key, 3)}
        for function in (start, step):
            for kind, bad in thetas.items():
                yield attempt(row.label, "theta", kind, ("theta",), function, bad, key)
            for kind, bad in keys.items():
                yield attempt(row.label, "key", kind, ("key",), function, theta, bad)


def problems(calls: list[Call]) -> Iterator[Attempt]:
    """Every estimator of a system, a function or a bilevel problem that breaks its contract."""
    thetas: dict[str, tuple] = {}
    for row in registry.ROWS:
        if row.label.startswith("estimators."):
            estimator, *rest = row.make()
            if isinstance(estimator, core.Estimator):  # The first row is the one that was recorded.
                thetas.setdefault(row.covers[0], tuple(rest))
    for call in calls:
        if call.name not in thetas:
            continue
        (name, problem), *_ = call.arguments.items()
        theta, data = thetas[call.name]
        for what, broken, words in broken_problems(problem):

            def use(name=name, broken=broken, theta=theta, data=data, call=call):
                estimator = call.with_changed(name, broken)

                def both(theta):
                    state = estimator.init(theta, data, jax.random.key(KEY))
                    return estimator.estimate(theta, state, data, jax.random.key(KEY + 1))

                return jax.eval_shape(both, theta)

            yield attempt(call.name, "problem", what, words, use)


def broken_problems(problem) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Variants of a problem that break its contract, and words of which the error has one."""

    def vector(loss):
        return lambda *args, **kwargs: jnp.ones(2) * loss(*args, **kwargs)

    scalar = ("scalar", "shape ()")
    if isinstance(problem, core.System):

        def vector_step(theta, state, data, key):
            state, info = problem.step(theta, state, data, key)
            return state, info._replace(loss=info.loss * jnp.ones(2))

        def grown_step(theta, state, data, key):
            state, info = problem.step(theta, state, data, key)
            return (state, jnp.zeros(())), info

        return [
            ("step reports a vector", problem._replace(step=vector_step), scalar),
            (
                "step changes the structure of its state",
                problem._replace(step=grown_step),
                ("structure",),
            ),
        ]
    if isinstance(problem, core.BilevelProblem):
        return [
            (f"{field} is a vector", problem._replace(**{field: vector(loss)}), scalar)
            for field, loss in problem._asdict().items()
            if field != "init"
        ]
    return [("the meta-loss is a vector", vector(problem), scalar)] if callable(problem) else []


def learned_optimizers() -> Iterator[Attempt]:
    """Every learned optimizer with a wrong theta or parameters."""
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    loss = jnp.ones(())
    for row in registry.ROWS:
        made = row.make()
        if not isinstance(made, core.LearnedOptimizer):
            continue
        theta = made.init(jax.random.key(KEY))

        def update(params, grads, theta=theta, made=made):
            def one(params, grads):
                tx = made.optimizer(theta, num_steps=10)
                return tx.update(grads, tx.init(params), params, value=loss)

            return jax.eval_shape(one, params, grads)

        for dtype in (jnp.int32, jnp.complex64):
            bad = cast(params, dtype)
            value = jnp.dtype(dtype).name
            yield attempt(row.label, "params", value, ("params",), update, bad, bad)
        yield attempt(
            row.label, "theta", "of another rule", ("theta",),
            update, params, params, {"another": theta},
        )  # fmt: skip
        longer = jax.tree.map(lambda x: jnp.zeros((*jnp.shape(x), 1)), theta)
        if jax.tree.leaves(longer):
            yield attempt(
                row.label, "theta", "of other shapes", ("theta",),
                update, params, params, longer,
            )  # fmt: skip


# Command line ---------------------------------------------------------------------------------


class Started(Exception):
    """The command would have begun to train."""


def command_line(folder: pathlib.Path, monkeypatch) -> Iterator[Attempt]:
    """Every setting of `metaopt train`, of a wrong kind or out of range; nothing is trained."""
    from metaopt import train
    from metaopt.cli import _settings, main

    def started(*args, **kwargs):
        raise Started

    def run(words):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            try:
                status = main(["train", "--out", str(folder / "run"), *words])
            except SystemExit as end:
                status = end.code
        # The words of the command are in the usage too.
        lines = [line for line in errors.getvalue().splitlines() if "usage" not in line.lower()]
        raise (ValueError if status == 2 else RuntimeError)(" ".join(lines))

    with monkeypatch.context() as patch:
        patch.setattr(train, "meta_train", started)
        for flag, annotation in flags(_settings.RunSettings):
            # Any integer is a seed, flags take no word, and only some tasks read a directory.
            if flag in ("--seed", "--task.data-dir") or annotation is bool:
                continue
            group, _, name = flag.removeprefix("--").rpartition(".")
            # `task.names nonsense` is an unknown task.
            words = (name, name.replace("-", "_"), f"unknown {group}")
            for bad in bad_words(annotation):
                value = " ".join(bad)
                tried = attempt("metaopt train", flag, value, words, run, [flag, *bad])
                is_started = tried.message.startswith("Started")
                yield tried._replace(outcome="accepted") if is_started else tried
                # Nothing may be left behind by what was refused.
                if tried.outcome == "clear" and (folder / "run").exists():
                    yield tried._replace(outcome="error", message="left a folder")
                shutil.rmtree(folder / "run", ignore_errors=True)


def flags(settings: type, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Flag and annotation of every setting."""
    for name, annotation in typing.get_type_hints(settings).items():
        flag = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(annotation):
            yield from flags(typing.cast(type, annotation), f"{flag}.")
        else:
            yield flag, annotation


def bad_words(annotation) -> list[list[str]]:
    """Words that a setting must refuse."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = [part for part in parts if part is not types.NoneType]
        parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        words = [word[0] for word in bad_words(parts[0])]
        count = 1 if parts[-1] is Ellipsis else len(parts)
        return [[word] * count for word in words]
    if annotation is int:
        return [["many"], ["1.5"], ["-2"]]
    if annotation is float:
        return [["much"], ["nan"], ["-2"]]
    return [["nonsense"]]
