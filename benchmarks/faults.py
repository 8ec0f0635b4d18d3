"""What a run survives: faults on purpose, what happened, and what was lost.

    python benchmarks/faults.py                 # everything, with 100 kills; about twenty minutes
    python benchmarks/faults.py --kills 5       # five minutes

Each fault hits a small run of its own, which is then started again by the same command. `lost`
counts the outer steps that were computed and had to be computed again. `same bits` compares the
final state and metrics.jsonl with those of a run that nothing happened to. A full disk is a small
tmpfs where one can be mounted; elsewhere it is left out.

Expected: same bits everywhere, also where one process goes on in place of two, and at most
`checkpoint_every` steps lost, or, where a save fails, these and the steps while it was writing.

Results: `results/faults.json`.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import _measure
import _runs
import numpy as np
import tyro

from metaopt import train

STEPS = 200
SLOW = {"num_steps": STEPS, "sleep": 0.03}


@dataclass(frozen=True)
class Config:
    """What to do.

    Attributes:
        kills: SIGKILLs at random moments of one run.
        seed: of those moments.
        only: names of faults, or all; rows of others that the file has are kept.
        out: where the results go.
    """

    kills: int = 100
    seed: int = 0
    only: tuple[str, ...] = ()
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "faults.json"


def last_step(folder: pathlib.Path) -> int:
    """The last outer step whose metrics are on disk."""
    lines = train.read_metrics(folder)
    return int(lines[-1]["step"] or 0) if lines else 0


def checkpointed(folder: pathlib.Path) -> int:
    """The newest checkpoint that looks complete."""
    return train.run_status(folder).last_checkpoint or 0 if folder.exists() else 0


def wait_for_step(folder: pathlib.Path, step: int, process) -> None:
    while process.poll() is None and not (folder.exists() and last_step(folder) >= step):
        time.sleep(0.02)


def phase_of(folder: pathlib.Path, process_id: int) -> str:
    """How far a process came: the phase in progress.json if it is of that process."""
    try:
        progress = json.loads((folder / "progress.json").read_text())
    except FileNotFoundError:
        return "starting"
    return progress["phase"] if progress["process"] == process_id else "starting"


def wait_for_phase(folder: pathlib.Path, phase: str, process) -> None:
    while process.poll() is None and phase_of(folder, process.pid) != phase:
        time.sleep(0.02)


class Cases:
    """The faults; each method takes a fresh folder and returns a row."""

    def __init__(self, config: Config, place: pathlib.Path):
        self.config, self.place = config, place
        self.whole = place / "whole"
        self.reference = _runs.answer(_runs.start(SLOW | {"folder": str(self.whole)}))

    def finish(self, folder: pathlib.Path, **settings) -> dict:
        """Runs to the end, and compares with the run that nothing happened to."""
        end = _runs.answer(_runs.start(SLOW | {"folder": str(folder)} | settings))
        texts = [(f / "metrics.jsonl").read_text() for f in (folder, self.whole)]
        same = end.get("digest") == self.reference["digest"] and texts[0] == texts[1]
        return {"resumed": end.get("step") == STEPS, "same bits": same}

    def kills(self, folder):
        """SIGKILL at random moments, most while it steps, some while it starts."""
        # Long enough to be killed so often: a kill comes after fifteen steps or so.
        run = {"num_steps": 100 + 20 * self.config.kills, "sleep": 0.02}
        whole = folder.with_name("kills-whole")
        end = _runs.answer(_runs.start(run | {"folder": str(whole)}))
        rng, lost, phases = np.random.default_rng(self.config.seed), [], []
        for _ in range(self.config.kills):
            process = _runs.start(run | {"folder": str(folder)})
            if rng.uniform() < 0.8:
                wait_for_phase(folder, "running", process)
                time.sleep(rng.uniform(0, 0.8))
            else:
                time.sleep(rng.uniform(0, 4))
            process.kill()
            process.communicate()
            phases.append(phase_of(folder, process.pid))
            # Lines beyond the checkpoint, which the next process drops and writes again.
            lost.append(max(0, last_step(folder) - checkpointed(folder)) if folder.exists() else 0)
        steps = last_step(folder)
        again = _runs.answer(_runs.start(run | {"folder": str(folder)}))
        texts = [(f / "metrics.jsonl").read_text() for f in (folder, whole)]
        counts = {phase: phases.count(phase) for phase in sorted(set(phases))}
        return {
            "resumed": again.get("step") == run["num_steps"],
            "same bits": again.get("digest") == end["digest"] and texts[0] == texts[1],
            "what happened": f"killed {len(phases)} times {counts}, the last time at step {steps} "
            f"of {run['num_steps']}",
            "lost": max(lost, default=0),
        }

    def sigterm(self, folder):
        """SIGTERM while it steps."""
        process = _runs.start(SLOW | {"folder": str(folder)})
        wait_for_step(folder, 20, process)
        process.send_signal(signal.SIGTERM)
        end = _runs.answer(process)
        lost = end["step"] - checkpointed(folder)
        happened = f"saved step {end['step']} and returned, interrupted={end['interrupted']}"
        return self.finish(folder) | {"what happened": happened, "lost": lost}

    def full_disk(self, folder):
        """the disk is full during a save."""
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            return {"what happened": "left out: no tmpfs can be mounted here"}
        try:
            run, filler = folder / "run", folder / "filler"
            process = _runs.start(SLOW | {"folder": str(run)})
            wait_for_step(run, 20, process)
            with open(filler, "wb", buffering=0) as stream:
                try:
                    while True:
                        stream.write(bytes(4096))
                except OSError:
                    pass
            end = _runs.answer(process)
            lost = last_step(run) - checkpointed(run)
            filler.unlink()
            return self.finish(run) | {"what happened": end["error"], "lost": lost}
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    def _damaged(self, folder, damage: Callable[[bytes], bytes]):
        process = _runs.start(SLOW | {"folder": str(folder)})
        wait_for_step(folder, 30, process)
        process.send_signal(signal.SIGTERM)
        _runs.answer(process)
        newest = checkpointed(folder)
        # Beside it lie the parts of the processes, from which it was merged: they are not read.
        files = (folder / "checkpoints" / str(newest) / "default" / "d").iterdir()
        largest = max(files, key=lambda p: p.stat().st_size)
        largest.write_bytes(damage(largest.read_bytes()))
        step = last_step(folder)
        row = self.finish(folder)
        aside = list((folder / "checkpoints-unreadable").glob("*"))
        before = max(range(0, newest, _runs.DEFAULTS["checkpoint_every"]))
        happened = f"step {newest} was set aside ({len(aside)} folder), {before} was used"
        return row | {"what happened": happened, "lost": step - before}

    def truncated_checkpoint(self, folder):
        """the newest checkpoint is cut in half."""
        return self._damaged(folder, lambda content: content[: len(content) // 2])

    def flipped_checkpoint(self, folder):
        """a byte of the newest checkpoint is flipped."""

        def flip(content):
            middle = len(content) // 2
            return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]

        return self._damaged(folder, flip)

    def lost_process(self, folder, victim: int = 1):
        """one of two processes is killed; one process goes on."""
        pair = _runs.start_together(
            SLOW | {"folder": str(folder), "timeout": 20}, count=2, devices=4
        )
        wait_for_step(folder, 20, pair[0])
        pair[victim].kill()
        start = time.monotonic()
        end = _runs.answer(pair[1 - victim], timeout=120)
        seconds = time.monotonic() - start
        pair[victim].communicate()
        lost = last_step(folder) - checkpointed(folder)
        row = self.finish(folder)
        losses = [
            np.array([line["loss"] for line in train.read_metrics(f) if "loss" in line])
            for f in (folder, self.whole)
        ]
        scale = np.max(np.abs(losses[1]))
        difference = float(np.max(np.abs(losses[0] - losses[1])) / scale)
        happened = f"the other ended after {seconds:.1f} s: {end['error']}"
        return row | {"what happened": happened, "lost": lost, "curve differs by": difference}

    def lost_first_process(self, folder):
        """the first of two processes is killed; one process goes on."""
        return self.lost_process(folder, victim=0)

    def stream(self, folder):
        """a stream raises."""
        failing = SLOW | {"folder": str(folder), "stream_fails_at": 33}
        end = _runs.answer(_runs.start(failing))
        lost = 33 - checkpointed(folder)
        return self.finish(folder) | {"what happened": end["error"], "lost": lost}

    def second_process(self, folder):
        """the same command is started twice."""
        first = _runs.start(SLOW | {"folder": str(folder)})
        wait_for_step(folder, 10, first)
        second = _runs.answer(_runs.start(SLOW | {"folder": str(folder)}))
        _runs.answer(first)
        return self.finish(folder) | {"what happened": second["error"], "lost": 0}

    def some_nan(self, folder):
        """a quarter of the tasks are NaN."""
        return self._not_finite(folder, nan_share=0.25)

    def all_nan(self, folder):
        """all tasks are NaN."""
        return self._not_finite(folder, nan_share=1.0)

    def nan_theta(self, folder):
        """theta is NaN at the start."""
        return self._not_finite(folder, nan_theta=True)

    def _not_finite(self, folder, **settings):
        run = {"folder": str(folder), "problem": "bowl", "num_steps": 100} | settings
        end = _runs.answer(_runs.start(run))
        if "error" in end:
            return {"what happened": end["error"], "lost": 0, "wrote": folder.exists()}
        status = train.run_status(folder)
        with np.load(folder / "theta.npz") as stored:
            (theta,) = (stored[name] for name in stored.files)
        return {
            "what happened": f"{status.skipped} of 100 updates skipped, {status.nonfinite:.1%} of "
            f"the last 100 steps' tasks not finite, theta saved: {theta.tolist()}",
            "lost": 0,
        }


def merged(rows: list[dict], file: pathlib.Path) -> list[dict]:
    """The rows of a file, of which these replace their like; each has the commit it is of."""
    if not file.exists():
        return rows
    before = json.loads(file.read_text())
    new = {row["fault"]: row for row in rows}
    kept = [{"commit": before["commit"], **row} for row in before["rows"]]
    names = {row["fault"] for row in kept}
    return [new.get(row["fault"], row) for row in kept] + [
        row for name, row in new.items() if name not in names
    ]


def main(config: Config) -> dict:
    """Runs the faults one after another and writes the table."""
    names = [
        *("kills", "sigterm", "full_disk", "truncated_checkpoint", "flipped_checkpoint"),
        *("lost_process", "lost_first_process", "stream", "second_process"),
        *("some_nan", "all_nan", "nan_theta"),
    ]
    provenance, rows = _measure.provenance(), []
    place = pathlib.Path(tempfile.mkdtemp())
    try:
        cases = Cases(config, place)
        for name in config.only or names:
            start = time.monotonic()
            row = getattr(cases, name)(place / name)
            row = {"fault": getattr(cases, name).__doc__.rstrip("."), **row}
            row["seconds"] = round(time.monotonic() - start, 1)
            row["commit"] = provenance["commit"]
            # Messages name the folder, which is gone afterwards.
            rows.append(json.loads(json.dumps(row).replace(str(place), "...")))
            print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rows = merged(rows, config.out) if config.only else rows
    results = {**provenance, "config": asdict(config) | {"out": config.out.name}, "rows": rows}
    os.makedirs(config.out.parent, exist_ok=True)
    train.write_json(config.out, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
