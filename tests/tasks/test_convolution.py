import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from metaopt.tasks import _convolution, convolve
from tests.helpers import output_on_devices, relative_error

SIZES = [(1, (8, 8)), (1, (1, 5)), (2, (8, 8)), (2, (7, 9)), (3, (7, 8))]


def of_xla(images, kernel, stride):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def arrays(size, *, tasks=(), n=3, inputs=2, outputs=4, dtype=None):
    rng = np.random.default_rng(0)
    shapes = ((*tasks, n, *size, inputs), (*tasks, 3, 3, inputs, outputs))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.mark.parametrize(("stride", "size"), SIZES)
def test_values_and_derivatives_are_those_of_xla(x64, stride, size):
    images, kernel = arrays(size)

    def pair(function):
        def loss(images, kernel):
            return jnp.sum(jnp.sin(function(images, kernel, stride=stride)))

        return function(images, kernel, stride=stride), jax.grad(loss, (0, 1))(images, kernel)

    for x, y in zip(*map(jax.tree.leaves, (pair(convolve), pair(of_xla))), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)


@pytest.mark.compiles
@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_of_any_order_and_mode_are_central_differences(x64, stride):
    def function(images, kernel):
        return jnp.sin(convolve(images, kernel, stride=stride))

    check_grads(function, arrays((4, 3)), order=3, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wanted", _convolution.OPERANDS)
@pytest.mark.parametrize(("stride", "size"), SIZES)
def test_both_ways_to_compute_it_agree(wanted, stride, size):
    images, kernel = arrays(size, tasks=(2,))
    given = {"images": images, "kernel": kernel}
    given["outputs"] = jax.vmap(lambda x, k: of_xla(x, k, stride))(images, kernel)
    operands = [given[name] for name in _convolution.OPERANDS[wanted]]
    settings = {"wanted": wanted, "stride": stride, "size": size}
    one, other = (
        way(*operands, **settings) for way in (_convolution._products, _convolution._one_by_one)
    )
    assert one.shape == _convolution._shape(*operands, **settings) == given[wanted].shape
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_large_convolution_is_one_of_its_own_and_exact():
    images, kernel = arrays((32, 32), tasks=(2,), n=8, inputs=8)

    def both(images, kernel):
        found, pull = jax.vjp(jax.vmap(lambda x, k: convolve(x, k, stride=1)), images, kernel)
        return found, pull(found)

    run = jax.jit(both)
    assert run.lower(images, kernel).as_text().count("stablehlo.convolution") == 3
    found, (of_images, of_kernel) = run(images, kernel)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x), jnp.float64) for x in (images, kernel)]
        expected, pull = jax.vjp(jax.vmap(lambda x, k: of_xla(x, k, 1)), *wide)
        expected = (expected, *pull(expected))
    for x, y in zip((found, of_images, of_kernel), expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6 * np.max(np.abs(y)))


AXES = [
    axes for axes in itertools.product([None, 0, 2, -1], [None, 0, 3, -1]) if axes != (None, None)
]


@pytest.mark.parametrize(("in_images", "in_kernel"), AXES)
@pytest.mark.parametrize("out", ["values", "images", "kernel"])
def test_any_axis_may_be_mapped(x64, in_images, in_kernel, out):
    rng = np.random.default_rng(1)
    images, kernel = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(3, 3, 3, 2))

    def stack(x, axis):
        return x if axis is None else np.stack([x, 2 * x - 1, x**2], axis)

    def function(images, kernel):
        if out == "values":
            return convolve(images, kernel, stride=2)
        place = ("images", "kernel").index(out)
        loss = lambda *args: jnp.sum(jnp.sin(convolve(*args, stride=2)))  # noqa: E731
        return jax.grad(loss, place)(images, kernel)

    mapped = jax.vmap(function, (in_images, in_kernel))
    operands = (stack(images, in_images), stack(kernel, in_kernel))
    found = mapped(*operands)
    for i in range(3):
        one = [
            x if axis is None else np.take(x, i, axis)
            for x, axis in zip(operands, (in_images, in_kernel), strict=True)
        ]
        np.testing.assert_allclose(found[i], function(*map(jnp.asarray, one)), atol=1e-12)
    # And under another map, of the kernel alone.
    kernels = np.stack([operands[1], -operands[1]])
    twice = jax.vmap(mapped, (None, 0))(operands[0], kernels)
    np.testing.assert_allclose(twice[0], found, atol=1e-12)
    np.testing.assert_allclose(twice[1], mapped(operands[0], kernels[1]), atol=1e-12)


def test_each_derivative_has_the_dtype_of_its_array():
    images, kernel = arrays((4, 4))
    kernel = kernel.astype(jnp.bfloat16)
    found, pull = jax.vjp(lambda *args: convolve(*args, stride=1), images, kernel)
    assert found.dtype == jnp.float32
    assert [x.dtype for x in pull(found)] == [jnp.float32, jnp.bfloat16]
    expected = of_xla(images, kernel.astype(jnp.float32), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_explicit_axes_and_manual_ones_are_taken():
    images, kernel = arrays((4, 4))
    mesh = jax.make_mesh((1,), ("devices",))
    spec = PartitionSpec("devices")
    expected = of_xla(images, kernel, 1)

    def function(images, kernel):
        return convolve(images, kernel, stride=1)

    split = jax.device_put(images, NamedSharding(mesh, spec))
    found = jax.jit(function)(split, kernel)
    assert found.sharding.spec[0] == "devices"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    manual = jax.shard_map(function, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    np.testing.assert_allclose(manual(split, kernel), expected, rtol=1e-5, atol=1e-5)


def test_wrong_shapes_are_refused():
    images, kernel = arrays((4, 4))
    for wrong in ((images[0], kernel, 1), (images, kernel[:2], 1), (images[..., :1], kernel, 1)):
        with pytest.raises(ValueError, match=r"convolve: images have shape .* give \[n, h, w, inp"):
            convolve(*wrong[:2], stride=wrong[2])
    with pytest.raises(ValueError, match="stride 0"):
        convolve(images, kernel, stride=0)
    with pytest.raises(TypeError, match="convolve: stride"):
        convolve(images, kernel, stride=1.5)  # pyright: ignore[reportArgumentType]


def share_of_work():
    """Prints how often eight devices talk, and how far they are from one."""
    images, kernel = arrays((16, 16), tasks=(8,), n=16, inputs=8, outputs=8)
    mesh = jax.make_mesh((8,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("tasks"))

    def loss(images, kernel):
        return jnp.sum(jnp.sin(convolve(images, kernel, stride=1)))

    run = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))
    operands = jax.device_put((images, kernel), split)
    shared = run.lower(*operands).compile()
    pairs = zip(shared(*operands), run(images, kernel), strict=True)
    collectives = re.findall(r"all-\w+\(|collective-\w+\(", shared.as_text())
    print(len(collectives), max(relative_error(*pair) for pair in pairs))


@pytest.mark.slow
def test_devices_share_the_tasks():
    script = f"from {__name__} import share_of_work; share_of_work()"
    collectives, difference = output_on_devices(script, 8).split()
    assert int(collectives) == 0
    assert float(difference) < 1e-5
