"""Laws of composition: a learner as a composite of lenses, update rules among them.

A lens is a pair get: A → B, put: A × dB → dA; (f; g).put(a, dc) = f.put(a, g.put(f.get(a), dc)). A
layer's A is a pair of parameters and inputs. An update rule is a lens, too: its get shows the model
parameters, its put takes their gradient to new state and parameters (Cruttwell et al. 2022,
arXiv:2103.01931). So is a step of an inner loop, whose parameter is theta.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.core import StepInfo, System
from metaopt.estimators import backprop
from metaopt.optimizers import complex_momentum, gradient_penalty, scale_by_complex_momentum, sr_ste


class Lens(NamedTuple):
    get: Callable
    put: Callable


def then(f, g):
    return Lens(lambda a: g.get(f.get(a)), lambda a, dc: f.put(a, g.put(f.get(a), dc)))


def beside(f, g):
    """Two layers with parameters: those of the composite are the pair."""

    def get(a):
        (q, r), x = a
        return g.get((r, f.get((q, x))))

    def put(a, dy):
        (q, r), x = a
        dr, dh = g.put((r, f.get((q, x))), dy)
        dq, dx = f.put((q, x), dh)
        return (dq, dr), dx

    return Lens(get, put)


LINEAR = Lens(
    lambda a: a[0] @ a[1],
    lambda a, dy: (np.outer(dy, a[1]), a[0].T @ dy),
)
BIAS = Lens(lambda a: a[0] + a[1], lambda a, dy: (dy, dy))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


SIGMOID = Lens(
    lambda a: sigmoid(a[1]),
    lambda a, dy: ((), sigmoid(a[1]) * (1 - sigmoid(a[1])) * dy),
)


def half_square(y):
    return Lens(lambda x: 0.5 * np.sum((x - y) ** 2), lambda x, rate: rate * (x - y))


def descent():
    """State: nothing."""
    return Lens(lambda a: a[1], lambda a, dp: (a[0], jax.tree.map(np.add, a[1], dp)))


def momentum(decay):
    """State: the sum of the past."""

    def put(a, dp):
        state = jax.tree.map(lambda s, d: decay * s + d, a[0], dp)
        return state, jax.tree.map(np.add, a[1], state)

    return Lens(lambda a: a[1], put)


def look_ahead(decay):
    """State: the last step. The model sees where one more of them would lead (Nesterov)."""

    def put(a, dp):
        state = jax.tree.map(lambda s, d: decay * s + d, a[0], dp)
        return state, jax.tree.map(np.add, a[1], state)

    return Lens(lambda a: jax.tree.map(lambda s, p: p + decay * s, *a), put)


RULES = {
    "descent": (descent(), {}),
    "momentum": (momentum(0.9), {"momentum": 0.9}),
    "look-ahead": (look_ahead(0.9), {"momentum": 0.9, "nesterov": True}),
}


@pytest.mark.parametrize(("rule", "settings"), RULES.values(), ids=RULES)
def test_a_learner_made_of_lenses_takes_the_steps_of_optax(x64, rule, settings):
    rng = np.random.default_rng(0)
    rate, steps = 0.3, 20
    inputs, targets = rng.normal(size=(steps, 3)), rng.normal(size=(steps, 2))
    start = ((rng.normal(size=(2, 3)), rng.normal(size=2)), ())
    model = beside(beside(LINEAR, BIAS), SIGMOID)

    state, params = jax.tree.map(np.zeros_like, start), start
    for x, y in zip(inputs, targets, strict=True):
        a = (rule.get((state, params)), x)
        dy = half_square(y).put(model.get(a), -rate)
        state, params = rule.put((state, params), model.put(a, dy)[0])

    opt = optax.sgd(rate, **settings)

    @jax.jit
    def train(start):
        def step(carry, xy):
            def loss(params):
                (w, b), _ = params
                return 0.5 * jnp.sum((jax.nn.sigmoid(w @ xy[0] + b) - xy[1]) ** 2)

            params, state = carry
            updates, state = opt.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (start, opt.init(start)), (inputs, targets))[0][0]

    expected = train(jax.tree.map(jnp.asarray, start))
    seen = rule.get((state, params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), seen, expected)


@pytest.mark.compiles
def test_a_meta_gradient_is_the_composite_of_the_puts_of_inner_steps(x64):
    """θ is the learning rate of gradient descent on a quadratic, shared by all steps."""
    slopes, target, start, num_steps = np.array([1.0, 3.0]), np.array([0.5, -1.0]), np.ones(2), 4
    step = Lens(
        lambda a: a[1] - a[0] * slopes * (a[1] - target),
        lambda a, dw: (-np.sum(slopes * (a[1] - target) * dw), (1 - a[0] * slopes) * dw),
    )
    unrolled = step
    for _ in range(num_steps - 1):
        unrolled = beside(unrolled, step)

    def shared(theta):
        """The same parameter for every step of the composite, as a tree of pairs."""
        tree = theta
        for _ in range(num_steps - 1):
            tree = (tree, theta)
        return tree

    theta = 0.2
    end = unrolled.get((shared(theta), start))
    by_copies, _ = unrolled.put((shared(theta), start), 2 * end)
    # A parameter used several times has the sum of the cotangents of its copies.
    expected = sum(jax.tree.leaves(by_copies))

    def inner_step(theta, w, data, key):
        w = w - theta * slopes * (w - target)
        return w, StepInfo(jnp.sum(w**2), jnp.array(False))

    system = System(lambda theta, data, key, *, num_steps=None: jnp.asarray(start), inner_step)
    estimator = backprop(system, horizon=num_steps, num_tasks=1, objective="last")
    theta, key = jnp.array(theta), jax.random.key(0)
    estimate, _ = estimator.estimate(theta, estimator.init(theta, (), key), (), jax.random.key(1))
    np.testing.assert_allclose(estimate.grad, expected, rtol=1e-12)
    np.testing.assert_allclose(estimate.loss, np.sum(end**2), rtol=1e-12)


def test_composition_of_lenses_is_associative():
    rng = np.random.default_rng(0)

    def random_lens():
        forward, backward, mixed = rng.normal(size=(3, 3, 3))
        return Lens(lambda a: np.tanh(forward @ a), lambda a, db: backward @ db * np.cos(mixed @ a))

    f, g, h = (random_lens() for _ in range(3))
    a, db = rng.normal(size=(2, 3))
    left, right = then(then(f, g), h), then(f, then(g, h))
    np.testing.assert_allclose(left.get(a), right.get(a), rtol=1e-12)
    np.testing.assert_allclose(left.put(a, db), right.put(a, db), rtol=1e-12)


def updates_of(opt, params, num_steps=3):
    """All updates on a loss that is not quadratic."""

    def loss(params):
        return sum(jnp.sum(jnp.sin(p) + p**4) for p in jax.tree.leaves(params))

    opt = optax.with_extra_args_support(opt)
    state, found = opt.init(params), []
    for _ in range(num_steps):
        grads = jax.grad(loss)(params)
        updates, state = opt.update(grads, state, params, grad_fn=lambda p, i: jax.grad(loss)(p))
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found


def test_chains_of_our_rules_are_associative_have_a_unit_and_split_by_parameters(x64):
    params = {"w": jnp.array([[0.4, -0.3], [0.2, 0.6]]), "b": jnp.array([0.1, -0.2])}
    f, g, h = gradient_penalty(gamma=0.1), sr_ste(n=1, m=2, decay=0.1), complex_momentum(0.1)
    rules = {
        "left": optax.chain(optax.chain(f, g), h),
        "right": optax.chain(f, optax.chain(g, h)),
        "unit": optax.chain(optax.identity(), f, g, optax.identity(), h),
    }

    @jax.jit
    def run(params):
        found = {name: updates_of(opt, params) for name, opt in rules.items()}
        split = optax.partition(
            {"slow": optax.sgd(0.1), "fast": scale_by_complex_momentum()},
            {"w": "slow", "b": "fast"},
        )
        alone = {
            "w": updates_of(optax.sgd(0.1), {"w": params["w"]}),
            "b": updates_of(scale_by_complex_momentum(), {"b": params["b"]}),
        }
        return found, updates_of(split, params), alone

    found, split, alone = run(params)
    for name in ("right", "unit"):
        jax.tree.map(np.testing.assert_array_equal, found[name], found["left"])
    for step, updates in enumerate(split):
        for name, value in updates.items():
            np.testing.assert_allclose(value, alone[name][step][name], rtol=1e-12)
