"""Every rule of `metaopt.optimizers`, as the shared tests build it.

A new rule needs one row here, and nothing else, to be checked by `test_rules.py` and by the
conformance tests. Public names that are no rules have rows in `HELPERS`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt import optimizers
from metaopt.core import Scalar
from tests.optimizers.solver_rows import SOLVER_ROWS


class Rule(NamedTuple):
    """An update rule.

    Attributes:
        covers: names of `metaopt.optimizers` that the row stands for, separated by spaces.
        make: the rule for a learning rate (or whatever number is its main setting), which may be
            traced.
        extra: `(loss, params) -> ` the extra arguments of its `update`, where it needs some;
            `loss(params)` is the scalar whose gradient the rule is given.
    """

    covers: str
    make: Callable[[Scalar], optax.GradientTransformationExtraArgs]
    extra: Callable[[Callable[..., Any], Any], dict[str, Any]] = lambda loss, params: {}


def vector():
    """A vector without a zero, for rows of helpers."""
    return jnp.array([0.5, -0.3, 1.2])


def gradient_function(loss, params):
    """Extra arguments of rules that look at gradients nearby."""
    del params
    return {"grad_fn": lambda params, i: jax.grad(loss)(params)}


def one_example(loss, params):
    """Extra arguments of `egn`: the output of the only example is the loss."""
    nothing = jnp.zeros((1, 1))
    return {
        "predict_fn": lambda params, inputs: loss(params)[None],
        "loss_fn": lambda outputs, targets: outputs[0],
        "batch": (nothing, nothing),
    }


def extreme_eigenpairs():
    """The projection on the first eigenvector of a matrix."""

    def project(matrix, key):
        def product(v):
            return 0.5 * (matrix + matrix.T).astype(v.dtype) @ v

        pairs = optimizers.lanczos_extremes(product, 3, key, num_largest=1)
        return pairs.values, pairs.vectors.T @ pairs.vectors

    return project, (jnp.outer(vector(), vector()) + jnp.eye(3), jax.random.key(0))


def every_axis_is_hidden(params):
    """Axes for `teleport` where no network is behind the parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: " ".join(f"+{jax.tree_util.keystr(path)}{i}" for i in range(jnp.ndim(p))),
        params,
    )


def nearby_gradient():
    """A gradient at the worst point nearby."""
    gradient = optimizers.sam_gradient(
        jax.grad(lambda p, slopes: jnp.sum(slopes * p**2)), rho=0.1, adaptive=True
    )
    return gradient, (vector(), vector() + 1)


def masked_weights():
    """Half of the weights, with gradients for all of them."""

    def masked(w, x):
        return optimizers.ste_sparse(w, optimizers.nm_mask(w, n=1, m=2)) * x

    weights = jnp.outer(jnp.array([0.3, -0.7, 0.2, 0.9]), vector())
    return masked, (weights, weights + 1)


def faded_weights():
    """Weights that are pruned by and by, at a step between the first and the last one."""

    def faded(w, count):
        schedules = [
            optimizers.mdgf_linear(rate=0.1, n=1, m=2),
            optimizers.mdgf_exp(rate=0.1, n=1, m=2, end=10),
            optimizers.sdgf(10, n=1, m=2),
        ]
        return [optimizers.ste_sparse(w, factors(w, count)) for factors in schedules]

    return faded, (jnp.outer(jnp.array([0.3, -0.7]), vector()), jnp.array(5))


def largest_weights():
    """Booleans, so nothing to differentiate."""
    return optimizers.topk_per_neuron_mask, (jnp.outer(vector(), vector() + 1), jnp.array(0.5))


def frozen_moment():
    """A step of STEP, and whether masks are on after it."""

    def step(grads):
        tx = optimizers.step_adam(0.1, max_steps=1, window=2)
        updates, state = tx.update(grads, tx.init(grads), grads)
        return updates, optimizers.is_sparse(state)

    return step, (vector(),)


def thresholded_weights():
    """Weights of which some are below their threshold."""

    def shrunk(w, threshold, initial):
        alpha = optimizers.annealed_alpha(10, initial=initial)(jnp.array(5))
        return optimizers.soft_threshold(w, threshold, alpha=alpha)

    return shrunk, (jnp.outer(vector(), vector()), vector()[None], jnp.array(0.5))


def sum_of_networks():
    """Two networks, the second of a high frequency."""
    weights = jnp.outer(vector(), vector() + 1)
    params = [
        {"w": weights[:2, None], "b": weights[:2]},
        {"w": weights[1:, :, None], "b": weights[1:, :1]},
    ]
    scales = jnp.array([1.0, 0.1])
    fit = optimizers.MultistageFit(
        params, 10 * (1 - scales), scales, scales, jnp.array([-1.0, 2.0])
    )
    return optimizers.multistage_predict, (fit, vector())


def assembled():
    """Two networks of two units as one."""
    weights = jnp.outer(vector(), vector() + 1)
    params = [
        {"w": jnp.stack([weights[:, :2], weights[:, 1:]]), "b": weights[:2, :2]},
        {"w": jnp.stack([weights[:2], weights[1:]]), "b": weights[:2]},
    ]

    def one_network(params, steps):
        return optimizers.assemble_units(optimizers.BoostedUnits(params, steps))

    return one_network, (params, vector()[:2])


def teleported():
    """A network with one hidden layer, moved along a level set."""

    def loss(params, x):
        return jnp.mean((jax.nn.relu(x @ params["in"]) @ params["out"] - 1) ** 2)

    def move(params, x):
        axes = {"in": "x +h", "out": "-h y"}
        return optimizers.teleport(loss, params, x, axes=axes, cap=100.0, num_steps=2)

    params = {"in": jnp.outer(vector(), vector() + 1), "out": jnp.ones((3, 2))}
    return move, (params, jnp.outer(vector() + 1, vector()))


def weight_of_a_step():
    """The weight of a momentum as a function of that in the end."""

    def weight(alpha, count):
        return optimizers.ademamix_alpha_schedule(alpha=alpha, num_steps=10)(count)

    return weight, (jnp.array(5.0), jnp.array(3))


def decay_of_a_step():
    """The decay of a momentum as a function of that in the end."""

    def decay(b3, count):
        return optimizers.ademamix_b3_schedule(b1=0.3, b3=b3, num_steps=10)(count)

    return decay, (jnp.array(0.8), jnp.array(3))


def average_of_two_steps():
    """Averaged parameters as a function of the first ones."""

    def average(params):
        tx = optimizers.polynomial_averaging(optax.sgd(0.1))
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return optimizers.averaged_params(state)

    return average, (vector(),)


def extrapolated():
    """A gradient predicted from four, and all of them."""
    predict = optimizers.minimal_polynomial_extrapolation(ridge=1e-2)

    def both(gradients):
        differences = jnp.diff(gradients, axis=0)
        # The second gradient is one behind the first: its difference is in place 2.
        ring = jnp.roll(differences, 2, axis=0)
        history = optimizers.GradientHistory(jnp.array(4), gradients[-1], ring, ring @ ring.T)
        return predict(history), optimizers.stacked_gradients(history)

    return both, (jnp.outer(jnp.array([0.3, 1.7, 0.5, 2.0]), vector()) ** 2,)


def loss_on_the_batch(loss, params):
    """Extra arguments of rules that evaluate the loss."""
    return {"value": loss(params), "value_and_grad_fn": jax.value_and_grad(loss)}


RULES = [
    Rule("sania", lambda lr: optimizers.sania("adam_sqr", f_star=-lr), loss_on_the_batch),
    Rule("sania", lambda lr: optimizers.sania("adagrad", f_star=-lr), loss_on_the_batch),
    Rule("smb", lambda lr: optimizers.smb(5 * lr, period=2), loss_on_the_batch),
    Rule("smbi", lambda lr: optimizers.smbi(5 * lr), loss_on_the_batch),
    Rule(
        "lr_estimate",
        lambda lr: optax.chain(optax.sgd(lr), optimizers.lr_estimate(lr)),
    ),
    Rule(
        "complex_momentum scale_by_complex_momentum",
        lambda lr: optimizers.complex_momentum(lr),
    ),
    Rule(
        "shampoo scale_by_shampoo",
        lambda lr: optimizers.shampoo(lr, every=2, eps=1e-6),
    ),
    Rule(
        "shampoo",
        lambda lr: optimizers.shampoo(
            lr, graft="adagrad", momentum="after", nesterov=True, start=2, block_size=2, every=1
        ),
    ),
    Rule(
        "fosi refresh_fosi",
        lambda lr: optimizers.fosi(optax.sgd(lr, momentum=0.5), num_largest=2, every=2),
        lambda loss, params: {"obj_fn": loss},
    ),
    Rule(
        "egn gauss_newton_direction",
        lambda lr: optimizers.egn(lr, damping=0.5, momentum=0.5),
        one_example,
    ),
    Rule(
        "oasis",
        lambda lr: optimizers.oasis(initial_rate=lr, num_samples=2),
        lambda loss, params: {"obj_fn": loss},
    ),
    Rule(
        "gradient_penalty",
        lambda lr: optax.chain(
            optimizers.gradient_penalty(kind="central", gamma=0.1), optax.sgd(lr)
        ),
        gradient_function,
    ),
    Rule(
        "gradient_penalty",
        lambda lr: optax.chain(optimizers.gradient_penalty(kind="exact"), optax.sgd(lr)),
        gradient_function,
    ),
    Rule("gam", lambda lr: optax.chain(optimizers.gam(), optax.sgd(lr)), gradient_function),
    Rule(
        "accelerated_gam",
        lambda lr: optax.chain(optimizers.accelerated_gam(), optax.sgd(lr)),
        gradient_function,
    ),
    Rule("sr_ste", lambda lr: optax.chain(optimizers.sr_ste(n=1, m=2), optax.sgd(lr))),
    Rule(
        "teleport_every",
        lambda lr: optimizers.teleport_every(
            optax.sgd(lr), axes=every_axis_is_hidden, every=2, num_steps=2
        ),
        lambda loss, params: {"value_fn": loss},
    ),
    Rule("grams scale_by_grams", lambda lr: optimizers.grams(lr, weight_decay=0.1)),
    Rule("adagrad_norm scale_by_adagrad_norm", lambda lr: optimizers.adagrad_norm(lr)),
    Rule("adagrad_norm", lambda lr: optimizers.adagrad_norm(lr, per_leaf=True)),
    Rule(
        "auto_clip",
        lambda lr: optax.chain(optimizers.auto_clip(percentile=50.0, history=4), optax.sgd(lr)),
    ),
    Rule("auto_axes", lambda lr: optimizers.auto_axes(optax.sgd(lr, momentum=0.5))),
    Rule(
        "safe_clip_by_global_norm",
        lambda lr: optax.chain(optimizers.safe_clip_by_global_norm(1.0), optax.sgd(lr)),
    ),
    Rule("polynomial_averaging", lambda lr: optimizers.polynomial_averaging(optax.sgd(lr))),
    Rule("adamp", lambda lr: optimizers.adamp(lr, weight_decay=0.1, delta=1e3)),
    Rule(
        "sgdp project_scale_invariant",
        lambda lr: optimizers.sgdp(lr, momentum=0.5, weight_decay=0.1),
    ),
    Rule(
        "opt_amsgrad scale_by_opt_amsgrad",
        lambda lr: optimizers.opt_amsgrad(
            lr, predict=optimizers.minimal_polynomial_extrapolation(ridge=1e-2)
        ),
    ),
    Rule("diffgrad scale_by_diffgrad", lambda lr: optimizers.diffgrad(lr, weight_decay=0.1)),
    Rule("disco_adam", lambda lr: optimizers.disco_adam(lr, eps=1e-3)),
    Rule(
        "step_adam scale_by_step_adam",
        lambda lr: optimizers.step_adam(lr, max_steps=2, window=2, eps=1e-2),
    ),
    Rule(
        "masked_entries",
        lambda lr: optimizers.masked_entries(
            optax.sgd(lr), partial(optimizers.topk_per_neuron_mask, fraction=0.5)
        ),
    ),
]

# Names that optax has as well.
OF_OPTAX = [
    name
    for name in optimizers.__all__
    if getattr(optimizers, name).__module__ == "metaopt.optimizers._from_optax"
]

# (names covered, thunk); the thunk gives what `tests.registry` lists, usually (function, args)
# where args[0] is what is differentiated.
HELPERS: list[tuple[str, Callable[[], Any]]] = [
    ("ademamix_alpha_schedule", weight_of_a_step),
    ("ademamix_b3_schedule", decay_of_a_step),
    ("averaged_params", average_of_two_steps),
    ("lanczos_extremes", extreme_eigenpairs),
    ("minimal_polynomial_extrapolation stacked_gradients", extrapolated),
    *SOLVER_ROWS,
    ("sam_gradient", nearby_gradient),
    ("teleport", teleported),
    ("nm_mask ste_sparse", masked_weights),
    ("soft_threshold annealed_alpha", thresholded_weights),
    ("mdgf_linear mdgf_exp sdgf", faded_weights),
    ("topk_per_neuron_mask", largest_weights),
    ("assemble_units BoostedUnits", assembled),
    ("is_sparse", frozen_moment),
    ("multistage_predict MultistageFit", sum_of_networks),
]


def three_updates(rule: Rule, shape=(2, 1)):
    """Where three steps lead, as a function of the slopes of the loss."""

    def end(slopes, params):
        def loss(params):
            linear = sum(
                jnp.sum(s * p)
                for s, p in zip(jax.tree.leaves(slopes), jax.tree.leaves(params), strict=True)
            )
            return linear + 0.5 * sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

        tx = rule.make(0.1)
        state = tx.init(params)
        for _ in range(3):
            extra = rule.extra(loss, params)
            updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
            params = optax.apply_updates(params, updates)
        return params

    slopes = jnp.array([0.3, -0.2]).reshape(shape)
    return end, ({"a": slopes}, {"a": slopes + 1})
