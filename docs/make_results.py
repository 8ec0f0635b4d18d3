"""Fills the tables of the documentation from results files; no number there is typed by hand.

python docs/make_results.py
"""

import json
import math
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(
    ROOT / name
    for name in (
        "docs/results.md",
        "docs/meta_gradients.md",
        "docs/learned_optimizers.md",
        "docs/few_shot.md",
        "docs/optimizers.md",
        "metaopt/learned/weights/adam_mlp.md",
    )
)


def newcomer() -> str:
    """Times of a newcomer's commands."""
    results = _load("benchmarks/results/newcomer.json")
    rows = [
        [
            entry["python"],
            entry["jax"],
            *(_seconds(entry[target]) for target in ("install", "demo", "test")),
            entry["test"]["last_line"].strip("= "),
        ]
        for entry in results.values()
    ]
    return _table(
        ["Python", "jax", "install", "`make demo`", "`make test`", "the tests' last line"], rows
    )


def digits() -> str:
    """The learned rule against tuned Adam."""
    rows = []
    for outer_loss, result in _load("experiments/results/digits.json")["results"].items():
        for problem, numbers in result["problems"].items():
            for measure in ("mean training loss", "final training loss", "test loss"):
                entry = numbers[measure]
                per_seed = ", ".join(f"{x:.2f}" for x in entry["ratio per meta-seed"])
                rows.append(
                    [
                        outer_loss,
                        problem,
                        measure,
                        f"{entry['adam']:.4g}",
                        ", ".join(f"{x:.3g}" for x in entry["learned"]),
                        per_seed,
                        _interval(entry["ratio"]),
                    ]
                )
    return _table(
        ["meta-loss", "problem", "measure", "Adam", "learned, per meta-seed", "ratio of means",
         "IQM of ratios [95 %]"],
        rows,
    )  # fmt: skip


def accuracy() -> str:
    """Speed-up and accuracy of the same runs."""
    rows = []
    for outer_loss, result in _load("experiments/results/digits.json")["results"].items():
        for problem, numbers in result["problems"].items():
            accuracies, rates = numbers["test accuracy"], numbers["learning_rate"]
            rows.append(
                [
                    outer_loss,
                    problem,
                    _interval(numbers["speed-up"]),
                    f"{accuracies['adam']:.1%}",
                    ", ".join(f"{x:.1%}" for x in accuracies["learned"]),
                    f"{rates['adam']:.3g}",
                    ", ".join(f"{x:.3g}" for x in rates["learned"]),
                ]
            )
    return _table(
        ["meta-loss", "problem", "speed-up, IQM [95 %]", "Adam's test accuracy",
         "learned, per meta-seed", "Adam's learning rate", "learned, per meta-seed"],
        rows,
    )  # fmt: skip


def times() -> str:
    """What the runs of the digits experiment cost."""
    rows = []
    for outer_loss, result in _load("experiments/results/digits.json")["results"].items():
        summaries = result["summaries"]
        rows.append(
            [
                outer_loss,
                ", ".join(f"{x / 60:.1f}" for x in result["seconds"]),
                f"{statistics.median(s['steps_per_second'] for s in summaries):.2f}",
                f"{statistics.median(s['compile_seconds'] for s in summaries):.1f}",
                f"{summaries[0]['temp_bytes'] / 2**20:.1f}",
            ]
        )
    return _table(
        ["meta-loss", "minutes per run, comparison included", "outer steps per second",
         "compile seconds", "temporary MiB"],
        rows,
    )  # fmt: skip


def memory() -> str:
    """Memory over 1,000 outer steps."""
    record = _load("benchmarks/results/memory.json")
    rows = [
        [str(s["step"]), f"{s['resident_mib']:.0f}", str(s["live_arrays"])]
        for s in record["samples"]
        if s["step"] in (100, 200, 500, 800, 1000)
    ]
    return (
        f"Temporary memory of the compiled meta-step: {record['temp_mib']:.1f} MiB; its state and "
        f"pool: {record['state_and_pool_mib']:.1f} MiB.\n\n"
        + _table(["outer step", "resident MiB", "live arrays"], rows)
    )


def throughput() -> str:
    """Inner steps per second of a PES meta-step, ours and the peer's."""
    rows = _load("benchmarks/results/throughput.json")["rows"]
    ours = {(r["optimizer"], r["num_tasks"], r["window"]): r for r in rows if "variant" not in r}
    peers = {
        (r["variant"], r["optimizer"], r["num_tasks"], r["window"]): r
        for r in rows
        if "variant" in r
    }
    variants = list(dict.fromkeys(key[0] for key in peers))
    lines = []
    for (name, num_tasks, window), row in ours.items():
        cells = [name, str(num_tasks), str(window), f"{row['inner_steps_per_s']:,}",
                 f"{row['compile_s']:.1f}", f"{row['temp_bytes'] / 2**20:.1f}"]  # fmt: skip
        for variant in variants:
            peer = peers.get((variant, name, num_tasks, window))
            if peer is None:
                cells += ["", ""]
            else:
                ratio = row["inner_steps_per_s"] / peer["inner_steps_per_s"]
                cells += [f"{peer['inner_steps_per_s']:,} ({peer['compile_s']:.0f} s)",
                          f"{ratio:.1f}x"]  # fmt: skip
        lines.append(cells)
    header = ["rule", "tasks", "window", "inner steps/s", "first step, s", "temporary MiB"]
    for variant in variants:
        header += [f"peer, {variant}", "ratio"]
    return _table(header, lines)


def unroll_memory() -> str:
    """Memory and time of meta-gradients through the unroll, by settings."""
    lines = []
    for row in _load("benchmarks/results/unroll_memory.json")["rows"]:
        time = "same program" if row["same_program"] else f"{1 / row['cpu_seconds_ratio']:.2f}x"
        lines.append(
            [
                row["case"],
                row["remat"],
                row["gradient"],
                f"{row['temp_mib']:.1f}",
                f"{row['temp_mib_ratio']:.1f}x",
                f"{1e3 * row['cpu_seconds']:.0f}",
                time,
                f"{row['compile_s']:.0f}",
            ]
        )
    return _table(
        ["inner problem", "remat", "gradient", "temporary MiB", "less memory", "ms of process time",
         "time over plain", "compile seconds"],
        lines,
    )  # fmt: skip


def implicit_cost() -> str:
    """One implicit hypergradient, ours and the peers'."""
    rows = _load("benchmarks/results/implicit.json")["rows"]
    return _table(
        ["implementation", "ms of process time", "time over `by hand`", "relative error"],
        [
            [name, f"{row['cpu_ms']:.1f}", f"{row['ratio']:.2f}", f"{row['error']:.0e}"]
            for name, row in rows.items()
        ],
    )


def maml() -> str:
    """A second-order MAML meta-step, ours, by hand and the peers'."""
    return _table(
        ["problem", "implementation", "version (else of torch)", "ms of process time",
         "time over metaopt", "compile seconds", "first meta-loss"],
        [
            [
                row["problem"],
                row["library"],
                row["version"],
                f"{row['cpu_ms_median']:.4g}",
                f"{row['ratio']:.2f}",
                f"{row['compile_s']:.1f}",
                f"{row['first_loss']:.5g}",
            ]
            for row in _load("benchmarks/results/maml.json")["rows"]
        ],
    )  # fmt: skip


def catalogue() -> str:
    """Errors of hypergradients on one ridge problem, as the number of steps grows."""
    by_seed = _load("experiments/results/hypergradients.json")["results"]["catalogue"]
    first = next(iter(by_seed.values()))
    names = list(next(iter(first["errors"].values())))
    lines = []
    for steps in first["errors"]:
        errors = {n: [seed["errors"][steps].get(n) for seed in by_seed.values()] for n in names}
        lines.append([steps, *(_spread(errors[n]) for n in names)])
    identity = [seed["identity"] for seed in by_seed.values()]
    table = _table(["K", *names], lines)
    errors, cosines = (_spread([x[k] for x in identity]) for k in ("error", "cosine"))
    return f"{table}\n\nIdentity in place of the inverse: error {errors}, cosine {cosines}."


def penalties() -> str:
    """Forty learned penalties against the best shared one."""
    by_seed = _load("experiments/results/hypergradients.json")["results"]["penalties"]
    shared = [seed["best shared penalty"] for seed in by_seed.values()]
    lines = []
    for name in next(iter(by_seed.values())):
        cells = [name]
        for measure in ("validation", "test"):
            values = [seed[name][measure] for seed in by_seed.values()]
            ratios = [v / s[measure] for v, s in zip(values, shared, strict=True)]
            cells += [f"{statistics.mean(values):.3f}", _spread(ratios, "{:.2f}")]
        lines.append(cells)
    return _table(
        ["solver", "validation loss, mean", "ratio to shared: per seed", "test loss, mean",
         "ratio to shared: per seed"],
        lines,
    )  # fmt: skip


def imaml() -> str:
    """Errors of the iMAML meta-gradient."""
    by_seed = _load("experiments/results/hypergradients.json")["results"]["imaml"]
    names = list(next(iter(by_seed.values())))
    return _table(
        ["inner steps, CG steps", "relative error per seed"],
        [[name, _spread([seed[name] for seed in by_seed.values()])] for name in names],
    )


def nystrom() -> str:
    """Errors of low-rank inverses."""
    by_seed = _load("experiments/results/hypergradients.json")["results"]["nystrom"]
    lines = []
    for part, entries in next(iter(by_seed.values())).items():
        for name in entries:
            values = [seed[part][name] for seed in by_seed.values()]
            lines.append([part, name, _spread(values)])
    return _table(["curvature", "solver or damping", "relative error per seed"], lines)


def sinusoids() -> str:
    """Errors of adaptation by gradient steps, by method and steps."""
    record = _load("experiments/results/sinusoids.json")
    results, lines = record["results"], []
    for name, entry in results.items():
        means = [f"{statistics.mean(values):.3g}" for values in entry["mean"].values()]
        lines.append(
            [
                name,
                *means,
                _spread(entry["mean"]["5"], "{:.3g}"),
                _spread(entry["standard error over tasks"]["5"]),
                _spread(entry["median"]["5"], "{:.3g}"),
                f"{entry['ms']:.2f}",
            ]
        )
    steps = list(next(iter(results.values()))["mean"])
    header = [f"after {steps[0]}", *steps[1:], "5, per seed", "standard error", "median at 5"]
    return (
        f"{record['config']['num_updates']:,} updates of {record['config']['num_tasks']} tasks.\n\n"
        + _table(["method", *header, "ms per update"], lines)
    )


def sinusoid_bars() -> str:
    """Bounds on the same numbers."""
    record = _load("experiments/results/sinusoids.json")
    rows = []
    for row in record["bars"]:
        errors = record["results"][row["method"]]["mean"]["5"]
        worst = f"{max(errors):.3g}" if row["measure"] == "error" else "-"
        met = "yes" if row["met"] else "**no**"
        cells = [f"{row['bar']:.2g}", f"{row['reached']:.3g}", met, worst]
        rows.append([row["method"], row["measure"], *cells])
    return _table(["method", "measure", "at most", "mean over seeds", "met", "worst seed"], rows)


def few_shot_parity() -> str:
    """Meta-gradients beside those of other libraries."""
    record = _load("benchmarks/results/few_shot_parity.json")
    found = {(row["method"], row["library"]): row["difference"] for row in record["rows"]}
    methods = list(dict.fromkeys(method for method, _ in found))
    libraries = sorted({library for _, library in found})
    rows = [
        [method, *(f"{found[method, x]:.0e}" if (method, x) in found else "-" for x in libraries)]
        for method in methods
    ]
    return _table(["", *libraries], rows)


def diagnoses() -> str:
    """What the instrument says of three problems."""
    lines = []
    for problem, result in _load("experiments/results/diagnose.json")["results"].items():
        lines += [f"**{problem}**", "", *(f"- {text}" for text in result["recommendation"]), ""]
    return "\n".join(lines).rstrip()


def bilevel() -> str:
    """Final values of the bilevel estimators, and which published orderings they reproduce."""
    record = _load("experiments/results/bilevel.json")
    problems = list(record["results"])
    methods = list(record["results"][problems[0]])

    def cell(entry):
        return f"{entry['median'][-1]:.3g} ({1e3 * entry['seconds']:.0f} ms)"

    values = _table(
        ["estimator", *problems],
        [[name, *(cell(record["results"][p][name]) for p in problems)] for name in methods],
    )
    orderings = _table(
        ["claim", "paper", *problems],
        [[o["claim"], o["source"], *("yes" if o["reproduced"][p] else "no" for p in problems)]
         for o in record["orderings"]],
    )  # fmt: skip
    return f"{values}\n\n{orderings}"


def faults() -> str:
    """What runs survived."""
    lines = []
    for row in _load("benchmarks/results/faults.json")["rows"]:
        bits = {True: "yes", False: "no"}.get(row.get("same bits"), "-")
        lines.append(
            [row["fault"], row["what happened"].replace("|", "/"), str(row.get("lost", "-")), bits]
        )
    return _table(["fault", "what happened", "outer steps lost", "same bits at the end"], lines)


def scaling() -> str:
    """The same run on several devices and processes."""
    lines = []
    for row in _load("benchmarks/results/scaling.json")["rows"]:
        lines.append(
            [
                f"{row['processes']} x {row['devices'] // row['processes']}",
                f"{row['difference']:.1e}",
                f"{row['difference in float64']:.1e}",
                f"{row['tasks_per_s']:.0f}",
                f"{row['tasks_per_s_per_device']:.0f}",
                f"{row['of_ideal']:.2f}",
            ]
        )
    return _table(
        ["processes x devices", "largest relative difference of the curve", "in float64",
         "tasks/s", "per device", "share of what two cores could"],
        lines,
    )  # fmt: skip


def bad_input() -> str:
    """Bad calls, and how they ended."""
    return _table(
        ["bad calls", "factories", "tried", "error that names it", "other error", "accepted"],
        [
            [row["kind"], *(str(row[x]) for x in
             ("factories", "tried", "clear", "error", "accepted"))]
            for row in _load("benchmarks/results/bad_input.json")["rows"]
        ],
    )  # fmt: skip


def fuzz_loaders() -> str:
    """Damaged files, and how they were read."""
    rows = []
    for row in _load("benchmarks/results/fuzz_loaders.json")["rows"]:
        outcomes = [row["outcomes"].get(x, 0) for x in ("refused", "as written", "other content")]
        rows.append(
            [
                row["reader"],
                f"{row['executions']:,}",
                *(f"{count:,}" for count in outcomes),
                f"{row['slowest_ms']:.0f}",
                f"{row['largest_kib']:.0f}",
                str(len(row["findings"])),
            ]
        )
    return _table(
        ["reader", "executions", "refused", "as written", "other content", "slowest, ms",
         "most memory, KiB", "findings"],
        rows,
    )  # fmt: skip


def soak() -> str:
    """What did not grow over a long run."""
    record = _load("benchmarks/results/soak.json")
    names = {
        "rss_mib": "resident MiB",
        "live_arrays": "live arrays",
        "python_blocks": "blocks of Python",
        "open_files": "open files",
        "threads": "threads",
        "ms_per_step": "ms per outer step",
    }
    table = _table(
        ["", "first", "last", "largest"],
        [
            [text, *(f"{record[name][k]:.0f}" for k in ("first", "last", "largest"))]
            for name, text in names.items()
        ],
    )
    rows = []
    for name, text in (
        ("soak_with_saves", "short, with saves"),
        ("soak_without_saves", "short, without saves"),
        ("soak", "long"),
    ):
        run = _load(f"benchmarks/results/{name}.json")
        every, steps = run["config"]["checkpoint_every"], run["steps"]
        memory = run["rss_mib"]
        rows.append(
            [
                text,
                f"{run['config']['minutes']:.0f}",
                f"{steps:,}",
                f"{steps // every:,}",
                f"{memory['first']:.1f} to {memory['last']:.1f}",
                f"{1024 * memory['per_1000_steps']:.0f}",
                f"{run['python_blocks']['per_1000_steps']:.0f}",
            ]
        )
    growth = _table(
        [
            *("run", "minutes", "outer steps", "saves", "resident MiB"),
            *("KiB per 1,000 steps", "blocks of Python per 1,000 steps"),
        ],
        rows,
    )
    return f"{table}\n\nGrowth is over the second half of a run.\n\n{growth}"


def symbolic_search() -> str:
    """What evolution from SGD found."""
    parts = []
    for seed, found in _load("experiments/results/symbolic.json")["searches"].items():
        counts = found["counts"]
        parts.append(
            f"Search {seed}: {counts['evaluated']:,} programs trained with, "
            f"of {counts['proposed']:,} proposed ({found['duplicates']:.0%} did what a known one "
            f"does, {counts['invalid'] / counts['proposed']:.0%} were dropped). Score "
            f"{found['score of sgd']:.3f} for SGD, {found['score']:.3f} for\n\n```text\n"
            + "\n".join(found["program"])
            + "\n```"
        )
    return "\n\n".join(parts)


def symbolic_rules() -> str:
    """The rules found, beside known ones."""
    rows = [
        [
            problem,
            name,
            f"{entry['learning_rate']:.2g}" + " (edge)" * entry["at_edge"],
            f"{entry['mean loss']:.3f} ± {entry['standard error']:.3f}",
            f"{entry['final loss']:.3f}",
            f"{entry['ratio to sgd']:.2f}",
            f"{entry['ratio to adam']:.2f}",
        ]
        for problem, table in _load("experiments/results/symbolic.json")["comparison"].items()
        for name, entry in table.items()
    ]
    return _table(
        ["problem", "rule", "learning rate", "mean loss ± standard error", "final loss",
         "mean over SGD's", "mean over Adam's"],
        rows,
    )  # fmt: skip


def learned_strategies() -> str:
    """LES against tuned isotropic strategies."""
    record = _load("experiments/results/les.json")
    rows = []
    for group, entry in record["summary"].items():
        runs = [x for name, x in entry.items() if name != "cells"]
        for baseline in record["isotropic"]:
            columns = (
                ("below it", "{:.0%}"),
                ("median difference", "{:.2f}"),
                ("IQM of relative progress", "{:.2f}"),
            )
            values = [_spread([x[baseline][name] for x in runs], form) for name, form in columns]
            rows.append([group, str(entry["cells"]), baseline, *values])
        below = [run["below random"] for run in runs]
        rows.append([group, str(entry["cells"]), "random search", _spread(below, "{:.0%}"), "", ""])
    return _table(
        ["cells", "number", "against", "LES below it, per meta-seed", "median difference, log10",
         "progress, IQM"],
        rows,
    )  # fmt: skip


def parity() -> str:
    """Our learned optimizers against the originals' trajectories."""
    rows = [
        [f"`{name}`", *(f"{row[key]:.1e}" for key in ("stored", "rolling", "moved"))]
        for name, row in _load("benchmarks/results/parity.json")["rows"].items()
    ]
    return _table(["vectors", "stored", "rolling", "moved"], rows)


def l2l() -> str:
    """The coordinate-wise LSTM against tuned baselines on random quadratics."""
    record = _load("experiments/results/l2l.json")
    results, rates = record["results"], record["learning rates"]
    rows = []
    for name in next(iter(results.values()))["mean log10 f"]:
        cells = [name, f"{rates[name]:.3g}" if name in rates else "-"]
        for found in results.values():
            run = found["LSTM"].get(name.removeprefix("LSTM "))
            cells.append(f"{found['mean log10 f'][name]:.2f}")
            cells.append(_interval(run["below it by"]) if run else "")
            cells.append(f"{run['share of functions below it']:.0%}" if run else "")
        rows.append(cells)
    header = ["optimizer, meta-seed", "learning rate"]
    for steps in results:
        header += [f"mean log10 f(x_{steps})", "below the best baseline by [95 %]", "functions"]
    lines = []
    for steps, found in results.items():
        gap = statistics.mean(run["below it by"]["estimate"] for run in found["LSTM"].values())
        lines.append(
            f"After {steps} steps the best baseline is {found['best baseline']}; the LSTM is "
            f"{abs(gap):.2f} {'below' if gap > 0 else 'above'} it on average over meta-seeds."
        )
    return _table(header, rows) + "\n\n" + "\n".join(lines)


def coordinate_check() -> str:
    """Slopes against the width, without and with muP."""
    record = _load("experiments/results/coordinate_check.json")
    lines = []
    for name in record["slopes"]:
        for form, rules in record["results"].items():
            by_step = zip(*(entry["slopes"]["1"] for entry in rules.get(name, [])), strict=True)
            cells = [_spread(slopes, "{:.2f}") for slopes in by_step]
            if cells:
                lines.append([name, form, *cells])
    steps = record["config"]["steps"]
    return _table(["rule", "form", *(f"slope after {step}" for step in steps)], lines)


def overhead() -> str:
    """One update step, ours and the peer's, beside Adam's and the bandwidth floor."""
    rows = _load("benchmarks/results/overhead.json")["rows"]
    peers = {
        row["size"]: row["cpu_ms"]
        for row in rows
        if row["library"] != "metaopt" and row["rule"] == "adafac_mlp"
    }
    table = _table(
        ["library", "rule", "parameters", "ms of process time", "over Adam",
         "of the peer's default", "floor, ms", "temporary MiB", "temporary bytes per parameter"],
        [
            [
                row["library"],
                row["rule"],
                row["size"],
                f"{row['cpu_ms']:.3g}",
                f"{row['ratio_to_adam']:.1f}x",
                f"{row['cpu_ms'] / peers[row['size']]:.2f}" if peers else "",
                f"{row['floor_ms']:.2g}",
                f"{row['temp_bytes'] / 2**20:.1f}",
                f"{row['temp_bytes'] / row['parameters']:.0f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    times = {(row["library"] == "metaopt", row["rule"], row["size"]): row["cpu_ms"] for row in rows}
    lines = []
    for size in peers:
        default, scalar = (
            times[False, form, size] / times[True, "adafac_mlp", size]
            for form in ("adafac_mlp", "adafac_mlp_scalar")
        )
        lines.append(
            f"`adafac_mlp` at {size} parameters: {default:.1f} times as fast as the peer's default "
            f"form (3 were aimed at), {scalar:.1f} times as fast as its scalar one."
        )
    return "\n".join([table, "", *(f"- {line}" for line in lines)])


def suite() -> str:
    """Baselines and shipped weights on the evaluation suite."""
    record = _load("benchmarks/results/suite.json")
    entries = sorted(record["contenders"].items(), key=lambda item: -item[1]["speedup"]["estimate"])
    rows = [[name, *_suite_cells(entry)] for name, entry in entries]
    return f"{_suite_size(record)}\n\n{_table(['optimizer', *SUITE_HEADER], rows)}"


def card_scores() -> str:
    """The shipped weights on the evaluation suite."""
    record = _load("benchmarks/results/suite.json")
    rows = [
        [label, *_suite_cells(record["contenders"][name])]
        for name, label in (
            ("adam_mlp", "tuned: 7 values per task"),
            ("adam_mlp:default", "0.01 on every task"),
        )
    ]
    return f"{_suite_size(record)}\n\n{_table(['learning rate', *SUITE_HEADER], rows)}"


def suite_seeds() -> str:
    """Other meta-seeds of the shipped rule on the evaluation suite."""
    record = _load("benchmarks/results/suite_seeds.json")
    shipped = _load("benchmarks/results/suite.json")["contenders"]["adam_mlp"]
    others = {name: x for name, x in record["contenders"].items() if name != record["reference"]}
    rows = [
        [name.replace("_", " "), *_suite_cells(entry)]
        for name, entry in {"seed 0, which ships": shipped, **others}.items()
    ]
    return f"{_suite_size(record)}\n\n{_table(['meta-seed', *SUITE_HEADER], rows)}"


SUITE_HEADER = [
    "speed-up [95 %]", "not reached", "envelope [95 %]", "train", "test", "failed",
    "cost of an update", "tasks with the knob at its edge",
]  # fmt: skip


def _suite_size(record: dict) -> str:
    return f"{len(record['tasks'])} tasks, {record['settings']['num_values']} seeds."


def _suite_cells(entry: dict) -> list[str]:
    return [
        _interval(entry["speedup"]),
        f"{entry['censored']:.0%}",
        _interval(entry["envelope"]),
        f"{entry['train_ratio']['estimate']:.2f}",
        f"{entry['test_ratio']['estimate']:.3f}",
        f"{entry['failure_rate']:.1%}",
        f"{entry['overhead']:.1f}",
        str(entry["at_edge"]),
    ]


def suite_tasks() -> str:
    """The shipped weights on each task of the suite."""
    record = _load("benchmarks/results/suite.json")
    ours, muon = (record["contenders"][name]["tasks"] for name in ("adam_mlp", "muon"))
    rows = [
        [
            task,
            f"{cells['value']:.2g}" + ("*" if cells["at_edge"] else ""),
            *(_number(cells[key]) for key in ("speedup", "train_ratio", "test_ratio")),
            *(_number(muon[task][key]) for key in ("speedup", "test_ratio")),
            f"{cells['overhead']:.1f}",
        ]
        for task, cells in ours.items()
    ]
    header = ["task", "learning rate", "speed-up", "train", "test"]
    return _table([*header, "Muon: speed-up", "Muon: test", "cost of an update"], rows)


def card_training() -> str:
    """What meta-training changed, on a network that it did not see."""
    from metaopt import learned

    run = _load("experiments/results/adam_mlp.json")["runs"]["shipped"]
    info = learned.weights_info(ROOT / "metaopt/learned/weights/adam_mlp.npz")
    seconds = info["training"]["seconds"]
    return _measured({"adam_mlp": run}) + f"\n\nMeta-training took {seconds:.0f} s."


def ablations() -> str:
    """Shorter meta-trainings with one thing changed each."""
    runs = _load("experiments/results/adam_mlp.json")["runs"]
    whole = {name: run for name, run in runs.items() if name == "shipped" or "seed" in name}
    return _measured(whole | runs)


def _measured(runs: dict) -> str:
    losses = ("mean training loss", "final training loss", "test loss", "test accuracy")
    rows = [
        [
            name,
            *(
                f"{run['measured']['at first'][loss]:.3g} -> {run['measured']['trained'][loss]:.3g}"
                for loss in losses
            ),
        ]
        for name, run in runs.items()
    ]
    return _table(["run", *losses], rows)


def preconditioned() -> str:
    """MAML with more of the inner loop learned, on sinusoids."""
    record = _load("experiments/results/preconditioned.json")
    config, results = record["config"], record["results"]
    steps, trained = list(next(iter(results.values()))["steps"]), "5"
    maml = statistics.mean(results["MAML"]["steps"][trained]["mean"])
    table = _table(
        ["learner", *(f"after {count}" for count in steps), "median task, after 5",
         "of MAML's, 5 steps"],
        [
            [
                name,
                *(_mean_and_all(entry["steps"][count]["mean"]) for count in steps),
                f"{statistics.mean(entry['steps'][trained]['median']):.3g}",
                f"{statistics.mean(entry['steps'][trained]['mean']) / maml:.2f}",
            ]
            for name, entry in results.items()
        ],
    )  # fmt: skip
    lines = []
    judged = {name: x for name, x in record["bars, 5 steps"].items() if name in results}
    for name, bars in judged.items():
        value = statistics.mean(results[name]["steps"][trained]["mean"])
        for kind, bar in bars.items():
            found = value if kind == "at most" else value / maml
            text = "" if kind == "at most" else " of MAML's"
            said = "reached" if found <= bar else "missed"
            lines.append(f"{name}: {found:.2g}{text}, bar {bar}{text}: {said}.")
    size = f"{config['updates']} outer updates of {config['num_tasks']} tasks."
    return "\n\n".join([size, table, "\n".join(f"- {line}" for line in lines)])


def corrupted_support() -> str:
    """Learned weights of support examples, some of them wrong."""
    record = _load("experiments/results/corrupted_support.json")
    config, results = record["config"], record["results"]
    steps, trained = list(next(iter(results.values()))["steps"]), "5"
    means = {name: x["steps"][trained]["mean"] for name, x in results.items()}
    table = _table(
        ["learner", *(f"after {count}" for count in steps), "median task, after 5"],
        [
            [
                name,
                *(_mean_and_all(entry["steps"][count]["mean"]) for count in steps),
                f"{statistics.mean(entry['steps'][trained]['median']):.3g}",
            ]
            for name, entry in results.items()
        ],
    )
    ((label, bar),) = record["bars"].items()
    ours, maml = means["learned weights"], means["MAML"]
    ratio = statistics.mean(ours) / statistics.mean(maml)
    weighted, control = results["learned weights"], statistics.mean(means["MAML, smaller rate"])
    weights = " and ".join(
        f"{statistics.mean(weighted[f'mean weight of {kind} points']):.2f} for {kind} points"
        for kind in ("wrong", "right")
    )
    return (
        f"{table}\n\n{label}: {ratio:.2f} (per seed "
        f"{_spread([a / b for a, b in zip(ours, maml, strict=True)], '{:.2f}')}), bar {bar}: "
        f"{'reached' if ratio <= bar else 'missed'}. MAML at {config['small_rate']:g} instead "
        f"of {config['rate']:g}: {control / statistics.mean(maml):.2f} of MAML's. Mean weights: "
        f"{weights}."
    )


def _mean_and_all(values: list[float]) -> str:
    return f"{statistics.mean(values):.3g} ({_spread(values, '{:.3g}')})"


def rl_navigation() -> str:
    """Returns after adaptation, by meta-gradient."""
    record = _load("experiments/results/navigation.json")
    bars, reached = record["bars"], record["reached, per seed"]
    results = record["returns by inner steps, per seed"]
    steps = list(next(iter(results.values())))
    rows = [
        [
            name,
            *(_mean_and_all(by_steps[count]) for count in steps),
            *(
                ["-", "-"]
                if name not in reached
                else [
                    _of_seeds(reached[name]["return after one step"]),
                    _of_seeds(
                        [x >= bars["above pretraining"] for x in reached[name]["above pretraining"]]
                    ),
                ]
            ),
        ]
        for name, by_steps in results.items()
    ]
    config = record["config"]
    size = f"{config['outer_steps']} outer steps of {config['num_tasks']} goals."
    header = [
        "trained as",
        *(f"inner steps: {count}" for count in steps),
        f"one step at least {bars['return after one step']}",
        f"{bars['above pretraining']} above pretraining",
    ]
    return f"{size}\n\n{_table(header, rows)}"


def rl_return() -> str:
    """The discount and trace that a critic learns."""
    record = _load("experiments/results/learned_return.json")
    bars, reached = record["bars"], record["reached, per seed"]
    signs = {"discount": "at least", "error": "at most", "error over fixed": "at most"}
    rows = [
        [
            name,
            _mean_and_all(values),
            f"{signs[name]} {bars[name]}" if name in bars else "-",
            _of_seeds(reached[name]) if name in reached else "-",
        ]
        for name, values in record["results, per seed"].items()
    ]
    return _table(["after 400 updates", "mean (per seed)", "bar", "reached"], rows)


def rl_rule() -> str:
    """Regret of a learned rule and of REINFORCE."""
    record = _load("experiments/results/learned_rl_rule.json")
    regret, rate = record["regret, per seed"], record["config"]["learning_rate"]
    rows = [["learned rule", f"{rate:g}", _mean_and_all(regret["learned rule"])]]
    rows += [
        ["REINFORCE", f"{float(x):g}", _mean_and_all(values)]
        for x, values in regret["REINFORCE"].items()
    ]
    return (
        _table(["agent", "learning rate", "regret, mean (per seed)"], rows)
        + "\n\nOver REINFORCE at the same learning rate, per seed: "
        + f"{_spread(record['ratio at the same rate, per seed'], '{:.2f}')} (bar {record['bar']}, "
        + f"reached in {_of_seeds(record['reached, per seed'])}); over REINFORCE at its best rate: "
        + f"{_spread(record['ratio to the best rate, per seed'], '{:.2f}')}."
    )


def update_rule_agreement() -> str:
    """Our update rules against published code."""
    record = _load("benchmarks/results/update_rules.json")
    rows = [
        [
            row["published"],
            ", ".join(f"{name} {value}" for name, value in row["settings"].items()),
            f"`{row['ours']}`",
            f"{row['largest difference']:.0e}",
        ]
        for row in record["agreement"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    table = _table(["published", "settings", "here", "largest difference"], rows)
    return f"{table}\n\nVersions: {versions}."


def update_rule_cost() -> str:
    """What a step of our update rules costs."""
    rows = {}
    for row in _load("benchmarks/results/update_rules.json")["cost"]:
        rows.setdefault(row["rule"], {})[row["size"]] = row
    sizes = list(next(iter(rows.values())))
    table = [
        [
            name,
            *(f"{found[size]['time_over_adam']:.2f}x" for size in sizes),
            *(f"{found[size]['wall_over_adam']:.2f}x" for size in sizes),
            f"{found[sizes[-1]]['state_over_adam']:.2f}x",
            f"{found[sizes[-1]]['temp_bytes'] / 2**20:.0f} MiB",
        ]
        for name, found in rows.items()
    ]
    head = [
        "rule",
        *(f"process time, {size}" for size in sizes),
        *(f"wall time, {size}" for size in sizes),
        "state",
        f"temporaries, {sizes[-1]}",
    ]
    return _table(head, table)


def aggregator_agreement() -> str:
    """Our aggregators against torchjd."""
    record = _load("benchmarks/results/aggregators.json")
    by_name = {}
    for row in record["rows"]:
        by_name.setdefault(row["aggregator"], []).append(row)
    rows = [
        [
            f"`{name}`",
            str(sum(row["compared"] for row in found)),
            f"{max(row['float64_median'] for row in found):.0e}",
            f"{max(row['float64'] for row in found):.0e}",
        ]
        for name, found in by_name.items()
    ]
    head = ["aggregator", "Jacobians", "largest median over shapes", "largest difference"]
    return f"{_table(head, rows)}\n\ntorchjd {record['versions']['torchjd']}."


def update_rules() -> str:
    """All update rules, tuned alike, on six tasks."""
    record = _load("experiments/results/update_rules.json")
    tasks = record["config"]["tasks"]
    rows = [
        [
            name,
            f"{row['geometric mean']:.2f}",
            *(
                "-" if task in row["not reached"] else f"{row['speed-up'][task]:.2f}"
                for task in tasks
            ),
            str(len(row["at an end of the grid"])),
            f"{row['failure rate']:.0%}",
        ]
        for name, row in record["results"].items()
    ]
    return _table(["rule", "mean", *tasks, "at an end", "failed"], rows)


def short_horizon() -> str:
    """The learning rates that horizons lead to."""
    record = _load("experiments/results/short_horizon.json")
    rows = [
        [
            horizon,
            f"{row['best rate']:.3g}",
            _mean_and_all(row["trained rate, per seed"]),
            f"{row['loss with it']:.2f}",
            _spread(row["loss with that, per seed"], "{:.2f}"),
        ]
        for horizon, row in record["results by horizon"].items()
    ]
    said = ", ".join(
        f"{name}: {'yes' if value else 'no'}" for name, value in record["reached"].items()
    )
    return (
        _table(
            ["H", "best rate", "trained rate", "loss at 300 with the best", "with the trained"],
            rows,
        )
        + f"\n\nFirst over last loss: {record['ratio of first to last loss']:.1f} (bar 4). "
        + f"Bars reached: {said}."
    )


def _of_seeds(flags: list[bool]) -> str:
    return f"{sum(flags)} of {len(flags)} seeds"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def characters() -> str:
    """Accuracies on new characters, by statistics."""
    record = _load("experiments/results/characters.json")
    kinds = ("transductive", "support", "running")
    lines, gains = [], {}
    for shots, rows in record["summary"].items():
        for name, row in rows.items():
            cells = [
                f"{statistics.mean(row[kind]):.3f} ({_spread(row[kind], '{:.3f}')})"
                if kind in row
                else "-"
                for kind in kinds
            ]
            lines.append([f"{shots}-shot", name, *cells])
            if "smallest gain over scratch" in row:
                gains.setdefault(shots, []).append(row["smallest gain over scratch"])
    config = record["config"]
    found = "; ".join(
        f"{shots}-shot {100 * min(of_learners):.1f} points, bar 10: "
        + ("reached" if min(of_learners) >= 0.1 else "missed")
        for shots, of_learners in gains.items()
    )
    return (
        _table(["5-way", "learner", *kinds], lines)
        + f"\n\n{config['updates']} updates of {config['tasks_per_update']} tasks. Smallest gain "
        f"over training from scratch, of any learner, seed and statistics: {found}."
    )


def coordinate_networks() -> str:
    """PSNR after a few steps, and the bars."""
    record = _load("experiments/results/coordinate_networks.json")
    rows, config = record["summary"], record["config"]
    few, many = config["partial_steps"]

    def cell(key):
        return f"{statistics.mean(rows[key]):.1f} ({_spread(rows[key], '{:.1f}')})"

    names = {"random, best rate": many, "MAML": few, "Reptile": few}
    table = _table(
        ["start", *(f"{step} steps" for step in config["steps"]),
         f"{config['share']:.0%} of the pixels"],
        [
            [name, *(cell(f"{name}: {step} steps") for step in config["steps"]),
             f"{cell(f'{name}: partial, {steps} steps')}, {steps} steps"]
            for name, steps in names.items()
        ],
    )  # fmt: skip
    lines = []
    for name in ("MAML", "Reptile"):
        bars = (
                ("2 steps above random", 9.0, "after 2 steps"),
                ("partial, above random", 1.0, f"from {config['share']:.0%} of the pixels"),
        )  # fmt: skip
        for key, bar, text in bars:
            values = rows[f"{name}: {key}"]
            mean = statistics.mean(values)
            lines.append(
                f"- {name}, {text}: {mean:.1f} dB above random ({_spread(values, '{:.1f}')}), bar "
                f"{bar:.0f}: {'reached' if mean >= bar else 'missed'}"
                + (" by the mean, not by every seed." if mean >= bar > min(values) else ".")
            )
    return table + "\n\n" + "\n".join(lines)


def diverse_batches() -> str:
    """Distances of gradients and errors by kind of task, for uniform and diverse batches."""
    record = _load("experiments/results/diverse_batches.json")
    rows, lines = [], []
    for size, found in record["results"].items():
        for name, result in found.items():
            kinds = [
                statistics.mean(values) for values in zip(*result["errors by kind"], strict=True)
            ]
            rows.append(
                [f"{size}, {name}"]
                + [_spread(result["distance"][target], "{:.1f}") for target in TARGETS]
                + [f"{kind:.2f}" for kind in kinds]
                + [_spread(result[f"error, {x} alike"], "{:.2f}") for x in ("kinds", "tasks")]
            )
        far = [found[name]["distance"][TARGETS[0]] for name in ("diverse", "uniform")]
        ratios = [a / b for a, b in zip(*far, strict=True)]
        lines.append(
            f"- batches of {size}: distance to the mean over kinds {_spread(ratios, '{:.2f}')} of "
            f"that of uniform batches, bar {record['bar']}: "
            + ("reached." if max(ratios) <= record["bar"] else "missed.")
        )
    header = ["batches of", *(f"from the {target}" for target in TARGETS)]
    header += [f"error, {count} tasks" for count in record["config"]["counts"]]
    return _table([*header, "mean over kinds", "mean over tasks"], rows) + "\n\n" + "\n".join(lines)


TARGETS = ("mean over kinds", "mean over tasks")


def amortised_fields() -> str:
    """One pass of an encoder against steps of MAML."""
    record = _load("experiments/results/amortised_fields.json")
    rows = [[name, _spread(values, "{:.1f}")] for name, values in record["results"].items()]
    gaps = record["one pass less three steps"]
    said = "reached" if min(gaps) >= record["bar"] else "missed"
    return (
        _table(["field", "PSNR, per seed"], rows)
        + f"\n\nOne pass less three steps: {_spread(gaps, '{:.1f}')} dB, bar {record['bar']} dB: "
        + said
        + "."
    )


def camel() -> str:
    """New environments from few measurements, and their parameters."""
    record, rows = _load("experiments/results/camel.json"), []
    for system, result in record["results"].items():
        for name, values in result["reached"].items():
            bar = record["bars"][name]
            met = sum(x <= bar if "error" in name else x >= bar for x in values)
            rows.append(
                [
                    system,
                    name,
                    _spread(values, "{:.2g}"),
                    f"{'at most' if 'error' in name else 'at least'} {bar}",
                    f"{met} of {len(values)} seeds",
                ]
            )
    return _table(["system", "measure", "per seed", "bar", "met"], rows)


def task_landscape() -> str:
    """Where adaptation pays, in closed form and by descent."""
    record, rows = _load("experiments/results/task_landscape.json"), []
    for case, result in record["results"].items():
        side, bar = record["bars on the ratio"][case]
        ratios = result["ratio"]
        met = min(ratios) >= bar if side == "at least" else max(ratios) <= bar
        off = max(abs(x - 1) for x in result["library over closed form"])
        rows.append(
            [case, _spread(ratios, "{:.2f}"), f"{side} {bar:g}", "yes" if met else "**no**",
             f"{off:.0e}"]
        )  # fmt: skip
    return _table(
        ["distance of hard tasks, their spread", "ratio, per seed", "bar", "met",
         "`maml` over the closed form, less 1, largest"],
        rows,
    )  # fmt: skip


def continual() -> str:
    """Accuracy after streams of support sets, and what is carried between the sets."""
    record, rows = _load("experiments/results/continual.json"), []
    for stream, found in record["results"].items():
        for learner, groups in found.items():
            by_group = [statistics.mean(values) for values in zip(*groups, strict=True)]
            kind = learner if learner in record["memory"][stream] else "gradient steps"
            rows.append(
                [
                    stream,
                    learner,
                    _spread([statistics.mean(values) for values in groups], "{:.2f}"),
                    ", ".join(f"{x:.2f}" for x in by_group) if len(by_group) > 1 else "",
                    f"{record['memory'][stream][kind]:.3g}",
                ]
            )
    return _table(["stream", "learner", "accuracy", "by group of classes", "memory"], rows)


def interference() -> str:
    """Errors at the end of streams."""
    record = _load("experiments/results/interference.json")
    rows = [
        [name, *(_spread(result[key], "{:.2g}") for key in ("all functions", "one function"))]
        for name, result in record["results"].items()
    ]
    said = "reached" if max(record["ratio"]) <= record["bar"] else "missed"
    ratios = _spread(record["ratio"], "{:.2g}")
    return (
        _table(["representation", "all six functions", "one function"], rows)
        + f"\n\nInterference objective over fast adaptation: {ratios}, bar {record['bar']}: {said}."
    )


def good_embedding() -> str:
    """Accuracies by training and reading, at one and five shots."""
    record = _load("experiments/results/good_embedding.json")
    seeds = [seed["accuracy"] for seed in record["results"].values()]
    readers = ("prototypes", "unit prototypes", "logistic regression", "transductive",
               "full fine-tuning")  # fmt: skip
    rows = []
    for name in seeds[0]:
        for shots in (1, 5):
            row = [name, str(shots)]
            for reader in readers:
                label = f"{reader}, {shots}"
                row.append(
                    _mean_and_range([100 * seed[name][label] for seed in seeds])
                    if label in seeds[0][name]
                    else "-"
                )
            rows.append(row)
    return _table(["trained by", "shots", *readers], rows)


def good_embedding_bars() -> str:
    """Differences of those, with the bounds that were expected."""
    seeds = _load("experiments/results/good_embedding.json")["results"].values()
    expected = {
        "good embedding - prototypes": (5, math.inf),
        "distilled - teacher": (-1, 1),
        "transductive - nearest prototype": (2, math.inf),
        "ProtoTransfer - raw pixels": (15, math.inf),
        "meta-trained - pre-trained": (0.5, math.inf),
        "fine-tuned - meta-trained": (-0.5, math.inf),
        "Kendall's tau, least of two readers": (0.67, 1),
    }
    rows = []
    for name in next(iter(seeds))["bars"]:
        values = [seed["bars"][name] for seed in seeds]
        mean = sum(values) / len(values)
        low, high = expected.get(name, (None, None))
        if low is None:
            bound, met = "-", "-"
        else:
            bound = f"{low} to {high}" if high < math.inf else f"at least {low}"
            met = "yes" if low <= mean <= high else "no"
        rows.append([name, f"{mean:.1f}", _spread(values, "{:.1f}"), bound, met])
    return _table(["difference", "mean", "per seed", "expected", "met by the mean"], rows)


def few_tasks() -> str:
    """Prototypes with and without interpolated tasks."""
    record = _load("experiments/results/few_tasks.json")
    rows = []
    for count in record["config"]["base_classes"]:
        for shots in ("1 shot", "5 shots"):
            row = [str(count), shots]
            for method in ("prototypes", "with MLTI"):
                values = [
                    100 * run[shots]
                    for run in record["runs"]
                    if (run["base classes"], run["method"]) == (count, method)
                ]
                row.append(_mean_and_range(values))
            gain = record["gains"][f"{count} classes, {shots}"]
            rows.append([*row, f"{gain['mean']:+.1f} ± {gain['standard error']:.1f}"])
    return _table(["base classes", "shots", "prototypes", "with MLTI", "difference"], rows)


def segmentation() -> str:
    """Overlaps from different initial weights, with and without a search."""
    record = _load("experiments/results/segmentation.json")
    gains, bars, rows = record["gains"], record["bars"], []
    for start in gains:
        runs = [run for run in record["runs"] if run["start"] == start]
        names = ("overlap before", "overlap, default", "overlap, searched")
        cells = [_mean_and_all([run[name] for run in runs]) for name in names]
        chosen = ", ".join(f"{run['rate']:.2g} ({run['steps']})" for run in runs)
        rows.append([start, *cells, chosen])
    lines = [
        f"- {start}: {name} {statistics.mean(values):+.3f} ({_spread(values, '{:+.3f}')})"
        + (f", bar {bars[name]}: {_met(values, bars[name])}." if name in bars else ".")
        for start in gains
        for name, values in gains[start].items()
        if any(values)
    ]
    header = ["initial weights", "before", "default", "searched", "rate (steps) found"]
    return _table(header, rows) + "\n\n" + "\n".join(lines)


def _met(values: list[float], bar: float) -> str:
    if min(values) >= bar:
        return "reached"
    return "reached by the mean, not by every seed" if statistics.mean(values) >= bar else "missed"


def visual_prompts() -> str:
    """Accuracies of prompts by steps, and in mixed domains."""
    record = _load("experiments/results/visual_prompts.json")
    steps, runs = (0, 1, 3, 10, 30), record["runs"]
    rows = [
        [
            start,
            *(_mean_and_range([run[start]["curve"][step] for run in runs]) for step in steps),
            ", ".join(f"{run[start]['rate']:.2g}" for run in runs),
        ]
        for start in ("zero", "meta-prompt")
    ]
    mixed = {
        name: _mean_and_range([run["mixed"][name] for run in runs])
        for name in ("one prompt", "per cluster")
    }
    counts = [count for run in runs for count in run["mixed"]["clusters"]]
    plain = _mean_and_range([100 * run["frozen, plain images"] for run in runs])
    return (
        _table(["from", *(f"{step} steps" for step in steps), "rates"], rows)
        + f"\n\nPlain images, no prompt: {plain}. Gain of the meta-prompt at 10 steps: "
        + f"{_spread(record['gains'], '{:+.1f}')} points, bar {record['bar']:g}: "
        + f"{_met(record['gains'], record['bar'])}. Mixed domains: {mixed['one prompt']} with one "
        + f"prompt, {mixed['per cluster']} with one per cluster, of which there were "
        + f"{min(counts)} to {max(counts)}."
    )


BLOCKS = (
    segmentation,
    visual_prompts,
    good_embedding,
    good_embedding_bars,
    few_tasks,
    characters,
    coordinate_networks,
    suite,
    suite_tasks,
    suite_seeds,
    card_scores,
    card_training,
    ablations,
    coordinate_check,
    l2l,
    overhead,
    parity,
    newcomer,
    digits,
    accuracy,
    times,
    throughput,
    memory,
    unroll_memory,
    implicit_cost,
    maml,
    catalogue,
    penalties,
    imaml,
    nystrom,
    bilevel,
    sinusoids,
    sinusoid_bars,
    few_shot_parity,
    diagnoses,
    faults,
    bad_input,
    fuzz_loaders,
    scaling,
    soak,
    symbolic_search,
    symbolic_rules,
    learned_strategies,
    rl_navigation,
    rl_return,
    rl_rule,
    short_horizon,
    diverse_batches,
    amortised_fields,
    camel,
    task_landscape,
    continual,
    interference,
    preconditioned,
    corrupted_support,
    aggregator_agreement,
    update_rule_agreement,
    update_rule_cost,
    update_rules,
)


def fill(page: str) -> str:
    """The page with its blocks made anew."""
    blocks = {block.__name__: block for block in BLOCKS}

    def remake(match):
        begin, name, end = match.groups()
        return f"{begin}{blocks[name]()}\n{end}"

    return re.sub(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", remake, page, flags=re.DOTALL)


def missing() -> list[str]:
    """Blocks that no page shows."""
    pages = "".join(page.read_text() for page in PAGES)
    names = [block.__name__ for block in BLOCKS]
    return [name for name in names if pages.count(f"<!-- begin {name} -->") != 1]


def _load(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def _seconds(entry: dict) -> str:
    return f"{entry['seconds']:.0f} s" + ("" if entry["status"] == 0 else " (failed)")


def _spread(values: list, form: str = "{:.2g}") -> str:
    return ", ".join("-" if x is None else form.format(x) for x in values)


def _interval(entry: dict) -> str:
    return f"{entry['estimate']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _mean_and_range(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(fill(path.read_text()))
        print(f"wrote {path}")
    if missing():
        raise SystemExit(f"shown on no page, or on several: {', '.join(missing())}")
