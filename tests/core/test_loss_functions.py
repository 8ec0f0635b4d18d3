import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import core, tasks
from metaopt.core import loss_functions


def loss(params):
    return jnp.sum(jnp.sin(params["a"]) ** 2) + params["a"][0] * params["b"]


PARAMS = {"a": jnp.array([0.3, -0.7]), "b": jnp.array(1.1)}


def test_all_functions_are_derivatives_of_the_same_loss(x64):
    params = jax.tree.map(lambda x: x.astype(float), PARAMS)
    value, grads = jax.value_and_grad(loss)(params)
    extra = loss_functions(loss, value, grads)
    assert extra["value"] == extra["value_fn"](params) == extra["obj_fn"](params)
    for given in (extra["grad"], extra["grad_fn"](params), extra["grad_fn"](params, 1)):
        jax.tree.map(np.testing.assert_array_equal, given, grads)
    again, same = extra["value_and_grad_fn"](params)
    assert again == value
    jax.tree.map(np.testing.assert_array_equal, same, grads)
    # d²/da² of sin² is 2 cos 2a; a₀ and b share a second derivative of one.
    v = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    product = extra["hvp_fn"](params, v)
    curved = 2 * np.cos(2 * np.asarray(params["a"])) * np.array([1.0, 2.0])
    np.testing.assert_allclose(product["a"], curved + np.array([3.0, 0.0]), rtol=1e-12)
    np.testing.assert_allclose(product["b"], 1.0, rtol=1e-12)


def after(inner_opt, num_steps, system=None):
    """Loss after some steps of an inner optimizer on a quadratic."""
    family = tasks.quadratic(dim=4, min_eig=0.01)
    family = family._replace(normalise=core.keep_finite)
    if system is None:
        system = core.adaptation(family, inner_opt, outer_loss="same_batch")
    else:
        system = system(inner_opt)
    params = jnp.ones(4)

    @jax.jit
    def run(key):
        state = system.init(params, (), key)

        def step(state, index):
            state, info = system.step(params, state, (), jax.random.fold_in(key, index))
            return state, info.loss

        return jax.lax.scan(step, state, jnp.arange(num_steps))[1]

    return run(jax.random.key(0))


def test_a_line_search_works_as_inner_optimizer():
    # It evaluates the loss where it likes; a quadratic of four parameters is solved in ten steps.
    searched, descended = after(optax.lbfgs(), 10), after(optax.sgd(0.3), 10)
    assert searched[-1] - searched.min() == 0
    assert searched[-1] < 1e-3 * descended[-1]


def test_a_sharpness_aware_rule_sees_the_gradient_elsewhere(x64):
    rho, rate = 0.3, 0.1

    def update(updates, state, params, *, grad_fn, **extra):
        length = optax.tree.norm(updates)
        above = jax.tree.map(lambda p, g: p + rho * g / length, params, updates)
        return jax.tree.map(lambda g: -rate * g, grad_fn(above, 0)), state

    inner_opt = optax.GradientTransformationExtraArgs(lambda params: (), update)

    def bilevel(inner_opt):
        problem = core.BilevelProblem(
            init=lambda key: jnp.array([1.0, 2.0]),
            inner_loss=lambda params, theta, data, key: 0.5 * jnp.sum(scales * params**2),
            outer_loss=lambda params, theta, data, key: jnp.sum(params),
        )
        return core.bilevel_training(problem, inner_opt)

    scales = jnp.array([1.0, 3.0])
    ours = after(inner_opt, 3, bilevel)
    params, expected = np.array([1.0, 2.0]), []
    for _ in range(3):
        gradient = np.array([1.0, 3.0]) * params
        above = params + rho * gradient / np.linalg.norm(gradient)
        params = params - rate * np.array([1.0, 3.0]) * above
        expected.append(params.sum())
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
