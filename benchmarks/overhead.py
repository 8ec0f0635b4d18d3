"""What one update step costs, gradients given: ours, Adam, and Google's learned_optimization.

    python benchmarks/overhead.py                                     # ours, and the floor
    python benchmarks/overhead.py --peer peer/bin/python              # and the peer's, in turn

The parameters are those of an MLP of three square layers, of about 10⁵, 10⁶ and 10⁷ numbers. A step
is `update` and the addition of its result, compiled, the old state's and parameters' memory reused.
Times are medians over interleaved rounds of wall and process time, of all threads together;
ratios are of process time, which a busy machine disturbs less. The floor is what moving each number
in and out of memory once would take: gradients, parameters and state read, parameters and state
written, at the bandwidth of a copy of a large array, measured in the same rounds.

Peak memory is XLA's own account (`memory_analysis`): temporaries, beside parameters, gradients and
state. The peer's environment is that of `peer_learned_optimization.py`; its release has
`AdafacMLPLOpt`, but neither VeLO's `HyperV2` nor Celo2. Writes results/overhead.json.
"""

from metaopt import doctor

doctor.guard_cpu()

import argparse  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import _measure  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from metaopt import learned  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
# Widths of three square layers with biases.
WIDTHS = {"1e5": 182, "1e6": 577, "1e7": 1825}
NUM_STEPS = 1000
RULES = {
    "optax.adam": None,
    "adafac_mlp": lambda: learned.adafac_mlp(),
    "celo2": lambda: learned.celo2(),
    "celo2 orthogonalised": lambda: learned.celo2(orthogonalise=True),
    "velo": lambda: learned.velo(),
}
PEER_RULES = ("adafac_mlp", "adafac_mlp_scalar")


def make_rule(name: str) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose weights are arguments of nothing: constants of the program."""
    if RULES[name] is None:
        return optax.with_extra_args_support(optax.adam(1e-3))
    rule = RULES[name]()
    return rule.optimizer(rule.init(jax.random.key(0)), num_steps=NUM_STEPS)


def layers(width: int, scale: float, seed: int) -> dict:
    """Three square layers with biases."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(scale * rng.standard_normal(shape, np.float32))

    return {f"layer_{i}": {"w": draw(width, width), "b": draw(width)} for i in range(3)}


def build_copy(width: int):
    """Copying an array of the size of the parameters: the bandwidth of memory."""
    source = np.ones(max(3 * width * width, 10**7), np.float32)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source), {"bytes": 2 * source.nbytes}


def build(settings: dict):
    """Compiles one configuration; returns a blocking step and its facts."""
    width = WIDTHS[settings["size"]]
    if settings["rule"] == "copy":
        return build_copy(width)
    rule = make_rule(settings["rule"])
    params, grads = layers(width, 0.05, 0), layers(width, 0.01, 1)
    carry = {"params": params, "state": jax.jit(rule.init)(params)}

    def update(params, state, grads, loss):
        updates, state = rule.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    loss = jnp.array(1.0)
    begin = time.perf_counter()
    lowered = jax.jit(update, donate_argnums=(0, 1)).lower(params, carry["state"], grads, loss)
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    assert memory is not None
    nbytes = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    carried = nbytes(params) + nbytes(carry["state"])

    def step():
        new = compiled(carry["params"], carry["state"], grads, loss)
        carry["params"], carry["state"] = jax.block_until_ready(new)

    step()
    return step, {
        "parameters": sum(x.size for x in jax.tree.leaves(grads)),
        "compile_s": round(seconds, 2),
        "temp_bytes": memory.temp_size_in_bytes,
        "state_bytes": nbytes(carry["state"]),
        "bytes_moved": 2 * carried + nbytes(grads),
    }


def measure(sides: dict, size: str, *, rounds: int, seconds: float) -> list[dict]:
    """Rows of one size: every configuration in every round, one after the other."""
    rows, times = {}, {}
    for _ in range(rounds):
        for (library, rule), side in sides.items():
            key = library, rule
            facts = side.ask(build={"rule": rule, "size": size})
            found = side.ask(run=seconds)
            kept = times.setdefault(key, {"ms": [], "cpu_ms": []})
            for name, values in found.items():
                kept[name] += values
            rows[key] = facts
    copied = rows.pop(("metaopt", "copy"))["bytes"]
    # The best round is the memory's; others share it with whatever else the machine does.
    bandwidth = copied / min(times.pop(("metaopt", "copy"))["ms"]) * 1e3
    adam = statistics.median(times["metaopt", "optax.adam"]["cpu_ms"])
    return [
        {
            "library": library,
            "rule": rule,
            "size": size,
            **facts,
            "ms": round(statistics.median(times[library, rule]["ms"]), 3),
            "cpu_ms": round(statistics.median(times[library, rule]["cpu_ms"]), 3),
            "ratio_to_adam": round(statistics.median(times[library, rule]["cpu_ms"]) / adam, 2),
            "floor_ms": round(1e3 * facts["bytes_moved"] / bandwidth, 3),
            "bandwidth_gb_s": round(bandwidth / 1e9, 2),
            "repeats": len(times[library, rule]["ms"]),
        }
        for (library, rule), facts in rows.items()
    ]


def main():
    parser = argparse.ArgumentParser(description="update steps, ours and the peer's")
    parser.add_argument("--sizes", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="per configuration and round")
    parser.add_argument("--peer", help="the interpreter of the peer's environment")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "overhead.json")
    parser.add_argument("--serve", action="store_true", help="answer requests of the driver")
    args = parser.parse_args()
    if args.serve:
        _measure.serve(build)
        return
    record = {"provenance": _measure.provenance(), "versions": {"jax": jax.__version__}}
    ours = _measure.Side([sys.executable, __file__, "--serve"])
    sides = {("metaopt", name): ours for name in (*args.rules, "copy")}
    if args.peer:
        peer = _measure.Side([args.peer, str(HERE / "peer_overhead.py")])
        sides |= {("learned_optimization", name): peer for name in PEER_RULES}
    rows = []
    for size in args.sizes:
        rows += measure(sides, size, rounds=args.rounds, seconds=args.seconds)
        for row in rows[-len(sides) + 1 :]:
            print(json.dumps(row), flush=True)
    args.out.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
