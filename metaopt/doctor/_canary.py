"""Programs that some jaxlibs miscompile."""


def canary() -> float:
    """Runs programs that some jaxlibs miscompile, in the live backend (which this starts).

    (a) a product with a constant matrix, then a sum, over 4096 rows (wrong in 0.10.2 to 0.12.0.1);
    (b) the norm of a matrix-vector product, over 32769 rows (wrong in 0.10.2);
    (c) the gradient of a two-component bias through an exponential, summed over 32769 rows, which
    is what the output layer of a per-parameter optimizer computes. In float32, against float64 in
    numpy; a fraction of a second.

    Returns:
        The largest relative error, each program's relative to its largest entry; inf if a
        result is not finite. About 1e-7 on a healthy CPU, above 0.2 on a broken one.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    hidden = rng.uniform(0.0, 1.0, (4096, 3)).astype(np.float32)
    rows = rng.uniform(0.0, 1.0, (32769, 3)).astype(np.float32)
    matrix = rng.uniform(0.0, 1.0, (3, 3)).astype(np.float32)

    @jax.jit
    def constant_product(hidden):
        return (hidden @ jnp.ones((3, 2), jnp.float32)).sum(-1)

    @jax.jit
    @jax.vmap
    def squared_norm(row):
        return jnp.sum((matrix @ row) ** 2)

    @jax.jit
    @jax.grad
    def bias_gradient(bias, rows):
        out = rows @ matrix[:, :2] + bias[None, :]
        return out[:, 0] @ jnp.exp(-out[:, 1]) / len(rows)

    product = rows.astype(np.float64) @ matrix.astype(np.float64)
    scale = np.exp(-product[:, 1])
    pairs = [
        (constant_product(hidden), 2 * hidden.astype(np.float64).sum(-1)),
        (
            squared_norm(rows),
            ((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2).sum(-1),
        ),
        (
            bias_gradient(np.zeros(2, np.float32), rows),
            np.array([scale.mean(), -(product[:, 0] * scale).mean()]),
        ),
    ]
    errors = [
        np.max(np.abs(np.asarray(actual, np.float64) - exact)) / np.max(np.abs(exact))
        for actual, exact in pairs
    ]
    return float(np.max(np.nan_to_num(errors, nan=np.inf, posinf=np.inf)))
