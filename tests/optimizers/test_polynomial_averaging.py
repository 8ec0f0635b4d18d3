import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import averaged_params, polynomial_averaging
from tests.optimizers import golden
from tests.optimizers.digit_problems import digits


def averages(opt, params):
    """Parameters and their averages after each step."""

    def one(carry, step):
        params, state = carry
        updates, state = opt.update(golden.gradients(params, step), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, averaged_params(state))

    return jax.jit(
        lambda params: jax.lax.scan(one, (params, opt.init(params)), jnp.arange(golden.STEPS))[1]
    )(params)


def test_repeats_the_published_averager(x64):
    _, means = averages(polynomial_averaging(optax.sgd(0.1)), {"b": golden.start()["b"]})
    assert golden.difference("polynomial_averaging", means) < 1e-12


def test_without_forgetting_it_is_the_mean_and_the_updates_stay_those_of_the_optimizer(x64):
    opt = optax.adam(0.1)
    iterates, means = averages(polynomial_averaging(opt, gamma=0.0), golden.start())
    expected = golden.trajectory(opt)
    counts = np.arange(1, golden.STEPS + 1)
    for name, x in iterates.items():
        np.testing.assert_array_equal(x, expected[name])
        running = np.cumsum(x, axis=0) / counts.reshape(-1, *[1] * (x.ndim - 1))
        np.testing.assert_allclose(means[name], running, rtol=1e-12, atol=1e-14)


def test_the_average_is_found_within_a_larger_state():
    params = {"w": jnp.ones(2)}
    opt = optax.chain(optax.identity(), polynomial_averaging(optax.sgd(0.1)))
    state = opt.init(params)
    np.testing.assert_array_equal(averaged_params(state)["w"], params["w"])
    _, state = opt.update(params, state, params)
    np.testing.assert_allclose(averaged_params(state)["w"], 0.9, rtol=1e-6)
    with pytest.raises(ValueError, match="state has 0 parts of polynomial_averaging"):
        averaged_params(optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match="state has 2 parts"):
        averaged_params((state, state))


def test_missing_params_and_a_negative_gamma_are_refused():
    opt = polynomial_averaging(optax.sgd(0.1))
    with pytest.raises(ValueError, match="params is missing"):
        opt.update(jnp.ones(2), opt.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="gamma must not be negative, got -1.0"):
        polynomial_averaging(optax.sgd(0.1), gamma=-1.0)


def layerwise_dog():
    """L-DoG, in the precision in force."""
    return optax.chain(
        optax.scale_by_distance_over_gradients(reps_rel=1e-2, param_dtype=float, global_scale=1.0),
        optax.scale(-1.0),
    )


def test_the_optimizers_that_it_is_made_for_are_those_of_optax(x64):
    dog = optax.contrib.dog(init_step=("heuristic", 1e-2))
    assert golden.difference("dog", golden.trajectory(dog)) < 1e-12
    with jax.numpy_rank_promotion("allow"):  # Its scalars are vectors of one entry.
        layerwise = golden.trajectory(layerwise_dog())
    assert golden.difference("ldog", layerwise) < 1e-12


@pytest.mark.slow
def test_averaged_dog_needs_no_tuning_where_a_decade_costs_sgd_a_factor_of_ten(x64):
    pixels, labels = digits()
    inputs = jnp.asarray(np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1))
    labels = jnp.asarray(labels)

    def loss(w, inputs, labels):
        logits = inputs @ w
        mean = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return mean + 0.5e-3 * jnp.sum(w**2)

    def final(opt, batches):
        opt = polynomial_averaging(opt)

        def step(carry, rows):
            w, state = carry
            grads = jax.grad(loss)(w, inputs[rows], labels[rows])
            updates, state = opt.update(grads, state, w)
            return (w + updates, state), None

        w = jnp.zeros((65, 10))
        (_, state), _ = jax.lax.scan(step, (w, opt.init(w)), batches)
        return loss(averaged_params(state), inputs, labels)

    @jax.jit
    def best():
        opt = optax.lbfgs()
        whole = lambda w: loss(w, inputs, labels)  # noqa: E731

        def step(carry, _):
            w, state = carry
            value, grads = optax.value_and_grad_from_state(whole)(w, state=state)
            updates, state = opt.update(grads, state, w, value=value, grad=grads, value_fn=whole)
            return (w + updates, state), None

        w = jnp.zeros((65, 10))
        return whole(jax.lax.scan(step, (w, opt.init(w)), length=200)[0][0])

    rates = jnp.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
    starts = jnp.array([1e-8, 1e-6, 1e-4, 1e-2])
    batches = jnp.asarray(np.random.default_rng(1).integers(0, len(labels), size=(2, 3000, 32)))

    @jax.jit
    @jax.vmap
    def finals(batches):
        sgd = jax.vmap(lambda rate: final(optax.sgd(rate), batches))(rates)
        dog = jax.vmap(
            lambda start: final(optax.contrib.dog(init_step=("heuristic", start)), batches)
        )(starts)
        return sgd, dog

    sgd, dog = (np.asarray(x).mean(axis=0) - float(best()) for x in finals(batches))
    tuned = int(np.argmin(sgd))
    assert sgd[tuned] > 0
    assert dog.max() <= 2 * sgd[tuned]
    assert sgd[tuned - 2] >= 10 * sgd[tuned]
