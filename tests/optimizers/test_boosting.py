import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from metaopt.optimizers import assemble_units, boost_units
from tests.optimizers import networks


def outputs_of(params, x):
    first, last = jax.tree.map(np.asarray, params)
    return expit(x @ first["w"] + first["b"]) @ last["w"] + last["b"]


def replayed(fit, x, y, rate):
    """Outputs of the additive model, and the steps that the rule takes with these networks."""
    outputs, steps = np.zeros(y.shape), []
    for stage in range(len(fit.steps)):
        f = outputs_of(jax.tree.map(lambda p, i=stage: p[i], fit.params), x)
        p = softmax(outputs, axis=1)
        steps.append(rate * np.sum(f * (y - p)) / np.sum(f**2 * p * (1 - p)))
        outputs = outputs + steps[-1] * f
    return outputs, steps


@pytest.mark.compiles
def test_forty_boosted_units_are_one_network_that_reads_digits(x64):
    (x, y), (test_x, test_y) = networks.digits(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    x, test_x = ((a - mean) / np.where(scale > 0, scale, 1) for a in (x, test_x))
    targets = np.eye(10)[y]
    run = jax.jit(lambda key: boost_units(jnp.asarray(x), jnp.asarray(targets), key))
    fits = [run(key) for key in jax.random.split(jax.random.key(0), 4)]
    outputs, steps = replayed(fits[0], x, targets, 0.5)
    np.testing.assert_allclose(fits[0].steps, steps, rtol=1e-10)
    np.testing.assert_allclose(outputs_of(assemble_units(fits[0]), x), outputs, rtol=1e-9)

    def accuracy(fit):
        return np.mean(np.argmax(outputs_of(assemble_units(fit), test_x), axis=1) == test_y)

    def cut(fit, count):
        """The first stages, a model as well."""
        params = jax.tree.map(lambda p: p[:count], fit.params)
        return fit._replace(params=params, steps=fit.steps[:count])

    by_length = [np.mean([accuracy(cut(fit, count)) for fit in fits]) for count in (10, 20, 40)]
    assert by_length[-1] >= 0.955, by_length
    assert by_length[0] < by_length[1] < by_length[2]


def test_settings_that_make_no_sense_are_refused():
    x, key = jnp.ones((4, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match="boost_units: units must be at least 1, got 0"):
        boost_units(x, x, key, units=0)
    with pytest.raises(ValueError, match=r"boost_units: share must be in \(0, 1\], got 0"):
        boost_units(x, x, key, share=0.0)
    with pytest.raises(ValueError, match="boost_units: rate must be finite and at least 0"):
        boost_units(x, x, key, rate=-1.0)
