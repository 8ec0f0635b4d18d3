"""Update rules of `metaopt.optimizers`: agreement with published code, and what a step costs.

    python benchmarks/update_rules.py                              # both
    python benchmarks/update_rules.py --peer peer/bin/python       # renews the trajectories first
    python benchmarks/update_rules.py --sizes 1e6                  # less of the second
    python benchmarks/update_rules.py --rules adamp sgdp           # and only these rows of it

Agreement: the largest difference between parameters over 50 steps in float64, ours (or optax's,
where metaopt uses that) against the trajectories in `tests/optimizers/golden.json`, which
`peer_torch_update_rules.py` writes in an environment of its own, those of jaxopt
(`peer_jaxopt_solvers.py`), and what `_transcriptions.py` computes in NumPy and scikit-learn.

Cost: a compiled step (`update` and the addition of its result, memory of state and parameters
reused) for 16 or 153 square matrices of 256 x 256: about 10⁶ and 10⁷ numbers. The loss is a
quadratic, of the cost of a few elementwise operations, and so is its gradient, which is a part of
the step. Steps of convex solvers and inner steps of AI-SARAH are on the same loss, with an absolute
value for FISTA, over a simplex or a ball where there is one. EGN is measured on a perceptron of
those matrices with one output, on a batch of eight, and with it once more Adam. Means over
interleaved rounds of 20 steps or more, since some rules work harder at every tenth; ratios are to
Adam in the same rounds, of process time, of all threads together. Memory is XLA's own account:
state, and temporaries.

Writes results/update_rules.json.
"""

from metaopt import doctor

doctor.guard_cpu()

import json  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import _measure  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import sklearn  # noqa: E402
import tyro  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import _transcriptions  # noqa: E402

from metaopt import core, optimizers  # noqa: E402
from tests.optimizers import golden, golden_solvers, test_polynomial_averaging  # noqa: E402

MATRICES = {"1e6": 16, "1e7": 153}
WIDTH = 256


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        peer: the interpreter of the peers' environment; None: trajectories stay as they are.
        sizes: numbers of parameters.
        rules: whose cost is measured, by name; all if none is given, else rows of others stay what
            they were in the file.
        rounds: how often each is measured in turn.
        seconds: per rule and round.
        repeats: steps per rule and round, at least.
        out: where the results go.
    """

    peer: str | None = None
    sizes: tuple[str, ...] = tuple(MATRICES)
    rules: tuple[str, ...] = ()
    rounds: int = 3
    seconds: float = 1.0
    repeats: int = 20
    out: pathlib.Path = HERE / "results" / "update_rules.json"


def counterparts() -> dict:
    """What is compared with each published trajectory: (what it is, a transformation)."""
    rows = {"row_axis": 0, "weight_decay": 0.1}
    alpha = optimizers.ademamix_alpha_schedule(alpha=8.0, num_steps=30)
    b3 = optimizers.ademamix_b3_schedule(b3=0.9999, num_steps=30)
    decayed = optimizers.grams(0.01, weight_decay=0.1)
    layerwise = optax.chain(
        optax.scale_by_distance_over_gradients(reps_rel=1e-2, param_dtype=float, global_scale=1.0),
        optax.scale(-1.0),
    )
    blocks = {"graft": "adagrad", "start": 4, "nesterov": True, "block_size": 2}
    return {
        "ademamix": ("optax.contrib.ademamix", optax.contrib.ademamix(0.01, b3=0.99)),
        "ademamix_scheduled": (
            "optax.contrib.ademamix, ademamix_alpha_schedule, ademamix_b3_schedule",
            optax.contrib.ademamix(0.01, alpha=alpha, b3=b3),
        ),
        "grams": ("grams", optimizers.grams(0.01)),
        "grams_decay": ("grams", decayed),
        "dog": ("optax.contrib.dog", optax.contrib.dog(init_step=("heuristic", 1e-2))),
        "ldog": ("optax.scale_by_distance_over_gradients", layerwise),
        "madgrad": ("optax.contrib.madgrad", optax.contrib.madgrad(0.01, momentum=0.9)),
        "adamp": ("adamp", optimizers.adamp(0.01, **rows)),
        "adamp_projected": ("adamp", optimizers.adamp(0.01, delta=2.0, **rows)),
        "sgdp": ("sgdp", optimizers.sgdp(0.01, momentum=0.9, delta=2.0, **rows)),
        "sgdp_nesterov": ("sgdp", optimizers.sgdp(0.01, momentum=0.9, nesterov=True, **rows)),
        "diffgrad": ("diffgrad", optimizers.diffgrad(0.01)),
        "shampoo_sum": ("shampoo", published_shampoo(graft="none", factor_decay=1.0, b1=0.0)),
        "shampoo_sgd_graft": ("shampoo", published_shampoo(graft="sgd")),
        "shampoo_adagrad_graft": ("shampoo", published_shampoo(graft="adagrad")),
        "shampoo_rmsprop_graft": ("shampoo", published_shampoo(graft="rmsprop")),
        "shampoo_blocks": ("shampoo", published_shampoo(**blocks)),
        "shampoo_tensor": ("shampoo", published_shampoo(graft="sgd")),
        "shampoo_tensor_blocks": ("shampoo", published_shampoo(graft="adagrad", block_size=2)),
        "sam": ("sam_gradient", nearby(adaptive=False)),
        "sam_adaptive": ("sam_gradient", nearby(adaptive=True)),
    }


def published_shampoo(**settings):
    """With a factor of 1e-6 at first, a root in every step, and momentum of the directions."""
    defaults = {"b2": 0.99, "eps": 1e-10, "factor_decay": 0.99, "momentum": "after"}
    defaults["merge_axes"] = 1
    settings = {**defaults, "initial": 1e-6, "ridge": 0.0, "every": 1, **settings}
    return optimizers.shampoo(0.01, **settings)


def nearby(*, adaptive: bool) -> optax.GradientTransformationExtraArgs:
    """Gradient descent along SAM's gradient, which counts the steps of the problem itself."""
    gradient = optimizers.sam_gradient(golden.gradients, rho=0.1, adaptive=adaptive)

    def update(updates, step, params=None, **extra_args):
        del updates, extra_args
        return jax.tree.map(lambda g: -0.05 * g, gradient(params, step)), step + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), int), update)


def agreement() -> list[dict]:
    """One row for each published trajectory, function and transcription."""
    rows = []

    def add(published, settings, ours, difference):
        row = {"published": published, "settings": settings, "ours": ours}
        rows.append({**row, "largest difference": difference})
        print(json.dumps(rows[-1]), flush=True)

    with jax.enable_x64(True):
        for name, (what, opt) in counterparts().items():
            start = golden.start_of(name)
            if name == "shampoo_sum":
                # It preconditions vectors, too, which follow the rule of the length here.
                start = {"w": start["w"]}
            path = golden.trajectory(opt, params=start)
            difference = golden.difference(name, path)
            add(name, golden.RULES[name]["settings"], what, difference)
        name, start = "polynomial_averaging", {"b": golden.start()["b"]}
        averaged = optimizers.polynomial_averaging(optax.sgd(0.1))
        _, means = test_polynomial_averaging.averages(averaged, start)
        add(name, golden.RULES[name]["settings"], name, golden.difference(name, means))
        for name, (what, _) in golden_solvers.counterparts().items():
            add(f"jaxopt, {name}", {}, what, golden_solvers.difference(name))
        for make in _transcriptions.BESIDE:
            published, settings, ours, theirs = make()
            difference = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
            add(published, settings, make.__name__, difference)
    return rows


ON_PERCEPTRON = {
    "optax.adam, perceptron": optax.adam(1e-3),
    "egn, perceptron": optimizers.egn(0.1),
}


def rules() -> dict:
    """The rules whose cost is measured, by name."""
    sgd = optax.sgd(0.1)
    return {
        "optax.adam": optax.adam(1e-3),
        "complex_momentum": optimizers.complex_momentum(0.1),
        "grams": optimizers.grams(1e-3),
        "adamp": optimizers.adamp(1e-3),
        "sgdp": optimizers.sgdp(0.1, momentum=0.9),
        "diffgrad": optimizers.diffgrad(1e-3),
        "disco_adam": optimizers.disco_adam(1e-3),
        "step_adam": optimizers.step_adam(1e-3, max_steps=1000),
        "opt_amsgrad": optimizers.opt_amsgrad(1e-3),
        "adagrad_norm": optimizers.adagrad_norm(1.0),
        "auto_clip, sgd": optax.chain(optimizers.auto_clip(), sgd),
        "polynomial_averaging, sgd": optimizers.polynomial_averaging(sgd),
        "sania (adam_sqr)": optimizers.sania("adam_sqr"),
        "smb": optimizers.smb(0.1),
        "smbi": optimizers.smbi(0.1),
        "oasis": optimizers.oasis(),
        "fosi, adam (every 100)": optimizers.fosi(optax.adam(1e-3), clip=1.0),
        "shampoo (every 10)": optimizers.shampoo(1e-3, every=10),
        "shampoo (every 100)": optimizers.shampoo(1e-3, every=100),
        "gradient_penalty, sgd": optax.chain(optimizers.gradient_penalty(), sgd),
        "gam, sgd": optax.chain(optimizers.gam(), sgd),
        **ON_PERCEPTRON,
        **solvers(),
        "ai_sarah (inner step)": optimizers.ai_sarah(
            lambda params, target: jax.tree.map(jnp.subtract, params, target)
        ),
    }


def solvers() -> dict[str, optimizers.FirstOrderSolver]:
    """Convex solvers, with the steps of the quadratic."""

    def soft_threshold(params, step_size):
        return jax.tree.map(
            lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.01 * step_size, 0), params
        )

    return {
        "agd": optimizers.agd(1.0),
        "fista (lasso)": optimizers.fista(soft_threshold, 1.0),
        "frank_wolfe (ball of absolute values)": optimizers.frank_wolfe(optimizers.l1_ball_lmo()),
        "mirror_descent (simplices)": optimizers.mirror_descent(optimizers.entropy_map(), 0.1),
        "mirror_prox": optimizers.mirror_prox(optimizers.euclidean_map(), 0.1),
        "dual_averaging": optimizers.dual_averaging(optimizers.euclidean_map(), 0.1),
    }


def quadratic(target):
    """The loss of the tables."""

    def loss(params):
        return sum(0.5 * jnp.sum((p - t) ** 2) for p, t in zip(params, target, strict=True))

    return loss


def perceptron(params, inputs):
    """One output; every matrix is a layer on top of the others."""
    for matrix in params:
        inputs = inputs + jnp.tanh(inputs @ matrix)
    return jnp.mean(inputs, keepdims=True)


def squared(output, target):
    """The loss of one example."""
    return 0.5 * jnp.sum((output - target) ** 2)


def on_perceptron(params, target, name: str):
    """Gradients and extra arguments of an update."""
    inputs, targets = target[0][:8], target[0][:8, :1]
    if name.startswith("egn"):
        extra = {"predict_fn": perceptron, "loss_fn": squared, "batch": (inputs, targets)}
        return params, extra

    def loss(params):
        outputs = jax.vmap(lambda x: perceptron(params, x))(inputs)
        return jnp.mean(jax.vmap(squared)(outputs, targets))

    return jax.grad(loss)(params), {}


def on_quadratic(params, target, name: str):
    """The same for all others."""
    del name
    value, grads = jax.value_and_grad(quadratic(target))(params)
    return grads, core.loss_functions(quadratic(target), value, grads)


def step_of(name: str, rule):
    """What makes the first carry of parameters, and `(carry, target) -> carry`."""
    if name in solvers():
        problem = (
            (lambda target: jax.grad(quadratic(target))) if name == "mirror_prox" else quadratic
        )
        return rule.init, lambda state, target: rule.update(problem(target), state)
    if name.startswith("ai_sarah"):
        # A direction to begin with.
        return lambda params: rule.init(params)._replace(direction=params), rule.inner_step
    rule = optax.with_extra_args_support(rule)
    posed = on_perceptron if name in ON_PERCEPTRON else on_quadratic

    def step(carry, target):
        params, state = carry
        grads, extra = posed(params, target, name)
        updates, state = rule.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return lambda params: (params, rule.init(params)), step


def build(name: str, rule, num_matrices: int):
    """Compiles one step; returns a blocking call of it and its facts."""
    rng = np.random.default_rng(0)

    def draw(scale):
        return [
            jnp.asarray(scale * rng.standard_normal((WIDTH, WIDTH), np.float32))
            for _ in range(num_matrices)
        ]

    params, target = draw(0.05), draw(0.05)
    if "simpl" in name:
        params = jax.tree.map(jax.nn.softmax, params)
    init, step = step_of(name, rule)
    # Copied, for no two arguments may be one buffer if both are given away.
    carry = jax.tree.map(jnp.array, jax.jit(init)(params))
    compiled = jax.jit(step, donate_argnums=0).lower(carry, target).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    box = [carry]

    def run():
        box[0] = jax.block_until_ready(compiled(box[0], target))

    def size(tree):
        return sum(x.nbytes for x in jax.tree.leaves(tree))

    facts = {
        "parameters": num_matrices * WIDTH**2,
        "state_bytes": size(carry) - size(params),
        "temp_bytes": memory.temp_size_in_bytes,
    }
    run()
    return run, facts


def cost(config: Config, size: str) -> list[dict]:
    """Rows of one size."""
    chosen = {k: v for k, v in rules().items() if not config.rules or k in config.rules}
    chosen = {"optax.adam": rules()["optax.adam"], **chosen}
    if "egn, perceptron" in chosen:
        chosen = {**chosen, **ON_PERCEPTRON}
    built = {name: build(name, rule, MATRICES[size]) for name, rule in chosen.items()}
    times = {name: {"ms": [], "cpu_ms": []} for name in built}
    for _ in range(config.rounds):
        for name, (run, _) in built.items():
            found = _measure.time_steps(run, seconds=config.seconds, min_repeats=config.repeats)
            for kind, values in found.items():
                times[name][kind] += values
    mean = {
        name: {kind: statistics.mean(values) for kind, values in found.items()}
        for name, found in times.items()
    }
    adam_bytes = built["optax.adam"][1]["state_bytes"]
    rows = []
    for name, (_, facts) in built.items():
        adam = mean["optax.adam, perceptron" if name in ON_PERCEPTRON else "optax.adam"]
        rows.append(
            {
                "rule": name,
                "size": size,
                **facts,
                "ms": round(mean[name]["ms"], 3),
                "time_over_adam": round(mean[name]["cpu_ms"] / adam["cpu_ms"], 2),
                "wall_over_adam": round(mean[name]["ms"] / adam["ms"], 2),
                "state_over_adam": round(facts["state_bytes"] / adam_bytes, 2),
                "repeats": len(times[name]["ms"]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def with_others(rows: list[dict], config: Config) -> list[dict]:
    """New rows, and those in the file that were not to be measured, in the order of the rules."""
    if config.rules and config.out.exists():
        new = {(row["rule"], row["size"]) for row in rows}
        former = json.loads(config.out.read_text())["cost"]
        rows = rows + [row for row in former if (row["rule"], row["size"]) not in new]
    order = [*rules()]
    known = [row for row in rows if row["rule"] in order]
    return sorted(known, key=lambda row: ([*MATRICES].index(row["size"]), order.index(row["rule"])))


def main(config: Config) -> dict:
    """Measures, writes the results and returns them."""
    provenance = _measure.provenance()
    if config.peer is not None:
        script = HERE / "peer_torch_update_rules.py"
        out = HERE.parent / "tests" / "optimizers" / "golden.json"
        subprocess.run([config.peer, str(script), "--out", str(out)], check=True)
    record = {
        "provenance": provenance,
        "versions": {
            "jax": jax.__version__,
            "optax": optax.__version__,
            **golden.RECORD["versions"],
            **golden_solvers.RECORD["versions"],
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "agreement": agreement(),
        "cost": with_others([row for size in config.sizes for row in cost(config, size)], config),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main(tyro.cli(Config))
