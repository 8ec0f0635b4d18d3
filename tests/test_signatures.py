"""Arguments come in one order everywhere: differentiated, carried, fed, key; then `*`, settings."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import metaopt
from metaopt.core import _contracts

ROOT = Path(metaopt.__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

DIFFERENTIATED, CARRIED, FED, KEY = range(4)

RANKS = {
    "theta": DIFFERENTIATED,
    "params": DIFFERENTIATED,
    "loss": DIFFERENTIATED,
    "state": CARRIED,
    "opt_state": CARRIED,
    "task_params": CARRIED,
    "data": FED,
    "pool": FED,
    "batch": FED,
    "inputs": FED,
    "labels": FED,
    "targets": FED,
    "key": KEY,
}

# A batch is drawn from the pool that the first argument is, for the task that the second is.
EXCEPTIONS = {"TaskFamily.batch": ("data", "task_params", "key")}


# What every optimizer of optax takes first.
LEADING_SETTING = "learning_rate"


def rank(name: str) -> int | None:
    """Rank of an argument by its glossary name; None for what a factory wraps."""
    return KEY if name.startswith("key_") else RANKS.get(name)


def order_problems(name: str, arguments: tuple[str, ...]) -> list[str]:
    """What is wrong with the order of positional arguments."""
    if EXCEPTIONS.get(name) == arguments:
        return []
    ranks = [rank(argument) for argument in arguments]
    known = [r for r in ranks if r is not None]
    found = []
    if known != sorted(known):
        found.append(f"{name}{arguments}: order is differentiated, carried, fed, key")
    # What a factory wraps has no rank and may be anywhere before the key.
    if KEY in ranks and None in ranks[ranks.index(KEY) :]:
        found.append(f"{name}{arguments}: the key comes last")
    return found


def problems(name: str, function) -> list[str]:
    """What is wrong with the signature of a public function."""
    positional, found = [], []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional.append(parameter.name)
            optional = parameter.default is not parameter.empty
            # None in the first place asks for the obvious: the default directory, all devices.
            leads = len(positional) == 1 and (
                parameter.default is None or parameter.name == LEADING_SETTING
            )
            if optional and not leads:
                found.append(f"{name}: {parameter.name} is a setting; put it after the *")
        elif parameter.kind == parameter.KEYWORD_ONLY and rank(parameter.name) is not None:
            found.append(f"{name}: {parameter.name} is no setting; put it before the *")
    return found + order_problems(name, tuple(positional))


def public_functions() -> Iterator[tuple[str, object]]:
    """Every function in the `__all__` of every package."""
    for package in PACKAGES:
        module = importlib.import_module(f"metaopt.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.isfunction(value):
                continue
            # Rules of optax keep its signatures.
            if inspect.unwrap(value).__module__.startswith("metaopt."):
                yield f"{package}.{name}", value


def contract_fields() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Field and positional arguments of every function that the contracts declare."""
    for name, value in vars(_contracts).items():
        if inspect.isclass(value) and issubclass(value, tuple) and hasattr(value, "_fields"):
            for field, arguments in re.findall(r"^ *(\w+): `\(([^)]*)\) ->", value.__doc__, re.M):
                positional = arguments.partition("*")[0].strip(" ,")
                yield f"{name}.{field}", tuple(re.split(r",\s*", positional)) if positional else ()


def test_public_functions_take_their_arguments_in_order():
    found = [text for name, function in public_functions() for text in problems(name, function)]
    assert not found, "\n".join(found)


def test_the_contracts_declare_their_arguments_in_order():
    declared = dict(contract_fields())
    assert declared["TaskFamily.loss"] == ("params", "task_params", "batch", "key")
    assert declared["System.init"] == ("theta", "data", "key")
    assert declared["Estimator.estimate"] == ("theta", "state", "data", "key")
    assert declared["LearnedOptimizer.optimizer"] == ("theta",)
    found = [
        text for name, arguments in declared.items() for text in order_problems(name, arguments)
    ]
    assert not found, "\n".join(found)


def test_contract_implementations_match_what_is_declared():
    """Factories that build contracts name the arguments of their functions as declared."""
    declared = dict(contract_fields())
    family = metaopt.core.TaskFamily(None, None, None, None)
    assert tuple(inspect.signature(family.normalise).parameters) == ("loss", "task_params")
    system = metaopt.core.training(
        family, metaopt.core.LearnedOptimizer(None, None), outer_loss="train"
    )
    for field, function in system._asdict().items():
        arguments = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind != parameter.KEYWORD_ONLY
        ]
        assert tuple(arguments) == declared[f"System.{field}"]


def test_planted_violations_are_caught():
    def key_first(key, theta): ...
    def fed_before_carried(theta, data, state, key): ...
    def setting_before_star(meta_loss, sigma=0.1): ...
    def key_as_setting(theta, *, key): ...
    def settings_after_key(theta, key, sigma): ...
    def optax_like(learning_rate=0.1, *, decay=0.9): ...
    def all_devices(devices=None): ...
    def good(system, theta, state, data, key_inner, key_outer, *, sigma=0.1, num_tasks): ...

    for function, message in [
        (key_first, "order is"),
        (fed_before_carried, "order is"),
        (setting_before_star, "sigma is a setting"),
        (key_as_setting, "key is no setting"),
        (settings_after_key, "the key comes last"),
    ]:
        (found,) = problems("planted", function)
        assert message in found
    assert not problems("planted", good)
    assert not problems("planted", optax_like)
    assert not problems("planted", all_devices)
    assert not order_problems("TaskFamily.batch", ("data", "task_params", "key"))
    assert order_problems("other", ("data", "task_params", "key"))
