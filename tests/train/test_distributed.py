import json
import signal
import time

import numpy as np
import pytest

from metaopt import train
from metaopt.train._distributed import find_membership
from tests.train import processes

KUBERNETES = {
    "JAX_COORDINATOR_ADDRESS": "job-0.service:9000",
    "JAX_NUM_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
}
SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[007-009,12]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
}


def test_arguments_come_before_the_environment():
    found = find_membership(KUBERNETES, "other:1", num_processes=2, process_id=0)
    assert found[:3] == ("other:1", 2, 0)


def test_an_indexed_job_is_understood():
    assert find_membership(KUBERNETES)[:3] == ("job-0.service:9000", 4, 3)
    explicit = KUBERNETES | {"JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "host"}
    assert find_membership(explicit)[:3] == ("host:8476", 4, 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[007-009,12]", "node007"),
        ("gpu3", "gpu3"),
        ("a1,b[2-3]", "a1"),
        ("n[3,5]-ib,m1", "n3-ib"),
    ],
)
def test_slurm_jobs_meet_at_their_first_node_and_a_port_of_their_own(nodes, first):
    found = find_membership(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert found[:3] == (f"{first}:{61440 + 4}", 4, 2)


def test_a_tpu_pod_is_left_to_jax():
    assert find_membership({"TPU_WORKER_HOSTNAMES": "t0,t1"})[:3] == (None, None, None)


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, {}, "does not know of any others. Start it with srun"),
        ({}, {"process_id": 1}, r"missing coordinator \(JAX_COORD.*, num_processes \(JAX_NUM"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"},
            {},
            r"missing process_id \(JAX_PROCESS_ID or JOB_COMPLETION_INDEX\)",
        ),
        (KUBERNETES | {"JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES='two' is not a whole"),
        (KUBERNETES | {"JOB_COMPLETION_INDEX": "4"}, {}, "process_id=4 is not below num_proc.*=4"),
        (KUBERNETES | {"JAX_COORDINATOR_ADDRESS": "a:b"}, {}, "'a:b' is not host:port"),
        ({"SLURM_JOB_ID": "1"}, {}, "SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID is not set"),
    ],
)
def test_what_is_missing_or_wrong_is_named(environment, arguments, message):
    with pytest.raises(ValueError, match=message):
        find_membership(environment, **arguments)


RUN = """
import jax
train.initialize_distributed(timeout=60) if sys.argv[2] == "together" else None
losses = []
result = problems.run(
    sys.argv[1], num_steps=20, num_tasks=8, probe_every=1, place=train.task_sharding(),
    on_report=lambda step, metrics: losses.append(metrics.get("loss")),
)
print(json.dumps({"devices": jax.device_count(), "losses": losses[1:]}))
"""


@pytest.mark.slow
def test_two_processes_compute_the_curve_of_one_and_one_goes_on_with_their_run(tmp_path):
    together = processes.start_together(RUN, tmp_path / "two", "together")
    answers = [json.loads(processes.finish(p).splitlines()[-1]) for p in together]
    alone = json.loads(processes.finish(processes.start(RUN, tmp_path / "one", "alone")))
    assert [answer["devices"] for answer in answers] == [8, 8]
    for answer in answers:
        np.testing.assert_allclose(answer["losses"], alone["losses"], rtol=1e-5)

    # The same files, written once: no line is there twice.
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert {p.name for p in (tmp_path / "two").iterdir()} == names
    steps = [[m["step"] for m in train.read_metrics(tmp_path / name)] for name in ("one", "two")]
    assert steps[0] == steps[1]

    # The checkpoint of eight devices is read by one.
    script = RUN.replace("num_steps=20", "num_steps=25")
    more = json.loads(processes.finish(processes.start(script, tmp_path / "two", "alone")))
    whole = json.loads(processes.finish(processes.start(script, tmp_path / "one", "alone")))
    assert len(more["losses"]) == 4
    np.testing.assert_allclose(more["losses"], whole["losses"], rtol=1e-4)


ENDLESS = """
import pathlib, time
import jax
from metaopt import data
train.initialize_distributed(timeout=int(sys.argv[2]))

def pool(step):
    if step == 12:
        pathlib.Path(f"{sys.argv[1]}-{jax.process_index()}").touch()
    time.sleep(0.05)
    return ()

try:
    result = problems.run(
        sys.argv[1], num_steps=2000, num_tasks=8, probe_every=500, place=train.task_sharding(),
        data=data.Stream(pool, 2, (1,)),
    )
except train.RunError as error:
    print(error, flush=True)
    os._exit(3)
print(json.dumps([result.interrupted, int(result.state.step)]))
"""

ALONE = """
result = problems.run(sys.argv[1], num_steps=int(sys.argv[2]), num_tasks=8, probe_every=500)
print(json.dumps([result.interrupted, int(result.state.step)]))
"""


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step_and_saves(tmp_path):
    pair = processes.start_together(ENDLESS, tmp_path / "run", 60, devices=2)
    wait_for(tmp_path / "run-1", pair[1])
    pair[1].send_signal(signal.SIGTERM)
    answers = [json.loads(processes.finish(p).splitlines()[-1]) for p in pair]
    assert answers[0] == answers[1]
    interrupted, step = answers[0]
    assert interrupted
    assert train.run_status(tmp_path / "run").phase == "stopped"
    assert train.Checkpoints(tmp_path / "run" / "checkpoints").latest_step() == step


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_process_is_lost_the_other_ends_with_an_error_and_one_goes_on(tmp_path, killed):
    pair = processes.start_together(ENDLESS, tmp_path / "run", 15, devices=2)
    wait_for(tmp_path / "run-0", pair[0])
    wait_for(tmp_path / "run-1", pair[1])
    pair[killed].kill()
    start = time.monotonic()
    out, err = pair[1 - killed].communicate(timeout=120)
    pair[killed].communicate()
    assert time.monotonic() - start < 60
    assert pair[1 - killed].returncode not in (0, None)
    # Whichever comes first: an error of ours, or the end that jax gives a process from within.
    ours = "lost the others" in out and "run the same command again" in out
    assert ours or "another task died" in err, (out[-1000:], err[-3000:])

    step = train.Checkpoints(tmp_path / "run" / "checkpoints").latest_step()
    assert step >= 5
    alone = processes.start(ALONE, tmp_path / "run", step + 5)
    assert json.loads(processes.finish(alone)) == [False, step + 5]
