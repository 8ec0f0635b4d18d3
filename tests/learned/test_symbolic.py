import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.learned import Program, program, symbolic
from metaopt.learned._programs import OPERATIONS, REGISTERS
from tests import helpers
from tests.learned import unrolled

# Every operation once, on numbers that none of them is singular at.
EVERYTHING = """
    a = square(g)
    v = interp(a, v, 0.1)
    a = sqrt(v)
    b = div(g, a)
    a = log(a)
    a = tanh(a)
    a = scale(a, -0.3)
    d = exp(a)
    d = shift(d, 0.1)
    u = mul(b, d)
    c = power(g, 0.5)
    u = add(u, c)
    c = rms(w)
    a = mean(w)
    c = sub(c, a)
    c = max(c, g)
    u = add(u, c)
    c = set(0.3)
    c = min(c, w)
    u = add(u, c)
    u = add(u, r)
    c = sign(w)
    d = abs(w)
    c = mul(c, d)
    r = copy(c)
    d = cosine(g, w)
    m = interp(m, d, 0.4)
    u = add(u, m)
    a = clip(g, 0.1)
    u = add(u, a)
"""


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


START, NOISE = normal(0, 4, 3), normal(1, 100, 4, 3)


def follow(tx, start=START, noise=NOISE):
    """Parameters after each step on a noisy bowl, steps axis first."""

    def run(param, noise):
        def step(carry, noise):
            param, state = carry
            updates, state = tx.update(param + noise, state, param)
            param = optax.apply_updates(param, updates)
            return (param, state), param

        return jax.lax.scan(step, (param, tx.init(param)), noise)[1]

    return jax.jit(run)(jnp.asarray(start, float), jnp.asarray(noise, float))


def optimizer(name, **settings):
    lines = program(name)
    return symbolic(lines, **settings).optimizer(jnp.asarray(lines.constants, float))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", optax.sgd(0.01)),
        ("momentum", optax.sgd(0.01, momentum=0.9)),
        ("lion", optax.lion(0.01, weight_decay=0.0)),
        ("lionw", optax.lion(0.01, weight_decay=0.1)),
    ],
)
def test_canonical_programs_follow_optax_for_a_hundred_steps(name, expected):
    actual = follow(optimizer(name, learning_rate=0.01))
    np.testing.assert_allclose(actual, follow(expected), atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.01)])
def test_adam_programs_follow_a_hand_written_adam_without_bias_correction(name, decay):
    actual = follow(optimizer(name, learning_rate=0.01))
    p, m, v = START, 0.0, 0.0
    for t, noise in enumerate(NOISE):
        g = p + noise
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        p = p - 0.01 * (m / (np.sqrt(v) + 1e-8) + decay * p)
        np.testing.assert_allclose(actual[t], p, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lion", "rmsprop"])
def test_interpreted_programs_follow_known_ones_for_a_hundred_steps(name):
    lines = program(name, length=8)

    def run(lines):
        return follow(symbolic(lines, learning_rate=0.01).optimizer(lines.constants))

    expected = follow(optimizer(name, learning_rate=0.01))
    np.testing.assert_allclose(jax.jit(run)(lines), expected, atol=1e-12)


def np_mean(x):
    return np.full_like(x, np.sum(x) / x.size)


def np_exp(x):
    return np.exp(np.clip(x, -21, 21))


# Written from the list of operations in the documentation: of two registers and the constant.
NUMPY = {
    "copy": lambda x, y, k: x,
    "add": lambda x, y, k: x + y,
    "sub": lambda x, y, k: x - y,
    "mul": lambda x, y, k: x * y,
    "div": lambda x, y, k: x / np.where(np.abs(y) < 1e-8, np.where(y < 0, -1e-8, 1e-8), y),
    "min": lambda x, y, k: np.minimum(x, y),
    "max": lambda x, y, k: np.maximum(x, y),
    "abs": lambda x, y, k: np.abs(x),
    "sign": lambda x, y, k: np.sign(x),
    "sqrt": lambda x, y, k: np.abs(x) / np.sqrt(np.abs(x) + 1e-16),
    "square": lambda x, y, k: x**2,
    "exp": lambda x, y, k: np_exp(x),
    "log": lambda x, y, k: np.log(np.abs(x) + 1e-8),
    "tanh": lambda x, y, k: np.tanh(x),
    "mean": lambda x, y, k: np_mean(x),
    "rms": lambda x, y, k: np_mean(x * x) / np.sqrt(np_mean(x * x) + 1e-16),
    "cosine": lambda x, y, k: (
        np_mean(x * y) / np.sqrt((np_mean(x * x) + 1e-16) * (np_mean(y * y) + 1e-16))
    ),
    "set": lambda x, y, k: np.full_like(x, k),
    "scale": lambda x, y, k: k * x,
    "shift": lambda x, y, k: k + x,
    "power": lambda x, y, k: np.sign(x) * np_exp(k * np.log(np.abs(x) + 1e-16)),
    "clip": lambda x, y, k: np.clip(x, -abs(k), abs(k)),
    "interp": lambda x, y, k: (1 - k) * x + k * y,
}


def run_in_numpy(code, constants, grads, param):
    """Directions of a program, step by step."""
    registers, out = {name: np.zeros_like(param) for name in REGISTERS}, []
    for grad in grads:
        registers |= {name: np.zeros_like(param) for name in "uabcd"}
        registers |= {"g": grad, "w": param}
        for (index, first, second, target), k in zip(code, constants, strict=True):
            if name := OPERATIONS[index].name.replace("skip", ""):
                x, y = registers[REGISTERS[first]], registers[REGISTERS[second]]
                registers[REGISTERS[target]] = np.clip(NUMPY[name](x, y, k), -1e9, 1e9)
        out.append(registers["u"])
    return np.stack(out)


def directions(lines, grads, param):
    """Those of our program, for gradients of one tensor."""
    tx = symbolic(lines, learning_rate=-1.0).optimizer(jnp.asarray(lines.constants))

    param = jnp.asarray(param)

    def step(state, grad):
        updates, state = tx.update(grad, state, param)
        return state, updates

    return jax.lax.scan(step, tx.init(param), jnp.asarray(grads))[1]


def random_programs(num, length):
    rng = np.random.default_rng(0)
    code = rng.integers([0, 0, 0, 2], [24, 10, 10, 10], (num, length, 4)).astype(np.int32)
    # Without much to read, most directions would be 0.
    code[:, -1] = [2, 2, 6, 5]
    return Program(code, rng.normal(size=(num, length)))


@pytest.mark.usefixtures("x64")
def test_random_programs_do_what_numpy_does_one_by_one_and_as_a_population():
    programs = random_programs(100, 10)
    grads, param = normal(0, 4, 5), normal(1, 5)

    @jax.jit
    def both(programs):
        def run(p):
            return directions(p, grads, param)

        return jax.vmap(run)(programs), jax.lax.map(run, programs)

    together, in_turn = both(programs)
    expected = np.stack([run_in_numpy(c, k, grads, param) for c, k in zip(*programs, strict=True)])
    assert np.mean(np.abs(expected).max(axis=(1, 2)) > 1e-3) > 0.5
    for actual in (together, in_turn):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_a_known_program_does_what_numpy_does_with_every_operation():
    lines = program(EVERYTHING)
    assert set(lines.code[:, 0]) == set(range(1, len(OPERATIONS)))
    grads, param = normal(0, 4, 5), normal(1, 5)
    actual = jax.jit(lambda: directions(lines, grads, param))()
    expected = run_in_numpy(*lines, grads, param)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


@pytest.mark.compiles
@pytest.mark.usefixtures("x64")
def test_meta_gradients_of_the_constants_match_central_differences():
    lines = program(EVERYTHING)
    learned = symbolic(lines, learning_rate=0.1)
    theta = learned.init(jax.random.key(0))
    params = jnp.asarray(normal(0, 4))
    grads = jnp.stack([0.5 * params + 0.1, 0.3 - params])

    def loss(theta):
        return unrolled.final_loss(learned, theta, grads, params)

    actual = jax.jit(jax.grad(loss))(theta)
    expected = helpers.central_differences(loss, theta)
    assert helpers.relative_error(actual, expected) < 1e-6
    uses = [OPERATIONS[operation].has_constant for operation in lines.code[:, 0]]
    assert np.abs(actual)[np.logical_not(uses)].max() == 0
    assert np.abs(actual)[uses].min() > 1e-4


@pytest.mark.parametrize("name", ["adamw", pytest.param(EVERYTHING, marks=pytest.mark.slow)])
def test_meta_gradients_are_finite_on_awkward_inputs(name):
    learned = symbolic(program(name), learning_rate=0.1)
    params = {"matrix": jnp.asarray(normal(1, 4, 3), float)}
    cases = unrolled.awkward_gradients(params, 10, jax.random.key(3))
    grad = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda theta, g, p: unrolled.final_loss(learned, theta, g, p)),
            in_axes=(None, 0, None),
        )
    )
    losses, grads = grad(learned.init(jax.random.key(0)), cases, params)
    assert np.isfinite(losses).all()
    assert np.isfinite(helpers.ravel(grads)).all()


@pytest.mark.parametrize(("name", "kept"), [("sgd", 0), ("lion", 1), ("adam", 2)])
def test_memory_is_what_the_program_writes(name, kept):
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(())}
    (state, _) = optimizer(name).init(params)
    assert state.memory["w"].shape == (kept, 3, 2)
    assert state.memory["w"].dtype == jnp.float32


def test_a_traced_program_keeps_all_memory():
    lines, params = program("sgd"), {"w": jnp.ones((3, 2))}

    def init(lines):
        return symbolic(lines).optimizer(lines.constants).init(params)

    assert jax.eval_shape(init, lines)[0].memory["w"].shape == (3, 3, 2)


def test_update_needs_the_parameters():
    tx = optimizer("sgd")
    with pytest.raises(ValueError, match="symbolic: update got no params"):
        tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))
