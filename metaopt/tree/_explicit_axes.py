"""Update rules on meshes with explicit axes.

A contraction, a reshape or a join over an axis that is split has to say how its result is split
where axes are explicit. A rule for tensors of any shape cannot say: within it all axes become
automatic, the compiler decides, and what comes out is split as what went in.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def place_state(state: PyTree, params: PyTree) -> PyTree:
    """Copies what is on no mesh yet to every device of the mesh of `params`, if that is explicit.

    A loop keeps the types of its state then, as `with_automatic_axes` returns them.
    """
    mesh = _explicit_mesh(params)
    if mesh is None:
        return state
    leaves, treedef = jax.tree.flatten(state)
    placed = iter(_place(mesh, [x for x in leaves if _is_off_mesh(x)], params))
    return treedef.unflatten(next(placed) if _is_off_mesh(x) else x for x in leaves)


def with_automatic_axes(update: Callable) -> Callable:
    """`update(context, updates, state, *rest) -> (updates, state)`, the same on any mesh.

    Arrays that `update` closes over keep their explicit axes: `context` is the place for them.
    """

    # A mesh without a context is known to jit alone; where it is not needed, no jit is in the way.
    @partial(jax.jit, static_argnums=(0, 1, 2))
    def on_mesh(mesh, treedef, others, *arrays):
        def arguments(arrays):
            rest = iter(arrays)
            return treedef.unflatten(next(rest) if x is None else x for x in others)

        _, updates, state, *_ = arguments(arrays)
        out = jax.tree.map(partial(_sharding, mesh), (updates, state))
        run = jax.sharding.auto_axes(
            lambda *arrays: update(*arguments(arrays)), axes=mesh.explicit_axes, out_sharding=out
        )
        return run(*arrays)

    def wrapped(*arguments):
        mesh = _explicit_mesh(arguments)
        if mesh is None:
            return update(*arguments)
        leaves, treedef = jax.tree.flatten(arguments)
        others = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
        return on_mesh(mesh, treedef, others, *filter(_is_array, leaves))

    return wrapped


@partial(jax.jit, static_argnums=0, keep_unused=True)
def _place(mesh, arrays, params):
    del params  # but for the devices, which jit takes from its arguments
    return [jax.sharding.reshard(x, _sharding(mesh, x)) for x in arrays]


def _explicit_mesh(tree: PyTree) -> AbstractMesh | None:
    """The mesh of the first array that has explicit axes."""
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(tree) if _is_array(x))
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def _is_off_mesh(x: Array) -> bool:
    return jax.typeof(x).sharding.mesh.empty


def _sharding(mesh: AbstractMesh, x: Array) -> NamedSharding:
    own = jax.typeof(x).sharding
    return NamedSharding(mesh, PartitionSpec() if _is_off_mesh(x) else own.spec)


def _is_array(leaf) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
