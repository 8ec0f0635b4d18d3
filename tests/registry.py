"""Every public name: a row that the conformance tests check, or a reason why it has none.

A row names what it covers, as `package.name`, and builds one of

    (TaskFamily, data)                           a family and its pool
    LearnedOptimizer
    (System or Episodes or Estimator, theta, data)
    (function, args)                             a pure function; args[0] is what is differentiated

A new public factory needs one row here, and nothing else, to be checked.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt import (
    algorithms,
    core,
    data,
    estimators,
    implicit,
    learned,
    tasks,
    train,
    tree,
    unroll,
)
from tests.aggregators.rows import AGGREGATOR_ROWS
from tests.algorithms.rows import ALGORITHM_ROWS
from tests.estimators import toys
from tests.eval.rows import EVAL_ROWS
from tests.learned.rows import ROWS as LEARNED_ROWS
from tests.optimizers import rules
from tests.tasks.environment_rows import ENVIRONMENT_ROWS
from tests.tasks.rows import TASK_ROWS, images, linear_classifier, small_mlp


class Row(NamedTuple):
    """What the conformance tests check.

    Attributes:
        label: the name of the test.
        covers: the public names that the row stands for.
        make: builds it, in the precision in force.
        heavy: takes long to compile; a slow test, its names have fast tests of their own.
    """

    label: str
    covers: tuple[str, ...]
    make: Callable[[], Any]
    heavy: bool = False


def row(covers: str, make: Callable[[], Any], label: str = "", *, heavy: bool = False) -> Row:
    """A row for names separated by spaces; the first one is its label."""
    names = tuple(covers.split())
    return Row(label or names[0], names, make, heavy)


# Each compiles an adaptation and its derivative.
HEAVY_TASKS = (
    "coordinate_images", "few_shot_continual", "few_shot_convnet", "missing_modalities",
    "running_statistics", "shape_segmentation", "sinusoid_stream",
)  # fmt: skip


def numbered(package: str, rows) -> list[Row]:
    """Rows `(names, thunk)` of one package; a name may have several rows, a row several names."""
    return [
        Row(
            f"{package}.{names.split()[0]}-{index}",
            tuple(f"{package}.{name}" for name in names.split()),
            make,
            heavy=package == "algorithms" or names.split()[0] in HEAVY_TASKS,
        )
        for index, (names, make) in enumerate(rows)
    ]


THETA = (0.3, -0.2)


def theta() -> jax.Array:
    """Meta-parameters of the toy systems."""
    return jnp.array(THETA)


def toy(make=toys.nonlinear) -> core.System:
    """A toy system whose state keeps its dtype, whatever that of its constants."""
    system = make()

    def step(theta, state, data, key):
        new, info = system.step(theta, state, data, key)
        return tree.cast_like(new, state), info

    return system._replace(step=step)


def ends_by_itself() -> core.System:
    """A toy system whose trajectories last two to five steps."""
    return unroll.auto_reset(toy(), horizon=unroll.log_uniform(2, 5))


# System or Episodes ---------------------------------------------------------------------------


def adam() -> core.LearnedOptimizer:
    """A learned optimizer with few numbers."""
    return learned.hyperparameters(optax.adam, learning_rate=learned.positive(1e-2), eps_root=1e-8)


def training(learned_optimizer, family, pool, **settings):
    """The training of a small network."""
    system = core.training(family, learned_optimizer, **settings)
    return system, learned_optimizer.init(jax.random.key(0)), pool


def validated_training():
    """Inner and outer pools."""
    pool = core.Split(images(), images())
    return training(adam(), small_mlp(), pool, outer_loss="validation")


def adaptation():
    """Theta is the initial parameters of a quadratic."""
    system = core.adaptation(tasks.quadratic(dim=2), optax.sgd(0.1), outer_loss="same_batch")
    return system, theta(), ()


def ridge() -> core.BilevelProblem:
    """Ridge regression of a target; theta is the logarithm of the penalties."""

    def inner_loss(params, theta, data, key):
        noise = 0.1 * jax.random.normal(key, params.shape, params.dtype)
        return jnp.sum((params - data - noise) ** 2 + jnp.exp(theta) * params**2)

    return core.BilevelProblem(
        init=lambda key: jax.random.normal(key, (2,)),
        inner_loss=inner_loss,
        outer_loss=lambda params, theta, data, key: jnp.sum((params - 2 * data) ** 2),
    )


RIDGE_TARGET = (1.0, -1.0)


def bilevel_training():
    """The inner training of a ridge regression."""
    return core.bilevel_training(ridge(), optax.adam(0.1)), theta(), jnp.array(RIDGE_TARGET)


def best_response_estimator():
    """A response fitted to a ridge regression."""
    return estimators.best_response(ridge(), optax.sgd(0.1)), theta(), jnp.array(RIDGE_TARGET)


def implicit_estimator(**settings):
    """Implicit gradients of a ridge regression, or with settings one-step gradients."""
    if settings:
        estimator = estimators.one_step(ridge(), **settings)
    else:
        estimator = estimators.implicit(ridge(), inner_opt=optax.adam(0.1), num_steps=3)
    return estimator, theta(), jnp.array(RIDGE_TARGET)


def searching(learned_strategy):
    """The search by a strategy on two functions."""
    family = tasks.black_box(dim=2, functions=("rosenbrock", "rastrigin"))
    system = algorithms.search(family, learned_strategy)
    return system, learned_strategy.init(jax.random.key(0)), ()


def with_settings(make):
    """A strategy whose two settings are theta."""
    return learned.LearnedStrategy(
        lambda key: jnp.array([0.5, 0.9]), lambda theta: make(theta[0], theta[1])
    )


def isotropic():
    """Its step size and decay are theta."""
    return with_settings(
        lambda sigma, decay: learned.isotropic_es(population_size=4, sigma=sigma, decay=decay)
    )


def random_box():
    """The ends of its box are theta."""
    return with_settings(
        lambda low, high: learned.random_search(population_size=4, low=low, high=high)
    )


def mixed_training():
    """Ridge regression, its inner gradient taken in mixed mode."""
    system, *rest = bilevel_training()
    return unroll.with_gradient(system, "mixed"), *rest


def episodes():
    """Windows with resets."""
    horizon = unroll.log_uniform(2, 6)
    return unroll.episodes(toy(), truncation=2, horizon=horizon), theta(), ()


def on_bilevel(make, *args, **settings):
    """A bilevel estimator on a mean over rows; tiny, for there are many of them."""

    def inner_loss(params, theta, data, key):
        del key
        return jnp.mean((params - data.inner) ** 2) + jnp.sum(jnp.exp(theta) * params**2)

    def outer_loss(params, theta, data, key):
        del theta, key
        return jnp.mean((params - data.outer) ** 2)

    problem = core.BilevelProblem(lambda key: jnp.ones(()), inner_loss, outer_loss)
    pools = core.Split(jnp.array([1.0, 1.5]), jnp.array([2.0, 0.5]))
    return make(problem, *args, **settings), jnp.array([0.3]), pools


def delayed_training():
    """Gradients of two steps before."""
    system, *rest = adaptation()
    return unroll.delayed_gradients(system, delay=2), *rest


def late_training():
    """Losses that count the more the later they come."""
    system, *rest = adaptation()
    return unroll.late_losses(system, power=1.0), *rest


def minibatched():
    """The training of a bilevel problem by batches."""
    system = core.bilevel_training(
        core.minibatched(
            core.BilevelProblem(
                lambda key: jnp.ones(()),
                lambda params, theta, data, key: jnp.mean((params - data.inner * theta) ** 2),
                lambda params, theta, data, key: jnp.mean((params - data.outer) ** 2),
            ),
            batch_size=2,
        ),
        optax.sgd(0.1),
    )
    return system, jnp.array(0.3), core.Split(jnp.array([1.0, 1.5, 2.0]), jnp.ones(2))


SYSTEM_ROWS = [
    row("core.training", lambda: training(adam(), linear_classifier(), images())),
    row("core.training", validated_training, "core.training-validation", heavy=True),
    row("core.adaptation", adaptation),
    row("core.bilevel_training", bilevel_training),
    row("core.minibatched", minibatched),
    row("unroll.delayed_gradients", delayed_training),
    row("unroll.late_losses", late_training),
    row(
        "algorithms.search learned.les",
        lambda: searching(learned.les(population_size=4)),
        "learned.les",
    ),
    row("learned.lga", lambda: searching(learned.lga(population_size=4))),
    row("learned.isotropic_es", lambda: searching(isotropic())),
    row("learned.random_search", lambda: searching(random_box())),
    row("unroll.freeze_diverged", lambda: (unroll.freeze_diverged(toy()), theta(), ())),
    row("unroll.with_gradient", mixed_training),
    row("unroll.auto_reset unroll.log_uniform", lambda: (ends_by_itself(), theta(), ())),
    row("unroll.episodes", episodes),
]


# Pure functions -------------------------------------------------------------------------------


def unrolled(remat):
    """Four steps of a toy system."""
    system, key = toy(), jax.random.key(0)
    run = unroll.unroll(system, num_steps=4, remat=remat)
    return run, (theta(), system.init(theta(), (), key), (), jax.random.key(1))


def whole_trajectory(make, **settings):
    """The loss of a trajectory of the toy system."""
    return make(toy(), **settings), (theta(), (), jax.random.key(0))


def inner_gradient(transform):
    """Two gradient steps on a function of the parameters, noisy by a key."""

    def descend(params, key):
        noise = jax.random.normal(key, params.shape, params.dtype)
        for _ in range(2):
            value, grads = transform(lambda p: jnp.sum((p - noise) ** 4))(params)
            params = params - 0.01 * grads
        return params, value

    return descend, (theta(), jax.random.key(0))


def safe_adam():
    """An update of Adam with one gradient that is zero, as a function of the parameters."""

    def update(params, slopes):
        inner_opt = unroll.differentiable(optax.adam(0.1))
        return inner_opt.update(slopes * params**3, inner_opt.init(params), params)

    return update, (theta(), jnp.array([0.0, 1.0]))


def draw(function, **settings):
    """A function of a key alone."""
    return lambda key: function(key, **settings), (jax.random.key(0),)


def sample_batch():
    """A minibatch, as a function of pool and key."""

    def batch(pool, key):
        return data.sample_batch(pool, key, batch_size=4)

    return batch, (data.Pool(jnp.ones((3, 2)), jnp.arange(3)), jax.random.key(0))


def sample_windows():
    """Windows of a text, as a function of the text and a key."""

    def windows(pool, key):
        return data.sample_windows(pool, key, batch_size=2, length=3)

    return windows, (data.TextPool(jnp.arange(6)), jax.random.key(0))


def keep_best():
    """A run's state with the best theta, as a function of theta and its score."""

    def best(theta, score, key):
        state = train.init_state({}, theta, {}, key, outer_opt=optax.sgd(0.1))
        state = train.keep_best(state._replace(theta=2 * theta), score)
        return state.best_theta, state.best_score

    return best, (theta(), jnp.array(0.5), jax.random.key(0))


def solution(find):
    """A point that a linear system determines, through an implicit rule."""
    return find, (theta(), jnp.zeros(2))


def minimiser(solver):
    """The minimiser of a quadratic; its derivatives are solved for by `solver`."""

    def loss(x, theta):
        return jnp.sum(x**2) + x[0] * x[1] - x @ jnp.sin(theta)

    def newton(loss, start):
        return start - jnp.linalg.solve(jax.hessian(loss)(start), jax.grad(loss)(start))

    return solution(implicit.minimise(loss, newton, solver=solver))


def root(solver):
    """The root of a linear function without symmetry."""

    def residual(x, theta):
        return jnp.stack([2 * x[0] + x[1], 3 * x[1]]) - jnp.sin(theta)

    def newton(residual, start):
        return start - jnp.linalg.solve(jax.jacfwd(residual)(start), residual(start))

    return solution(implicit.root(residual, newton, solver=solver))


def fixed_point():
    """The fixed point of a contraction."""

    def iterate(update, start):
        return jax.lax.fori_loop(0, 60, lambda _, x: update(x), start)

    def update(x, theta):
        return 0.5 * jnp.cos(x) + theta

    solver = implicit.neumann(num_terms=60, step_size=1.0)
    return solution(implicit.fixed_point(update, iterate, solver=solver))


def hypergradient():
    """Of the ridge problem, by a solver that can itself be differentiated."""
    problem = ridge()
    key = jax.random.key_data(jax.random.key(0))

    def function(theta, params):
        return implicit.hypergradient(
            lambda params, theta: problem.outer_loss(params, theta, jnp.array(RIDGE_TARGET), None),
            jax.grad(
                lambda params, theta: problem.inner_loss(
                    params, theta, jnp.array(RIDGE_TARGET), jax.random.wrap_key_data(key)
                )
            ),
            params,
            theta,
            solver=implicit.neumann(num_terms=3, step_size=0.2),
        )

    return function, (theta(), jnp.array([0.5, -0.5]))


def second_order():
    """Gradient and Hessian product of a loss, as functions of the point."""

    def derivatives(params):
        loss = lambda params: jnp.sum(jnp.sin(params))  # noqa: E731
        functions = core.loss_functions(loss, *jax.value_and_grad(loss)(params))
        return functions["grad_fn"](params), functions["hvp_fn"](params, params)

    return derivatives, (theta(),)


def partial_updates():
    """Where updates of one part of a theta lead."""
    tx = learned.train_only(optax.adamw(0.1), learned.celo_trainable(1))

    def end(grads, theta):
        updates, _ = tx.update(grads, tx.init(theta), theta)
        return optax.apply_updates(theta, updates)

    both = {"scheduler": theta(), "network": theta()}
    return end, (both, jax.tree.map(jnp.ones_like, both))


def of_adam_program(function, *args):
    """A function of a program, which is a tree of integers and constants."""
    lines = learned.program("adam", length=8)
    return function, (learned.Program(*(jnp.asarray(x) for x in lines)), *args)


def scaled(theta: jax.Array | Any, *, factor: core.Scalar = 2.0) -> jax.Array:
    """A function with annotations to check."""
    return factor * theta


def convolved():
    """An image that is its own kernel."""
    return partial(tasks.convolve, stride=2), (jnp.ones((3, 3, 2, 2)) / 7, jnp.ones((3, 3, 2, 2)))


def measurements():
    """Differentiated by the noise."""

    def labels(noise):
        return [
            tasks.environment_pool(
                system, jax.random.key(0), num_environments=2, num_points=3, noise=noise
            ).labels
            for system in (tasks.oscillator(), tasks.point_charges())
        ]

    return labels, (jnp.array(0.1),)


FUNCTION_ROWS = [
    row("algorithms.behaviour", lambda: of_adam_program(algorithms.behaviour)),
    row("algorithms.mutate", lambda: of_adam_program(algorithms.mutate, jax.random.key(0))),
    row("learned.train_only learned.celo_trainable", partial_updates),
    row("core.checked", lambda: (core.checked(scaled), (theta(),))),
    row("tasks.convolve", convolved),
    row("tasks.environment_pool tasks.oscillator tasks.point_charges", measurements),
    row("core.loss_functions", second_order),
    row("core.keep_finite", lambda: (core.keep_finite, (jnp.array(0.5), ()))),
    row(
        "data.gaussian_mixture",
        lambda: draw(data.gaussian_mixture, num_classes=3, dim=2, num_examples=5),
    ),
    row("data.sample_batch", sample_batch),
    row("data.sample_windows", sample_windows),
    row(
        "data.random_warp", lambda: (data.random_warp, (jnp.ones((2, 4, 3, 1)), jax.random.key(0)))
    ),
    row("data.sinusoids", lambda: draw(data.sinusoids, num_curves=3, points_per_curve=4)),
    row("data.strokes", lambda: draw(data.strokes, num_classes=2, examples_per_class=2, size=4)),
    row(
        "data.teacher_network",
        lambda: draw(data.teacher_network, num_classes=3, dim=2, num_examples=5, hidden=(4,)),
    ),
    row("implicit.minimise implicit.cg", lambda: minimiser(implicit.cg())),
    row(
        "implicit.jacobi implicit.cg",
        lambda: minimiser(implicit.cg(preconditioner=implicit.jacobi())),
    ),
    row(
        "implicit.nystrom_preconditioner implicit.seeded",
        lambda: minimiser(
            implicit.seeded(
                implicit.cg(preconditioner=implicit.nystrom_preconditioner(rank=1, damping=1.0)),
                jax.random.key(1),
            )
        ),
    ),
    row(
        "implicit.nystrom implicit.seeded",
        lambda: minimiser(
            implicit.seeded(implicit.nystrom(rank=2, damping=0.1), jax.random.key(1))
        ),
    ),
    row("implicit.dense", lambda: minimiser(implicit.dense())),
    row("implicit.identity", lambda: minimiser(implicit.identity(scale=0.4))),
    row("implicit.root implicit.gmres", lambda: root(implicit.gmres())),
    row("implicit.bicgstab", lambda: root(implicit.bicgstab())),
    row("implicit.normal_cg", lambda: root(implicit.normal_cg())),
    row("implicit.fixed_point implicit.neumann", fixed_point),
    row("implicit.hypergradient", hypergradient),
    row("train.keep_best", keep_best),
    row(
        "tree.all_finite",
        lambda: (lambda values: tree.all_finite(values), ({"a": theta(), "b": jnp.arange(2)},)),
    ),
    row("tree.cast_like", lambda: (tree.cast_like, ({"a": theta()}, {"a": theta()}))),
    row("tree.reproducible_mean", lambda: (tree.reproducible_mean, (jnp.outer(theta(), theta()),))),
    row("tree.sample_normal", lambda: (tree.sample_normal, ({"a": theta()}, jax.random.key(0)))),
    row("tree.where", lambda: (lambda x, y: tree.where(x[0] > y[0], x, y), (theta(), -theta()))),
    row(
        "unroll.meta_loss unroll.log_uniform unroll.sample_length",
        lambda: whole_trajectory(unroll.meta_loss, horizon=unroll.log_uniform(2, 4)),
    ),
    row(
        "unroll.meta_loss_with_info",
        lambda: whole_trajectory(unroll.meta_loss_with_info, horizon=4, objective="last"),
    ),
    row(
        "unroll.sample_length",
        lambda: draw(lambda key: unroll.sample_length(unroll.log_uniform(2, 8), key)),
    ),
    row("unroll.differentiable", safe_adam),
    row("unroll.mixed_value_and_grad", lambda: inner_gradient(unroll.mixed_value_and_grad)),
    row(
        "unroll.first_order_value_and_grad",
        lambda: inner_gradient(unroll.first_order_value_and_grad),
    ),
    row("unroll.unroll", lambda: unrolled("none")),
    row("unroll.unroll", lambda: unrolled("step"), "unroll.unroll-step"),
    row("unroll.unroll", lambda: unrolled("nested"), "unroll.unroll-nested"),
]


# Estimators -----------------------------------------------------------------------------------

WINDOWS = {"truncation": 2, "horizon": 4, "num_tasks": 2}
WHOLE = {"horizon": 4, "num_tasks": 2}


def on_toy(make, **settings):
    """An estimator on a toy system."""
    return make(toy(), **settings), theta(), ()


def on_network(make, **settings):
    """An estimator on the training of a small network by Celo2."""
    system, theta, pool = training(learned.celo2(0.1, hidden_size=2), small_mlp(), images())
    return make(system, **settings), theta, pool


def on_function(make):
    """An estimator on a meta-loss given as a plain function."""

    def meta_loss(theta, data, key):
        noise = jax.random.normal(key, theta.shape, theta.dtype)
        return jnp.sum((theta - data + 0.1 * noise) ** 2)

    return make(meta_loss, num_tasks=2), theta(), jnp.ones(2)


def bootstrapped():
    """An estimator on a system whose state has parameters."""
    system, *rest = adaptation()
    return estimators.bootstrapped(system, bootstrap=2, **WINDOWS), *rest


def meta_step():
    """The meta-step as a system: theta comes from outside, everything else from the state."""
    families = {
        "counter": estimators.pes(toys.counter(), **WINDOWS),
        "shrink": estimators.es(lambda theta, data, key: (theta - data) ** 2, num_tasks=2),
    }
    outer_opt = optax.adam(0.1)
    step = train.meta_step(families, outer_opt)

    def init(theta, data, key, *, num_steps=None):
        return train.init_state(families, theta, data, key, outer_opt=outer_opt)

    def one_step(theta, state, data, key):
        state, metrics = step(state._replace(theta=theta, key=key), data)
        return state, core.StepInfo(metrics["loss"] + jnp.sum(state.theta), jnp.array(False))

    pools = {"counter": (), "shrink": jnp.array(1.0)}
    return core.System(init, one_step), jnp.array(0.3), pools


def along_random_guesses():
    """Forward gradients along random signs."""
    settings = {"guess": estimators.random_guess(), "normalisation": "unnormalised"}
    return on_function(partial(estimators.forward_gradient, **settings))


def square(predictions, targets):
    """The mean squared error."""
    return jnp.mean((predictions - targets) ** 2)


def along_local_guesses():
    """Forward gradients of two layers along those of their local losses."""
    layers = [lambda p, x: jnp.tanh(x @ p), lambda p, x: x @ p]
    heads = [lambda p, x: x @ p]

    def loss(theta, data, key):
        _, (inputs, targets) = data
        return square(layers[1](theta[1], layers[0](theta[0], inputs)), targets)

    guess = estimators.local_guess(layers, heads, square)
    estimator = estimators.forward_gradient(loss, guess=guess, by_block=True)
    weights = jnp.outer(theta(), theta() + 1)
    data = ([weights], (weights + 1, weights))
    return estimator, [weights, weights - 1], data


def by_feedback():
    """Direct feedback alignment of two layers."""
    layers = [lambda p, x: jnp.tanh(x @ p), lambda p, x: x @ p]
    value_and_grad = estimators.dfa_value_and_grad(layers, square)

    def function(params, inputs, key):
        feedback = estimators.random_feedback(2, [2], key)
        return value_and_grad(params, feedback, (inputs, inputs))

    weights = jnp.outer(theta(), theta() + 1)
    return function, ([weights, weights - 1], weights + 1, jax.random.key(0))


def by_activity():
    """Forward gradients along the activities of two layers."""
    layers = [lambda p, x: jnp.tanh(x @ p), lambda p, x: x @ p]

    def losses(outputs, targets):
        return jnp.sum((outputs - targets) ** 2, axis=1)

    value_and_grad = estimators.activity_value_and_grad(layers, losses)

    def function(params, inputs, key):
        return value_and_grad(params, (inputs, inputs), key)

    weights = jnp.outer(theta(), theta() + 1)
    return function, ([weights, weights - 1], weights + 1, jax.random.key(0))


def by_layer():
    """Two layers, each with a loss of its own, and what they say."""
    layers = [lambda p, x: jnp.tanh(x @ p)] * 2

    def function(params, inputs):
        losses, grads = estimators.layerwise_value_and_grad(layers, estimators.goodness_loss)(
            params, inputs, jnp.array([1.0, -1.0], inputs.dtype)
        )
        return losses, grads, estimators.layerwise_outputs(layers)(params, inputs)

    weights = jnp.outer(theta(), theta() + 1)
    return function, ([weights, weights - 1], weights + 1)


def on_label_nodes():
    """The loss of a graph convolution of four nodes, two of them classes."""

    def function(weights, features):
        labels = jnp.array([1, -1])
        nodes, links = estimators.add_label_nodes(
            features, jnp.eye(2, dtype=features.dtype), labels, num_classes=2
        )
        return estimators.label_node_loss(links @ nodes @ weights, labels, num_classes=2)

    weights = jnp.outer(theta(), theta() + 1)
    return function, (weights, weights + 1)


def score_gradient():
    """A loss of binary samples, with the gradient of its mean."""
    functions = estimators.optimal_baseline(decay=0.5)

    def function(logits, weights, key):
        sample = estimators.straight_through(jax.lax.stop_gradient(logits), key)
        loss = jnp.sum(sample * weights)
        state = functions.update(functions.init(logits), logits, sample, loss)
        log_prob = estimators.bernoulli_log_prob(logits, sample)
        baseline = functions.value(state)
        return estimators.score_function(loss, log_prob, baseline=baseline), state

    return function, (theta(), theta() + 1, jax.random.key(0))


NEURON_ROWS = [
    row("estimators.dfa_value_and_grad estimators.random_feedback", by_feedback),
    row("estimators.activity_value_and_grad", by_activity),
    row(
        "estimators.layerwise_value_and_grad estimators.layerwise_outputs estimators.goodness_loss",
        by_layer,
    ),
    row(
        "estimators.label_node_loss estimators.label_node_logits estimators.add_label_nodes",
        on_label_nodes,
    ),
    row(
        "estimators.score_function estimators.bernoulli_log_prob estimators.optimal_baseline",
        score_gradient,
    ),
    *(
        row(
            f"estimators.{name}",
            lambda name=name: (getattr(estimators, name), (theta(), jax.random.key(0))),
        )
        for name in (
            "straight_through",
            "stochastic_times_smooth",
            "noisy_rectifier",
            "sparsemixer_gate",
        )
    ),
]


ESTIMATOR_ROWS = [
    row("estimators.backprop", lambda: on_toy(estimators.backprop, **WHOLE)),
    row(
        "estimators.backprop",
        lambda: on_function(estimators.backprop),
        "estimators.backprop-function",
    ),
    row("estimators.implicit", implicit_estimator),
    row("estimators.one_step", lambda: implicit_estimator(step_size=0.1, num_tasks=2)),
    row("estimators.best_response", best_response_estimator),
    row("estimators.es", lambda: on_toy(estimators.es, sign=1.0, **WHOLE)),
    row("estimators.es", lambda: on_function(estimators.es), "estimators.es-function"),
    row("estimators.pes", lambda: on_toy(estimators.pes, **WINDOWS)),
    row(
        "estimators.population_es",
        lambda: on_toy(estimators.population_es, horizon=4, num_pairs=2, num_tasks=2),
    ),
    row("estimators.truncated_backprop", lambda: on_toy(estimators.truncated_backprop, **WINDOWS)),
    row("estimators.nres", lambda: on_toy(estimators.nres, **WINDOWS)),
    row("estimators.truncated_es", lambda: on_toy(estimators.truncated_es, **WINDOWS)),
    row("estimators.gpes", lambda: on_toy(estimators.gpes, share=1, **WINDOWS)),
    row(
        "estimators.combined",
        lambda: on_toy(estimators.combined, horizon=4, num_tasks=4, weights="halves"),
    ),
    row("estimators.forward", lambda: on_toy(estimators.forward, columns_at_once=1, **WHOLE)),
    row(
        "estimators.forward",
        lambda: on_toy(estimators.forward, num_directions=1, **WINDOWS),
        "estimators.forward-online",
    ),
    row("estimators.bootstrapped estimators.squared_distance", bootstrapped),
    row("estimators.forward_gradient estimators.random_guess", along_random_guesses),
    row("estimators.local_guess estimators.local_value_and_grad", along_local_guesses),
    row(
        "estimators.pes",
        lambda: on_toy(estimators.pes, ranks=1.0, **WINDOWS),
        "estimators.pes-ranks",
        heavy=True,
    ),
    row(
        "estimators.pes",
        lambda: (
            estimators.pes(ends_by_itself(), truncation=3, horizon=None, num_tasks=2),
            theta(),
            (),
        ),
        "estimators.pes-auto_reset",
        heavy=True,
    ),
    row(
        "estimators.pes",
        lambda: on_network(estimators.pes, **WINDOWS),
        "estimators.pes-network",
        heavy=True,
    ),
    row(
        "estimators.truncated_backprop",
        lambda: on_network(estimators.truncated_backprop, **WINDOWS),
        "estimators.truncated_backprop-network",
        heavy=True,
    ),
    row(
        "estimators.amigo",
        lambda: on_bilevel(estimators.amigo, num_steps=1, num_system_steps=1),
    ),
    row("estimators.bamm", lambda: on_bilevel(estimators.bamm)),
    row("estimators.bome", lambda: on_bilevel(estimators.bome, num_steps=1)),
    row("estimators.bsa", lambda: on_bilevel(estimators.bsa, num_steps=1, num_terms=2)),
    row("estimators.darts", lambda: on_bilevel(estimators.darts)),
    row("estimators.f2sa", lambda: on_bilevel(estimators.f2sa, num_steps=1)),
    row("estimators.fsla", lambda: on_bilevel(estimators.fsla)),
    row("estimators.mrbo", lambda: on_bilevel(estimators.mrbo, num_terms=1)),
    row("estimators.pbgd", lambda: on_bilevel(estimators.pbgd, num_steps=1)),
    row("estimators.pzobo", lambda: on_bilevel(estimators.pzobo, num_steps=1, num_directions=1)),
    row("estimators.saba", lambda: on_bilevel(estimators.saba, batch_size=1)),
    row("estimators.sama", lambda: on_bilevel(estimators.sama, optax.adam(0.1, eps_root=1e-8))),
    row("estimators.soba", lambda: on_bilevel(estimators.soba)),
    row("estimators.srba", lambda: on_bilevel(estimators.srba, period=2)),
    row("estimators.stocbio", lambda: on_bilevel(estimators.stocbio, num_steps=1, num_terms=1)),
    row("estimators.sustain", lambda: on_bilevel(estimators.sustain, num_terms=2)),
    row("estimators.ttsa", lambda: on_bilevel(estimators.ttsa, num_terms=2)),
    row(
        "estimators.vrbo",
        lambda: on_bilevel(estimators.vrbo, period=2, num_steps=1, num_terms=1),
    ),
    row("train.meta_step train.init_state", meta_step),
]


# Learned optimizers ---------------------------------------------------------------------------

HEAVY = ("adam_mlp_orthogonalised", "celo2_orthogonalised", "celo_phase_1", "muvelo")
LEARNED_COVERS = {
    "celo2": "celo2 scale_by_celo2",
    "celo2_orthogonalised": "celo2",
    "adam_mlp_orthogonalised": "adam_mlp",
    "celo_phase_1": "celo",
    "muvelo": "velo",
    "lstm_raw": "lstm",
    "mup": "mup mup_scale scale_by_mup mlp_roles",
    "hyperparameters_adam": "hyperparameters positive fraction",
    "symbolic": "symbolic program simplify",
    "hyperparameters_warmup_cosine": "hyperparameters warmup_cosine fraction",
    "hyperparameters_log_linear": "hyperparameters log_linear",
}


def with_real_setting():
    """A hyperparameter without a bijection."""
    return learned.hyperparameters(
        optax.sgd, learning_rate=learned.positive(0.1), momentum=learned.real(0.5)
    )


OPTIMIZER_ROWS = [
    *(
        Row(
            f"learned.{name}",
            tuple(f"learned.{x}" for x in LEARNED_COVERS.get(name, name).split()),
            make,
            heavy=name in HEAVY,
        )
        for name, make in LEARNED_ROWS
    ),
    row("learned.real", with_real_setting),
]


# ----------------------------------------------------------------------------------------------

# Rows by label, without the number; several seconds of compilation each.
SLOW_TO_COMPILE = {
    "aggregators.cagrad", "aggregators.dual_proj", "aggregators.pcgrad",
    "aggregators.task_flat", "aggregators.upgrad", "algorithms.behaviour",
    "algorithms.mutate", "data.random_warp", "data.strokes", "estimators.backprop",
    "estimators.activity_value_and_grad", "estimators.layerwise_value_and_grad",
    "estimators.backprop-function", "estimators.best_response", "estimators.bootstrapped",
    "estimators.combined", "estimators.es", "estimators.forward-online",
    "estimators.forward_gradient", "estimators.gpes", "estimators.implicit",
    "estimators.local_guess", "estimators.nres", "estimators.one_step", "estimators.pes",
    "estimators.population_es", "estimators.truncated_backprop", "estimators.truncated_es",
    "eval.learning_curve", "eval.probe", "implicit.jacobi", "implicit.minimise",
    "learned.adafac_mlp", "learned.adafac_nominal", "learned.adam_mlp", "learned.celo",
    "learned.celo2", "learned.celo2_mixed", "learned.celo_scheduled",
    "learned.hyperparameters_adam", "learned.isotropic_es", "learned.les", "learned.lga",
    "learned.long_runs", "learned.lstm", "learned.lstm_raw", "learned.mlp", "learned.mup",
    "learned.nn_adam", "learned.random_search", "learned.rnn_mlp", "learned.symbolic",
    "learned.velo", "optimizers.adamp", "optimizers.egn", "optimizers.fosi",
    "optimizers.lanczos_extremes", "optimizers.multistage_predict", "optimizers.nm_mask",
    "optimizers.oasis", "optimizers.opt_amsgrad", "optimizers.shampoo", "optimizers.smb",
    "optimizers.smbi", "optimizers.step_adam", "optimizers.mdgf_linear",
    "optimizers.teleport", "optimizers.teleport_every", "tasks.augmented",
    "tasks.autoencoder", "tasks.convnet", "tasks.environment_pool", "tasks.navigation",
    "tasks.random_directions", "tasks.rnn_lm", "tasks.sample_family",
    "tasks.sinusoid_regression", "tasks.transformer_lm", "tasks.vae",
    "tasks.vision_transformer", "train.meta_step", "unroll.auto_reset", "unroll.episodes",
    "unroll.with_gradient",
}  # fmt: skip

ROWS = [
    *SYSTEM_ROWS,
    *FUNCTION_ROWS,
    *ESTIMATOR_ROWS,
    *NEURON_ROWS,
    *OPTIMIZER_ROWS,
    *numbered("tasks", TASK_ROWS),
    *numbered("tasks", ENVIRONMENT_ROWS),
    *numbered("algorithms", ALGORITHM_ROWS),
    *numbered("eval", EVAL_ROWS),
    *numbered("optimizers", [(r.covers, partial(rules.three_updates, r)) for r in rules.RULES]),
    *numbered("optimizers", rules.HELPERS),
    *numbered("aggregators", AGGREGATOR_ROWS),
]
ROWS = [
    row._replace(heavy=row.heavy or re.sub(r"-\d+$", "", row.label) in SLOW_TO_COMPILE)
    for row in ROWS
]

LOW_PRECISION = {
    label: "computes in bfloat16 on purpose"
    for label in [row.label for row in ROWS]
    if label.startswith("tasks.bfloat16-")
}

EXEMPT_PACKAGES = {
    "cli": "the command line: processes and files, not functions of arrays",
    "doctor": "checks of the machine on the host",
}

# Reason: names.
_EXEMPT = {
    "a rule of optax; its derivatives are tested beside those of `unroll.differentiable`": " ".join(
        f"optimizers.{name}" for name in rules.OF_OPTAX
    ),
    "a contract, or a container that the rows of the factories carry through": """
        aggregators.AGM aggregators.AGMState aggregators.AggregateState aggregators.Aggregator
        aggregators.Fish aggregators.GradNorm aggregators.GradNormState
        tasks.BanditTask tasks.CartPoleTask tasks.Environment tasks.GridworldTask
        tasks.NavigationTask tasks.Policy tasks.Trajectory tasks.ValueFunction
        algorithms.ActorCritic algorithms.LPGAgent algorithms.LPGRule algorithms.LPGState
        algorithms.LPGTargets algorithms.PolicyGradientInfo algorithms.ReturnTheta
        algorithms.DiscoAgent algorithms.DiscoInputs algorithms.DiscoOutputs algorithms.DiscoRule
        algorithms.DiscoState algorithms.DiscoTargets algorithms.DiscoValues
        algorithms.AffineParams algorithms.CamelTheta algorithms.StreamLearner
        algorithms.AmortisedTheta algorithms.Encoded
        tasks.SinusoidStreamTask
        tasks.AffineSystem tasks.EnvironmentPool tasks.EnvironmentTask
        algorithms.MAMLPlusPlusState algorithms.MAMLPlusPlusTheta algorithms.MetaSGDTheta
        algorithms.LearnedLossTheta algorithms.LossWeightsTheta algorithms.MetaCurvatureTheta
        algorithms.NPBMLTheta algorithms.Warped
        algorithms.GradientRegularisationTheta algorithms.LowRank
        algorithms.Episode algorithms.FewShotScores algorithms.MetaLearner data.ClassPool
        algorithms.BoundedTask algorithms.BoxedInputs algorithms.ClusteredTask
        algorithms.Bounds algorithms.Clusters algorithms.Distilled algorithms.MixedInputs
        algorithms.MixedTask algorithms.ModulatedTheta algorithms.Modulation
        algorithms.RelatedTasks algorithms.Remembered
        algorithms.Transduction tasks.Embedded tasks.LinearHead
        tasks.FewShotTask tasks.Query tasks.Support tasks.SupportedBatch
        tasks.CoordinateTask tasks.Overlap tasks.Reconstruction tasks.ShapeTask
        algorithms.SearchState learned.IsotropicESState learned.LearnedStrategy learned.LESSpread
        learned.LESState learned.LGAState learned.RandomSearchState learned.Strategy
        tasks.BlackBoxTask
        core.BilevelProblem core.BilevelState core.Estimate core.EstimateInfo core.Estimator
        core.LearnedOptimizer core.Oracles core.Split core.StepInfo core.System core.TaskFamily
        core.TrainingState data.Dataset data.Pool data.TextDataset data.TextPool
        estimators.BestResponseState estimators.Response optimizers.ComplexMomentumState
        estimators.Baseline estimators.BaselineState
        optimizers.ShampooState
        optimizers.AdaGradNormState optimizers.AutoClipState optimizers.DiffGradState
        optimizers.GradientHistory optimizers.OptAMSGradState
        optimizers.PolynomialAveragingState
        optimizers.EGNState optimizers.Eigenpairs optimizers.FosiState optimizers.OasisState
        optimizers.SecondOrderMup
        optimizers.AcceleratedState optimizers.FirstOrderSolver optimizers.FrankWolfeState
        optimizers.MirrorMap optimizers.MirrorState optimizers.SolverInfo optimizers.SANIAState
        optimizers.AISarah optimizers.AISarahState optimizers.LREstimateState optimizers.SMBState
        optimizers.TeleportState optimizers.DualAveragingState optimizers.MaskedEntriesState
        optimizers.SMBiState optimizers.StepAdamState estimators.SparseGate
        estimators.ImplicitInfo estimators.ImplicitState
        implicit.HyperInfo implicit.LinearSolver implicit.Operator implicit.SolveInfo
        implicit.Status
        estimators.AmIGOState estimators.DARTSState estimators.DoubleLoopState
        estimators.F2SAState estimators.FSLAState estimators.GradientTable
        estimators.MomentumState estimators.PBGDState estimators.SABAState estimators.SAMAState
        estimators.SOBAState estimators.SRBAState estimators.VRBOState
        estimators.BootstrappedInfo estimators.BootstrappedState estimators.CombinedInfo
        estimators.ForwardState estimators.GPESState
        estimators.NRESState estimators.PESState estimators.TruncatedBackpropState
        estimators.TruncatedESState
        eval.CoordinateCheck eval.Curves eval.NormalisedLosses
        learned.RawAdamMoments learned.RawAdamState tasks.MuPMetrics
        learned.AdafacMLPMoments learned.AdafacMLPState learned.CeloScheduledState
        learned.EntryMoments
        learned.AdamMLPState unroll.LateLossesState
        learned.LongRunsState learned.LossHistory learned.ScheduledState learned.Factored
        learned.Learnable learned.MLPState learned.Program learned.SymbolicState
        learned.CoordinateLSTMState learned.LSTMState learned.LossAverage learned.NNAdamMoments
        learned.NNAdamState learned.RNNMLPMoments learned.RNNMLPState tasks.LeastSquaresTask
        tasks.Augmented tasks.ESGradientTask tasks.SampledFamily tasks.ScaledInitTask
        unroll.DelayedState
        tasks.ELBO tasks.GradientNoiseTask tasks.Metrics tasks.QuadraticTask tasks.ReducedBatchTask
        tasks.RescaledTask tasks.RosenbrockTask tasks.SinusoidTask
        train.TrainState unroll.AutoResetState unroll.Episode unroll.Episodes
        unroll.FrozenState unroll.Horizon unroll.MemoryReport unroll.MetaLossInfo unroll.Window
    """,
    "a type alias": """
        optimizers.Predictor
        tasks.BatchStatistics tasks.FieldNetwork
        core.Batch core.Data core.Theta
        core.MetaLoss core.OuterLoss core.Params core.Scalar core.TaskParams
        learned.Nominal learned.Preprocess
        estimators.Draws estimators.InnerSolver implicit.OnFailure implicit.Preconditioner
        implicit.Sketch implicit.Solution implicit.Structure implicit.Tolerance
        estimators.Barrier estimators.Gap estimators.Mixed
        estimators.Pooling estimators.Shaping
        optimizers.BatchSizeTest
        optimizers.Difference optimizers.Symmetry
        estimators.Normalisation
        estimators.Boundary estimators.CombinedWeights estimators.Directions eval.EstimatorFactory
        eval.Metric unroll.Gradient unroll.Loop unroll.Objective unroll.Remat
    """,
    "a container or an error of the host side": """
        algorithms.EvolutionCounts algorithms.EvolutionResult algorithms.FeatureClusters
        data.Stream
        eval.Bias eval.Diagnosis eval.EstimatorDiagnosis eval.HorizonDiagnosis eval.Samples
        eval.Slice
        eval.Baseline eval.Comparison eval.Interval eval.Protocol eval.Result eval.Speedup
        eval.AdaptationChoice eval.AdaptationTrial eval.TuneResult
        eval.Contender eval.SuiteProblem eval.SuiteSettings eval.SuiteTask
        train.BestProbe train.Checkpoints train.Compiled train.Membership train.Metrics
        train.Probe train.RunCurves train.RunError train.RunFolderError train.RunStatus
        train.StopRequest train.TrainResult
    """,
    "reads files or generates batches on the host": """
        data.by_class data.digits data.photographs data.stream data.tabular data.text
        data.tfds_class_pool data.tfds_dataset data.tfds_stream
    """,
    "compiles and loops on the host, over functions that have rows": """
        algorithms.evolve eval.compare eval.coordinate_check eval.diagnose eval.run_suite
        eval.sample_estimator eval.tune eval.tune_adaptation
        train.compile_step train.meta_train
    """,
    "reads or writes files": """
        train.load_theta train.open_folder train.plot_runs train.read_metrics train.run_curves
        train.Record train.run_status train.save_theta train.write_json eval.save_figure
        learned.load learned.pretrained learned.pretrained_card learned.pretrained_names
        learned.save learned.weights_info tree.from_named tree.named tree.read_arrays
        tree.write_arrays
    """,
    "places arrays on devices": "train.task_sharding",
    "joins processes on the network": "train.initialize_distributed",
    "scores or reports of finished curves, computed in NumPy": """
        eval.bias eval.recommend eval.relative_noise eval.roughness eval.smoothed
        eval.envelope eval.figure eval.iqm eval.iqm_interval eval.smooth eval.speedup_over
        eval.speedup_over_envelope eval.steps_to eval.table eval.to_json
        eval.suite_figure eval.suite_table
    """,
    "makes factories of estimators that have rows": "eval.standard_estimators",
    "lists tasks and optimizers that have rows, or are those of optax": """
        eval.as_contender eval.pretrained_contender eval.suite_baselines eval.suite_tasks
    """,
    "for float64 alone, with a line search that has no gradient": "optimizers.multistage_fit",
    "has a line search, which has no gradient": "optimizers.boost_units",
    "a hash of numbers, for names of files": "eval.theta_digest",
    "clusters on the host, by scikit-learn": "algorithms.feature_clusters",
    "Python numbers in, Python numbers out": """
        optimizers.grow_batch_size
        algorithms.memory_ratio eval.log_grid optimizers.mup_second_order unroll.as_horizon
    """,
    "facts about functions, found on the host": """
        unroll.memory_report unroll.memory_table unroll.takes_value_and_grad
    """,
}
EXEMPT = {name: reason for reason, names in _EXEMPT.items() for name in names.split()}
