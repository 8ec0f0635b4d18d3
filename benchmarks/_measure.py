"""What both sides of a side-by-side timing share: a stopwatch and a request loop.

Standard library only, because the peer's environment holds no metaopt. A side is a process that
answers, one JSON object per line,

    {"build": {settings}}  ->  facts about the compiled meta-step
    {"run": seconds}       ->  {"ms": [...], "cpu_ms": [...]}, one number per meta-step

or {"error": "..."}, so that a driver can let the sides work in turn: the noise of a shared
machine then falls on all of them alike.
"""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

Step = Callable[[], None]

# Current jaxlibs compute some fused reductions on CPU wrongly unless this is off.
XLA_GUARD = "--xla_cpu_experimental_ynn_fusion_type="


def time_steps(step: Step, *, seconds: float, min_repeats: int = 5) -> dict[str, list[float]]:
    """Wall and process milliseconds of as many steps as fit, but at least `min_repeats`."""
    wall, cpu = [], []
    stop = time.perf_counter() + seconds
    while len(wall) < min_repeats or time.perf_counter() < stop:
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - cpu_start))
    return {"ms": wall, "cpu_ms": cpu}


def row(facts: dict, times: dict[str, list[float]]) -> dict:
    """One row of the table: the facts of a configuration and its times."""
    median = statistics.median(times["ms"])
    return {
        **facts,
        "ms_per_meta_step_median": round(median, 3),
        "ms_min": round(min(times["ms"]), 3),
        "cpu_ms_median": round(statistics.median(times["cpu_ms"]), 3),
        "repeats": len(times["ms"]),
        "inner_steps_per_s": round(1e3 * facts["inner_steps"] / median),
    }


def provenance() -> dict:
    """The code and the machine; taken at the start, since the working tree may change later."""

    def git(*arguments):
        command = ["git", "-C", str(pathlib.Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--", "../metaopt")),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
    }


def serve(build: Callable[[dict], tuple[Step, dict]]) -> None:
    """Answers requests on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # The chatter of imported packages must not mix with the answers.
    step: Step | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "build" in request:
                step = None  # Frees the previous configuration first.
                step, answer = build(request["build"])
            elif step is None:
                raise RuntimeError("nothing was built")
            else:
                answer = time_steps(step, seconds=request["run"], min_repeats=1)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Side:
    """A serving process, as the driver sees it."""

    def __init__(self, command: list[str], *, guard: bool = True):
        """Starts `command`, with `XLA_GUARD` as its only XLA flag, or with none."""
        env = {**os.environ, "XLA_FLAGS": XLA_GUARD if guard else ""}
        env.setdefault("JAX_PLATFORMS", "cpu")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )

    def ask(self, **request) -> dict:
        """Sends one request and waits for its answer.

        Raises:
            RuntimeError: if the process ended or answered with an error.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps(request), file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with code {self._process.wait()}: {request}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}: {request}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
