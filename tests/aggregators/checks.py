"""What is asserted of every aggregator."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.aggregators import golden
from tests.helpers import central_differences, ravel, relative_error


def assert_as_published(bars: dict[str, float], cases=("8x6",)) -> None:
    """The vectors of the package in `golden.json`, to a relative error per name; call it in x64."""
    for case in cases:
        matrix = jnp.asarray(golden.jacobian(case))
        ours = golden.ours(len(matrix))
        compiled = jax.jit(lambda x, ours=ours: {name: ours[name].aggregate(x) for name in bars})
        for name, error in golden.error(case, compiled(matrix)).items():
            assert error < bars[name], (case, name, error)


def tree_of(matrix) -> dict:
    """Four columns as a tree of two leaves."""
    return {"a": matrix[:, 0], "b": matrix[:, 1:].reshape(-1, 1, 3)}


def some_jacobian(m: int = 3) -> jax.Array:
    """Conflicting rows of different lengths, in general position."""
    return jax.random.normal(jax.random.key(5), (m, 4)) * jnp.linspace(0.5, 2, m)[:, None] + 0.2


def assert_derivative(aggregator, matrix=None, key=None) -> None:
    """The derivative is that of central differences; call it in x64."""
    matrix = some_jacobian() if matrix is None else matrix
    slopes = jnp.array([0.3, -1.0, 0.7, 0.4])

    def value(matrix):
        update = aggregator.aggregate(tree_of(matrix), key)
        return jnp.dot(slopes, jnp.concatenate([update["a"][None], update["b"].reshape(3)]))

    expected = central_differences(value, matrix)
    assert np.abs(expected).max() > 0.01
    assert relative_error(jax.jit(jax.grad(value))(matrix), expected) < 1e-6


def awkward_jacobians(m: int = 3) -> jax.Array:
    """No gradients; one of three; equal ones; opposed ones; huge, tiny and cancelling ones."""
    x = some_jacobian(m).astype(jnp.float32)
    dead = x.at[0].set(0)
    equal = jnp.ones_like(x)
    opposed = x.at[0].set(-x[1])
    cancelling = x.at[0].set(-x[1:].sum(axis=0))
    return jnp.stack([0 * x, dead, equal, opposed, 1e30 * x, 1e-30 * x, cancelling])


def assert_finite_on_awkward(aggregator) -> None:
    """Updates and derivatives are finite in float32, and zero gradients give a zero update."""
    key = jax.random.key(0)

    def value(matrix):
        update = aggregator.aggregate(matrix, key)
        return jnp.sum(jnp.tanh(update)), update

    found = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))(awkward_jacobians())
    (_, updates), slopes = found
    assert np.isfinite(ravel((updates, slopes))).all(), (updates, slopes)
    assert not np.asarray(updates[0]).any()
    assert (np.abs(np.asarray(updates)).max(axis=1) < 1e33).all()
