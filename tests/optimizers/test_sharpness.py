"""What rules that look for flat minima find on digits, side by side."""

import jax
import jax.numpy as jnp
import optax
import pytest

from metaopt.optimizers import gam, gradient_penalty, sam_gradient
from tests.optimizers import networks

STEPS, BATCH = 1500, 50


def loss(params, batch):
    inputs, labels = batch
    return networks.cross_entropy(networks.apply(params, inputs), labels)


def penalised(**settings):
    return gradient_penalty(gamma=0.1, **settings)


RULES = {
    "sgd": optax.identity(),
    "gam": gam(rho=0.2, alpha=1.0),
    "forward": penalised(kind="forward", eps=0.5),
    "backward": penalised(kind="backward", eps=0.01),
    "exact": penalised(kind="exact"),
}


def directions(params, batch):
    def grad_fn(params, index=0):
        return jax.grad(loss)(params, batch)

    for name, rule in RULES.items():
        rule, p = optax.with_extra_args_support(rule), params[name]
        yield name, rule.update(grad_fn(p), rule.init(p), p, grad_fn=grad_fn)[0]
    yield "sam", sam_gradient(grad_fn, rho=0.2)(params["sam"])


def top_eigenvalue(params, batch, num_steps=60):
    """Of the Hessian, by power iterations."""

    def product(v):
        return jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (v,))[1]

    def step(v, _):
        h = product(v)
        return optax.tree.scale(1 / optax.tree.norm(h), h), optax.tree.vdot(v, h)

    start = jax.tree.map(lambda p: jnp.sin(1.0 + jnp.arange(p.size)).reshape(p.shape), params)
    start = optax.tree.scale(1 / optax.tree.norm(start), start)
    return jax.lax.scan(step, start, length=num_steps)[1][-1]


@pytest.fixture(scope="module")
def measured():
    """Curvature and test loss of all rules, trained on the same batches from the same start."""
    (inputs, labels), test = networks.digits()
    train = (inputs[:600], labels[:600])
    start = networks.dense((64, 32, 10), jax.random.key(0), gain=1.0)

    @jax.jit
    def run(start, train, test):
        def step(params, key):
            rows = jax.random.choice(key, 600, (BATCH,), replace=False)
            batch = jax.tree.map(lambda x: x[rows], train)
            new = {
                name: optax.apply_updates(params[name], optax.tree.scale(-0.2, d))
                for name, d in directions(params, batch)
            }
            return new, None

        keys = jax.random.split(jax.random.key(1), STEPS)
        params = {name: start for name in (*RULES, "sam")}
        params, _ = jax.lax.scan(step, params, keys)
        names = list(params)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *[params[name] for name in names])
        # Sequentially: one program for all.
        found = jax.lax.map(lambda p: (top_eigenvalue(p, train), loss(p, test)), stacked)
        return {name: (found[0][i], found[1][i]) for i, name in enumerate(names)}

    return jax.tree.map(float, run(start, train, test))


@pytest.mark.slow
def test_sharpness_aware_training_ends_where_curvature_is_lower(measured):
    curvature, test_loss = ({k: v[i] for k, v in measured.items()} for i in (0, 1))
    assert curvature["sam"] <= 0.7 * curvature["sgd"]
    assert curvature["gam"] <= 0.6 * curvature["sgd"]
    assert test_loss["gam"] <= 1.02 * test_loss["sgd"]


@pytest.mark.slow
def test_a_large_forward_step_finds_flatter_minima_than_the_exact_penalty(measured):
    curvature = {name: value[0] for name, value in measured.items()}
    assert curvature["forward"] < curvature["exact"] < curvature["sgd"]
    assert curvature["forward"] < curvature["backward"]
