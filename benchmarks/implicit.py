"""Implicit hypergradient of 1,000 ridge penalties: metaopt, by hand, and three peers.

    python -m venv peers && peers/bin/pip install -e . jaxopt==0.8.5 optimistix==0.1.0 \
        torch==2.13.0 torchopt==0.7.3
    peers/bin/python benchmarks/implicit.py      # peers that are not installed are left out

Ridge regression with one logarithmic penalty per weight, 2,000 rows, 1,000 columns, float32; the
inner solution is supplied, so only differentiation is timed. Every side is one compiled function
of (penalties, data). Rounds call all sides in random order, with a pause in between because threads
of one library may spin on into the next one's time; medians over rounds of process milliseconds,
and of their ratio within a round. The error is relative to a dense solve in float64. Results:
`results/implicit.json`.
"""
# pyright: reportMissingImports=false

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
import warnings
from collections.abc import Callable

from metaopt import doctor

doctor.guard_cpu()
# torchopt 0.7.3 calls functions that torch has since moved.
warnings.filterwarnings("ignore", category=FutureWarning)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tyro  # noqa: E402

from metaopt import implicit  # noqa: E402

OUT = pathlib.Path(__file__).parent / "results" / "implicit.json"
RTOL = 1e-6
CAP = 300


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 2000
    columns: int = 1000
    repeats: int = 31
    out: pathlib.Path = OUT


def make_data(cfg: Config) -> dict:
    """Float64 arrays of the problem and its exact solution and hypergradient."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=cfg.columns) * (rng.random(cfg.columns) < 0.3)
    sides = {}
    for side in ("train", "valid"):
        inputs = rng.normal(size=(cfg.rows, cfg.columns))
        sides[side] = inputs, inputs @ truth + 0.5 * rng.normal(size=cfg.rows)
    (x, t), (xv, tv) = sides["train"], sides["valid"]
    theta = rng.normal(size=cfg.columns, scale=1.3)
    hessian = x.T @ x / cfg.rows + np.diag(np.exp(theta))
    params = np.linalg.solve(hessian, x.T @ t / cfg.rows)
    u = np.linalg.solve(hessian, xv.T @ (xv @ params - tv) / cfg.rows)
    return {
        "x": x, "t": t, "xv": xv, "tv": tv, "theta": theta, "params": params,
        "exact": -np.exp(theta) * params * u, "condition": np.linalg.cond(hessian),
    }  # fmt: skip


def inner_loss(params, theta, data):
    residual = data["x"] @ params - data["t"]
    return 0.5 * jnp.mean(residual**2) + 0.5 * jnp.sum(jnp.exp(theta) * params**2)


def outer_loss(params, data):
    return 0.5 * jnp.mean((data["xv"] @ params - data["tv"]) ** 2)


def diagonal(theta, data):
    return jnp.mean(data["x"] ** 2, axis=0) + jnp.exp(theta)


def by_hand(make_product, *, preconditioned=False):
    """Hessian products written out, conjugate gradients of jax.scipy."""

    def grad(theta, data):
        params = data["params"]
        product = make_product(lambda p: jax.grad(inner_loss)(p, theta, data), params)
        scale = diagonal(theta, data)
        u, _ = jax.scipy.sparse.linalg.cg(
            product,
            jax.grad(outer_loss)(params, data),
            tol=RTOL,
            maxiter=CAP,
            M=(lambda r: r / scale) if preconditioned else None,
        )
        mixed = jax.vjp(lambda t: jax.grad(inner_loss)(params, t, data), theta)[1]
        return -mixed(u)[0]

    return grad


def jvp_product(grad, params):
    return lambda v: jax.jvp(grad, (params,), (v,))[1]


def linearized_product(grad, params):
    return jax.linearize(grad, params)[1]


def our_solver(theta, data, preconditioned):
    preconditioner = implicit.jacobi(diagonal(theta, data)) if preconditioned else None
    return implicit.cg(rtol=RTOL, max_steps=CAP, preconditioner=preconditioner)


def with_minimise(preconditioned):
    """`jax.grad` through a solution."""

    def grad(theta, data):
        solver = our_solver(theta, data, preconditioned)
        find = implicit.minimise(
            lambda p, t: inner_loss(p, t, data), lambda loss, start: start, solver=solver
        )
        return jax.grad(lambda t: outer_loss(find(t, data["params"]), data))(theta)

    return grad


def with_hypergradient(preconditioned):
    """The explicit form."""

    def grad(theta, data):
        return implicit.hypergradient(
            lambda p, t: outer_loss(p, data),
            jax.grad(lambda p, t: inner_loss(p, t, data)),
            data["params"],
            theta,
            solver=our_solver(theta, data, preconditioned),
        )[1]

    return grad


def with_jaxopt(solve_name, settings):
    from jaxopt import linear_solve
    from jaxopt.implicit_diff import custom_root

    def grad(theta, data):
        solve = getattr(linear_solve, solve_name)
        rule = custom_root(
            jax.grad(inner_loss), solve=lambda matvec, b: solve(matvec, b, **settings)
        )
        find = rule(lambda start, t, data: data["params"])
        return jax.grad(lambda t: outer_loss(find(None, t, data), data))(theta)

    return grad


def with_optimistix(psd):
    import lineax
    import optimistix

    tag = frozenset({lineax.positive_semidefinite_tag}) if psd else frozenset()
    method = lineax.CG(rtol=RTOL, atol=RTOL, max_steps=CAP) if psd else lineax.AutoLinearSolver(
        well_posed=None
    )  # fmt: skip

    class Given(optimistix.AbstractRootFinder):
        """A root finder that knows the root."""

        rtol: float = 1e-3
        atol: float = 1e-3
        norm: Callable = optimistix.max_norm

        def init(self, fn, y, args, options, f_struct, aux_struct, tags):
            return None

        def step(self, fn, y, args, options, state, tags):
            return y, state, None

        def terminate(self, fn, y, args, options, state, tags):
            return jnp.array(True), optimistix.RESULTS.successful

        def postprocess(self, fn, y, aux, args, options, state, tags, result):
            return y, aux, {}

    def grad(theta, data):
        def solution(t):
            return optimistix.root_find(
                lambda p, args: jax.grad(inner_loss)(p, *args),
                Given(),
                data["params"],
                args=(t, data),
                tags=tag,
                adjoint=optimistix.ImplicitAdjoint(linear_solver=method),
                throw=False,
            ).value

        return jax.grad(lambda t: outer_loss(solution(t), data))(theta)

    return grad


def with_torchopt(solve_name, data):
    """A function without arguments that returns a NumPy gradient."""
    import torch
    import torchopt
    from torchopt.diff.implicit import custom_root

    torch.set_num_threads(os.cpu_count() or 1)
    held = {k: torch.tensor(np.asarray(v)) for k, v in data.items()}

    def loss(params, theta):
        residual = held["x"] @ params - held["t"]
        return 0.5 * (residual**2).mean() + 0.5 * (theta.exp() * params**2).sum()

    solve = getattr(torchopt.linear_solve, solve_name)(rtol=RTOL, atol=0.0, maxiter=CAP)

    def optimality(params, theta):
        return torch.func.grad(loss)(params, theta)

    @custom_root(optimality, argnums=1, solve=solve)
    def find(params, theta):
        return held["params"]

    def call():
        theta = held["theta"].clone().requires_grad_()
        params = find(held["params"], theta)
        outer = 0.5 * ((held["xv"] @ params - held["tv"]) ** 2).mean()
        return torch.autograd.grad(outer, theta)[0].numpy()

    return call


def sides(data) -> dict[str, Callable]:
    """Every side as a function without arguments; peers that are missing are left out."""
    settings = {"tol": RTOL, "maxiter": CAP}
    makers = {
        "by hand, jvp product": lambda: by_hand(jvp_product),
        "by hand, linearize": lambda: by_hand(linearized_product),
        "by hand, Jacobi": lambda: by_hand(jvp_product, preconditioned=True),
        "metaopt minimise": lambda: with_minimise(False),
        "metaopt minimise, Jacobi": lambda: with_minimise(True),
        "metaopt hypergradient": lambda: with_hypergradient(False),
        "metaopt hypergradient, Jacobi": lambda: with_hypergradient(True),
        "jaxopt custom_root, solve_cg": lambda: with_jaxopt("solve_cg", settings),
        "jaxopt custom_root, default": lambda: with_jaxopt("solve_normal_cg", {}),
        "optimistix ImplicitAdjoint, CG": lambda: with_optimistix(True),
        "optimistix ImplicitAdjoint, default": lambda: with_optimistix(False),
    }
    found = {}
    for name, make in makers.items():
        try:
            compiled = jax.jit(make()).lower(data["theta"], data).compile()
        except ImportError as error:
            print(f"left out {name}: {error}")
            continue
        found[name] = lambda f=compiled: jax.block_until_ready(f(data["theta"], data))
    for name in ("solve_cg", "solve_normal_cg"):
        try:
            found[f"torchopt custom_root, {name}"] = with_torchopt(name, data)
        except ImportError as error:
            print(f"left out torchopt: {error}")
    return found


def main(cfg: Config) -> dict:
    """Times all sides in turn, writes the results and returns them."""
    exact = make_data(cfg)
    names = ("x", "t", "xv", "tv", "theta", "params")
    data = {k: jnp.asarray(exact[k], jnp.float32) for k in names}
    functions = sides(data)
    times: dict = {name: {"cpu": [], "wall": []} for name in functions}
    errors = {}
    order = np.random.default_rng(1)
    for repeat in range(cfg.repeats + 2):
        for name in order.permutation(list(functions)):
            function = functions[name]
            time.sleep(0.03)
            cpu, wall = time.process_time(), time.perf_counter()
            answer = function()
            spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            if repeat < 2:
                error = np.max(np.abs(np.asarray(answer, np.float64) - exact["exact"]))
                errors[name] = float(error / np.max(np.abs(exact["exact"])))
                continue
            for clock, seconds in spent.items():
                times[name][clock].append(1e3 * seconds)
    base = times["by hand, jvp product"]["cpu"]
    rows = {
        name: {
            "cpu_ms": round(statistics.median(clocks["cpu"]), 2),
            "wall_ms": round(statistics.median(clocks["wall"]), 2),
            # Paired by turn, so that a busy moment of the machine weighs on both.
            "ratio": round(
                statistics.median(a / b for a, b in zip(clocks["cpu"], base, strict=True)), 3
            ),
            "error": errors[name],
        }
        for name, clocks in times.items()
    }
    packages = ("jax", "jaxlib", "metaopt", "jaxopt", "optimistix", "lineax", "torchopt", "torch")
    record = {
        "config": {"rows": cfg.rows, "columns": cfg.columns, "repeats": cfg.repeats},
        "condition_number": float(exact["condition"]),
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "rows": rows,
    }
    cfg.out.parent.mkdir(exist_ok=True)
    cfg.out.write_text(json.dumps(record, indent=2) + "\n")
    for name, row in rows.items():
        print(f"{name:40} {row['cpu_ms']:8.2f} ms {row['ratio']:7.3f} {row['error']:9.1e}")
    return record


def _versions(packages) -> dict:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(tyro.cli(Config))
