"""Damaged and malicious files against everything that metaopt reads.

    python benchmarks/fuzz_loaders.py        # about ten minutes on one core

Files that metaopt wrote are changed at random: bits and bytes, lengths, pieces doubled, moved or
removed, numbers in text, and, for archives, the same inside of their members with valid checksums
outside. A reader must return something, or raise a ValueError or OSError; for weights with a hash
only what was written may come back. Everything else is a finding: another exception, other numbers
under a hash, more than a second of process time, or memory beyond twenty times the file and 8 MiB.

Results: `results/fuzz_loaders.json`.
"""

from metaopt import doctor

doctor.guard_cpu()

import collections  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import tracemalloc  # noqa: E402
import warnings  # noqa: E402
import zipfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import _measure  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import tyro  # noqa: E402

from metaopt import learned, train  # noqa: E402


@dataclass(frozen=True)
class Config:
    """How much to try.

    Attributes:
        executions: of every reader.
        seed: of the changes.
        out: where the results go.
    """

    executions: int = 20_000
    seed: int = 0
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "fuzz_loaders.json"


class Reader(NamedTuple):
    """Something that reads one file.

    Attributes:
        name: for the table.
        file: its name.
        good: its content, as metaopt wrote it.
        read: `(folder) -> ` what was read.
        is_hashed: whether the file holds a hash of its numbers.
    """

    name: str
    file: str
    good: bytes
    read: Callable[[pathlib.Path], Any]
    is_hashed: bool = False


def readers(folder: pathlib.Path) -> list[Reader]:
    """Every format, with a file of each."""
    from flax import serialization

    from metaopt.cli import _phases, _presets

    rule = learned.mlp(hidden_size=4)
    theta = rule.init(jax.random.key(0))
    learned.save(folder / "w.npz", theta, optimizer="mlp", settings={"hidden_size": 4}, training={})
    train.save_theta(folder / "theta.npz", theta)
    published = {"mlp": {"~": jax.tree.map(np.asarray, theta)}}
    phases = [_phases.Phase(name, _presets.preset(name)) for name in ("celo_1", "celo_2")]
    _phases.open_curriculum(_phases.chained(phases), folder / "runs")
    metrics = "".join(json.dumps({"step": i, "loss": i / 7}) + "\n" for i in range(20))

    def metrics_of(place):
        return train.read_metrics(place)

    def read(path: str, reader: Callable) -> Callable:
        return lambda place: reader(place / path)

    return [
        Reader("weights", "w.npz", (folder / "w.npz").read_bytes(),
               read("w.npz", lambda file: learned.load(file, rule)), is_hashed=True),
        Reader("header of weights", "w.npz", (folder / "w.npz").read_bytes(),
               read("w.npz", learned.weights_info)),
        Reader("theta of a run", "theta.npz", (folder / "theta.npz").read_bytes(),
               read("theta.npz", lambda file: train.load_theta(file, theta))),
        Reader("published weights", "w.flax", serialization.msgpack_serialize(published),
               read("w.flax", lambda file: learned.load(file, rule))),
        Reader("phases of a run", "settings.json", (folder / "runs/settings.json").read_bytes(),
               _phases.read_phases),
        Reader("metrics of a run", "metrics.jsonl", metrics.encode(), metrics_of),
    ]  # fmt: skip


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four random changes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 17))
        match int(rng.integers(8)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + length] = rng.bytes(length)
            case 2:
                data[at : at + length] = bytes([rng.choice([0, 255, 127, 128])]) * length
            case 3:
                del data[at:]
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + 8 * length]
            case 6:
                other = int(rng.integers(len(data)))
                data[other : other + length] = data[at : at + length]
            case 7:
                digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
                if digits:
                    i = int(rng.choice(digits))
                    data[i : i + 1] = rng.choice([b"9" * 12, b"-1", b"0", b"1e9", b"NaN", b"[[["])
    return bytes(data)


def changed_inside(content: bytes, rng: np.random.Generator) -> bytes:
    """An archive one of whose members, or whose names, were changed; its checksums are valid."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
        chosen = int(rng.integers(len(members)))
        for index, (name, data) in enumerate(members):
            if index == chosen:
                if rng.random() < 0.8:
                    data = changed(data, rng)
                else:
                    name = rng.choice(["../" + name, "/" + name, "", name * 40, members[0][0]])
            compressed = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
            with warnings.catch_warnings(action="ignore"):  # Of two members of one name.
                new.writestr(zipfile.ZipInfo(str(name)), data, compress_type=compressed)
    return written.getvalue()


def same(first, second) -> bool:
    """Whether two readings hold the same bits."""
    if jax.tree.structure(first) != jax.tree.structure(second):
        return False
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def fuzz(reader: Reader, config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """Counts of outcomes, and the findings."""
    rng = np.random.default_rng([config.seed, len(reader.name)])
    file = folder / reader.file
    file.write_bytes(reader.good)
    expected = reader.read(folder)
    outcomes: collections.Counter = collections.Counter()
    findings: dict[str, str] = {}
    slowest, largest = 0.0, 0
    tracemalloc.start()
    for _ in range(config.executions):
        is_archive = reader.good.startswith(b"PK")
        inside = is_archive and rng.random() < 0.5
        content = (changed_inside if inside else changed)(reader.good, rng)
        file.write_bytes(content)
        tracemalloc.reset_peak()
        before, start = tracemalloc.get_traced_memory()[0], time.process_time()
        try:
            read = reader.read(folder)
            outcome = "as written" if same(read, expected) else "other content"
            if outcome == "other content" and reader.is_hashed:
                findings["other numbers under a hash"] = repr(content[:80])
        except (ValueError, OSError):
            outcome = "refused"
        except Exception as error:
            outcome = "finding"
            findings[type(error).__name__] = str(error)[:200]
        slowest = max(slowest, time.process_time() - start)
        taken = tracemalloc.get_traced_memory()[1] - before
        largest = max(largest, taken)
        if taken > 20 * len(content) + 2**23:
            findings["memory"] = f"{taken} bytes for a file of {len(content)}"
        outcomes[outcome] += 1
    tracemalloc.stop()
    if slowest > 1:
        findings["time"] = f"{slowest:.1f} s"
    return {
        "reader": reader.name,
        "executions": config.executions,
        "outcomes": dict(outcomes),
        "slowest_ms": round(1e3 * slowest, 1),
        "largest_kib": round(largest / 2**10, 1),
        "findings": findings,
    }


def main(config: Config) -> dict:
    """Tries every reader and writes the table."""
    results: dict[str, Any] = {
        **_measure.provenance(),
        "config": asdict(config) | {"out": config.out.name},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as place:
        for reader in readers(pathlib.Path(place)):
            with tempfile.TemporaryDirectory() as folder:
                results["rows"].append(fuzz(reader, config, pathlib.Path(folder)))
            print(json.dumps(results["rows"][-1]), flush=True)
    os.makedirs(config.out.parent, exist_ok=True)
    train.write_json(config.out, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
