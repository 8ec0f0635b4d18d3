import jax
import jax.numpy as jnp
import numpy as np

from metaopt.estimators import sparsemixer_gate
from tests.helpers import standard_errors


def loss(x):
    return np.sin(x) + 0.3 * x**2


def slope(x):
    return np.cos(x) + 0.6 * x


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def enumerated(logits, outputs):
    """Means of the rule and of the one that ignores how often experts are drawn, and the truth."""
    p = softmax(logits)
    by_logits = np.diag(p) - np.outer(p, p)
    exact = (loss(p * outputs) + p * slope(p * outputs) * outputs) @ by_logits
    ignoring = (p * slope(p * outputs) * outputs) @ by_logits
    ours = np.zeros_like(logits)
    for expert in range(len(p)):
        for share in (1.0, 0.5):
            factor = 1.0 if expert == logits.argmax() else share
            x = factor * p[expert] * outputs[expert]
            # Both tosses of the coin have probability 1/2, and the derivative counts twice.
            ours += p[expert] * slope(x) * outputs[expert] * by_logits[expert]
    return ours, ignoring, exact


def problem(seed):
    rng = np.random.default_rng(seed)
    return 0.5 * rng.normal(size=4), rng.normal(size=4)


def sampled(logits, outputs, num_samples):
    """Gradients by the logits, one for each draw."""

    def output_loss(logits, key):
        gate = sparsemixer_gate(logits, key, jitter=jnp.inf)
        x = gate.weight * jnp.asarray(outputs)[gate.expert]
        return jnp.sin(x) + 0.3 * x**2

    keys = jax.random.split(jax.random.key(0), num_samples)
    return jax.jit(jax.vmap(jax.grad(output_loss), (None, 0)))(jnp.asarray(logits), keys)


def test_the_mean_gradient_is_that_of_the_enumerated_rule(x64):
    logits, outputs = problem(0)
    grads = np.asarray(sampled(logits, outputs, 100_000))
    ours, ignoring, _ = enumerated(logits, outputs)
    assert standard_errors(grads, ours) < 4
    assert standard_errors(grads, ignoring) > 10


def test_the_rule_is_much_nearer_to_the_gradient_than_one_that_ignores_the_draws():
    errors = []
    for seed in range(40):
        ours, ignoring, exact = enumerated(*problem(seed))
        errors.append([np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (ours, ignoring)])
    errors = np.asarray(errors)
    assert errors[:, 0].mean() <= 0.4 * errors[:, 1].mean()
    assert (errors[:, 0] < errors[:, 1]).mean() >= 0.9


def test_for_quadratic_losses_the_midpoint_rule_is_exact_but_for_the_best_expert(x64):
    """The midpoint rule has order two, so what is left over is what Euler's rule leaves."""
    logits, outputs = np.array([0.5, 0.1, -0.3]), np.array([0.0, 1.5, -2.0])
    p = softmax(logits)
    by_logits = np.diag(p) - np.outer(p, p)
    # q(x) = x² + x; the best expert says nothing, so that its rule does not matter.
    x = p * outputs
    exact = (x**2 + x + p * (2 * x + 1) * outputs) @ by_logits

    def output_loss(logits, key):
        gate = sparsemixer_gate(logits, key, jitter=jnp.inf)
        y = gate.weight * jnp.asarray(outputs)[gate.expert]
        return y**2 + y

    keys = jax.random.split(jax.random.key(0), 100_000)
    grads = jax.jit(jax.vmap(jax.grad(output_loss), (None, 0)))(jnp.asarray(logits), keys)
    assert standard_errors(grads, exact) < 4
    assert standard_errors(grads, 1.1 * exact) > 4


def test_experts_are_drawn_by_their_probabilities_and_weighed_by_all_or_half_of_them(x64):
    logits = jnp.array([1.0, 0.9, 0.3])
    keys = jax.random.split(jax.random.key(0), 20_000)
    gates = jax.jit(jax.vmap(lambda key: sparsemixer_gate(logits, key, jitter=0.2)))(keys)
    expert, weight = np.asarray(gates.expert), np.asarray(gates.weight)
    # The third one is 0.7 below the best, more than 2 · 0.2 · 1.
    p = np.append(softmax(np.array([1.0, 0.9])), 0.0)
    np.testing.assert_allclose(gates.probs[0], p, rtol=1e-12)
    assert not (expert == 2).any()
    assert standard_errors(expert[:, None] == 1, p[1]) < 4
    np.testing.assert_allclose(weight[expert == 0], p[0], rtol=1e-12)
    ratio = weight[expert == 1] / p[1]
    assert np.all(np.isclose(ratio, 1) | np.isclose(ratio, 0.5))
    assert standard_errors(np.isclose(ratio, 1)[:, None], 0.5) < 4


def test_inference_takes_the_best_expert_with_its_probability(x64):
    logits = jnp.array([[0.2, 1.0, -1.0], [3.0, 2.9, 2.8]])
    gate, jacobian = jax.jit(
        lambda x: (
            sparsemixer_gate(x, None, jitter=jnp.inf),
            jax.jacobian(lambda x: sparsemixer_gate(x, None, jitter=jnp.inf).weight)(x),
        )
    )(logits)
    np.testing.assert_array_equal(gate.expert, [1, 0])
    for row, best in enumerate([1, 0]):
        p = softmax(np.asarray(logits[row]))
        np.testing.assert_allclose(gate.weight[row], p[best], rtol=1e-12)
        expected = p[best] * ((np.arange(3) == best) - p)
        np.testing.assert_allclose(jacobian[row, row], expected, rtol=1e-10)


def test_logits_that_are_equal_negative_or_huge_give_finite_gradients():
    def weight(logits):
        return sparsemixer_gate(logits, jax.random.key(0)).weight

    logits = jnp.array([[0.0, 0.0], [-1.0, -3.0], [1e30, -1e30]])
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(weight)))(logits)
    assert np.isfinite(values).all()
    assert np.isfinite(grads).all()
