import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.optimizers import adamp, project_scale_invariant, sgdp
from tests.optimizers import golden

torch_rows = {"row_axis": 0, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("name", "opt"),
    [
        ("adamp", lambda: adamp(0.01, **torch_rows)),
        ("adamp_projected", lambda: adamp(0.01, delta=2.0, **torch_rows)),
        ("sgdp", lambda: sgdp(0.01, momentum=0.9, delta=2.0, **torch_rows)),
        ("sgdp_nesterov", lambda: sgdp(0.01, momentum=0.9, nesterov=True, **torch_rows)),
    ],
)
def test_repeats_the_published_implementations(x64, name, opt):
    assert golden.difference(name, golden.trajectory(opt())) < 1e-12


def by_hand(p, g, w, delta):
    """A transcription for a matrix with outputs first; and which view was taken."""
    views = {"rows": lambda x: x, "whole": lambda x: x.reshape(1, -1)}
    for name, view in views.items():
        directions, rays = view(g), view(w)
        cosines = [
            abs(a @ b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-8)
            for a, b in zip(directions, rays, strict=True)
        ]
        if max(cosines) < delta / np.sqrt(rays.shape[1]):
            unit = rays / (np.linalg.norm(rays, axis=1, keepdims=True) + 1e-8)
            radial = np.sum(unit * view(p), axis=1, keepdims=True)
            return (view(p) - unit * radial).reshape(w.shape), name
    return p, "none"


def test_repeats_a_transcription_for_every_view(x64):
    # Adam in the place of a rule: its direction is the sign of the gradient at the first step.
    rule = optax.scale_by_sign()
    deltas = np.repeat([0.05, 0.4, 0.8, 1.2], 5)
    gradients, weights = np.random.default_rng(0).normal(size=(2, 20, 3, 4))

    @jax.jit
    @jax.vmap
    def both(delta, g, w):
        first = project_scale_invariant(rule, delta=delta, weight_decay=0.3, row_axis=0)
        last = project_scale_invariant(rule, delta=delta, weight_decay=0.3)
        turned, _ = last.update(g.T, last.init(w.T), w.T)
        return first.update(g, first.init(w), w)[0], turned.T

    seen = set()
    updates, turned = both(deltas, gradients, weights)
    np.testing.assert_allclose(turned, updates, rtol=1e-12, atol=1e-14)
    for delta, g, w, update in zip(deltas, gradients, weights, updates, strict=True):
        expected, view = by_hand(np.sign(g), g, w, delta)
        expected = expected + 0.3 * (1.0 if view == "none" else 0.1) * w
        np.testing.assert_allclose(update, expected, rtol=1e-10, atol=1e-12)
        seen.add(view)
    assert seen == {"rows", "whole", "none"}


def test_what_is_not_projected_follows_adam_with_decoupled_decay(x64):
    expected = golden.trajectory(optax.adamw(0.01, weight_decay=0.1))
    never = golden.trajectory(adamp(0.01, weight_decay=0.1, delta=0.0))
    always = golden.trajectory(adamp(0.01, weight_decay=0.1, delta=1e3))
    for name in expected:
        np.testing.assert_allclose(never[name], expected[name], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(always["b"], expected["b"], rtol=1e-12, atol=1e-14)
    assert np.abs(always["w"] - expected["w"]).max() > 1e-3


def test_momentum_of_nesterov_looks_one_gradient_ahead(x64):
    g1, g2 = jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0])
    opt = adamp(1.0, nesterov=True, b2=0.9)
    params = jnp.zeros(2)
    _, state = opt.update(g1, opt.init(params), params)
    update, _ = opt.update(g2, state, params)
    m = 0.9 * 0.1 * g1 + 0.1 * g2
    v = (0.9 * 0.1 * g1**2 + 0.1 * g2**2) / (1 - 0.9**2)
    expected = (0.9 * m + 0.1 * g2) / (1 - 0.9**2) / (jnp.sqrt(v) + 1e-8)
    np.testing.assert_allclose(update, -expected, rtol=1e-12)


def test_projected_weights_grow_by_the_squares_of_their_steps_alone(x64):
    spectrum = jnp.logspace(0, 2, 20)
    rate = 0.03

    def gradient(w, noise):
        size = jnp.linalg.norm(w)
        u = w / size
        slope = jax.grad(lambda u: 0.5 * jnp.sum(spectrum[None] * u**2))(u)
        tangential = noise - jnp.sum(noise * u) * u
        radial = jnp.sum(slope * u)
        return (slope - radial * u) / size + tangential / jnp.linalg.norm(tangential)

    def run(delta, noise, start):
        opt = project_scale_invariant(optax.trace(0.9), delta=delta, eps=1e-16, row_axis=0)

        def step(carry, noise):
            w, state = carry
            p, state = opt.update(gradient(w, noise), state, w)
            return (w - rate * p, state), jnp.sum(p**2)

        (w, _), squares = jax.lax.scan(step, (start, opt.init(start)), noise)
        return jnp.sum(w**2), jnp.sum(squares)

    noise = jnp.asarray(np.random.default_rng(0).normal(size=(500, 1, 20)))
    start = jnp.asarray(np.random.default_rng(1).normal(size=(1, 20)))
    start = start / jnp.linalg.norm(start)
    outcomes = jax.jit(jax.vmap(run, (0, None, None)))(jnp.array([1e9, 0.0]), noise, start)
    grown, squares = map(np.asarray, outcomes)
    assert grown[0] == pytest.approx(1 + rate**2 * squares[0], rel=1e-9)
    assert grown[1] != pytest.approx(1 + rate**2 * squares[1], rel=1e-1)
    assert grown[0] ** 0.5 <= 0.5 * grown[1] ** 0.5


def test_missing_params_and_settings_outside_their_range_are_refused():
    opt = adamp(0.1)
    with pytest.raises(ValueError, match="params is missing"):
        opt.update(jnp.ones(2), opt.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="delta must not be negative"):
        adamp(0.1, delta=-0.1)
    with pytest.raises(ValueError, match=r"sgdp: momentum must be in \[0, 1\), got 1.0"):
        sgdp(0.1, momentum=1.0)
    with pytest.raises(ValueError, match="row_axis=1 is unknown"):
        adamp(0.1, row_axis=1)
