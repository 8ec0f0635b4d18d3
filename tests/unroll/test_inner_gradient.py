import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import core, unroll
from metaopt.core import StepInfo, System
from metaopt.unroll import first_order_value_and_grad, mixed_value_and_grad
from tests.helpers import central_differences, relative_error

RULES = (jax.value_and_grad, mixed_value_and_grad)


def loss(params, theta, data, labels, key):
    """A regression with noise; the auxiliary output depends on everything too."""
    noise = 0.1 * jax.random.normal(key, (3,))
    hidden = jnp.tanh(params["w"] @ data + noise + params["b"])
    value = jnp.sum(jnp.exp(theta) * (hidden - labels) ** 2)
    return value, {"norm": jnp.sum(params["w"] ** 2) * theta[0], "labels": labels}


def inputs():
    key = jax.random.key(0)
    params = {"w": 0.5 * jax.random.normal(key, (3, 4)), "b": jnp.zeros(3)}
    return params, jnp.array([0.1, 0.2, -0.3]), jnp.linspace(-1, 1, 4)


def descent(value_and_grad, *, explicit, with_aux=False):
    """Meta-loss of three steps; theta is an argument of the inner loss, or closed over."""
    labels = jnp.array([1, 0, 1])

    def meta_loss(params, theta, data):
        key_data = jax.random.key_data(jax.random.key(1))

        def step(params, index):
            key = jax.random.fold_in(jax.random.wrap_key_data(key_data), index)
            if explicit:
                transform, args = value_and_grad(loss, has_aux=True), (theta, data, labels, key)
            else:
                closed = lambda params: loss(params, theta, data, labels, key)  # noqa: E731
                transform, args = value_and_grad(closed, has_aux=True), ()
            (value, aux), grads = transform(params, *args)
            params = jax.tree.map(lambda p, g: p - 0.1 * jnp.sin(g), params, grads)
            return params, value + (aux["norm"] if with_aux else 0)

        params, values = jax.lax.scan(step, params, jnp.arange(3))
        return jnp.mean(values) + jnp.sum(params["w"] ** 3)

    return meta_loss


@pytest.mark.parametrize(("explicit", "with_aux"), [(True, True), (False, False)])
def test_mixed_has_the_cotangents_of_reverse_for_params_theta_and_data(x64, explicit, with_aux):
    results = [
        jax.jit(jax.grad(descent(rule, explicit=explicit, with_aux=with_aux), argnums=(0, 1, 2)))(
            *inputs()
        )
        for rule in RULES
    ]
    for reverse, mixed in zip(*results, strict=True):
        assert relative_error(mixed, reverse) < 1e-12


def test_mixed_agrees_with_central_differences(x64):
    params, theta, data = inputs()
    meta_loss = descent(mixed_value_and_grad, explicit=True)

    def of_theta(theta):
        return meta_loss(params, theta, data)

    expected = central_differences(of_theta, theta)
    assert relative_error(jax.jit(jax.grad(of_theta))(theta), expected) < 1e-8


def test_mixed_survives_vmap_a_second_gradient_and_a_hessian(x64):
    def loss(params, theta):
        return jnp.sum(jnp.exp(theta) * jnp.tanh(params) ** 2)

    def all_of(rule, theta):
        def meta_loss(theta):
            params = theta
            for _ in range(2):
                _, grads = rule(lambda p: loss(p, theta))(params)
                params = params - 0.1 * grads
            return loss(params, jnp.ones(2))

        def slope(theta):
            return jnp.sum(jax.grad(meta_loss)(theta) ** 2)

        rows = jax.vmap(jax.grad(meta_loss))(jnp.stack([theta, 2 * theta]))
        return rows, jax.grad(slope)(theta), jax.hessian(meta_loss)(theta)

    theta = jnp.array([0.3, -0.2])
    results = [jax.jit(all_of, static_argnums=0)(rule, theta) for rule in RULES]
    for reverse, mixed in zip(*results, strict=True):
        assert relative_error(mixed, reverse) < 1e-11


def test_forward_mode_through_mixed_is_refused_by_jax():
    params, theta, data = inputs()
    meta_loss = descent(mixed_value_and_grad, explicit=True)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda theta: meta_loss(params, theta, data), (theta,), (theta,))


def test_mixed_keeps_the_dtypes_of_every_argument():
    params = jnp.ones(2, jnp.bfloat16)
    theta = jnp.ones(2, jnp.float32)

    def meta_loss(params, theta):
        function = lambda p, t: jnp.sum(p.astype(jnp.float32) ** 3 * t)  # noqa: E731
        value, grads = mixed_value_and_grad(function)(params, theta)
        return value + jnp.sum(grads.astype(jnp.float32) ** 2)

    cotangents = jax.grad(meta_loss, argnums=(0, 1))(params, theta)
    assert [x.dtype for x in cotangents] == [jnp.bfloat16, jnp.float32]
    # d/dp (p³ t + (3 p² t)²) = 3 + 36, d/dt = 1 + 18 at p = t = 1.
    np.testing.assert_array_equal(cotangents[0].astype(jnp.float32), 39)
    np.testing.assert_array_equal(cotangents[1], 19)


def test_first_order_drops_the_derivative_of_the_gradient_and_nothing_else(x64):
    theta = jnp.array([0.5, -0.2])

    def meta_loss(theta):
        value, grads = first_order_value_and_grad(lambda p: jnp.sum(p**3))(theta)
        moved = theta - 0.1 * grads
        return value + jnp.sum(moved**2)

    moved = theta - 0.3 * theta**2
    expected = 3 * theta**2 + 2 * moved
    np.testing.assert_allclose(jax.grad(meta_loss)(theta), expected, rtol=1e-12)


def own_gradient():
    """A system that does not say how it takes its inner gradient."""

    def step(theta, state, data, key):
        state = state - theta * jax.grad(lambda s: jnp.sum(s**4))(state)
        return state, StepInfo(jnp.sum(state**2), jnp.array(False))

    return System(lambda theta, data, key, *, num_steps=None: jnp.ones(2), step)


def quartic():
    problem = core.BilevelProblem(
        init=lambda key: jax.random.normal(key, (2,)),
        inner_loss=lambda params, theta, data, key: jnp.sum(
            (params - data) ** 4 + jnp.exp(theta["penalty"]) * params**2
        ),
        outer_loss=lambda params, theta, data, key: jnp.sum((params - theta["aim"]) ** 2),
    )
    theta = {"penalty": jnp.array([0.1, -0.3]), "aim": jnp.array(0.4)}
    return core.bilevel_training(problem, optax.sgd(0.05)), theta, jnp.array([0.5, -0.5])


@pytest.mark.compiles
@pytest.mark.parametrize("drawn", [False, True])
def test_every_gradient_reaches_a_system_through_guards_and_horizons(x64, drawn):
    system, theta, data = quartic()
    wrapped = system if drawn else unroll.auto_reset(system, horizon=2)
    horizon = unroll.log_uniform(2, 3) if drawn else 3

    def meta_grad(gradient):
        meta_loss = unroll.meta_loss(wrapped, horizon=horizon, gradient=gradient)
        return jax.jit(jax.grad(meta_loss))(theta, data, jax.random.key(2))

    reverse, mixed, first_order = map(meta_grad, ("reverse", "mixed", "first_order"))
    assert relative_error(mixed, reverse) < 1e-12
    np.testing.assert_array_equal(first_order["penalty"], 0)
    assert relative_error(first_order["aim"], reverse["aim"]) < 1e-12


def test_a_system_without_a_choice_is_told_what_to_add():
    for wrap in (lambda s: s, unroll.freeze_diverged, lambda s: unroll.auto_reset(s, horizon=3)):
        system = wrap(own_gradient())
        assert not unroll.takes_value_and_grad(system)
        with pytest.raises(ValueError, match="unroll: gradient='mixed' needs a system whose step"):
            unroll.unroll(system, num_steps=2, gradient="mixed")
        with pytest.raises(ValueError, match="unroll: remat='gradients' needs a system"):
            unroll.unroll(system, num_steps=2, remat="gradients")
        unroll.unroll(system, num_steps=2, gradient="auto", remat="auto")
    with pytest.raises(ValueError, match="gradient='fast' is unknown"):
        unroll.with_gradient(own_gradient(), "fast")


def test_wrappers_offer_the_choice_that_their_system_offers():
    system, _, _ = quartic()
    for wrap in (lambda s: s, unroll.freeze_diverged, lambda s: unroll.auto_reset(s, horizon=3)):
        assert unroll.takes_value_and_grad(wrap(system))
