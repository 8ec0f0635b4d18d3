"""Several processes as one run: who they are, and the few things they must agree on.

Every process runs the same program on the same global arrays. The first one alone writes files,
except for checkpoints, of which each process writes its part.
"""

import glob
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jaxtyping import PyTree

from metaopt.train._run_folder import RunError

_PORT = 8476


class Membership(NamedTuple):
    """A process's place among the processes of a run.

    Attributes:
        coordinator: `host:port` of the first process; None: jax finds it.
        num_processes: how many there are; None: jax finds it.
        process_id: which one this is, from 0; None: jax finds it.
        source: where this was found, for messages.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    source: str


def initialize_distributed(
    coordinator: str | None = None,
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 100,
) -> Membership:
    """Joins the processes of a run; call it in each of them, before the first computation.

    What is not given is looked up, in this order: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`
    and `JAX_PROCESS_ID` (in an indexed Kubernetes job `JOB_COMPLETION_INDEX`); SLURM, under
    `srun`; a TPU pod, by jax.

    Args:
        coordinator: `host:port` of the first process; the port 8476 if only a host is given.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout: seconds to wait for the others, at the start, and for a sign of life later.

    Returns:
        What was found.

    Raises:
        ValueError: if something is missing, or makes no sense; the message names it.
        RunError: if the others are not there within the time.
    """
    found = find_membership(
        os.environ, coordinator, num_processes=num_processes, process_id=process_id
    )
    # Its handler of SIGTERM would take the place of ours, which saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    # Left to itself, jax would give each process of a SLURM job one GPU of its node.
    method = None if found.coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(
            found.coordinator,
            found.num_processes,
            found.process_id,
            cluster_detection_method=method,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except jax.errors.JaxRuntimeError as error:
        raise RunError(
            f"initialize_distributed: process {found.process_id} of {found.num_processes} did not "
            f"meet the others at {found.coordinator} within {timeout} s ({_first_line(error)}); "
            "are all started, and can they reach that address?"
        ) from error
    return found


def find_membership(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Membership:
    """What `initialize_distributed` joins, from arguments and environment variables alone."""
    given = (coordinator, num_processes, process_id) != (None, None, None)
    in_environment = "JAX_COORDINATOR_ADDRESS" in environment
    if given or in_environment:
        return _from_variables(environment, coordinator, num_processes, process_id)
    if "SLURM_JOB_ID" in environment:
        return _from_slurm(environment)
    if {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & environment.keys() or _has_tpu():
        return Membership(None, None, None, "the TPU pod")
    raise ValueError(
        "initialize_distributed: this process does not know of any others. Start it with srun, or "
        "on a TPU pod, or set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID in each process, or pass coordinator, num_processes and process_id."
    )


def _from_variables(environment, coordinator, num_processes, process_id) -> Membership:
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is None:
        num_processes = _integer(environment, "JAX_NUM_PROCESSES")
    if process_id is None:
        name = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
        process_id = _integer(environment, name)
    if coordinator is None or num_processes is None or process_id is None:
        names = {
            "coordinator (JAX_COORDINATOR_ADDRESS)": coordinator,
            "num_processes (JAX_NUM_PROCESSES)": num_processes,
            "process_id (JAX_PROCESS_ID or JOB_COMPLETION_INDEX)": process_id,
        }
        missing = ", ".join(name for name, value in names.items() if value is None)
        raise ValueError(f"initialize_distributed: missing {missing}.")
    _check_range(num_processes, process_id)
    return Membership(_with_port(coordinator), num_processes, process_id, "given values")


def _from_slurm(environment) -> Membership:
    nodes = environment.get("SLURM_STEP_NODELIST")
    count, index = (_integer(environment, name) for name in ("SLURM_NTASKS", "SLURM_PROCID"))
    if nodes is None or count is None or index is None:
        names = {"SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": count, "SLURM_PROCID": index}
        missing = ", ".join(name for name, value in names.items() if value is None)
        raise ValueError(
            f"initialize_distributed: in a SLURM job, but {missing} is not set; start the "
            "processes with srun, inside the batch script too."
        )
    _check_range(count, index)
    # A port of its own for each job: two of them may share a node.
    port = environment.get("JAX_COORDINATOR_PORT") or str(
        61440 + (_integer(environment, "SLURM_JOB_ID") or 0) % 4096
    )
    return Membership(f"{_first_host(nodes)}:{port}", count, index, "SLURM")


def _has_tpu() -> bool:
    return any(glob.glob(pattern) for pattern in ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"))


def _first_host(nodes: str) -> str:
    """The first of `a,b`, `n[01-04,7]`, `n[3,5]-ib,m1`."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.partition(",")[0]
    inside, _, tail = rest.partition("]")
    first = inside.replace("-", ",").partition(",")[0]
    return head + first + tail.partition(",")[0]


def _with_port(coordinator: str) -> str:
    host, colon, port = coordinator.rpartition(":")
    if not colon:
        return f"{coordinator}:{_PORT}"
    if not (host and port.isdigit()):
        raise ValueError(f"initialize_distributed: coordinator={coordinator!r} is not host:port.")
    return coordinator


def _integer(environment, name) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not text.strip().isdigit():
        raise ValueError(f"initialize_distributed: {name}={text!r} is not a whole number.")
    return int(text)


def _check_range(num_processes: int, process_id: int) -> None:
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"initialize_distributed: process_id={process_id} is not below "
            f"num_processes={num_processes}; ids count from 0."
        )


def is_first() -> bool:
    """Whether this process writes the files of a run."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; a collective where there are several."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def on_first(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process alone; if it raises there, all raise.

    Returns:
        Its result in the first process, None in others.
    """
    result, error = None, None
    if is_first():
        try:
            result = function()
        except Exception as raised:
            error = raised
    failed = any_process(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RunError("the first process could not go on; its message says why.")
    return result


def everywhere(tree: PyTree, sharding: Sharding) -> PyTree:
    """A tree that each process holds, as global arrays; untouched where there is one process.

    Args:
        tree: arrays, the same in every process.
        sharding: where to put them; of a state's replicated part.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: spread(x, sharding), tree)


def spread(x: Any, sharding: Sharding) -> jax.Array:
    """An array that each process holds, as a global one; no process waits for another."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    if jax.numpy.issubdtype(jax.numpy.result_type(x), jax.dtypes.prng_key):
        data = spread(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def require_placed(sharding: Sharding) -> None:
    """Raises ValueError where there are several processes and a state is not on all of them."""
    if jax.process_count() == 1:
        return
    if not isinstance(sharding, NamedSharding) or len(sharding.device_set) < jax.device_count():
        raise ValueError(
            f"meta_train: there are {jax.process_count()} processes, but the state is on "
            f"{len(sharding.device_set)} of {jax.device_count()} devices; pass "
            "place=train.task_sharding()."
        )


def name_of_this_host() -> str:
    """The name by which a run's files tell where it runs."""
    return socket.gethostname()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
