"""The task axis on a device mesh: each device trains its share of the tasks.

theta and the outer optimizer are replicated; the mean over tasks is the only communication.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from metaopt.train._distributed import spread
from metaopt.train._state import TrainState


def task_sharding(
    devices: Sequence[Any] | None = None,
) -> Callable[[TrainState], TrainState]:
    """Spreads the tasks of a run over devices, for `meta_train(..., place=...)`.

    Args:
        devices: the devices; all of them by default, those of other processes included.

    Returns:
        A function that puts a state on the devices: estimator states by their leading task axis,
        everything else on every device. It raises a ValueError where the devices do not divide
        the number of tasks.
    """
    devices = jax.devices() if devices is None else list(devices)
    mesh = jax.make_mesh((len(devices),), ("tasks",), axis_types=(AxisType.Auto,), devices=devices)
    split = NamedSharding(mesh, PartitionSpec("tasks"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(state):
        for name, leaf in [
            (name, x) for name, s in state.estimator_states.items() for x in jax.tree.leaves(s)
        ]:
            if leaf.ndim == 0 or leaf.shape[0] % len(devices):
                raise ValueError(
                    f"task_sharding: {len(devices)} devices do not divide the {leaf.shape[:1]} "
                    f"tasks of {name!r}; choose num_tasks as a multiple of {len(devices)}."
                )
        tasks = put(state.estimator_states, split)
        rest = put(state._replace(estimator_states={}), everywhere)
        return rest._replace(estimator_states=tasks)

    def put(tree, sharding):
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda x: spread(x, sharding), tree)

    return place
