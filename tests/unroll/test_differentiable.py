import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from metaopt.unroll import differentiable
from tests.helpers import central_differences, ravel, relative_error

# The second feature is always 0, so that a row of the weights has zero gradients for ever.
X = np.array([[1.0, 0.0, 2.0], [0.5, 0.0, -1.0], [2.0, 0.0, 0.3]])
Y = np.array([1.0, -1.0, 0.5])

# Rules that are not called with a learning rate alone, or need more than gradients.
SPECIAL = {
    "noisy_sgd": lambda rate: optax.noisy_sgd(rate, key=0),
    "sam": lambda rate: optax.contrib.sam(
        optax.sgd(rate), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    ),
    "mechanize": lambda rate: optax.contrib.mechanize(optax.adam(rate)),
    "clip_by_global_norm": lambda rate: optax.chain(
        optax.clip_by_global_norm(0.1), optax.sgd(rate)
    ),
    "multi_steps": lambda rate: optax.MultiSteps(
        optax.adam(rate), every_k_schedule=2
    ).gradient_transformation(),
}
NEEDS_VALUE = {"polyak_sgd", "momo", "momo_adam"}

NOT_COVERED = {
    "lbfgs": "its line search is a loop of unknown length, which has no reverse mode",
    "sophia": "wants the loss itself, of which it takes second derivatives at random points",
    "galore": "projects by singular vectors: a decomposition, not elementwise",
    "dpsgd": "takes one gradient per example",
    "optimistic_adam": "the deprecated form of optimistic_adam_v2",
}

FAST = {"adam", "radam", "novograd"}


def aliases():
    """Every rule that optax exports as a function of a learning rate, and the special ones."""
    found = dict(SPECIAL)
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if not inspect.isfunction(function) or name.startswith(("_", "scale_by_")):
                continue
            if name in NOT_COVERED or name in SPECIAL:
                continue
            signature = inspect.signature(function)
            leads = next(iter(signature.parameters), None)
            if leads == "learning_rate" and "Gradient" in str(signature.return_annotation):
                found[name] = function
    return found


RULES = aliases()


def network_loss(params):
    hidden = jnp.tanh(jnp.asarray(X) @ params["w"])
    return jnp.mean((hidden @ params["v"] - Y) ** 2)


def theta():
    weights = jnp.array([[0.6, -0.4], [0.3, 0.2], [-0.5, 0.7]])
    return {"init": {"w": weights, "v": jnp.array([0.5, -0.7])}, "rate": jnp.array(0.05)}


def meta_loss(name, *, wrap, num_steps=3, inner_loss=network_loss):
    """The loss after some steps, and all that the rule has carried to there."""

    def function(theta):
        inner_opt = optax.with_extra_args_support(RULES[name](theta["rate"]))
        if wrap:
            inner_opt = differentiable(inner_opt)
        params = theta["init"]
        state = inner_opt.init(params)
        for _ in range(num_steps):
            value, grads = jax.value_and_grad(inner_loss)(params)
            extra = {"value": value} if name in NEEDS_VALUE else {}
            updates, state = inner_opt.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return inner_loss(params), params

    return function


def is_finite(tree) -> bool:
    return bool(np.all(np.isfinite(ravel(tree))))


def test_the_list_of_rules_is_complete():
    assert len(RULES) > 40
    assert {"adam", "lamb", "sm3", "muon", "adopt", "schedule_free_adamw"} <= set(RULES)


def each_rule():
    return pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=[] if n in FAST else [pytest.mark.compiles]) for n in sorted(RULES)],
    )


@pytest.mark.compiles
@each_rule()
def test_meta_gradients_are_finite_and_right_beside_a_weight_without_gradients(x64, name):
    safe = meta_loss(name, wrap=True)
    (_, params), grads = jax.jit(jax.value_and_grad(safe, has_aux=True))(theta())
    assert is_finite(grads)
    _, expected = jax.jit(meta_loss(name, wrap=False))(theta())
    # To the bit for all but one rule, whose operations XLA groups differently.
    np.testing.assert_allclose(ravel(params), ravel(expected), rtol=1e-15)
    slopes = central_differences(lambda theta: safe(theta)[0], theta(), step=1e-6)
    assert relative_error(grads, ravel_pytree(theta())[1](slopes)) < 1e-6


def test_the_plain_rule_is_not_finite_there(x64):
    grads = jax.jit(jax.grad(lambda theta: meta_loss("adam", wrap=False)(theta)[0]))(theta())
    assert not is_finite(grads)


@pytest.mark.parametrize("name", ["clip_by_global_norm", "lars", "novograd", "adam"])
def test_derivatives_are_zero_where_every_gradient_is_zero(x64, name):
    def flat(params):
        return 0.0 * jnp.sum(params["w"] ** 2)

    function = meta_loss(name, wrap=True, num_steps=2, inner_loss=flat)

    def norm_after(theta):
        return jnp.sum(function(theta)[1]["w"] ** 2)

    at = {"init": {"w": jnp.array([1.0, -2.0])}, "rate": jnp.array(0.05)}
    slope, curvature = jax.jit(lambda t: (jax.grad(norm_after)(t), jax.hessian(norm_after)(t)))(at)
    np.testing.assert_allclose(slope["init"]["w"], 2 * at["init"]["w"], rtol=1e-12)
    assert slope["rate"] == 0
    assert is_finite(curvature)
    np.testing.assert_allclose(curvature["init"]["w"]["init"]["w"], 2 * np.eye(2), rtol=1e-12)


@pytest.mark.compiles
def test_forward_mode_agrees_with_reverse_mode(x64):
    def function(theta):
        return meta_loss("adam", wrap=True)(theta)[0]

    forward, reverse = jax.jit(lambda t: (jax.jacfwd(function)(t), jax.grad(function)(t)))(theta())
    assert relative_error(forward, reverse) < 1e-12


def test_control_flow_inside_a_rule_is_followed(x64):
    """Adam's root, once under each of cond, scan and jit; derivatives at 0 and away from it."""

    def root(x):
        return jnp.sqrt(x)

    def bodies(x):
        taken = jax.lax.cond(jnp.sum(x) > -1, root, lambda x: x, x)
        scanned, _ = jax.lax.scan(lambda c, _: (c + root(x), None), jnp.zeros_like(x), None, 2)
        stacked, _ = jax.lax.scan(
            lambda c, y: (c + root(y), y), jnp.zeros_like(x), jnp.stack([x, x])
        )
        looped = jax.lax.fori_loop(0, 2, lambda i, c: c + jax.jit(root)(x), jnp.zeros_like(x))
        dynamic = jax.lax.while_loop(
            lambda carry: carry[0] < 2, lambda carry: (carry[0] + 1, carry[1] + root(x)), (0, x)
        )
        return taken + scanned + stacked + looped + jax.checkpoint(root)(x) + dynamic[1]

    rule = optax.GradientTransformation(lambda params: (), lambda u, s, p=None: (bodies(u), s))
    x = jnp.array([0.0, 4.0])
    updates, slopes = jax.jvp(lambda x: differentiable(rule).update(x, ())[0], (x,), (jnp.ones(2),))
    np.testing.assert_allclose(updates, bodies(x))
    # Ten roots and x itself: 10 / (2 √4) + 1, and only the latter at 0.
    np.testing.assert_allclose(slopes, [1.0, 3.5])


def test_updates_keep_dtypes_and_extra_arguments_that_are_no_arrays(x64):
    def update(updates, state, params=None, *, scale_fn, **extra):
        return jax.tree.map(scale_fn, updates), state

    rule = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    grads = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    updates, _ = differentiable(rule).update(grads, optax.EmptyState(), scale_fn=lambda x: -x)
    np.testing.assert_array_equal(updates["b"], -1)
    assert updates["a"].dtype == jnp.bfloat16
