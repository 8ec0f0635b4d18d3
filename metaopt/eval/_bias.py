"""How far estimates are from a reference gradient, with standard errors.

Samples x_i of an estimate and y_j of a reference, independent, with means x̄ and ȳ:

    projection     x̄ · ȳ / |ȳ|²                              1 for an unbiased estimate
    bias²          |E x − E y|² / |E y|²,    without bias:
                   |E x|² is estimated by Σ_{i≠k} x_i · x_k / (n (n − 1)), which leaves out the
                   noise that |x̄|² contains, and likewise for y
    variance       Σ_d Var(x_d) / |E y|²

Standard errors are those of the jackknife over samples of either kind.
"""

from typing import NamedTuple

import numpy as np

# Of a squared relative difference of gradients in float32.
_ROUNDING = 1e-8


class Bias(NamedTuple):
    """How samples compare with a reference; see the module.

    Attributes:
        cosine: between the means.
        projection: length of the mean along the reference, 1 where there is no bias.
        projection_error: its standard error.
        relative_error: |x̄ − ȳ| / |ȳ|, which includes the noise of both.
        squared: relative squared bias; around 0, and possibly below, where there is none.
        squared_error: its standard error.
        variance: of one sample, relative to the squared norm of the reference.
        nonfinite: fraction of samples that were not finite and were left out.
    """

    cosine: float
    projection: float
    projection_error: float
    relative_error: float
    squared: float
    squared_error: float
    variance: float
    nonfinite: float

    @property
    def magnitude(self) -> float:
        """The relative bias: the root of `squared`, 0 where that is negative."""
        return float(np.sqrt(max(self.squared, 0.0)))

    @property
    def bound(self) -> float:
        """Three standard errors above `squared`, as a relative bias: what was not ruled out."""
        return float(np.sqrt(max(self.squared + 3 * self.squared_error, 0.0)))

    @property
    def significant(self) -> bool:
        """Whether the bias is more than three standard errors from none, and than rounding."""
        return self.squared > max(3 * self.squared_error, _ROUNDING)


def bias(samples: np.ndarray, reference: np.ndarray) -> Bias:
    """Compares samples of an estimate with samples of a reference.

    Args:
        samples: `[n, d]`, independent estimates, n of at least 2.
        reference: `[m, d]`, independent samples of the reference; one row: it is exact.

    Returns:
        The comparison, in float64 on the host. NaN where fewer than two samples are finite.

    Raises:
        ValueError: for fewer than two samples or different widths.
    """
    x, y = (np.asarray(rows, np.float64) for rows in (samples, reference))
    if x.ndim != 2 or y.ndim != 2 or len(x) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"bias: samples {x.shape} and reference {y.shape} must be [n >= 2, d] and [m, d]."
        )
    finite = np.isfinite(x).all(axis=1)
    lost = 1 - float(finite.mean())
    x, y = x[finite], y[np.isfinite(y).all(axis=1)]
    if len(x) < 2 or not len(y):
        unknown = float("nan")
        return Bias(unknown, unknown, unknown, unknown, unknown, unknown, unknown, lost)
    # Scaled to the reference, so that squares neither overflow nor vanish.
    scale = max(np.abs(y.mean(axis=0)).max(), 1e-300)
    x, y = x / scale, y / scale
    mean, target = x.mean(axis=0), y.mean(axis=0)
    norm = np.linalg.norm(target)
    (projection, squared), errors = _jackknife(x, y)
    return Bias(
        cosine=float(mean @ target / max(np.linalg.norm(mean) * norm, 1e-300)),
        projection=projection,
        projection_error=errors[0],
        relative_error=float(np.linalg.norm(mean - target) / norm),
        squared=squared,
        squared_error=errors[1],
        variance=float(x.var(axis=0, ddof=1).sum() / norm**2),
        nonfinite=lost,
    )


def relative_noise(reference: np.ndarray) -> float:
    """Standard error of the mean of reference samples, relative to the mean; NaN for one sample."""
    y = np.asarray(reference, np.float64)
    if len(y) < 2 or not np.isfinite(y).all():
        return float("nan")
    y = y / max(np.abs(y).max(), 1e-300)
    error = np.sqrt(y.var(axis=0, ddof=1).sum() / len(y))
    return float(error / max(np.linalg.norm(y.mean(axis=0)), 1e-300))


def _statistics(x_sum, x_squares, n, y_sum, y_squares, m):
    """Projection and squared relative bias from sums over samples; rows are jackknife replicates.

    Inner products of sums suffice, because Σ_{i≠k} x_i·x_k = |Σ x|² − Σ |x|².
    """
    xy = (x_sum * y_sum).sum(axis=-1) / (n * m)
    yy = (y_sum**2).sum(axis=-1)
    xx = ((x_sum**2).sum(axis=-1) - x_squares) / (n * (n - 1))
    yy = (yy - y_squares) / (m * (m - 1)) if m > 1 else yy
    plain = (y_sum**2).sum(axis=-1) / m**2
    return np.stack([xy / plain, (xx + yy - 2 * xy) / plain])


def _jackknife(x, y):
    """Both statistics and their standard errors."""
    n, m = len(x), len(y)
    x_squares, y_squares = (x**2).sum(axis=1), (y**2).sum(axis=1)
    x_all = (x.sum(axis=0), x_squares.sum())
    y_all = (y.sum(axis=0), y_squares.sum())
    values = _statistics(*x_all, n, *y_all, m)
    variance = np.zeros(2)
    if n > 2:
        left = _statistics(x_all[0] - x, x_all[1] - x_squares, n - 1, *y_all, m)
        variance = variance + (n - 1) / n * ((left - left.mean(axis=1)[:, None]) ** 2).sum(axis=1)
    if m > 2:
        left = _statistics(*x_all, n, y_all[0] - y, y_all[1] - y_squares, m - 1)
        variance = variance + (m - 1) / m * ((left - left.mean(axis=1)[:, None]) ** 2).sum(axis=1)
    return tuple(map(float, values)), tuple(map(float, np.sqrt(variance)))
