import jax
import numpy as np
import pytest
from scipy.stats import norm

from metaopt.data import gaussian_mixture
from tests.helpers import standard_errors


def test_classes_are_unit_gaussians_at_the_stated_distance():
    pool = gaussian_mixture(
        jax.random.key(0), num_classes=2, dim=3, num_examples=6000, separation=1.5
    )
    x, y = np.asarray(pool.inputs, np.float64), np.asarray(pool.labels)
    assert standard_errors(y, 0.5) < 4
    means = np.stack([x[y == c].mean(0) for c in range(2)])
    # The norm of a mean of n unit Gaussians is off by about 1/√n.
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1.5, atol=4 / np.sqrt(2900))
    centred = x - means[y]
    products = np.einsum("ni,nj->nij", centred, centred)
    assert standard_errors(products, np.eye(3)) < 4.5
    # The nearest-mean rule errs with probability Φ(-Δ/2).
    correct = ((x[:, None] - means) ** 2).sum(-1).argmin(1) == y
    assert standard_errors(correct, norm.cdf(np.linalg.norm(means[0] - means[1]) / 2)) < 4


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="gaussian_mixture: dim=0 is below 1"):
        gaussian_mixture(jax.random.key(0), num_classes=2, dim=0, num_examples=3)
