import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from metaopt import train
from tests.train import problems

_SHARDED = """
import json, os, sys
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
from metaopt import doctor
doctor.guard_cpu()
doctor.enable_compilation_cache()
import jax
from metaopt import train
from tests.train import problems

losses = []
result = problems.run(
    num_steps=20, probe_every=1, place=train.task_sharding(),
    on_report=lambda step, metrics: losses.append(metrics.get("loss")),
)
devices = result.state.estimator_states["quadratic"].noise["learning_rate"].sharding.device_set
print(json.dumps([len(devices), losses[1:]]))
"""


@pytest.mark.slow
def test_the_loss_curve_does_not_depend_on_the_number_of_devices():
    curves = {}
    for count in (1, 4):
        output = subprocess.run(
            [sys.executable, "-c", _SHARDED, str(count)],
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        used, curves[count] = json.loads(output)
        assert used == count
    np.testing.assert_allclose(curves[4], curves[1], rtol=1e-5)


def test_one_device_is_no_special_case():
    placed = problems.run(num_steps=5, place=train.task_sharding())
    np.testing.assert_allclose(placed.state.best_score, problems.run(num_steps=5).state.best_score)


def test_tasks_that_devices_do_not_divide_are_refused():
    state = train.init_state(
        {"quadratic": problems.estimator(num_tasks=4)},
        problems.OPTIMIZER.init(jax.random.key(0)),
        {"quadratic": ()},
        jax.random.key(1),
        outer_opt=optax.sgd(0.1),
    )
    place = train.task_sharding(jax.devices() * 1)
    assert place(state).step == 0
    odd = state._replace(estimator_states={"quadratic": jax.numpy.zeros(())})
    with pytest.raises(ValueError, match="choose num_tasks as a multiple"):
        place(odd)
