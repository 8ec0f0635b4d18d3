import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.optimizers import MultistageFit, multistage_fit, multistage_predict


def target(t):
    return np.sin(2 * t + 1) + 0.2 * np.exp(1.3 * t)


def network(params, stage, frequency, x):
    """One stage in NumPy."""
    first, *middle, last = jax.tree.map(lambda p: np.asarray(p[stage]), params)
    z = x[:, None] @ first["w"] + first["b"]
    h = np.sin(frequency * z) if frequency > 0 else np.tanh(z)
    for layer in middle:
        h = np.tanh(h @ layer["w"] + layer["b"])
    return (h @ last["w"] + last["b"])[:, 0]


@pytest.mark.compiles
@pytest.mark.parametrize("num_steps", [0, 3])
def test_stages_are_fitted_to_what_the_ones_before_left(x64, num_steps):
    t = np.linspace(2.0, 5.0, 40)

    @jax.jit
    def run(t, y):
        fit = multistage_fit(
            t, y, jax.random.key(0), hidden=(4, 3), num_steps=num_steps, num_adam_steps=2
        )
        return fit, multistage_predict(fit, t)

    fit, predicted = run(t, target(t))
    x, residue = (t - 3.5) / 1.5, target(t)
    for stage in range(3):
        scale = np.sqrt(np.mean(residue**2))
        frequency = 3 * max(np.sum(residue[1:] * residue[:-1] < 0), 1) if stage else 0
        np.testing.assert_allclose(fit.scales[stage], scale, rtol=1e-9)
        assert fit.frequencies[stage] == frequency
        residue = residue - scale * network(fit.params, stage, frequency, x)
        np.testing.assert_allclose(fit.errors[stage], np.sqrt(np.mean(residue**2)), rtol=1e-9)
    np.testing.assert_allclose(predicted, target(t) - residue, rtol=1e-9)
    if num_steps:
        # Each fit starts from a random network and may only improve on it.
        assert fit.errors[0] < fit.scales[0]


def test_points_may_come_in_any_order(x64):
    t = np.linspace(-1.0, 1.0, 20)
    order = np.random.default_rng(0).permutation(20)
    settings = {"num_stages": 2, "hidden": (3,), "num_steps": 2}

    @jax.jit
    def run(t, y):
        return multistage_fit(t, y, jax.random.key(0), **settings)

    first, second = run(t, target(t)), run(t[order], target(t)[order])
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
def test_every_stage_takes_the_error_down_far_below_that_of_one_network(x64):
    t, dense = np.linspace(-1.0, 1.0, 600), np.linspace(-1.0, 1.0, 2001)

    def errors(num_stages, num_steps):
        @jax.jit
        def run(t, y):
            fit = multistage_fit(
                t, y, jax.random.key(0), num_stages=num_stages, num_steps=num_steps
            )
            upto = [
                MultistageFit(*jax.tree.map(lambda x: x[:count], tuple(fit[:4])), fit.bounds)  # noqa: B023
                for count in range(1, num_stages + 1)
            ]
            return jnp.stack([multistage_predict(part, jnp.asarray(dense)) for part in upto])

        wrong = np.asarray(run(t, target(t))) - target(dense)
        return np.sqrt(np.mean(wrong**2, axis=1) / np.mean(target(dense) ** 2))

    staged, (alone,) = errors(3, 2500), errors(1, 7500)
    assert (staged[:-1] / staged[1:] >= 5).all()
    assert staged[-1] <= 1e-7
    assert staged[-1] <= alone / 10


def test_what_it_cannot_fit_is_refused():
    t, key = jnp.linspace(0, 1, 4), jax.random.key(0)
    with pytest.raises(ValueError, match="inputs are float32; .* need float64"):
        multistage_fit(t, t, key)


def test_counts_and_shapes_that_make_no_sense_are_refused(x64):
    t, key = jnp.linspace(0, 1, 4), jax.random.key(0)
    with pytest.raises(ValueError, match=r"vectors of one length .* got \(4,\) and \(3,\)"):
        multistage_fit(t, t[:3], key)
    for settings, message in [
        ({"num_stages": 0}, "num_stages must be at least 1, got 0"),
        ({"hidden": ()}, r"hidden=\(\) must name at least one width"),
        ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ({"memory_size": 0}, "memory_size must be at least 1, got 0"),
        ({"frequency_factor": 0.0}, "frequency_factor must be finite and positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            multistage_fit(t, t, key, **settings)
