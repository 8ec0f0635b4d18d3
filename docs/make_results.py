"""Fills the tables of docs/results.md from the results files; no number there is typed by hand.

python docs/make_results.py
"""

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"


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


BLOCKS = (newcomer, digits, accuracy, times, throughput, memory)


def fill(page: str) -> str:
    """The page with its blocks made anew."""
    for block in BLOCKS:
        name = block.__name__
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"docs/results.md has no block {name!r}")
        content = block()
        page = pattern.sub(lambda m, content=content: f"{m[1]}{content}\n{m[2]}", page)
    return page


def _load(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def _seconds(entry: dict) -> str:
    return f"{entry['seconds']:.0f} s" + ("" if entry["status"] == 0 else " (failed)")


def _interval(entry: dict) -> str:
    return f"{entry['estimate']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
    print(f"wrote {PAGE}")
