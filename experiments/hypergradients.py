"""Implicit hypergradients: how wrong each estimator is, and what they are good for.

Command:   python experiments/hypergradients.py
Hardware:  two cores of an x86-64 CPU; two minutes.
Expected:  catalogue  implicit error below the unrolled one at every number of inner steps; CG-20
                      below 1e-4, Neumann-20 in 0.1 to 0.4; cosine of identity above 0.8
           penalties  40 of them: validation loss at most 0.35 of the best shared penalty's by CG,
                      Neumann and identity; test loss 0.44 to 0.58, in one seed up to 0.66
           imaml      error below 1e-3 with 10 inner and 5 CG steps, falling with the CG steps
           nystrom    error below 1e-6 on curvature of its rank, above 1 on full-rank curvature

Four claims in float64, for every seed; errors are relative, in the Euclidean norm. catalogue
(Blondel et al. 2021, arXiv:2105.15183): a ridge problem with a logarithmic penalty per weight,
whose exact hypergradient is known; only the estimator changes. penalties (Lorraine et al. 2020,
arXiv:1911.02590): ten warm-started inner steps per outer step. imaml (Rajeswaran et al. 2019,
arXiv:1909.04630): logistic regression on 20 digits with the proximal term |params - theta|^2,
against backpropagation through 300 steps. nystrom: Hataya and Yamada 2023, arXiv:2302.09726.

Writes results/hypergradients.json and a figure beside it.
"""

import dataclasses
import functools
import pathlib

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import core, data, estimators, eval, implicit, train  # noqa: E402

DIM = 40


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, ...] = (1, 5, 20, 100, 400)
    """Inner steps, and products of the linear solvers, in the catalogue."""
    outer_steps: int = 150
    imaml: tuple[tuple[int, int], ...] = ((10, 1), (10, 2), (10, 5), (3, 5))
    """Inner and CG steps."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "hypergradients.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        return cls((0,), (1, 2), 2, ((2, 1),), folder / "tiny.json")


def ridge_pools(seed: int) -> dict:
    """Inputs and targets; three in ten true weights are not zero."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=DIM) * (rng.random(DIM) < 0.3)
    pools, sizes = {}, {"train": 60, "valid": 40, "test": 1000}
    for name, rows in sizes.items():
        inputs = jnp.asarray(rng.normal(size=(rows, DIM)))
        pools[name] = inputs, inputs @ weights + 0.5 * rng.normal(size=rows)
    return pools


def half_mse(params, pool):
    """The loss of both levels."""
    return 0.5 * jnp.mean((pool[0] @ params - pool[1]) ** 2)


RIDGE = core.BilevelProblem(
    init=lambda key: jnp.zeros(DIM),
    inner_loss=lambda params, theta, data, key: (
        half_mse(params, data["train"]) + 0.5 * jnp.sum(jnp.exp(theta) * params**2)
    ),
    outer_loss=lambda params, theta, data, key: half_mse(params, data["valid"]),
)


def ridge_hessian(theta, data):
    """Of the inner loss."""
    inputs = data["train"][0]
    return inputs.T @ inputs / len(inputs) + jnp.diag(jnp.exp(theta))


def ridge_solution(theta, data):
    """The minimiser of the inner loss."""
    inputs, targets = data["train"]
    return jnp.linalg.solve(ridge_hessian(theta, data), inputs.T @ targets / len(inputs))


def ridge_exact(theta, data):
    """The hypergradient, through the dense solution."""
    return jax.grad(lambda theta: half_mse(ridge_solution(theta, data), data["valid"]))(theta)


def newton(loss, params):
    """The minimiser of a quadratic."""
    return params - jnp.linalg.solve(jax.hessian(loss)(params), jax.grad(loss)(params))


def error(actual, expected) -> float:
    """Relative, in the Euclidean norm."""
    return float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))


def at_solution(solver):
    """The estimator whose inner training is exact."""
    return estimators.implicit(RIDGE, inner_solver=newton, solver=solver)


def estimate(estimator, theta, pool):
    """One estimate from a fresh state."""

    def run(theta, pool):
        state = estimator.init(theta, pool, jax.random.key(0))
        return estimator.estimate(theta, state, pool, jax.random.key(1))[0].grad

    return jax.jit(run)(theta, pool)


def catalogue(cfg: Config, seed: int) -> dict:
    """Errors of the estimators, in turn at the same place."""
    pool, theta = ridge_pools(seed), jnp.full(DIM, -2.0)
    exact = ridge_exact(theta, pool)
    eigenvalues = np.linalg.eigvalsh(ridge_hessian(theta, pool))
    step_size = float(1 / eigenvalues[-1])
    neumann = functools.partial(implicit.neumann, step_size=step_size)
    sgd, rows = optax.sgd(step_size), {}
    system = core.bilevel_training(RIDGE, sgd)
    for steps in cfg.steps:
        makes = {
            "unrolled": estimators.backprop(system, horizon=steps, objective="last", num_tasks=1),
            "implicit, dense solve after the steps": estimators.implicit(
                RIDGE, inner_opt=sgd, num_steps=steps, solver=implicit.dense()
            ),
            "Neumann at the solution": at_solution(neumann(num_terms=steps)),
            "CG at the solution": at_solution(implicit.cg(rtol=0.0, max_steps=steps)),
        }
        rows[str(steps)] = {k: error(estimate(x, theta, pool), exact) for k, x in makes.items()}
    identity = estimate(at_solution(implicit.identity()), theta, pool)
    cosine = identity @ exact / jnp.linalg.norm(identity) / jnp.linalg.norm(exact)
    return {
        "errors": rows,
        "identity": {"error": error(identity, exact), "cosine": float(cosine)},
    }


def penalties(cfg: Config, seed: int) -> dict:
    """Meta-training of 40 penalties, against the best shared one."""
    pool = ridge_pools(seed)
    solvers = {
        "CG-20": lambda rate: implicit.cg(max_steps=20),
        "Neumann-20": lambda rate: implicit.neumann(num_terms=20, step_size=rate),
        "identity": lambda rate: implicit.identity(),
    }
    outer_opt = optax.adam(0.1)
    curvature = jnp.linalg.eigvalsh(ridge_hessian(jnp.full(DIM, -jnp.inf), pool))[-1]

    def train_with(make):
        def estimator(theta):
            # Penalties are curvature: the stable rate moves with theta, so it is traced.
            rate = 1 / (curvature + jnp.max(jnp.exp(theta)))
            return estimators.implicit(
                RIDGE, inner_opt=optax.sgd(rate), num_steps=10, solver=make(rate)
            )

        def step(carry, key):
            theta, opt_state, state = carry
            found, state = estimator(theta).estimate(theta, state, pool, key)
            updates, opt_state = outer_opt.update(found.grad, opt_state, theta)
            theta = jnp.clip(optax.apply_updates(theta, updates), -10, 4)
            return (theta, opt_state, state), None

        theta = jnp.full(DIM, -2.0)
        state = estimator(theta).init(theta, pool, jax.random.key(seed))
        keys = jax.random.split(jax.random.key(seed + 1), cfg.outer_steps)
        carry = (theta, outer_opt.init(theta), state)
        (theta, _, _), _ = jax.lax.scan(step, carry, keys)
        return losses(theta)

    def losses(theta):
        params = ridge_solution(theta, pool)
        return jnp.stack([half_mse(params, pool["valid"]), half_mse(params, pool["test"])])

    grid = jax.vmap(lambda x: losses(jnp.full(DIM, x)))(jnp.linspace(-10, 4, 41))
    found = {"best shared penalty": grid[jnp.argmin(grid[:, 0])]}
    found |= {name: jax.jit(lambda m=make: train_with(m))() for name, make in solvers.items()}
    return {k: {"validation": float(x[0]), "test": float(x[1])} for k, x in found.items()}


def imaml(cfg: Config, seed: int) -> dict:
    """Errors of implicit MAML by inner and CG steps, 20 support and 20 query digits."""
    digits = data.digits().train
    rows = np.random.default_rng(seed).integers(0, len(digits.labels), (2, 20))
    images = jnp.asarray(np.asarray(digits.inputs)[rows].reshape(2, 20, -1), float)
    pool = images, jnp.asarray(np.asarray(digits.labels)[rows])

    def fit(params, data, side):
        logits = data[0][side] @ params
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, data[1][side]))

    problem = core.BilevelProblem(
        init=lambda key: jnp.zeros((64, 10)),
        inner_loss=lambda params, theta, data, key: (
            fit(params, data, 0) + jnp.sum((params - theta) ** 2)
        ),
        outer_loss=lambda params, theta, data, key: fit(params, data, 1),
    )
    theta = jnp.asarray(0.1 * np.random.default_rng(seed + 1).normal(size=(64, 10)))

    def unrolled(theta):
        def step(params, _):
            grads = jax.grad(problem.inner_loss)(params, theta, pool, None)
            return params - 0.3 * grads, None

        params = jax.lax.scan(step, theta, None, length=300)[0]
        return fit(params, pool, 1)

    expected = jax.jit(jax.grad(unrolled))(theta)
    found = {}
    for inner_steps, cg_steps in cfg.imaml:
        estimator = estimators.implicit(
            problem,
            inner_opt=optax.sgd(0.3),
            num_steps=inner_steps,
            solver=implicit.cg(rtol=0.0, max_steps=cg_steps),
            start=lambda theta, data, key: theta,
            warm_start=False,
        )
        found[f"{inner_steps}, {cg_steps}"] = error(estimate(estimator, theta, pool), expected)
    return found


def nystrom(cfg: Config, seed: int) -> dict:
    """Curvature of rank 12, where it is exact, and of full rank, where it fails."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(400, 12)))[0]
    curvature = jnp.asarray(basis @ np.diag(np.geomspace(1, 100, 12)) @ basis.T)
    damped = curvature + 0.01 * jnp.eye(400)
    b = jnp.asarray(rng.normal(size=400))
    exact = jnp.linalg.solve(damped, b)
    low_rank = {}
    for name, solver, matrix in (
        ("Nystrom-12", implicit.nystrom(rank=12, damping=0.01), curvature),
        ("CG-12", implicit.cg(rtol=0.0, max_steps=12), damped),
        ("Neumann-40", implicit.neumann(num_terms=40, step_size=0.01), damped),
    ):
        operator = implicit.Operator(lambda v, m=matrix: m @ v, "psd")
        u, _ = implicit.seeded(solver, jax.random.key(seed)).solve(operator, b)
        low_rank[name] = error(u, exact)
    pool, theta = ridge_pools(seed), jnp.full(DIM, -2.0)
    exact = ridge_exact(theta, pool)
    makes = {str(x): at_solution(implicit.nystrom(rank=10, damping=x)) for x in (0.1, 0.01, 0.001)}
    full_rank = {k: error(estimate(make, theta, pool), exact) for k, make in makes.items()}
    return {"rank 12": low_rank, "ridge, 10 of 40 columns, by damping": full_rank}


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    results = {}
    with jax.enable_x64(True):
        for part in (catalogue, penalties, imaml, nystrom):
            results[part.__name__] = {str(seed): part(config, seed) for seed in config.seeds}
    found = record.write({"results": results})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5, 3.4), layout="constrained")
    axes = canvas.subplots()
    by_seed = list(record["results"]["catalogue"].values())
    first = by_seed[0]["errors"]
    for name in next(iter(first.values())):
        mean = [np.mean([s["errors"][k][name] for s in by_seed]) for k in first]
        axes.plot([int(k) for k in first], mean, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="steps or products", ylabel="relative error")
    axes.legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
