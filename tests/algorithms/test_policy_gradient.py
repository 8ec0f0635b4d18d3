import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import tasks
from metaopt.algorithms import few_shot_scores, policy_gradient
from tests.helpers import relative_error, standard_errors

# Two states: from 0 the actions stay or move to 1; rewards by state and action.
REWARDS = jnp.array([[0.2, 0.5], [1.0, -1.0]])
LOGITS = jnp.array([[0.1, -0.4], [0.3, 0.6]])
DISCOUNT = 0.8


def two_states():
    """The action is the next state."""
    return tasks.Environment(
        sample=lambda key: (),
        reset=lambda task_params, key: jnp.array(0),
        observe=lambda state, task_params: jax.nn.one_hot(state, 2),
        step=lambda state, task_params, action, key: (
            action.astype(state.dtype),
            REWARDS[state, action],
            jnp.array(False),
        ),
        observation_size=2,
        action_size=2,
    )


def tabular():
    """Logits for each state."""
    return tasks.policy_of_logits(lambda key: LOGITS, lambda params, x: x @ params)


def expected_return(logits, discount=DISCOUNT):
    """Of two steps, by enumeration."""
    probs = jax.nn.softmax(logits)
    second = jnp.sum(probs * REWARDS, axis=1)
    return jnp.sum(probs[0] * (REWARDS[0] + discount * second))


def family(**settings):
    """Two steps of three episodes."""
    settings = {"num_episodes": 3, "discount": DISCOUNT, "baseline": "none", **settings}
    return policy_gradient(two_states(), tabular(), horizon=2, **settings)


def sampled(function, num=20_000):
    """`function(params, key)` for many keys."""
    keys = jax.random.split(jax.random.key(0), num)
    return jax.jit(jax.vmap(function, (None, 0)))(LOGITS, keys)


@pytest.mark.parametrize(
    "settings",
    [
        {"baseline": "mean"},
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in ({}, {"surrogate": "dice"}, {"surrogate": "dice", "baseline": "mean"})
        ),
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_expected_return(settings):
    loss = family(discount=1.0, **settings).loss
    value_and_grad = jax.value_and_grad(lambda params, key: loss(params, (), (), key)[0])
    values, grads = sampled(value_and_grad)
    exact = jax.grad(expected_return)(LOGITS, 1.0)
    assert standard_errors(values, -expected_return(LOGITS, 1.0)) < 4
    assert standard_errors(grads, -exact) < 4.5
    assert standard_errors(grads, -1.2 * exact) > 4.5


def hessians(**settings):
    """Of the loss, one sample a key, and minus that of the expected return."""
    loss = family(discount=1.0, **settings).loss
    hessian = jax.hessian(lambda params, key: loss(params, (), (), key)[0])
    return sampled(hessian), -jax.hessian(expected_return)(LOGITS, 1.0)


@pytest.mark.parametrize("baseline", ["none", pytest.param("mean", marks=pytest.mark.slow)])
def test_dice_has_the_hessian_of_the_expected_return(baseline):
    samples, exact = hessians(surrogate="dice", baseline=baseline)
    assert standard_errors(samples, exact) < 4.5


@pytest.mark.slow
def test_reinforce_has_not():
    samples, exact = hessians()
    assert standard_errors(samples, exact) > 20


def test_one_episode_agrees_with_a_loop(x64):
    environment, policy = two_states(), tabular()
    loss = family(num_episodes=1).loss
    key = jax.random.key(3)
    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, info), grad = value_and_grad(LOGITS, (), (), key)
    (play_key,) = jax.random.split(jax.random.clone(key), 1)
    episode = jax.jit(tasks.rollout(environment, policy, horizon=2))(LOGITS, (), play_key)
    probs = np.asarray(jax.nn.softmax(LOGITS), np.float64)
    actions, rewards = np.asarray(episode.actions), np.asarray(episode.rewards, np.float64)
    expected, likelihood, state = np.zeros((2, 2)), 0.0, 0
    for t in range(2):
        to_come = sum(DISCOUNT ** (s - t) * rewards[s] for s in range(t, 2))
        expected[state] -= to_come * (np.eye(2)[actions[t]] - probs[state])
        likelihood += np.log(probs[state, actions[t]])
        state = actions[t]
    np.testing.assert_allclose(grad, expected, rtol=1e-6)
    np.testing.assert_allclose(value, -(rewards[0] + DISCOUNT * rewards[1]), rtol=1e-6)
    np.testing.assert_allclose(info.log_likelihood, likelihood, rtol=1e-6)
    np.testing.assert_allclose(info.episode_return, rewards.sum(), rtol=1e-6)


def test_normalised_advantages_do_not_see_the_scale_of_rewards():
    def grad(scale):
        environment = two_states()

        def step(*args):
            state, reward, done = environment.step(*args)
            return state, scale * reward, done

        scaled = environment._replace(step=step)
        loss = policy_gradient(scaled, tabular(), horizon=2, num_episodes=5, normalise=True).loss
        return jax.grad(lambda params: loss(params, (), (), jax.random.key(0))[0])(LOGITS)

    small, large = jax.jit(jax.vmap(grad))(jnp.array([1.0, 10.0]))
    assert relative_error(large, small) < 1e-3


def test_what_follows_an_end_does_not_count():
    """One pull, however long the horizon."""
    environment, policy = tasks.bandit(num_arms=2), tasks.categorical_policy(1, 2)
    params, task = policy.init(jax.random.key(0)), environment.sample(jax.random.key(1))

    def grad(horizon):
        settings = {"num_episodes": 1, "baseline": "none", "horizon": horizon}
        loss = policy_gradient(environment, policy, **settings).loss
        return jax.jit(jax.grad(lambda params: loss(params, task, (), jax.random.key(2))[0]))(
            params
        )

    short, long = grad(1)[0]["b"], grad(3)[0]["b"]
    np.testing.assert_allclose(short, long, rtol=1e-6)
    assert np.abs(short).max() > 0


def test_scores_of_learners_report_returns():
    def still(theta, task_params, support, key):
        return theta

    judge = few_shot_scores(family(), still, num_tasks=4)
    scores = jax.eval_shape(judge, LOGITS, (), jax.random.key(0))
    assert scores.loss.shape == scores.aux.episode_return.shape == (4,)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="policy_gradient: baseline='critic' is unknown"):
        family(baseline="critic")
    with pytest.raises(ValueError, match="policy_gradient: surrogate='ppo' is unknown"):
        family(surrogate="ppo")
    with pytest.raises(ValueError, match="policy_gradient: baseline='mean' has no other episode"):
        family(baseline="mean", num_episodes=1)
    with pytest.raises(ValueError, match="policy_gradient: num_episodes=0 is below 1"):
        family(num_episodes=0)
