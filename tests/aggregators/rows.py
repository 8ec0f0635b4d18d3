"""Rows of `metaopt.aggregators` for the conformance tests: (names covered, thunk).

The thunk gives what `tests.registry` lists, usually (function, args) where args[0] is what is
differentiated.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt import aggregators


def jacobian():
    """Three gradients of a tree of three numbers, two of them in conflict."""
    return {
        "a": jnp.array([0.5, -0.3, 0.2]),
        "b": jnp.array([[1.0, -0.5], [0.4, 1.5], [-0.2, 0.6]]),
    }


def of(aggregator):
    """What is checked of an aggregator."""
    return aggregator.aggregate, (jacobian(), jax.random.key(0))


def first_stage():
    """Two updates of a chain."""
    tx = optax.chain(aggregators.aggregate(aggregators.mean()), optax.sgd(0.1))

    def function(jacobian):
        params = jax.tree.map(lambda x: x[0], jacobian)
        state = tx.init(params)
        updates, state = tx.update(jacobian, state, params)
        return updates, tx.update(jacobian, state, params)[0]

    return function, (jacobian(),)


def jacobian_of_losses():
    """Two losses of a vector."""

    def losses(params):
        return jnp.stack([jnp.sum(params**2), jnp.sum(jnp.sin(params))])

    return aggregators.value_and_jacobian(losses), (jnp.array([0.5, -0.3]),)


def shortest(gramian, key=None):
    """A rule of one's own."""
    return jax.nn.softmax(-jnp.diagonal(gramian))


def square_loss(params, batch):
    """Of one domain, whose centre is the batch."""
    return jnp.sum((1 + batch**2) * (params["x"] - batch) ** 2)


def domain_steps():
    """A step over three domains."""
    step = aggregators.fish(square_loss, optax.sgd(0.1, momentum=0.9))

    def function(params, batch, key):
        return step.update(params, step.init(params), batch, key)

    domains = jnp.array([[0.5, 1.0], [-0.3, 0.2], [1.5, -1.0]])
    return function, ({"x": jnp.array([0.3, -0.7])}, domains, jax.random.key(0))


def agreement():
    """The exact counterpart of Fish."""
    args = {"x": jnp.array([0.3, -0.7])}, jnp.array([[0.5, 1.0], [-0.3, 0.2]])
    return aggregators.inner_product_gradient(square_loss), args


def loss_weights(form):
    """Two updates of the weights of three losses, from the gradients of a shared layer."""
    controller = aggregators.gradnorm(optax.adam(0.1), form=form)

    def function(jacobian, losses):
        state = controller.init(jnp.ones_like(losses))
        for _ in range(2):
            lengths = aggregators.row_lengths(jacobian)
            state = controller.update(state, losses, lengths)
        return aggregators.combine(controller.weights(state), jacobian)

    return function, (jacobian(), jnp.array([0.5, 2.0, 1.0]))


def flat_tasks():
    """Gradients of two tasks with a head each."""

    def losses(target):
        return lambda shared, head, batch: jnp.mean((batch @ shared * head - target) ** 2)

    function = aggregators.task_flat([losses(1.0), losses(-0.5)], aggregators.mgda(num_steps=5))
    shared, heads = jnp.array([0.5, -0.3]), (jnp.array(0.7), jnp.array(-0.2))
    return function, (shared, heads, jnp.array([[1.0, 2.0], [0.5, -1.0], [0.2, 0.3]]))


def modulated():
    """The loss of two modalities, with the coefficients of the second step."""
    controller = aggregators.agm()
    labels = jnp.array([0, 2])

    def function(params, modalities):
        def network(a, v):
            return jnp.tanh(params * a[:, None] + v[:, None] * a[:, None] ** 2)

        outputs = aggregators.shapley_outputs(network, modalities)
        state = controller.update(controller.init(2), outputs, labels)[1]
        k, _ = controller.update(state, outputs, labels)
        return sum(aggregators.modulate(x, k[i]) for i, x in enumerate(outputs))

    modalities = jnp.array([0.5, -1.0]), jnp.array([0.3, 0.8])
    return function, (jnp.array([[0.5, -0.3, 1.0]]), modalities)


AGGREGATOR_ROWS = [
    ("mean", lambda: of(aggregators.mean())),
    ("upgrad", lambda: of(aggregators.upgrad())),
    ("dual_proj", lambda: of(aggregators.dual_proj())),
    ("mgda", lambda: of(aggregators.mgda(num_steps=5))),
    ("pcgrad", lambda: of(aggregators.pcgrad())),
    ("cagrad", lambda: of(aggregators.cagrad())),
    ("imtl_g", lambda: of(aggregators.imtl_g())),
    ("nash_mtl", lambda: of(aggregators.nash_mtl())),
    ("aligned_mtl", lambda: of(aggregators.aligned_mtl())),
    ("graddrop", lambda: of(aggregators.graddrop(leak=jnp.full(3, 0.1)))),
    ("by_gramian combine gramian", lambda: of(aggregators.by_gramian(shortest))),
    ("aggregate", first_stage),
    ("value_and_jacobian", jacobian_of_losses),
    ("gradnorm row_lengths", lambda: loss_weights("log")),
    ("gradnorm", lambda: loss_weights("linear")),
    ("fish", domain_steps),
    ("inner_product_gradient", agreement),
    ("task_flat", flat_tasks),
    ("agm modulate shapley_outputs", modulated),
]
