"""Rows of `metaopt.algorithms` for the conformance tests: (names covered, thunk).

The thunk gives what `tests.registry` lists; learners give their estimator, theta and data. The
first name is the label; a name may have several rows.
"""

import jax
import jax.numpy as jnp
import optax

from metaopt import algorithms, core, data, optimizers, tasks

SHAPE = (3, 4, 2, 2, 1)


def parabolas():
    """A family of two parameters."""
    return tasks.quadratic(dim=2)


def two_layers():
    """A network of a body and a head."""
    return tasks.sinusoid_regression(hidden=(2,), activation="tanh", batch_size=3)


def episodes():
    """Three classes of four 2 x 2 images, as the data of few-shot families."""
    inputs = jax.random.normal(jax.random.key(0), SHAPE)
    return tasks.episodes(data.ClassPool(inputs))


def linear_few_shot():
    """2-way 1-shot classification of them by a linear map."""
    return tasks.few_shot(
        lambda key: {"w": jax.random.normal(key, (4, 2)), "b": jnp.zeros(2)},
        lambda params, x: x.reshape(len(x), -1) @ params["w"] + params["b"][None],
        pool_shape=SHAPE,
        num_ways=2,
        num_shots=1,
        num_queries=2,
    )


def of(learner, pool=()):
    """What is checked of a learner: its meta-gradient at its initial theta."""
    return learner.estimator, learner.init(jax.random.key(1)), pool


def camel():
    """Two features, three environments."""
    init, apply = algorithms.affine_network(2, 2, hidden=(3,))
    pool = tasks.environment_pool(
        tasks.oscillator(), jax.random.key(2), num_environments=3, num_points=5
    )
    family = tasks.environments(
        init, apply, pool_shape=pool.inputs.shape, num_shots=3, num_queries=2
    )
    return of(algorithms.camel(family, num_environments=3), tasks.episodes(pool))


def linear(params, inputs):
    """The network of `linear_few_shot`."""
    return inputs.reshape(len(inputs), -1) @ params["w"] + params["b"][None]


def stream_of_sinusoids():
    """Learning online from two functions, a batch of each."""
    family = tasks.sinusoid_stream(
        hidden=(3,), num_functions=2, num_batches=1, batch_size=2, num_queries=2
    )
    return of(algorithms.interference(family, optax.sgd(0.1), num_tasks=2), tasks.episodes(()))


def continual(stream_learner):
    """Two support sets of one class each, as the meta-gradient of a learner of streams."""
    pool = episodes()
    embed = lambda body, x: x.reshape(len(x), -1) @ body  # noqa: E731
    family = tasks.few_shot_continual(
        tasks.few_shot_embedding(
            lambda key: jax.random.normal(key, (4, 3)),
            embed,
            pool_shape=SHAPE,
            num_ways=2,
            num_shots=1,
            num_queries=2,
        ),
        num_ways=1,
        num_sets=2,
    )
    init, learner = stream_learner(family, embed)
    adapt = algorithms.through_stream(learner)

    def loss(theta, data, key):
        task_params = family.sample(key)
        key = jax.random.clone(key)
        support = family.batch(data.inner, task_params, key)
        params = adapt(theta, task_params, support, jax.random.clone(key))
        query = family.batch(data.outer, task_params, jax.random.clone(key))
        return family.loss(params, task_params, query, jax.random.clone(key))[0]

    theta = init(family.init(family.sample(jax.random.key(0)), jax.random.key(1)))
    return loss, (theta, pool, jax.random.key(2))


def encoded_points():
    """A code of two numbers for the two numbers that a task is."""
    family = parabolas()

    def loss(params, task_params, batch, key):
        return family.loss(params.field + params.code, task_params, batch, key)

    def init(task_params, key):
        return algorithms.Encoded(family.init(task_params, key), jnp.zeros(2))

    return of(
        algorithms.amortised(
            family._replace(init=init, loss=loss),
            lambda key: jax.random.normal(key, (2, 2)),
            lambda encoder, task_params, support: encoder @ jnp.ones(2, encoder.dtype),
            num_tasks=2,
        )
    )


def pixels_times(body, inputs):
    """A linear embedding of four inputs, or the first layer of one in two parts."""
    return jnp.tanh(inputs.reshape(len(inputs), -1) @ body)


def embedding_family(embed=pixels_times):
    """The same tasks as `linear_few_shot`, by an embedding and a head."""
    return tasks.few_shot_embedding(
        lambda key: jax.random.normal(key, (4, 3)),
        embed,
        pool_shape=SHAPE,
        num_ways=2,
        num_queries=2,
    )


def noisy(inputs, key):
    """A distortion."""
    return inputs + 0.1 * jax.random.normal(key, inputs.shape, inputs.dtype)


def mixed_few_shot():
    """Interpolated tasks, mixed after a layer."""
    embed = algorithms.mix_hidden(pixels_times, lambda body, hidden: hidden @ body.T)
    return algorithms.mlti(embedding_family(embed), where="hidden"), episodes().inner


def modulated():
    """Prototypes with a modulated first layer."""

    def above(body, hidden):
        return hidden @ body.T

    family = embedding_family(lambda body, inputs: above(body, pixels_times(body, inputs)))
    settings = {"num_features": 3, "num_samples": 2, "num_tasks": 2}
    return of(algorithms.meta_modulation(family, pixels_times, above, **settings), episodes())


def statistics_by_step():
    """Statistics before and after a step, as a function of the pool."""
    shape = (2, 3, 2, 2, 1)
    family = tasks.few_shot_convnet(shape, num_ways=2, num_shots=1, num_queries=2, channels=(2,))
    settings = {"per_step": algorithms.batch_norm_leaves, "num_steps": 1}
    theta = algorithms.maml_plus_plus(family, **settings).init(jax.random.key(0))
    measure = algorithms.step_statistics(family, num_steps=1, num_episodes=2)

    def statistics(inputs, key):
        cast = lambda x: x.astype(inputs.dtype)  # noqa: E731
        pool = tasks.episodes(data.ClassPool(inputs))
        return measure(jax.tree.map(cast, theta), pool, key).params["statistics"]

    return statistics, (jax.random.normal(jax.random.key(1), shape), jax.random.key(2))


def transduced():
    """The loss of a query set, as a function of an embedding."""
    family, adapt = algorithms.transductive(
        embedding_family(), pixels_times, num_rounds=2, pull=0.5
    )

    def loss(theta, pools, key):
        scores = algorithms.few_shot_scores(family, adapt, num_tasks=2)
        return scores(theta, pools, key).loss

    return loss, (jnp.ones((4, 3)).at[0].set(0.5), episodes(), jax.random.key(0))


def clustered():
    """Queries around one labelled example of each of two classes."""

    def clusters(features, support):
        return algorithms.soft_clusters(features, support, jnp.arange(2), num_ways=2, num_rounds=2)

    return clusters, (jnp.eye(4, 3), jnp.array([[1.0, 0.2, 0.0], [0.0, 0.1, 0.5]]))


def head_by(make, **settings):
    """A head, as a function of features."""

    def head(features):
        return make(features, jnp.array([0, 1, 1]), num_ways=2, **settings)

    return head, (jnp.array([[1.0, 0.2], [0.0, 0.1], [0.3, 0.8]]),)


def logistic():
    """Logistic regression, which has no derivative in reverse mode."""
    solve, (features,) = head_by(algorithms.logistic_regression, num_steps=2)
    return lambda features: solve(jax.lax.stop_gradient(features)), (features,)


def boxes(params, inputs, *, eps):
    """Bounds after the first layer of `two_layers`."""
    return algorithms.interval_bounds(params[:1], inputs, eps=eps, activation=jnp.tanh)


def boxed(layers):
    """Bounds as a function of a layer."""
    return algorithms.interval_bounds(layers, jnp.array([[0.3, -0.2]]), eps=0.1)


def bounded_few_shot():
    """Tasks interpolated between bounds after a layer."""

    def bounds(body, inputs, *, eps):
        return algorithms.interval_bounds([{"w": body, "b": jnp.zeros(3)}], inputs, eps=eps)

    embed = algorithms.mix_bounds(bounds, lambda body, hidden: jnp.tanh(hidden @ body.T))
    made = algorithms.interval_tasks(embedding_family(embed), num_classes=2, probability=1.0)
    return made, episodes().inner


def prompted_few_shot():
    """A prompt for a frozen linear model."""
    weights = jnp.arange(8.0).reshape(4, 2) / 8
    return algorithms.prompted(
        linear_few_shot(),
        lambda images: jnp.tanh(images.reshape(len(images), -1) @ weights.astype(images.dtype)),
        image_shape=SHAPE[2:],
    )


def curves_of_parabolas():
    """Losses before, between and after two steps."""
    curves = algorithms.adaptation_curves(parabolas(), optax.sgd, **STEPS)

    def at_a_rate(theta, key):
        return curves(theta, (), key, learning_rate=0.1)

    return at_a_rate, (jnp.array([0.3, -0.2]), jax.random.key(0))


def kinds_of_tasks():
    """Three parabolas, two of them drawn."""
    centres = jnp.array([[1.0, 0.0], [0.0, 3.0], [-2.0, 1.0]])
    estimator = algorithms.diverse_tasks(
        lambda theta, index, data, key: jnp.sum((theta - data[index]) ** 2), num_tasks=2
    )
    kernel = algorithms.task_kernel(centres)
    return estimator, jnp.array([0.3, -0.2]), algorithms.RelatedTasks(centres, kernel)


STEPS = {"num_steps": 2, "num_tasks": 2}


def small_bandit():
    """Two arms, and a policy of two logits."""
    return tasks.bandit(num_arms=2), tasks.categorical_policy(1, 2)


def small_navigation():
    """Two steps in the plane."""
    return tasks.navigation(), tasks.gaussian_policy(2, 2, hidden=(2,))


def learned_return():
    """The training of a critic, and of the discount that it learns from."""
    environment = tasks.random_walk(num_states=3)
    problem = algorithms.meta_gradient_rl(
        environment,
        tasks.categorical_policy(3, 2),
        tasks.value_function(3),
        horizon=3,
        num_episodes=2,
    )
    system = core.bilevel_training(problem, optax.sgd(0.1))
    return system, algorithms.return_theta(0.7, 0.5), environment.sample(jax.random.key(0))


def learned_rule():
    """An agent on bandits that learns by a network."""
    rule = algorithms.lpg_rule(num_predictions=2, hidden=2, embedding=2)
    agent = algorithms.lpg_agent(1, 2, num_predictions=2)
    system = algorithms.learned_policy_gradient(
        tasks.bandit(num_arms=2), agent, rule, optax.sgd(0.5), horizon=1, num_episodes=2
    )
    return system, rule.init(jax.random.key(0)), ()


def disco():
    """An agent on a small board that learns by another network."""
    rule = algorithms.disco_rule(num_predictions=2, hidden=2, lifetime=2, embedding=2, channels=2)
    environment = tasks.catch(rows=3, columns=2)
    agent = algorithms.disco_agent(6, 3, num_predictions=2, num_bins=3, hidden=(2,), model=2)
    system = algorithms.disco_rl(
        environment,
        agent,
        rule,
        optimizers.disco_adam(0.01),
        tasks.value_function(6),
        optax.sgd(0.1),
        horizon=2,
        num_episodes=2,
        max_value=2.0,
    )
    return system, rule.init(jax.random.key(0)), ()


ALGORITHM_ROWS = [
    (
        "prototypes prototype_head",
        lambda: of(algorithms.prototypes(embedding_family(), pixels_times), episodes()),
    ),
    ("cosine_head", lambda: head_by(algorithms.cosine_head)),
    ("logistic_regression", logistic),
    (
        "good_embedding",
        lambda: of(
            algorithms.good_embedding(
                embedding_family(), pixels_times, num_classes=3, batch_size=4, augment=noisy
            ),
            episodes(),
        ),
    ),
    ("soft_clusters", clustered),
    ("transductive", transduced),
    (
        "proto_transfer",
        lambda: of(
            algorithms.proto_transfer(
                embedding_family(), pixels_times, optax.sgd(0.1), augment=noisy, num_images=5
            ),
            episodes(),
        ),
    ),
    (
        "finetune_prototypes",
        lambda: of(
            algorithms.finetune_prototypes(
                embedding_family(), pixels_times, optax.sgd(0.1), augment=noisy, **STEPS
            ),
            episodes(),
        ),
    ),
    ("mlti mix_hidden", mixed_few_shot),
    ("meta_modulation", modulated),
    (
        "modulate",
        lambda: (
            algorithms.modulate,
            (
                jnp.ones((2, 3)),
                algorithms.Modulation(jnp.full((2, 3), 0.3), jnp.full((2, 3), -1.0)),
                jax.random.key(0),
            ),
        ),
    ),
    ("interval_bounds", lambda: (boxed, ([{"w": jnp.eye(2), "b": jnp.ones(2)}],))),
    (
        "interval_maml",
        lambda: of(algorithms.interval_maml(two_layers(), optax.sgd(0.1), boxes, **STEPS)),
    ),
    ("interval_tasks mix_bounds", bounded_few_shot),
    ("prompted", lambda: (prompted_few_shot(), episodes().inner)),
    (
        "visual_prompts",
        lambda: of(
            algorithms.visual_prompts(prompted_few_shot(), optax.sgd(0.1), **STEPS), episodes()
        ),
    ),
    ("adaptation_curves", curves_of_parabolas),
    ("diverse_tasks task_kernel", kinds_of_tasks),
    (
        "k_dpp",
        lambda: (lambda key: algorithms.k_dpp(jnp.eye(4), key, size=2), (jax.random.key(0),)),
    ),
    (
        "maml_rl",
        lambda: of(
            algorithms.maml_rl(
                *small_bandit(),
                optax.sgd(0.1),
                horizon=1,
                estimator="emaml",
                num_episodes=2,
                baseline="mean",
                num_steps=1,
                num_tasks=1,
            )
        ),
    ),
    (
        "policy_gradient",
        lambda: (algorithms.policy_gradient(*small_bandit(), horizon=1, num_episodes=3), ()),
    ),
    (
        "policy_gradient",
        lambda: (
            algorithms.policy_gradient(
                *small_navigation(), horizon=2, num_episodes=2, surrogate="dice", normalise=True
            ),
            (),
        ),
    ),
    ("meta_gradient_rl return_theta return_settings", learned_return),
    ("learned_policy_gradient lpg_agent lpg_rule", learned_rule),
    ("disco_rl disco_agent disco_rule", disco),
    (
        "lambda_returns",
        lambda: (
            algorithms.lambda_returns,
            (jnp.array([1.0, 2.0]), jnp.array([0.9, 0.5]), jnp.array([0.3, 0.1]), jnp.array(0.7)),
        ),
    ),
    ("amortised", encoded_points),
    ("camel affine_network", camel),
    ("interference online", stream_of_sinusoids),
    (
        "continued through_stream",
        lambda: continual(
            lambda family, embed: (
                lambda params: params,
                algorithms.continued(algorithms.maml(family, optax.sgd(0.1), num_steps=1)),
            )
        ),
    ),
    (
        "running_prototypes",
        lambda: continual(
            lambda family, embed: (
                lambda params: params.body,
                algorithms.running_prototypes(family, embed),
            )
        ),
    ),
    (
        "identify",
        lambda: (algorithms.identify, (jnp.ones((2, 1)), jnp.eye(3)[:, :1], jnp.eye(3))),
    ),
    ("reptile", lambda: of(algorithms.reptile(parabolas(), optax.sgd(0.1), **STEPS))),
    ("anil", lambda: of(algorithms.anil(two_layers(), optax.sgd(0.1), **STEPS))),
    ("boil", lambda: of(algorithms.boil(two_layers(), optax.sgd(0.1), **STEPS))),
    ("meta_sgd", lambda: of(algorithms.meta_sgd(parabolas(), **STEPS))),
    ("maml_plus_plus", lambda: of(algorithms.maml_plus_plus(parabolas(), **STEPS))),
    ("step_statistics batch_norm_leaves", statistics_by_step),
    ("imaml", lambda: of(algorithms.imaml(parabolas(), optax.sgd(0.1), **STEPS))),
    (
        "gradient_regularisation",
        lambda: of(
            algorithms.gradient_regularisation(
                linear_few_shot(), optax.sgd(0.1), num_features=6, rank=2, hidden=(3,), **STEPS
            ),
            episodes(),
        ),
    ),
    (
        "meta_curvature",
        lambda: of(
            algorithms.meta_curvature(linear_few_shot(), optax.sgd(0.1), **STEPS), episodes()
        ),
    ),
    ("linear_warps", lambda: (algorithms.linear_warps(linear_few_shot()), episodes().inner)),
    ("t_net", lambda: of(algorithms.t_net(two_layers(), optax.sgd(0.1), **STEPS))),
    (
        "warp_grad",
        lambda: of(
            algorithms.warp_grad(
                algorithms.linear_warps(two_layers()), optax.sgd(0.1, momentum=0.5), **STEPS
            )
        ),
    ),
    (
        "learned_loss",
        lambda: of(
            algorithms.learned_loss(
                linear_few_shot(), linear, optax.sgd(0.1), hidden=(2,), **STEPS
            ),
            episodes(),
        ),
    ),
    (
        "npbml",
        lambda: of(
            algorithms.npbml(
                linear_few_shot(), linear, optax.sgd(0.1), num_features=6, hidden=(2,), **STEPS
            ),
            episodes(),
        ),
    ),
    (
        "loss_weights",
        lambda: of(
            algorithms.loss_weights(
                linear_few_shot(), optax.sgd(0.1), num_features=6, hidden=(2,), **STEPS
            ),
            episodes(),
        ),
    ),
    (
        "support_weights",
        lambda: (
            lambda weights, support: algorithms.support_weights(
                algorithms.LossWeightsTheta((), weights), support
            ),
            (
                algorithms.loss_weights(two_layers(), optax.sgd(0.1), num_features=2, hidden=(2,))
                .init(jax.random.key(0))
                .weights,
                data.Pool(jnp.ones((3, 1)), jnp.array([[0.5], [1.0], [2.0]])),
            ),
        ),
    ),
    ("maml adapt", lambda: of(algorithms.maml(parabolas(), optax.sgd(0.1), **STEPS))),
    (
        "maml",
        lambda: of(algorithms.maml(linear_few_shot(), optax.sgd(0.1), **STEPS), episodes()),
    ),
    (
        "few_shot_scores",
        lambda: (
            lambda theta, data, key: (
                algorithms.few_shot_scores(
                    parabolas(), lambda theta, task_params, support, key: theta, num_tasks=2
                )(theta, data, key).loss
            ),
            (jnp.array([0.3, -0.2]), (), jax.random.key(0)),
        ),
    ),
]
