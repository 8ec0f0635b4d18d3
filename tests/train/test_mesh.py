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


_STATELESS = """
import json, os, sys
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
from metaopt import doctor
doctor.guard_cpu()
doctor.enable_compilation_cache()
import jax, optax
from metaopt import algorithms, data, tasks, train

pool = data.by_class(
    data.strokes(jax.random.key(0), num_classes=12, examples_per_class=8, size=8)
)
family = tasks.few_shot_mlp(pool.inputs.shape, num_ways=3, num_queries=4, hidden=(16,))
learner = algorithms.maml(family, optax.sgd(0.1), num_steps=3, num_tasks=16)
losses = []
result = train.meta_train(
    {"characters": learner.estimator}, learner.init(jax.random.key(1)),
    {"characters": tasks.episodes(pool)}, jax.random.key(2), outer_opt=optax.adam(1e-2),
    num_steps=20, place=train.task_sharding(), probe_every=1,
    on_report=lambda step, metrics: losses.append(metrics.get("loss")),
)
print(json.dumps([losses[1:], result.compiled.call.cost_analysis()["flops"]]))
"""


@pytest.mark.slow
def test_estimators_without_a_state_share_their_tasks_too():
    ends = {}
    for count in (1, 8):
        output = subprocess.run(
            [sys.executable, "-c", _STATELESS, str(count)],
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        ends[count] = json.loads(output)
    (one, work), (eight, work_of_each) = ends[1], ends[8]
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    # An eighth, and what every device does: the outer update and the draw of the keys.
    assert work_of_each < work / 4


_SPLIT = """
import json, os, sys
count, share = map(int, sys.argv[1:])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
from metaopt import doctor
doctor.guard_cpu()
doctor.enable_compilation_cache()
import jax, optax
from metaopt import core, estimators, tasks, train

family = tasks.sinusoid_regression(hidden=(32, 64), activation="tanh")
system = core.adaptation(family, optax.adam(1e-2, eps_root=1e-8), outer_loss="same_batch")
theta = family.init(family.sample(jax.random.key(0)), jax.random.key(1))
losses = []
result = train.meta_train(
    {"pes": estimators.pes(system, sigma=0.01, truncation=5, horizon=20, num_tasks=4),
     "backprop": estimators.backprop(system, horizon=5, num_tasks=4)},
    theta, {"pes": (), "backprop": ()}, jax.random.key(2), outer_opt=optax.adam(1e-3), num_steps=10,
    place=train.task_sharding(params_devices=share, min_entries=512),
    on_report=lambda step, metrics: losses.append(metrics.get("loss")), probe_every=1,
)
arrays = {
    "theta": result.state.theta[1]["w"],
    "moment": result.state.outer_state[0].mu[1]["w"],
    "inner": result.state.estimator_states["pes"].arms.state.inner.params[1]["w"],
    "bias": result.state.theta[1]["b"],
}
shares = {name: x.size // x.addressable_shards[0].data.size for name, x in arrays.items()}
print(json.dumps([shares, losses[1:]]))
"""


@pytest.mark.slow
def test_parameters_of_one_task_may_be_split_over_devices():
    ends = {}
    for count, share in ((1, 1), (8, 2)):
        output = subprocess.run(
            [sys.executable, "-c", _SPLIT, str(count), str(share)],
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        ends[count] = json.loads(output)
    assert ends[1][0] == {"theta": 1, "moment": 1, "inner": 1, "bias": 1}
    # Inner parameters: four tasks on four shares of devices, each array in halves.
    assert ends[8][0] == {"theta": 2, "moment": 2, "inner": 8, "bias": 1}
    np.testing.assert_allclose(ends[8][1], ends[1][1], rtol=1e-5)


def test_a_share_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(ValueError, match="params_devices=3 must be at least 1 and divide"):
        train.task_sharding(params_devices=3)


@pytest.mark.compiles
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
