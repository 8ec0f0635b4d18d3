"""What a newcomer waits for: a fresh clone, a fresh environment, `make demo` and `make test`.

    python benchmarks/newcomer.py --python python3.11
    python benchmarks/newcomer.py --python python3.12

Clones this checkout's last commit into a temporary folder, with an empty compilation cache, and
times the commands of the README there. Results: `results/newcomer.json`, an entry per Python.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import time

import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "newcomer.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time."""

    python: str = "python3"
    """The interpreter that makes the environment."""
    targets: tuple[str, ...] = ("install", "demo", "test")
    """Targets of the Makefile, in turn."""


def main(config: Config) -> None:
    """Times the targets and adds an entry to the results."""
    entry = {}
    with tempfile.TemporaryDirectory() as folder:
        clone = pathlib.Path(folder) / "metaopt"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        commit = subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], cwd=clone, text=True
        ).strip()
        for target in config.targets:
            start = time.perf_counter()
            command = ["make", target, f"PYTHON={config.python}"]
            done = subprocess.run(
                command, cwd=clone, env=environment, capture_output=True, text=True
            )
            entry[target] = {
                "seconds": round(time.perf_counter() - start, 1),
                "status": done.returncode,
                "last_line": (done.stdout.strip().splitlines() or [""])[-1],
            }
            print(target, entry[target], flush=True)
            if done.returncode:
                print(done.stdout[-4000:], done.stderr[-4000:])
        version = subprocess.check_output(
            [clone / ".venv/bin/python", "-c",
             "import platform, jax; print(platform.python_version(), jax.__version__)"],
            text=True,
        ).split()  # fmt: skip
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    results[".".join(version[0].split(".")[:2])] = {
        "python": version[0], "jax": version[1], "commit": commit, **entry
    }  # fmt: skip
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
