"""Runs on a device mesh: each device trains its share of the tasks, or of one task's parameters.

By default theta and the outer optimizer are on every device, and the mean over tasks is the only
communication. Where one task does not fit a device, a second mesh axis splits large arrays, theta
and the outer optimizer's moments included; the compiler then adds what communication it needs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from metaopt.train._distributed import spread
from metaopt.train._state import TrainState


def task_sharding(
    devices: Sequence[Any] | None = None,
    *,
    params_devices: int = 1,
    min_entries: int = 2**14,
) -> Callable[[TrainState], TrainState]:
    """Spreads a run over devices, for `meta_train(..., place=...)`.

    Args:
        devices: the devices; all of them by default, those of other processes included.
        params_devices: devices that share the arrays of one task: the mesh is
            (devices / params_devices) x params_devices. 1: a task is on one device. Static.
        min_entries: arrays with fewer entries (in each task) are not worth splitting. Static.

    Returns:
        A function that puts a state on the devices: estimator states by their leading task axis,
        and large arrays also by the longest other axis that `params_devices` divides; everything
        else on every device. It raises a ValueError where the devices do not divide the number of
        tasks.

    Raises:
        ValueError: if `params_devices` is below 1 or does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if params_devices < 1 or len(devices) % params_devices:
        raise ValueError(
            f"task_sharding: params_devices={params_devices} must be at least 1 and divide the "
            f"number of devices, {len(devices)}."
        )
    shares = len(devices) // params_devices
    mesh = jax.make_mesh(
        (shares, params_devices),
        ("tasks", "params"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )

    def split(x, lead):
        """The sharding of an array whose first axes are on those of `lead`."""
        sizes = dict(enumerate(x.shape[len(lead) :], len(lead)))
        fitting = [axis for axis, size in sizes.items() if size % params_devices == 0]
        entries = x.size // x.shape[0] if lead else x.size
        axes: list[str | None] = [*lead, *([None] * len(sizes))]
        if params_devices > 1 and fitting and entries >= min_entries:
            axes[max(fitting, key=lambda axis: sizes[axis])] = "params"
        return NamedSharding(mesh, PartitionSpec(*axes))

    def place(state):
        for name, leaf in [
            (name, x) for name, s in state.estimator_states.items() for x in jax.tree.leaves(s)
        ]:
            if leaf.ndim == 0 or leaf.shape[0] % shares:
                raise ValueError(
                    f"task_sharding: {shares} devices do not divide the {leaf.shape[:1]} "
                    f"tasks of {name!r}; choose num_tasks as a multiple of {shares}."
                )
        tasks = put(state.estimator_states, ("tasks",))
        rest = put(state._replace(estimator_states={}), ())
        return rest._replace(estimator_states=tasks)

    def put(tree, lead):
        if jax.process_count() == 1:
            return jax.tree.map(lambda x: jax.device_put(x, split(x, lead)), tree)
        return jax.tree.map(lambda x: spread(x, split(x, lead)), tree)

    return place
