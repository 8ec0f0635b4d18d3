"""Several processes on this machine that form one run."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

# What every worker script begins with: a guarded backend, compiled programs from the disk.
PREAMBLE = """
import json, os, sys
from metaopt import doctor
doctor.guard_cpu()
doctor.enable_compilation_cache()
from metaopt import train
from tests.train import problems
"""


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(script, *arguments, devices=1, environment=(), **options):
    """Starts a process that runs a script after the preamble."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def start_together(script, *arguments, count=2, devices=4):
    """Starts processes that find one another by environment variables."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(
            script,
            *arguments,
            devices=devices,
            environment={
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            },
        )
        for index in range(count)
    ]


def finish(process, timeout=240):
    """What a process printed; raises with its messages unless it ended well."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-4000:]
    return out
