"""Counts of bad calls to every public factory, and how they ended.

    python benchmarks/bad_input.py        # two minutes on one core

Each argument of each factory with values of a wrong kind; each setting of `metaopt train`, of a
wrong kind or out of range; wrong thetas, keys, losses, states and parameters for what the
factories build (`tests/bad_input.py`). "clear" is a ValueError or TypeError that names the
argument, when a function is built or traced.

Expected: nothing but "clear".

Results: `results/bad_input.json`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from metaopt import doctor  # noqa: E402

doctor.guard_cpu()

import collections  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import _measure  # noqa: E402
import pytest  # noqa: E402
import tyro  # noqa: E402

from metaopt import train  # noqa: E402
from tests import bad_input  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Where the results go."""

    out: Path = Path(__file__).parent / "results" / "bad_input.json"


def main(config: Config) -> dict:
    """Tries everything and writes the counts."""
    with pytest.MonkeyPatch.context() as patch:
        calls = bad_input.recorded_calls(patch)
    kinds = {
        "arguments of factories": bad_input.settings(calls),
        "theta and key of estimators": bad_input.estimators(),
        "problems that break their contract": bad_input.problems(calls),
        "theta and params of learned optimizers": bad_input.learned_optimizers(),
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        kinds["settings of the command line"] = list(bad_input.command_line(Path(folder), patch))
    results: dict[str, Any] = {**_measure.provenance(), "rows": []}
    for kind, tried in kinds.items():
        attempts = list(tried)
        outcomes = collections.Counter(x.outcome for x in attempts)
        row = {
            "kind": kind,
            "factories": len({x.factory for x in attempts}),
            "tried": len(attempts),
            **{outcome: outcomes[outcome] for outcome in ("clear", "error", "accepted")},
            "unclear": [x._asdict() for x in attempts if x.outcome != "clear"],
        }
        results["rows"].append(row)
        print(json.dumps(row), flush=True)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    train.write_json(config.out, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
