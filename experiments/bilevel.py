"""Every bilevel estimator on three stochastic problems: value against oracle calls and seconds.

Command:   python experiments/bilevel.py
Hardware:  two cores of an x86-64 CPU, about ten minutes.
Expected:  SABA and SRBA, whose variance vanishes, end below SOBA on finite sums; truncated Neumann
           series (StocBiO, MRBO) end below random terms of them (BSA, TTSA, SUSTAIN).

Quadratics (20 + 20 numbers, rank-one terms; value: the squared norm of the exact hypergradient),
logistic regression with a log-penalty for each of 22 features (synthetic, of the shape of ijcnn1;
value: validation loss of the exact minimiser) and the cleaning of 1,200 digits of which 50, 70 or
90 % have a label drawn anew, by a weight per example (value: test error). Seeds and a grid of inner
and outer steps are vectorised in one program; reported is the median over seeds at the best
setting. Writes results/bilevel.json and a figure.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from metaopt import core, data, doctor, estimators, eval, train

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: int = 10
    budget: int = 2_000
    """Oracle calls per run on the first two problems; half of them on digits."""
    evaluations: int = 8
    rows: int = 512
    solvers: tuple[str, ...] = ()
    """Those to run; none: all."""
    out: pathlib.Path = HERE / "results" / "bilevel.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script, in a minute."""
        solvers = ("soba", "saba", "stocbio", "f2sa")
        return cls(2, 80, 2, 64, solvers, folder / "tiny.json")


class Problem(NamedTuple):
    """Losses that are means over rows; `value` is what is reported."""

    problem: core.BilevelProblem
    theta: jax.Array
    pools: dict[str, core.Split]
    value: Callable[..., jax.Array]  # (theta, params, pools) -> scalar
    batch_size: int
    step_sizes: tuple[float, ...]
    outer_steps: tuple[float, ...]


def quadratics(config: Config) -> Problem:
    """Rank-one terms ½ (a·z)² + (a·z)(b·x) + c·z, with spectra from 0.1 to 1."""
    rng, dim = np.random.default_rng(0), 20

    def terms(rows):
        scale = np.geomspace(0.1, 1, dim) ** 0.5
        turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        cross = 0.3 * rng.standard_normal((dim, dim)) / np.sqrt(dim)
        first, second, third = rng.standard_normal((3, rows, dim))
        values = (first * scale @ turn, first * scale @ cross, 0.5 * second + 0.5, third * scale)
        return tuple(jnp.asarray(x, jnp.float32) for x in values)

    def loss(z, x, rows):
        a, b, c, d = rows
        own = 0.5 * jnp.mean((a @ z) ** 2) + jnp.mean((a @ z) * (b @ x))
        return own + jnp.mean(c, axis=0) @ z + 0.5 * jnp.mean((d @ x) ** 2)

    problem = core.BilevelProblem(
        lambda key: jax.random.normal(key, (dim,)),
        lambda z, x, pools, key: loss(z, x, pools.inner),
        lambda z, x, pools, key: loss(z, x, pools.outer),
    )
    pools = core.Split(terms(config.rows), terms(config.rows))
    grid = ((0.1, 0.3), (0.03, 0.1, 0.3))

    def squared_norm(theta, params, pools):
        z, hessian = solve(problem, theta, params, pools, steps=1)
        outer_params, outer_theta = jax.grad(problem.outer_loss, argnums=(0, 1))(
            z, theta, pools, None
        )
        u = jnp.linalg.solve(hessian, outer_params)
        mixed = jax.grad(lambda x: jax.grad(problem.inner_loss)(z, x, pools, None) @ u)(theta)
        return jnp.sum((outer_theta - mixed) ** 2)

    return Problem(problem, jnp.ones(dim), {"": pools}, squared_norm, 64, *grid)


def logistic(config: Config) -> Problem:
    """Logistic regression; theta is the logarithm of a penalty per feature."""
    rng, dim = np.random.default_rng(1), 22
    weights = rng.standard_normal(dim) * (np.arange(dim) < 11)

    def pool(rows):
        inputs = rng.standard_normal((rows, dim))
        labels = np.sign(inputs @ weights + 2 * rng.standard_normal(rows))
        return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.float32)

    def loss(z, rows):
        inputs, labels = rows
        return jnp.mean(jax.nn.softplus(-labels * (inputs @ z)))

    problem = core.BilevelProblem(
        lambda key: jax.random.normal(key, (dim,)),
        lambda z, x, pools, key: loss(z, pools.inner) + 0.5 * jnp.exp(x) @ z**2,
        lambda z, x, pools, key: loss(z, pools.outer),
    )
    pools = core.Split(pool(config.rows), pool(config.rows))
    grid = ((0.1, 0.3), (1.0, 10.0, 100.0))

    def validation_loss(theta, params, pools):
        # The gradient vanishes where a penalty is zero or infinite, so it would not tell.
        z, _ = solve(problem, theta, params, pools, steps=8)
        return problem.outer_loss(z, theta, pools, None)

    return Problem(problem, jnp.full(dim, -2.0), {"": pools}, validation_loss, 64, *grid)


def solve(problem: core.BilevelProblem, theta, params, pools, *, steps: int) -> tuple:
    """The exact minimiser of the inner loss, by Newton steps from zero, and its Hessian."""

    def inner(z):
        return problem.inner_loss(z, theta, pools, None)

    # A loop, not its unrolled body: many independent solves at once have blocked XLA's CPU threads.
    def newton(_, z):
        return z - jnp.linalg.solve(jax.hessian(inner)(z), jax.grad(inner)(z))

    z = jax.lax.fori_loop(0, steps, newton, jnp.zeros_like(params))
    return z, jax.hessian(inner)(z)


def cleaning(config: Config) -> Problem:
    """A linear classifier on weighted digits; theta holds the logits of their weights."""
    sets, rng = data.digits(), np.random.default_rng(2)

    def rows(pool, labels):
        inputs = jnp.asarray(pool.inputs).reshape(len(labels), -1) - 0.3
        return inputs, jnp.asarray(labels), jnp.arange(len(labels))

    def corrupted(share):
        labels = np.array(sets.train.labels)
        drawn = rng.random(len(labels)) < share
        labels[drawn] = rng.integers(0, 10, drawn.sum())
        return core.Split(rows(sets.train, labels), rows(sets.validation, sets.validation.labels))

    def losses(z, pool):
        logits = pool[0] @ z["matrix"] + z["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, pool[1])

    def inner_loss(z, x, pools, key):
        weighted = jnp.mean(jax.nn.sigmoid(x[pools.inner[2]]) * losses(z, pools.inner))
        return weighted + 0.02 * (jnp.sum(z["matrix"] ** 2) + jnp.sum(z["bias"] ** 2))

    problem = core.BilevelProblem(
        lambda key: {"matrix": jnp.zeros((64, 10)), "bias": jnp.zeros(10)},
        inner_loss,
        lambda z, x, pools, key: jnp.mean(losses(z, pools.outer)),
    )
    test = rows(sets.test, sets.test.labels)

    def test_error(theta, params, pools):
        logits = test[0] @ params["matrix"] + params["bias"][None]
        return jnp.mean(jnp.argmax(logits, axis=1) != test[1])

    pools = {f"{share:.0%}": corrupted(share) for share in (0.5, 0.7, 0.9)}
    theta, grid = jnp.zeros(len(sets.train.labels)), ((0.3, 1.0), (10.0, 100.0, 1000.0))
    return Problem(problem, theta, pools, test_error, 40, *grid)


class Solver(NamedTuple):
    """How an estimator is built from (problem, batch size, inner and outer step), and its costs."""

    make: Callable[..., core.Estimator]
    calls: int  # Oracle calls per estimate, about: what is reported is counted.
    exponent: float = 0.0  # Of the decay of the outer step.


def sampled(make, *, joint=False, **settings):
    """On minibatches; with `joint`, the step of params beside that of the inner problem is
    equal.
    """

    def build(problem, batch_size, step, outer):
        problem = core.minibatched(problem, batch_size=batch_size)
        steps = {"step_size": step} | ({"params_step_size": step} if joint else {})
        return make(problem, **steps, **settings)

    return build


def finite_sum(make, **settings):
    """On batches, and now and then on all rows."""

    def build(problem, batch_size, step, outer):
        return make(problem, batch_size=batch_size, step_size=step, **settings)

    return build


def adaptive(problem, batch_size, step, outer):
    """SAMA on Adam."""
    problem = core.minibatched(problem, batch_size=batch_size)
    return estimators.sama(problem, optax.adam(0.1 * step, eps_root=1e-8))


SOLVERS = {
    "soba": Solver(sampled(estimators.soba), 4, 0.5),
    "saba": Solver(finite_sum(estimators.saba), 4),
    "srba": Solver(finite_sum(estimators.srba, period=8), 11),
    "bamm": Solver(sampled(estimators.bamm, average=0.3), 7, 0.25),
    "fsla": Solver(sampled(estimators.fsla), 7, 0.5),
    "amigo": Solver(sampled(estimators.amigo), 22),
    "stocbio": Solver(sampled(estimators.stocbio), 22),
    "bsa": Solver(sampled(estimators.bsa), 17, 0.5),
    "ttsa": Solver(sampled(estimators.ttsa), 8, 0.6),
    "mrbo": Solver(sampled(estimators.mrbo), 26, 1 / 3),
    "sustain": Solver(sampled(estimators.sustain), 15, 1 / 3),
    "vrbo": Solver(finite_sum(estimators.vrbo, period=8, num_steps=3), 91),
    "f2sa": Solver(sampled(estimators.f2sa, penalty=10.0), 33, 5 / 7),
    "bome": Solver(sampled(estimators.bome, joint=True), 13),
    "pbgd": Solver(sampled(estimators.pbgd, joint=True), 13),
    "pzobo": Solver(sampled(estimators.pzobo), 111),
    "darts": Solver(sampled(estimators.darts), 5),
    "sama": Solver(adaptive, 3),
}


def curves(solver: Solver, problem: Problem, config: Config, budget: int):
    """A compiled run of all lanes: (keys, steps, outers, pools) -> values and oracle calls."""
    chunk = max(1, budget // (solver.calls * config.evaluations))

    def estimator(step, outer):
        return solver.make(problem.problem, problem.batch_size, step, outer)

    def one_step(theta, state, step, outer, key, index, pools):
        key = jax.random.fold_in(key, index)
        estimate, state = estimator(step, outer).estimate(theta, state, pools, key)
        rate = outer * (index + 1.0) ** -solver.exponent
        calls = sum(jax.tree.leaves(estimate.info.oracles))
        return theta - rate * estimate.grad, state, calls

    def run(keys, steps, outers, pools):
        # Resets depend on the count alone: not mapped, so that a conditional skips them.
        def init(step, outer, key):
            return estimator(step, outer).init(problem.theta, pools, key)

        shapes = jax.eval_shape(init, steps[0], outers[0], keys[0])
        axes = jax.tree.map(lambda _: 0, shapes)._replace(count=None)
        key_data = jax.random.key_data(keys)
        wrap = jax.random.wrap_key_data
        states = jax.vmap(init, out_axes=axes)(steps, outers, wrap(key_data))
        thetas = jnp.broadcast_to(problem.theta[None], (len(steps), *problem.theta.shape))
        mapped = jax.vmap(one_step, (0, axes, 0, 0, 0, None, None), (0, axes, 0))

        def advance(carry, index):
            thetas, states = carry
            *carry, calls = mapped(thetas, states, steps, outers, wrap(key_data), index, pools)
            return tuple(carry), calls

        def evaluate(carry, start):
            carry, calls = jax.lax.scan(advance, carry, start + jnp.arange(chunk))
            values = jax.vmap(problem.value, (0, 0, None))(carry[0], carry[1].params, pools)
            return carry, (values, calls.sum(axis=0))

        start = jax.vmap(problem.value, (0, 0, None))(thetas, states.params, pools)
        _, (values, calls) = jax.lax.scan(
            evaluate, (thetas, states), chunk * jnp.arange(config.evaluations)
        )
        return jnp.vstack([start[None], values]), jnp.cumsum(calls, axis=0)

    return run


def compare(solver: Solver, problem: Problem, config: Config, budget: int) -> dict:
    """Median curves over seeds at the best of the grid, for every pool of a problem."""
    grid = [(s, o) for s in problem.step_sizes for o in problem.outer_steps]
    steps, outers = jnp.array(grid * config.seeds).T
    keys = jax.random.split(jax.random.key(0), config.seeds)
    keys = jnp.repeat(keys, len(grid))
    results, program = {}, None
    for name, pools in problem.pools.items():
        if program is None:
            run = curves(solver, problem, config, budget)
            program = jax.jit(run).lower(keys, steps, outers, pools).compile()
        begin = time.perf_counter()
        values, calls = jax.block_until_ready(program(keys, steps, outers, pools))
        seconds = time.perf_counter() - begin
        values = np.asarray(values, np.float64).reshape(-1, config.seeds, len(grid))
        values = np.nan_to_num(values, nan=1e30, posinf=1e30)  # Diverged.
        best = int(np.argmin(np.median(values[-1], axis=0)))
        quartiles = np.quantile(values[:, :, best], [0.25, 0.5, 0.75], axis=1)
        low, median, high = ([float(f"{x:.4g}") for x in q] for q in quartiles)
        results[name] = {
            "step_size": grid[best][0],
            "outer_step": grid[best][1],
            "calls": [0, *np.median(np.asarray(calls), axis=1).tolist()],
            "median": median,
            "quartiles": [low, high],
            "seconds": seconds / len(steps),
        }
    return results


# The first ends below the second, the papers report.
ORDERINGS = {
    "arXiv:2201.13409": (("saba", "soba"), ("saba", "stocbio")),
    "arXiv:2302.08766": (("srba", "soba"),),
    "arXiv:2010.07962": (("stocbio", "bsa"), ("stocbio", "ttsa")),
    "arXiv:2106.04692": (("mrbo", "stocbio"), ("vrbo", "mrbo"), ("mrbo", "sustain")),
}


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    doctor.guard_cpu()
    doctor.enable_compilation_cache()
    record = train.Record(config)
    solvers = {name: SOLVERS[name] for name in config.solvers or SOLVERS}
    results = {}
    for label, make in (("quadratics", quadratics), ("logistic", logistic), ("digits", cleaning)):
        problem = make(config)
        budget = config.budget // (2 if label == "digits" else 1)
        for name, solver in solvers.items():
            begin = time.perf_counter()
            for pools, result in compare(solver, problem, config, budget).items():
                results.setdefault(f"{label} {pools}".strip(), {})[name] = result
            print(f"{label} {name}: {time.perf_counter() - begin:.1f} s", flush=True)
    final = {p: {name: r["median"][-1] for name, r in row.items()} for p, row in results.items()}
    orderings = [
        {
            "claim": f"{low} below {high}",
            "source": source,
            "reproduced": {p: f[low] < f[high] for p, f in final.items()},
        }
        for source, pairs in ORDERINGS.items()
        for low, high in pairs
        if {low, high} <= set(solvers)
    ]
    found = record.write({"results": results, "orderings": orderings})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(14, 8), layout="constrained")
    panels = canvas.subplots(2, len(record["results"]), sharey="col")
    for column, (problem, row) in zip(panels.T, record["results"].items(), strict=True):
        for index, (name, result) in enumerate(row.items()):
            style = ("-", "--", ":")[index // 7 % 3]
            calls = np.asarray(result["calls"])
            milliseconds = 1e3 * result["seconds"] * calls / calls[-1]
            for panel, x in zip(column, (calls, milliseconds), strict=True):
                panel.plot(x, result["median"], style, color=f"C{index % 7}", label=name, lw=1)
        column[0].set(yscale="log", xlabel="oracle calls", title=problem)
        column[1].set(yscale="log", xlabel="milliseconds per run")
        for panel in column:
            panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("value (see the script)")
    canvas.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right", frameon=False)
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
