"""A bilevel problem with known derivatives, as trees and as vectors, and runs of every method.

    g(z, x) = ½ zᵀA z − zᵀB x + κ/4 Σ z⁴ + τ/2 (d·x) |z|²
    f(z, x) = ½ |z − e|² + zᵀC x + ½ |x|²

z has three numbers, in the tree {"a": [2], "b": []}; x has three, in the tree [[2], {"s": []},
[0]]. With κ = τ = 0 both are quadratics, and the minimiser of g and the hypergradient solve linear
systems. What varies (κ, τ, noise, rows) is in the data, so that one compiled program serves all
tests of a method.
"""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import estimators
from metaopt.core import BilevelProblem, Split

A = np.array([[1.1, 0.1, 0.0], [0.1, 0.9, 0.05], [0.0, 0.05, 1.0]])
B = np.array([[0.5, -0.2, 0.1], [0.3, 0.4, 0.0], [-0.1, 0.2, 0.6]])
C = np.array([[0.2, 0.0, -0.1], [0.1, 0.3, 0.0], [0.0, -0.2, 0.1]])
D = np.array([0.4, -0.3, 0.2])
E = np.array([1.0, -0.5, 0.7])
X0 = np.array([0.3, -0.2, 0.5])
Z0 = np.array([0.6, -0.4, 0.2])
ROWS = 8


class Numbers(NamedTuple):
    """The derivatives of both losses, as vectors and matrices; J is of shape [x, z]."""

    kappa: float = 0.0
    tau: float = 0.0

    def g(self, z, x):
        quartic = self.kappa / 4 * np.sum(z**4) + self.tau / 2 * (D @ x) * z @ z
        return 0.5 * z @ A @ z - z @ B @ x + quartic

    def g_z(self, z, x):
        return A @ z - B @ x + self.kappa * z**3 + self.tau * (D @ x) * z

    def g_x(self, z, x):
        return -B.T @ z + self.tau / 2 * (z @ z) * D

    def hessian(self, z, x):
        return A + 3 * self.kappa * np.diag(z**2) + self.tau * (D @ x) * np.eye(3)

    def cross(self, z, x):
        return -B.T + self.tau * np.outer(D, z)

    def f(self, z, x):
        return 0.5 * (z - E) @ (z - E) + z @ C @ x + 0.5 * x @ x

    def f_z(self, z, x):
        return z - E + C @ x

    def f_x(self, z, x):
        return C.T @ z + x

    def data(self, *, noise=0.0, hessian_noise=0.0, scale=1.0, varied=False, dtype=float) -> Split:
        """Rows of the same numbers; if varied, with terms that cancel in the mean over a pool."""
        rng = np.random.default_rng(0)
        numbers = {
            "kappa": self.kappa,
            "tau": self.tau,
            "noise": noise,
            "hessian_noise": hessian_noise,
            "scale": scale,
        }

        def pool():
            extra = 0.2 * rng.standard_normal((ROWS, 2, 3)) * varied
            rows = {name: jnp.full(ROWS, value, dtype) for name, value in numbers.items()}
            return rows | {"extra": jnp.asarray(extra - extra.mean(axis=0), dtype)}

        return Split(pool(), pool())


QUADRATIC = Numbers()
CURVED = Numbers(kappa=0.3, tau=0.5)


def solution(x):
    """argmin_z g of the quadratic."""
    return np.linalg.solve(A, B @ x)


def hypergradient(x):
    """∇h of the quadratic."""
    z = solution(x)
    u = np.linalg.solve(A, QUADRATIC.f_z(z, x))
    return QUADRATIC.f_x(z, x) - QUADRATIC.cross(z, x) @ u


def params_of(z, dtype=float):
    return {"a": jnp.asarray(z[:2], dtype), "b": jnp.asarray(z[2], dtype)}


def theta_of(x, dtype=float):
    return [jnp.asarray(x[:2], dtype), {"s": jnp.asarray(x[2], dtype)}, jnp.zeros(0, dtype)]


def z_of(params):
    """The numbers of `params`, of a stack of them too, as a NumPy array."""
    return np.concatenate([params["a"], np.asarray(params["b"])[..., None]], axis=-1)


def x_of(theta):
    return np.concatenate([theta[0], np.asarray(theta[1]["s"])[..., None]], axis=-1)


def _vectors(params, theta):
    return (
        jnp.concatenate([params["a"], params["b"][None]]),
        jnp.concatenate([theta[0], theta[1]["s"][None], theta[2]]),
    )


def _noise(key, dtype):
    """Six numbers of mean zero from the bits of a key; a normal draw takes long to compile."""
    bits = jax.random.key_data(key)[:, None] >> jnp.arange(0, 24, 8, dtype=jnp.uint32)[None]
    return (bits & 255).astype(dtype) / 127.5 - 1


def _inner_loss(params, theta, data, key):
    z, x = _vectors(params, theta)
    rows = jax.tree.map(lambda v: jnp.mean(v, axis=0), data.inner)
    draw = _noise(key, z.dtype)
    loss = 0.5 * z @ (A @ z) - z @ (B @ x)
    loss += rows["kappa"] / 4 * jnp.sum(z**4) + rows["tau"] / 2 * (D @ x) * (z @ z)
    loss += rows["noise"] * draw[0] @ z + rows["hessian_noise"] / 2 * draw[1] @ z**2
    return rows["scale"] * (loss + rows["extra"][0] @ z + 0.5 * rows["extra"][1] @ z**2)


def _outer_loss(params, theta, data, key):
    z, x = _vectors(params, theta)
    rows = jax.tree.map(lambda v: jnp.mean(v, axis=0), data.outer)
    draw = _noise(key, z.dtype)
    loss = 0.5 * jnp.sum((z - E) ** 2) + z @ (C @ x) + 0.5 * x @ x
    loss += rows["noise"] * (draw[0] @ z + draw[1] @ x)
    return rows["scale"] * (loss + rows["extra"][0] @ z + 0.5 * rows["extra"][1] @ z**2)


PROBLEM = BilevelProblem(lambda key: params_of(Z0), _inner_loss, _outer_loss)

STEPS, TERMS = 3, 8


METHODS = {
    "amigo": functools.partial(estimators.amigo, num_steps=STEPS, num_system_steps=2),
    "bamm": functools.partial(estimators.bamm),
    "bome": functools.partial(estimators.bome, num_steps=STEPS),
    "bsa": functools.partial(estimators.bsa, num_steps=STEPS, num_terms=TERMS),
    "darts": functools.partial(estimators.darts, num_steps=2),
    "f2sa": functools.partial(estimators.f2sa, num_steps=STEPS),
    "fsla": functools.partial(estimators.fsla),
    "mrbo": functools.partial(estimators.mrbo, num_terms=TERMS),
    "pbgd": functools.partial(estimators.pbgd, num_steps=STEPS),
    "pbgd_gradient": functools.partial(estimators.pbgd, gap="gradient"),
    "pzobo": functools.partial(estimators.pzobo, num_steps=STEPS, num_directions=2),
    "saba": functools.partial(estimators.saba, batch_size=2),
    "saba_full": functools.partial(estimators.saba, batch_size=ROWS),
    "sama": functools.partial(
        estimators.sama, inner_opt=optax.adam(0.1, eps_root=1e-8), num_steps=2
    ),
    "soba": functools.partial(estimators.soba),
    "srba": functools.partial(estimators.srba, batch_size=2, period=4),
    "stocbio": functools.partial(estimators.stocbio, num_steps=STEPS, num_terms=TERMS),
    "sustain": functools.partial(estimators.sustain, num_terms=TERMS),
    "ttsa": functools.partial(estimators.ttsa, num_terms=TERMS),
    "vrbo": functools.partial(
        estimators.vrbo, batch_size=2, period=4, num_steps=STEPS, num_terms=TERMS
    ),
}


class Run(NamedTuple):
    """Outer gradient descent; the estimate is the last one."""

    theta: list
    state: NamedTuple
    estimate: NamedTuple


def _loop(name, theta, state, data, key, settings, outer_step, start, stop):
    estimator = METHODS[name](PROBLEM, **settings)
    key_data = jax.random.key_data(key)

    def one(index, run):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), index)
        estimate, state = estimator.estimate(run.theta, run.state, data, key)
        theta = jax.tree.map(lambda x, g: x - outer_step * g, run.theta, estimate.grad)
        return Run(theta, state, estimate)

    shapes = jax.eval_shape(one, 0, Run(theta, state, None)).estimate
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(start, stop, one, Run(theta, state, empty))


def all_settings(name, settings):
    """The given ones and the defaults of the others: one structure, so that nothing is retraced."""
    parameters = inspect.signature(METHODS[name].func).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, float)}
    for p in parameters:
        if p.name in ("system_step_size", "virtual_step_size"):
            defaults[p.name] = settings.get("step_size", defaults["step_size"])
    return defaults | settings


def arguments(name, data, *, settings, outer_step, start=0, stop, theta=None, state=None, seed=0):
    """What a compiled run takes."""
    theta = theta_of(X0) if theta is None else theta
    if state is None:
        state = start_of(name)(theta, data, jax.random.key(1000 + seed))
    settings = {k: jnp.asarray(v, float) for k, v in all_settings(name, settings).items()}
    rest = (jnp.asarray(outer_step, float), jnp.asarray(start), jnp.asarray(stop))
    return theta, state, data, jax.random.key(seed), settings, *rest


@functools.cache
def start_of(name):
    """The `init` of a method, which depends on none of its settings."""
    init = METHODS[name](PROBLEM).init
    return jax.jit(init) if name.startswith("saba") else init


@functools.cache
def compiled(name):
    return jax.jit(functools.partial(_loop, name))


def run(name, data, **rest) -> Run:
    """Outer steps `start` to `stop` of a method, compiled once for all of its tests."""
    return compiled(name)(*arguments(name, data, **rest))


def check_steps(name, transcription, settings, *, outer_step=0.2, num_steps=3):
    """Compares every number of a few steps on the curved problem with a NumPy transcription.

    `transcription(carried, x, k, estimate) -> (carried, direction, {field of the state: vector})`,
    starting with `carried=None`; `estimate` is ours, for the random numbers that it reports.
    """
    x, carried, theta, state = X0, None, theta_of(X0), None
    for k in range(num_steps):
        theta, state, estimate = run(
            name,
            CURVED.data(),
            settings=settings,
            outer_step=outer_step,
            theta=theta,
            state=state,
            start=k,
            stop=k + 1,
        )
        carried, direction, fields = transcription(carried, x, k, estimate)
        np.testing.assert_allclose(x_of(estimate.grad), direction, rtol=1e-10, atol=1e-12)
        for field, expected in fields.items():
            np.testing.assert_allclose(
                z_of(getattr(state, field)), expected, rtol=1e-10, err_msg=field
            )
        assert estimate.info.nonfinite == 0
        x = x - outer_step * direction
    return estimate


def neumann(hessian, vector, eta, terms):
    """η Σ_{q ≤ terms} (I − η H)^q b."""
    step = np.eye(3) - eta * hessian
    return eta * sum(np.linalg.matrix_power(step, q) @ vector for q in range(terms + 1))


def random_neumann(hessian, vector, eta, terms, length):
    """terms · η (I − η H)^length b."""
    return terms * eta * np.linalg.matrix_power(np.eye(3) - eta * hessian, length) @ vector


def descent(numbers, z, x, step, steps):
    for _ in range(steps):
        z = z - step * numbers.g_z(z, x)
    return z
