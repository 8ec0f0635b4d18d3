"""Update rules beside transcriptions in NumPy and functions of scikit-learn, over 50 steps.

Each entry is `() -> (what it is set beside, settings, ours, theirs)`: paths with the step axis
first, in the precision in force. Most of the transcriptions are those of the tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metaopt import optimizers
from tests.optimizers import (
    golden,
    test_accelerated,
    test_ai_sarah,
    test_fosi,
    test_frank_wolfe,
    test_oasis,
    test_opt_amsgrad,
    test_smb,
)

STEPS = 50
WEIGHTS = np.array([3.0, 1.0, 0.5, 0.2, 2.0])
START = np.array([0.5, -0.3, 0.2, 0.7, -0.9])


def loss(x):
    """A separable loss, so that any signs give the diagonal of its Hessian."""
    return jnp.sum(jnp.asarray(WEIGHTS) * jnp.cosh(x))


def value(x):
    """The same in NumPy."""
    return np.sum(WEIGHTS * np.cosh(x))


def gradient(x):
    """Its gradient in NumPy."""
    return WEIGHTS * np.sinh(x)


def path_of(opt, extra=lambda x: {}, start=START):
    """Parameters after each step on that loss."""

    def step(carry, _):
        x, state = carry
        updates, state = opt.update(jax.grad(loss)(x), state, x, **extra(x))
        x = optax.apply_updates(x, updates)
        return (x, state), x

    return jax.jit(lambda x: jax.lax.scan(step, (x, opt.init(x)), length=STEPS)[1])(
        jnp.asarray(start)
    )


def auto_clip():
    """The percentile of all norms so far."""
    opt = optax.chain(optimizers.auto_clip(percentile=30.0, history=20), optax.sgd(0.1))
    ours = golden.trajectory(opt, params={"b": golden.start()["b"]})["b"]
    x, norms, theirs = np.asarray(golden.start()["b"]), [], []
    for step in range(STEPS):
        g = np.sin((step + 1) * (1.0 + np.arange(x.size))) + 0.5 * x
        norms = [*norms[-19:], np.linalg.norm(g)]
        x = x - 0.1 * g * min(1, np.percentile(norms, 30.0) / norms[-1])
        theirs.append(x)
    return "numpy.percentile", {"percentile": 30, "history": 20}, ours, theirs


def opt_amsgrad():
    """Both sequences, and systems by `numpy.linalg.solve`."""
    predict = optimizers.minimal_polynomial_extrapolation(ridge=1e-3)
    found = golden.trajectory(optimizers.opt_amsgrad(0.05, b2=0.99, predict=predict))
    ours = np.concatenate([found[n].reshape(STEPS, -1) for n in golden.start()], axis=1)
    return "NumPy", {"lr": 0.05, "ridge": 1e-3}, ours, test_opt_amsgrad.by_hand(1e-3)


def adagrad_norm():
    """One sum of squares for all entries."""
    x, square, theirs = START, 0.1**2, []
    for _ in range(STEPS):
        square += np.sum(gradient(x) ** 2)
        x = x - 0.7 * gradient(x) / np.sqrt(square)
        theirs.append(x)
    ours = path_of(optimizers.adagrad_norm(0.7, b0=0.1))
    return "NumPy", {"lr": 0.7, "b0": 0.1}, ours, theirs


def complex_momentum():
    """In complex numbers."""
    x, buffer, theirs = START, np.zeros(START.size, complex), []
    for _ in range(STEPS):
        buffer = 0.8 * np.exp(0.3j) * buffer + gradient(x)
        x = x - 0.05 * buffer.real
        theirs.append(x)
    ours = path_of(optimizers.complex_momentum(0.05, decay=0.8, phase=0.3))
    return "NumPy", {"lr": 0.05, "decay": 0.8, "phase": 0.3}, ours, theirs


def sania():
    """Preconditioned Polyak steps of which the least loss is known."""
    f_star, x, total, theirs = 0.9 * WEIGHTS.sum(), START, 0.0, []
    for step in range(1, STEPS + 1):
        g = gradient(x)
        total = 0.9 * total + 0.1 * g**2
        s = g / (total / (1 - 0.9**step))
        q, gap = g @ s, value(x) - f_star
        x = x - (1 - np.sqrt(1 - 2 * gap / q) if 2 * gap <= q else 1.0) * s
        theirs.append(x)
    rule = optimizers.sania("adam_sqr", f_star=f_star, b2=0.9)
    return "NumPy", {"b2": 0.9}, path_of(rule, lambda x: {"value": loss(x)}), theirs


def smb():
    """Gradient steps, and those of the model where the loss does not fall enough."""
    rate, x, theirs = 0.8, START, []
    for _ in range(STEPS):
        g, trial = gradient(x), x - rate * gradient(x)
        accepted = value(trial) <= value(x) - 0.1 * rate * g @ g
        x = trial if accepted else x + test_smb.by_hand(g, gradient(trial) - g, rate, 0.99)
        theirs.append(x)
    ours = path_of(
        optimizers.smb(rate, eta=0.99, c=0.1),
        lambda x: {"value": loss(x), "value_and_grad_fn": jax.value_and_grad(loss)},
    )
    return "NumPy", {"lr": rate, "eta": 0.99}, ours, theirs


def oasis():
    """The diagonal in closed form."""
    rule = optimizers.oasis(decay=0.9, floor=1e-3, initial_rate=1e-2, num_samples=3)
    theirs, _ = test_oasis.by_hand(gradient, lambda x: WEIGHTS * np.cosh(x), START, STEPS)
    return "NumPy", {"decay": 0.9}, path_of(rule, lambda x: {"obj_fn": loss}), theirs


def fosi():
    """Dense eigenpairs by `numpy.linalg.eigh`."""
    base = optax.sgd(0.05, momentum=0.9)
    settings = {"momentum": "heavy_ball", "alpha": 0.3, "num_largest": 2, "num_smallest": 1}
    rule = optimizers.fosi(base, every=2, **settings)
    theirs = test_fosi.by_hand(
        gradient, lambda x: np.diag(WEIGHTS * np.cosh(x)), START, "heavy_ball", STEPS
    )
    return "NumPy", {"every": 2, **settings}, path_of(rule, lambda x: {"obj_fn": loss}), theirs


def egn():
    """The large system of a softmax regression."""
    rng = np.random.default_rng(0)
    inputs, labels, start = rng.normal(size=(12, 4)), np.arange(12) % 3, rng.normal(size=(4, 3))
    opt = optimizers.egn(0.5, damping=0.1)
    extra = {
        "predict_fn": lambda w, x: x @ w,
        "loss_fn": lambda logits, label: -jax.nn.log_softmax(logits)[label],
        "batch": (jnp.asarray(inputs), jnp.asarray(labels)),
    }

    def step(carry, _):
        w, state = carry
        updates, state = opt.update(w, state, w, **extra)
        return (w + updates, state), w + updates

    ours = jax.jit(lambda w: jax.lax.scan(step, (w, opt.init(w)), length=STEPS)[1])(
        jnp.asarray(start)
    )
    w, theirs = start, []
    for _ in range(STEPS):
        p = np.exp(inputs @ w)
        p = p / p.sum(axis=1, keepdims=True)
        slope = inputs.T @ (p - np.eye(3)[labels]) / 12
        blocks = [
            np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q))
            for x, q in zip(inputs, p, strict=True)
        ]
        system = np.mean(blocks, axis=0) + 0.1 * np.eye(12)
        w = w - 0.5 * np.linalg.solve(system, slope.ravel()).reshape(4, 3)
        theirs.append(w)
    return "NumPy", {"lr": 0.5, "damping": 0.1}, ours, theirs


def ai_sarah():
    """Derivatives of the logistic loss in closed form."""
    x, y, l2 = test_ai_sarah.problem()
    sarah = optimizers.ai_sarah(test_ai_sarah.grad_fn(l2), beta=0.9)
    rng = np.random.default_rng(0)
    w = rng.normal(size=30)
    state = sarah.outer_step(sarah.init(jnp.asarray(w)), (jnp.asarray(x), jnp.asarray(y)))
    inner = jax.jit(sarah.inner_step)
    v, delta, ours, theirs = test_ai_sarah.gradient(w, x, y, l2), None, [], []
    for _ in range(STEPS):
        rows = rng.choice(len(y), 16, replace=False)
        batch = x[rows], y[rows]
        first, second = test_ai_sarah.slopes(w, v, *batch, l2)
        alpha = -first / abs(second) if delta is None else min(-first / abs(second), 1 / delta)
        inverse = abs(second) / -first
        delta = inverse if delta is None else 0.9 * delta + 0.1 * inverse
        new = w - alpha * v
        v = v + test_ai_sarah.gradient(new, *batch, l2) - test_ai_sarah.gradient(w, *batch, l2)
        w, state = new, inner(state, batch)
        ours.append(state.params)
        theirs.append(w)
    return "NumPy", {"beta": 0.9}, ours, theirs


def frank_wolfe():
    """Vertices by `numpy.argmin`."""
    loss, design, targets = test_frank_wolfe.regression()
    x, theirs = np.ones(30) / 30, []
    for step in range(1, STEPS + 1):
        theirs.append(x)
        vertex = np.eye(30)[np.argmin(design.T @ (design @ x - targets))]
        x = x + 2 / (step + 1) * (vertex - x)
    solver = optimizers.frank_wolfe(optimizers.simplex_lmo())
    ours, _, _ = test_frank_wolfe.path(solver, loss, jnp.ones(30) / 30, STEPS)
    return "NumPy", {"set": "simplex"}, ours, theirs


def fista():
    """The solution, by coordinate descent."""
    from sklearn.linear_model import Lasso

    design, targets, smoothness, smooth, _ = test_accelerated.lasso()
    reference = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000)
    prox = test_accelerated.soft_threshold(0.1)
    solver = optimizers.fista(prox, smoothness, restart=True, tol=1e-10, max_steps=20_000)
    found, info = jax.jit(lambda x: solver.run(smooth, x))(jnp.zeros(300))
    settings = {"alpha": 0.1, "restart": True, "steps": int(info.num_steps)}
    return "scikit-learn, Lasso", settings, found, reference.fit(design, targets).coef_


BESIDE = (
    auto_clip, opt_amsgrad, adagrad_norm, complex_momentum, sania, smb, oasis, fosi, egn, ai_sarah,
    frank_wolfe, fista,
)  # fmt: skip
