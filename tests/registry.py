"""Every public name: a row that the conformance tests check, or a reason why it has none.

A row names what it covers, as `package.name`, and builds one of

    (TaskFamily, data)                           a family and its pool
    LearnedOptimizer
    (System or Episodes or Estimator, theta, data)
    (function, args)                             a pure function; args[0] is what is differentiated

A new public factory needs one row here, and nothing else, to be checked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt import core, data, estimators, learned, optimizers, tasks, train, tree, unroll
from tests.estimators import toys
from tests.eval.rows import EVAL_ROWS
from tests.learned.rows import ROWS as LEARNED_ROWS
from tests.tasks.rows import TASK_ROWS, images, linear_classifier, small_mlp


class Row(NamedTuple):
    """What the conformance tests check.

    Attributes:
        label: the name of the test.
        covers: the public names that the row stands for.
        make: builds it, in the precision in force.
        heavy: takes long to compile, and is one of several rows of its names.
    """

    label: str
    covers: tuple[str, ...]
    make: Callable[[], Any]
    heavy: bool = False


def row(covers: str, make: Callable[[], Any], label: str = "", *, heavy: bool = False) -> Row:
    """A row for names separated by spaces; the first one is its label."""
    names = tuple(covers.split())
    return Row(label or names[0], names, make, heavy)


def numbered(package: str, rows) -> list[Row]:
    """Rows `(name, thunk)` of one package; a name may have several."""
    labels = [f"{package}.{name}-{index}" for index, (name, _) in enumerate(rows)]
    return [
        Row(label, (f"{package}.{name}",), make)
        for label, (name, make) in zip(labels, rows, strict=True)
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


def episodes():
    """Windows with resets."""
    horizon = unroll.log_uniform(2, 6)
    return unroll.episodes(toy(), truncation=2, horizon=horizon), theta(), ()


SYSTEM_ROWS = [
    row("core.training", lambda: training(adam(), linear_classifier(), images())),
    row("core.training", validated_training, "core.training-validation", heavy=True),
    row("core.adaptation", adaptation),
    row("core.bilevel_training", bilevel_training),
    row("unroll.freeze_diverged", lambda: (unroll.freeze_diverged(toy()), theta(), ())),
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


def draw(function, **settings):
    """A function of a key alone."""
    return lambda key: function(key, **settings), (jax.random.key(0),)


def sample_batch():
    """A minibatch, as a function of pool and key."""

    def batch(pool, key):
        return data.sample_batch(pool, key, batch_size=4)

    return batch, (data.Pool(jnp.ones((3, 2)), jnp.arange(3)), jax.random.key(0))


def keep_best():
    """A run's state with the best theta, as a function of theta and its score."""

    def best(theta, score, key):
        state = train.init_state({}, theta, {}, key, outer_opt=optax.sgd(0.1))
        state = train.keep_best(state._replace(theta=2 * theta), score)
        return state.best_theta, state.best_score

    return best, (theta(), jnp.array(0.5), jax.random.key(0))


def three_updates(tx):
    """Where three steps of an optax transformation lead, as a function of the first gradients."""

    def end(grads, params):
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            grads = jax.tree.map(jnp.sin, grads)
        return params

    return end, ({"a": theta()}, {"a": theta() + 1})


FUNCTION_ROWS = [
    row("core.keep_finite", lambda: (core.keep_finite, (jnp.array(0.5), ()))),
    row(
        "data.gaussian_mixture",
        lambda: draw(data.gaussian_mixture, num_classes=3, dim=2, num_examples=5),
    ),
    row("data.sample_batch", sample_batch),
    row("data.sinusoids", lambda: draw(data.sinusoids, num_curves=3, points_per_curve=4)),
    row("data.strokes", lambda: draw(data.strokes, num_classes=2, examples_per_class=2, size=4)),
    row(
        "data.teacher_network",
        lambda: draw(data.teacher_network, num_classes=3, dim=2, num_examples=5, hidden=(4,)),
    ),
    row(
        "optimizers.complex_momentum optimizers.scale_by_complex_momentum",
        lambda: three_updates(optimizers.complex_momentum(0.1)),
    ),
    row("train.keep_best", keep_best),
    row(
        "tree.all_finite",
        lambda: (lambda values: tree.all_finite(values), ({"a": theta(), "b": jnp.arange(2)},)),
    ),
    row("tree.cast_like", lambda: (tree.cast_like, ({"a": theta()}, {"a": theta()}))),
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


ESTIMATOR_ROWS = [
    row("estimators.backprop", lambda: on_toy(estimators.backprop, **WHOLE)),
    row(
        "estimators.backprop",
        lambda: on_function(estimators.backprop),
        "estimators.backprop-function",
    ),
    row("estimators.best_response", best_response_estimator),
    row("estimators.es", lambda: on_toy(estimators.es, sign=1.0, **WHOLE)),
    row("estimators.es", lambda: on_function(estimators.es), "estimators.es-function"),
    row("estimators.pes", lambda: on_toy(estimators.pes, **WINDOWS)),
    row("estimators.truncated_backprop", lambda: on_toy(estimators.truncated_backprop, **WINDOWS)),
    row("estimators.nres", lambda: on_toy(estimators.nres, **WINDOWS)),
    row("estimators.truncated_es", lambda: on_toy(estimators.truncated_es, **WINDOWS)),
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
    row("train.meta_step train.init_state", meta_step),
]


# Learned optimizers ---------------------------------------------------------------------------

LEARNED_COVERS = {
    "celo2": "celo2 scale_by_celo2",
    "celo2_orthogonalised": "celo2",
    "hyperparameters_adam": "hyperparameters positive fraction",
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
            heavy=name == "celo2_orthogonalised",
        )
        for name, make in LEARNED_ROWS
    ),
    row("learned.real", with_real_setting),
]


# ----------------------------------------------------------------------------------------------

ROWS = [
    *SYSTEM_ROWS,
    *FUNCTION_ROWS,
    *ESTIMATOR_ROWS,
    *OPTIMIZER_ROWS,
    *numbered("tasks", TASK_ROWS),
    *numbered("eval", EVAL_ROWS),
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
    "a contract, or a container that the rows of the factories carry through": """
        core.BilevelProblem core.BilevelState core.Estimate core.EstimateInfo core.Estimator
        core.LearnedOptimizer core.Oracles core.Split core.StepInfo core.System core.TaskFamily
        core.TrainingState data.Dataset data.Pool
        estimators.BestResponseState estimators.Response optimizers.ComplexMomentumState
        estimators.NRESState estimators.PESState estimators.TruncatedBackpropState
        estimators.TruncatedESState
        eval.Curves eval.NormalisedLosses
        learned.AdafacMLPMoments learned.AdafacMLPState learned.Celo2Moments learned.Factored
        learned.Learnable learned.MLPState
        tasks.GradientNoiseTask tasks.Metrics tasks.QuadraticTask tasks.ReducedBatchTask
        tasks.RescaledTask tasks.SinusoidTask
        train.TrainState unroll.AutoResetState unroll.Episode unroll.Episodes
        unroll.FrozenState unroll.Horizon unroll.MetaLossInfo unroll.Window
    """,
    "a type alias": """
        core.MetaLoss core.OuterLoss core.Params core.Scalar core.TaskParams
        estimators.Boundary eval.Metric unroll.Objective unroll.Remat
    """,
    "a container or an error of the host side": """
        data.Stream
        eval.Baseline eval.Comparison eval.Interval eval.Protocol eval.Result eval.Speedup
        eval.TuneResult
        train.Checkpoints train.Compiled train.Metrics train.Probe train.RunFolderError
        train.StopRequest train.TrainResult
    """,
    "reads files or generates batches on the host": """
        data.digits data.stream data.tfds_dataset data.tfds_stream
    """,
    "compiles and loops on the host, over functions that have rows": """
        eval.compare eval.tune train.compile_step train.meta_train
    """,
    "reads or writes files": """
        train.load_theta train.open_folder train.read_metrics train.save_theta train.write_json
    """,
    "places arrays on devices": "train.task_sharding",
    "scores or reports of finished curves, computed in NumPy": """
        eval.envelope eval.figure eval.iqm eval.iqm_interval eval.smooth eval.speedup_over
        eval.speedup_over_envelope eval.steps_to eval.table eval.to_json
    """,
    "Python numbers in, Python numbers out": "eval.log_grid unroll.as_horizon",
}
EXEMPT = {name: reason for reason, names in _EXEMPT.items() for name in names.split()}
