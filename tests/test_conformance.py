"""What every public factory promises, checked the same way for all of them.

A row of the registry becomes a `Subject`, a pair of functions of arrays; for each,

    eager = jit = vmap          to half of the digits of the precision in force
    one trace                   a second call, fed with the first one's state, does not retrace
    dtypes                      gradients have those of theta or params; float64 stays float64
    finite gradients
    arguments stay as they are
"""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt import core
from metaopt.core import Estimator, LearnedOptimizer, System, TaskFamily
from metaopt.unroll import Episodes
from tests import registry

STEPS = 3


def each(rows):
    """Parametrises a test with rows; those that take long to compile are slow."""
    params = [
        pytest.param(row, id=row.label, marks=[pytest.mark.compiles] if row.heavy else [])
        for row in rows
    ]
    return pytest.mark.parametrize("row", params)


class Outcome(NamedTuple):
    """What a step gives.

    Attributes:
        state: what the next step takes; the same structure, shapes and dtypes as it was given.
        losses: scalars.
        others: anything else.
    """

    state: Any
    losses: Any = ()
    others: Any = ()


class Subject(NamedTuple):
    """A row as functions of arrays. `theta` stands for whatever is differentiated.

    Attributes:
        data: passed to all.
        begin: `(data, key) -> (theta, state)`.
        step: `(theta, state, data, key) -> Outcome`: nothing but calls of what the row builds.
        grad: `(theta, state, data, key) -> ` a gradient, finite and in the dtypes of theta.
    """

    data: Any
    begin: Callable[..., tuple[Any, Any]]
    step: Callable[..., Outcome]
    grad: Callable[..., Any]


def is_float(x) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def cast(tree, dtype):
    """Floating-point leaves in another dtype; None leaves them."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, tree)


def vary(tree, key):
    """Other values of the same kind: numbers up to a tenth larger, other keys."""
    leaves, treedef = jax.tree.flatten(tree)

    def one(index, x):
        key_leaf = jax.random.fold_in(key, index)
        if not hasattr(x, "dtype"):
            return x
        if is_key(x):
            return key_leaf
        if not is_float(x):
            return x
        return x * (1 + 0.1 * jax.random.uniform(key_leaf, x.shape, x.dtype))

    return treedef.unflatten([one(index, x) for index, x in enumerate(leaves)])


def total(tree):
    """Sum of all floating-point numbers."""
    return sum(jnp.sum(x) for x in jax.tree.leaves(tree) if is_float(x))


def of_family(family: TaskFamily, data, dtype) -> Subject:
    def begin(data, key):
        key_task, key_params = jax.random.split(key)
        task_params = family.sample(key_task)
        return cast(family.init(task_params, key_params), dtype), task_params

    def step(params, task_params, data, key):
        key_batch, key_loss = jax.random.split(key)
        batch = family.batch(data, task_params, key_batch)
        loss, aux = family.loss(params, task_params, batch, key_loss)
        return Outcome(task_params, (loss, family.normalise(loss, task_params)), (batch, aux))

    def grad(params, task_params, data, key):
        key_batch, key_loss = jax.random.split(key)
        batch = family.batch(data, task_params, key_batch)
        return jax.grad(family.loss, has_aux=True)(params, task_params, batch, key_loss)[0]

    return Subject(data, begin, step, grad)


def of_system(system: System, theta, data, dtype) -> Subject:
    def begin(data, key):
        key_theta, key_init = jax.random.split(key)
        varied = vary(cast(theta, dtype), key_theta)
        # Traced, as horizons that differ between tasks are.
        return varied, system.init(varied, data, key_init, num_steps=jnp.array(STEPS))

    def unrolled(theta, data, key):
        key_init, key_run = jax.random.split(key)

        def one(state, index):
            state, info = system.step(theta, state, data, jax.random.fold_in(key_run, index))
            return state, info.loss

        state = system.init(theta, data, key_init, num_steps=jnp.array(STEPS))
        return jnp.sum(jax.lax.scan(one, state, jnp.arange(STEPS))[1])

    def step(theta, state, data, key):
        state, info = system.step(theta, state, data, key)
        return Outcome(state, info.loss, info.done)

    def grad(theta, state, data, key):
        return jax.grad(unrolled)(theta, data, key)

    return Subject(data, begin, step, grad)


def of_episodes(run: Episodes, theta, data, dtype) -> Subject:
    def init(theta, data, key, *, num_steps=None):
        return run.begin(theta, data, key)

    def step(theta, state, data, key):
        state, window = run.window(theta, state, data, key)
        return state, StepLike(jnp.mean(window.loss), (window.done, window.frozen))

    return of_system(System(init, step), theta, data, dtype)


class StepLike(NamedTuple):
    loss: Any
    done: Any


def of_estimator(estimator: Estimator, theta, data, dtype) -> Subject:
    def begin(data, key):
        key_theta, key_init = jax.random.split(key)
        varied = vary(cast(theta, dtype), key_theta)
        return varied, estimator.init(varied, data, key_init)

    def step(theta, state, data, key):
        estimate, state = estimator.estimate(theta, state, data, key)
        return Outcome(state, estimate.loss, (estimate.grad, estimate.info))

    def grad(theta, state, data, key):
        return estimator.estimate(theta, state, data, key)[0].grad

    return Subject(data, begin, step, grad)


def of_learned(learned: LearnedOptimizer, dtype, params_dtype) -> Subject:
    """The state is that of the optimizer and the parameters; data is the planned steps."""
    shapes = {"matrix": (3, 2), "scalar": ()}

    def draw(key, dtype):
        keys = jax.random.split(key, len(shapes))
        drawn = zip(shapes.items(), keys, strict=True)
        return cast({name: jax.random.normal(k, shape) for (name, shape), k in drawn}, dtype)

    def begin(data, key):
        key_theta, key_params = jax.random.split(key)
        theta = cast(learned.init(key_theta), dtype)
        params = draw(key_params, params_dtype)
        return theta, (params, learned.optimizer(theta, num_steps=data).init(params))

    def one(theta, state, data, grads):
        params, opt_state = state
        updates, opt_state = learned.optimizer(theta, num_steps=data).update(
            grads, opt_state, params, value=jnp.ones(())
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        return optax.apply_updates(params, updates), opt_state

    def step(theta, state, data, key):
        return Outcome(one(theta, state, data, draw(key, params_dtype)))

    def grad(theta, state, data, key):
        def final(theta):
            def scanned(state, index):
                # Gradients depend on the parameters, as in training.
                grads = draw(jax.random.fold_in(key, index), params_dtype)
                grads = optax.tree.add(grads, optax.tree.scale(0.1, state[0]))
                return one(theta, state, data, grads), None

            (params, _), _ = jax.lax.scan(scanned, state, jnp.arange(STEPS))
            return total(jax.tree.map(jnp.square, params))

        return jax.grad(final)(theta)

    return Subject(jnp.array(STEPS), begin, step, grad)


def of_function(function, args, dtype) -> Subject:
    """The state is what follows the first argument; no data."""

    def begin(data, key):
        first, *rest = vary(args, key)
        return cast(first, dtype), tuple(rest)

    def step(theta, state, data, key):
        return Outcome(vary(state, key), others=function(theta, *state))

    def grad(theta, state, data, key):
        # Integers and keys among the leaves are not differentiated.
        leaves, treedef = jax.tree.flatten(theta)
        floats = {index: x for index, x in enumerate(leaves) if is_float(x)}

        def value(floats):
            merged = [floats.get(index, x) for index, x in enumerate(leaves)]
            return jnp.asarray(total(function(treedef.unflatten(merged), *state)), float)

        return list(jax.grad(value)(floats).values()) if floats else []

    return Subject((), begin, step, grad)


def subject(row, dtype=None, params_dtype=None) -> Subject:
    """The row's functions; theta is cast to `dtype`, parameters of its own to `params_dtype`."""
    match row.make():
        case LearnedOptimizer() as learned:
            return of_learned(learned, dtype, params_dtype)
        case (TaskFamily() as family, data):
            return of_family(family, data, dtype)
        case (System() as system, theta, data):
            return of_system(system, theta, data, dtype)
        case (Episodes() as run, theta, data):
            return of_episodes(run, theta, data, dtype)
        case (Estimator() as estimator, theta, data):
            return of_estimator(estimator, theta, data, dtype)
        case (function, tuple() as args) if callable(function):
            return of_function(function, args, dtype)
        case other:
            raise TypeError(f"{row.label}: the registry does not know what to do with {other!r}")


def numbers(x) -> np.ndarray:
    """A leaf as an array of numbers."""
    x = jnp.asarray(x)
    if is_key(x):
        return np.asarray(jax.random.key_data(x))
    return np.asarray(x, np.float64) if is_float(x) else np.asarray(x)


def assert_close(actual, expected, what: str) -> None:
    """Equal structure, shapes and dtypes; numbers equal to half of their digits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), what
    leaves = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, x), y in leaves:
        where = f"{what} at {jax.tree_util.keystr(path)}"
        x, y = jnp.asarray(x), jnp.asarray(y)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), where
        if is_float(x):
            digits = float(jnp.finfo(x.dtype).eps) ** 0.5
            scale = np.max(np.abs(numbers(y)), initial=0, where=np.isfinite(numbers(y)))
            np.testing.assert_allclose(
                numbers(x), numbers(y), rtol=0, atol=digits * max(scale, 1), err_msg=where
            )
        else:
            np.testing.assert_array_equal(numbers(x), numbers(y), err_msg=where)


def pick(batch, index):
    return jax.tree.map(lambda x: x[index], batch)


def again(tree):
    """The same values, with keys that may be consumed once more."""
    return jax.tree.map(lambda x: jax.random.clone(x) if is_key(jnp.asarray(x)) else x, tree)


def check(row, *, alone: bool) -> None:
    """Everything that needs numbers, with one compiled program.

    Eager, one task, against compiled, a batch of tasks; `alone` compiles one task as well.
    """
    data, begin, step, grad = subject(row)

    def run(theta, state, data, key):
        key_begin, key_step = jax.random.split(key)
        return begin(data, key_begin), step(theta, state, data, key_step)

    def run_and_grad(theta, state, data, key):
        gradient = grad(*again((theta, state)), data, jax.random.clone(key))
        return run(theta, state, data, key), gradient

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def compiled(thetas, states, data, keys):
        one = pick(again((thetas, states)), 1)
        single = run_and_grad(*one, data, again(keys)[1]) if alone else None
        return jax.vmap(run_and_grad, (0, 0, None, 0))(thetas, states, data, keys), single

    starts = [begin(data, jax.random.key(seed)) for seed in (1, 2)]
    thetas, states = jax.tree.map(lambda *x: jnp.stack(x), *again(starts))
    keys = jax.random.split(jax.random.key(3), 2)
    together, single = compiled(*again((thetas, states)), data, again(keys))
    if alone:
        assert_close(pick(again(together), 1), single, "vmap")

    # Arrays cannot change, the containers that hold them can.
    arguments = again((*starts[1], data, again(keys)[1]))
    copies = jax.tree.map(lambda x: x, arguments)
    assert_close(pick(again(together[0]), 1), run(*arguments), "eager")
    assert jax.tree.structure(arguments) == jax.tree.structure(copies), "an argument was changed"
    leaves = zip(jax.tree.leaves(arguments), jax.tree.leaves(copies), strict=True)
    assert all(x is y for x, y in leaves), "an argument was changed"

    ((fresh, _), outcome), gradient = again(together)
    check_kinds(*starts[1], pick(again(outcome), 1), pick(gradient, 1))
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(numbers(leaf)).all(), f"gradient at {jax.tree_util.keystr(path)}"
    compiled(*again((fresh, outcome.state)), data, jax.random.split(jax.random.key(4), 2))


def check_kinds(theta, state, outcome, gradient) -> None:
    """Gradients are like theta, states like states, losses scalars."""
    floats = [x for x in jax.tree.leaves(theta) if is_float(x)]
    assert [x.dtype for x in jax.tree.leaves(gradient)] == [x.dtype for x in floats]
    chex.assert_trees_all_equal_shapes(jax.tree.leaves(gradient), floats)
    assert jax.tree.structure(outcome.state) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(outcome.state), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert all(x.shape == () and is_float(x) for x in jax.tree.leaves(outcome.losses))


@each(registry.ROWS)
def test_eager_is_jit_of_vmap_in_one_trace_with_finite_gradients(row):
    check(row, alone=False)


# Heavy rows in float32 only: tests of their own compare numbers in float64.
@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
@each([row for row in registry.ROWS if not row.heavy])
def test_eager_is_jit_is_vmap_in_float64(row):
    check(row, alone=True)


def shapes(row, dtype=None, params_dtype=None):
    """Arguments, outcome and gradient of a step as shapes, without computing anything."""
    data, begin, step, grad = subject(row, dtype, params_dtype)
    key = jax.random.key(0)
    theta, state = jax.eval_shape(begin, data, key)
    arguments = (theta, state, data, key)
    return theta, state, jax.eval_shape(step, *arguments), jax.eval_shape(grad, *arguments)


def dtypes(tree) -> set:
    return {jnp.dtype(x.dtype) for x in jax.tree.leaves(tree) if is_float(x)}


@each(registry.ROWS)
def test_bfloat16_is_kept(row):
    theta, state, outcome, gradient = shapes(row, jnp.bfloat16)
    assert dtypes(theta) <= {jnp.dtype(jnp.bfloat16)}
    check_kinds(theta, state, outcome, gradient)
    # A weak type that gets lost on the way would cost a second trace.
    assert jax.tree.map(jax.typeof, outcome.state) == jax.tree.map(jax.typeof, state)


@pytest.mark.usefixtures("x64")
@each(row for row in registry.ROWS if row.label not in registry.LOW_PRECISION)
def test_float64_is_kept(row):
    theta, state, outcome, gradient = shapes(row)
    check_kinds(theta, state, outcome, gradient)
    found = dtypes((theta, state, outcome.state, outcome.losses))
    assert found <= {jnp.dtype(jnp.float64)}


@each(registry.OPTIMIZER_ROWS)
def test_a_wide_theta_does_not_widen_narrow_parameters(row):
    """The other way round, parameters wider than theta, is in the test of bfloat16."""
    low, high = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    theta, state, outcome, gradient = shapes(row, high, low)
    assert dtypes(theta) == dtypes(gradient) == {high}
    assert dtypes(state[0]) == dtypes(outcome.state[0]) == {low}
    check_kinds(theta, state, outcome, gradient)


# The registry itself --------------------------------------------------------------------------


def public() -> set[str]:
    """Every name in the `__all__` of every package."""
    root = Path(metaopt.__file__).parent
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    modules = {
        name: importlib.import_module(f"metaopt.{name}")
        for name in packages - set(registry.EXEMPT_PACKAGES)
    }
    return {f"{name}.{x}" for name, module in modules.items() for x in module.__all__}


def test_every_public_name_has_a_row_or_a_reason():
    covered = {name for row in registry.ROWS for name in row.covers}
    exempt = set(registry.EXEMPT)
    missing = public() - covered - exempt
    assert not missing, f"add a row to tests/registry.py, or a reason: {sorted(missing)}"
    assert not (covered | exempt) - public(), "no longer public"
    assert not covered & exempt, "has a row and a reason to have none"


def test_every_row_is_labelled_once_and_no_contract_is_left_to_heavy_rows():
    labels = [row.label for row in registry.ROWS]
    assert len(labels) == len(set(labels))
    light = {
        name
        for row in registry.ROWS
        for name in row.covers
        if not row.heavy or not name.startswith(("core.", "tree."))
    }
    assert light == {name for row in registry.ROWS for name in row.covers}


def test_no_function_of_a_purely_functional_package_is_exempt():
    for name, reason in registry.EXEMPT.items():
        if reason == "reads or writes files":
            continue
        package, _, attribute = name.partition(".")
        value = getattr(importlib.import_module(f"metaopt.{package}"), attribute)
        if inspect.isfunction(value):
            assert package not in ("core", "tree", "tasks", "learned", "estimators"), name


def a_system(step):
    return core.System(lambda theta, data, key, *, num_steps=None: {"x": 0 * theta}, step)


def planted(name):
    """Rows that break a promise each."""

    def stateful(theta, state, data, key):
        x = state["x"] + theta
        if name == "changes its argument":
            state["x"] = x
        if name == "widens its state":
            x = x.astype(jnp.float32)
        loss = jnp.sum(jnp.sqrt(x - x) if name == "infinite gradient" else x)
        if name == "differs under jit" and isinstance(x, jax.core.Tracer):
            loss = 2 * loss
        if name == "couples a batch":
            loss = jax.pure_callback(
                lambda v: np.float32(np.sum(v)) * np.ones(v.shape[:-1], np.float32),
                jax.ShapeDtypeStruct((), jnp.float32),
                jax.lax.stop_gradient(x),
                vmap_method="expand_dims",
            )
        if name == "narrows float64":
            loss = loss.astype(jnp.float32)
        return {"x": x}, core.StepInfo(loss, jnp.array(False))

    return registry.row(name, lambda: (a_system(stateful), jnp.array([0.3, 0.2]), ()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("changes its argument", "an argument was changed"),
        ("infinite gradient", "gradient at"),
        ("differs under jit", "eager"),
        ("couples a batch", "eager"),
    ],
)
def test_planted_violations_are_caught(name, message):
    with pytest.raises(AssertionError, match=message):
        check(planted(name), alone=False)


def test_a_second_trace_is_caught():
    def init(theta, data, key, *, num_steps=None):
        return jnp.asarray(0.0)  # weakly typed, until a step adds something to it

    def step(theta, state, data, key):
        state = state + jnp.sum(theta)
        return state, core.StepInfo(state, jnp.array(False))

    row = registry.row("weak", lambda: (core.System(init, step), jnp.array([0.3, 0.2]), ()))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        check(row, alone=False)


def test_lost_dtypes_are_caught(x64):
    test_float64_is_kept(planted("fine"))
    with pytest.raises(AssertionError):
        test_float64_is_kept(planted("narrows float64"))
    with pytest.raises((AssertionError, TypeError)):
        test_bfloat16_is_kept(planted("widens its state"))


def test_an_unregistered_name_is_caught(monkeypatch):
    monkeypatch.setattr(metaopt.core, "__all__", [*metaopt.core.__all__, "planted"])
    with pytest.raises(AssertionError, match=r"core\.planted"):
        test_every_public_name_has_a_row_or_a_reason()
