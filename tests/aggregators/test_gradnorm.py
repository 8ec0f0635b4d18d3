import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt import aggregators
from tests.helpers import central_differences, ravel, relative_error

LOSSES, LENGTHS = np.array([0.5, 2.0, 1.0]), np.array([3.0, 0.2, 1.0])


def one_update(form, losses=LOSSES, lengths=LENGTHS, alpha=0.5, rate=0.01):
    controller = aggregators.gradnorm(optax.sgd(rate), alpha=alpha, form=form)
    state = controller.init(jnp.array([1.0, 2.0, 4.0]))
    state = controller.update(state, jnp.asarray(losses), jnp.asarray(lengths))
    return controller, state


@pytest.mark.usefixtures("x64")
def test_a_step_of_the_linear_form_is_that_of_the_paper():
    _, state = one_update("linear")
    ratios = LOSSES / np.array([1.0, 2.0, 4.0])
    target = LENGTHS.mean() * (ratios / ratios.mean()) ** 0.5
    w = np.ones(3) - 0.01 * np.sign(LENGTHS - target) * LENGTHS
    np.testing.assert_allclose(state.raw, 3 * w / w.sum(), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_step_of_the_log_form_is_the_gradient_of_its_distance():
    controller, state = one_update("log")
    ratios = LOSSES / np.array([1.0, 2.0, 4.0])
    target = LENGTHS.mean() * (ratios / ratios.mean()) ** 0.5

    def distance(z):
        norms = 3 * jax.nn.softmax(z) * LENGTHS
        return jnp.sum(jnp.abs(jnp.log(norms) - np.log(target)))

    expected = -0.01 * central_differences(distance, jnp.zeros(3))
    assert relative_error(state.raw, expected) < 1e-6
    np.testing.assert_allclose(controller.weights(state).sum(), 3.0, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["log", "linear"])
def test_at_alpha_zero_all_weighted_gradients_become_equally_long(form):
    controller = aggregators.gradnorm(optax.sgd(optax.linear_schedule(0.01, 0, 3000)), alpha=0.0,
                                      form=form)  # fmt: skip
    lengths = jnp.array([3.0, 0.5, 1.0])

    def step(state, _):
        return controller.update(state, jnp.ones(3), lengths), None

    state = jax.jit(lambda s: jax.lax.scan(step, s, None, length=3000)[0])(
        controller.init(jnp.ones(3))
    )
    norms = np.asarray(controller.weights(state) * lengths)
    np.testing.assert_allclose(norms, norms.mean(), rtol=1e-4)


def test_a_lagging_objective_gets_more_weight():
    controller, state = one_update("log", losses=[0.1, 2.0, 4.0], lengths=np.ones(3), alpha=1.5)
    weights = np.asarray(controller.weights(state))
    assert weights[0] < weights[1]


def test_the_floor_keeps_weights_of_the_linear_form_positive():
    _, state = one_update("linear", lengths=[1e3, 1.0, 1.0], rate=1.0)
    assert np.asarray(state.raw).min() > 0
    np.testing.assert_allclose(np.asarray(state.raw).sum(), 3.0, rtol=1e-6)


@pytest.mark.parametrize("form", ["log", "linear"])
def test_zero_and_huge_losses_and_gradients_give_finite_weights_and_derivatives(form):
    controller = aggregators.gradnorm(optax.sgd(0.01), form=form)

    def weights(losses, lengths):
        state = controller.init(jnp.ones(2))
        for _ in range(2):
            state = controller.update(state, losses, lengths)
        return controller.weights(state)

    values = jnp.array([[0.0, 0.0], [0.0, 1.0], [1e30, 1.0], [1e30, 1e30]])
    found = jax.vmap(jax.jacrev(weights, (0, 1)))(values, values[::-1])
    assert np.isfinite(ravel((jax.vmap(weights)(values, values[::-1]), found))).all()


def test_lengths_of_rows_are_norms_with_finite_derivatives():
    tree = {"a": jnp.array([3.0, 0.0, 1e30]), "b": jnp.array([[4.0, 0.0], [0.0, 0.0], [0.0, 1e30]])}
    lengths = aggregators.row_lengths(tree)
    np.testing.assert_allclose(lengths, [5.0, 0.0, 1e30 * np.sqrt(2)], rtol=1e-6)
    slopes = jax.grad(lambda tree: aggregators.row_lengths(tree).sum())(tree)
    np.testing.assert_allclose(slopes["b"], [[0.8, 0], [0, 0], [0, np.sqrt(0.5)]], rtol=1e-6)


def _train(controller, scales, num_steps=1500):
    """The losses relative to their first values of two regressions with shared layers.

    The targets' arguments of tanh are of order 1, and mostly shared.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 20))
    base = rng.normal(size=(10, 20)) / np.sqrt(20)
    own = 0.5 * rng.normal(size=(2, 10, 20)) / np.sqrt(20)
    y = np.array(scales)[:, None, None] * np.tanh(np.einsum("bi,koi->kbo", x, base + own))
    x, y = jnp.asarray(x, float), jnp.asarray(y, float)

    def weight(*shape):
        return jnp.asarray(rng.normal(size=shape) * np.sqrt(2 / shape[-2]), float)

    params = {
        "first": weight(20, 100),
        "last": weight(100, 100),
        "heads": weight(2, 100, 10) * np.sqrt(0.5),
    }

    def losses(params):
        hidden = jax.nn.relu(jax.nn.relu(x @ params["first"]) @ params["last"])
        return jnp.mean((jnp.einsum("bh,kho->kbo", hidden, params["heads"]) - y) ** 2, (1, 2))

    value_and_jacobian = aggregators.value_and_jacobian(losses)
    opt = optax.adam(1e-3)

    def step(carry, _):
        params, opt_state, state = carry
        value, jacobian = value_and_jacobian(params)
        weights = jnp.ones(2) if controller is None else controller.weights(state)
        updates, opt_state = opt.update(aggregators.combine(weights, jacobian), opt_state)
        if controller is not None:
            lengths = aggregators.row_lengths(jacobian["last"])
            state = controller.update(state, value, lengths)
        return (optax.apply_updates(params, updates), opt_state, state), None

    first = losses(params)
    state = () if controller is None else controller.init(first)
    carry = (params, opt.init(params), state)
    (params, _, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=num_steps))(carry)
    return np.asarray(losses(params) / first)


@pytest.mark.slow
def test_two_tasks_of_different_scales_train_at_the_same_rate():
    equal = _train(None, (1, 5))
    assert abs(np.log(equal[0] / equal[1])) >= 3
    ours = _train(aggregators.gradnorm(optax.adam(0.005), form="linear"), (1, 5))
    assert abs(np.log(ours[0] / ours[1])) <= 0.7
    assert ours.max() <= 0.75 * equal.max()
    # Weights of the log form still move at this rate, and the ratio of the losses with them.
    ours = _train(aggregators.gradnorm(optax.adam(0.025), form="log"), (1, 5))
    assert ours.max() <= 0.75 * equal.max()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="gradnorm: floor must be at least 0"):
        aggregators.gradnorm(optax.sgd(0.1), floor=-1.0)
    with pytest.raises(ValueError, match="choose from"):
        aggregators.gradnorm(optax.sgd(0.1), form="square")
