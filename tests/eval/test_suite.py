import importlib.resources
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from metaopt import cli, learned
from metaopt.core import Split
from metaopt.eval import (
    Baseline,
    Contender,
    SuiteProblem,
    SuiteSettings,
    SuiteTask,
    as_contender,
    cosine,
    envelope,
    learning_curve,
    pretrained_contender,
    run_suite,
    smooth,
    speedup_over,
    speedup_over_envelope,
    suite_baselines,
    suite_figure,
    suite_table,
    suite_tasks,
    theta_digest,
)
from metaopt.eval._suite_overhead import UpdateTimer, keep_dtypes
from tests.eval.families import fit_pool, noisy_quadratic, quadratic, sgd_losses

CURVATURE, NUM_STEPS = 2.0, 30
SETTINGS = SuiteSettings(num_values=3, num_tuning_seeds=1, num_eval_batches=1, envelope_factor=2)


def task(name, family, data=None):
    problem = SuiteProblem(family, Split((), ()) if data is None else data, NUM_STEPS)
    return SuiteTask(name, "toy", lambda: problem)


def tasks():
    pools = Split(jnp.array(1.0), jnp.array(3.0))
    return task("exact", quadratic(CURVATURE)), task("pools", fit_pool(), pools)


def sgd(name, centre, **settings):
    return Contender(name, lambda value, num_steps: optax.sgd(value), centre, **settings)


CONTENDERS = (
    sgd("adamw", 0.1),  # takes the place of the reference
    sgd("twin", 0.1),
    sgd("fast", 0.4, is_tuned=False),
    sgd("wild", 1e9, is_tuned=False),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of cells, its summary, and what was reported."""
    folder, lines = tmp_path_factory.mktemp("suite"), []
    summary = run_suite(
        CONTENDERS, folder, tasks=tasks(), settings=SETTINGS, on_report=lines.append
    )
    return folder, summary, lines


def cell(folder, task_name, contender):
    (file,) = (folder / task_name).glob(f"{contender}-*.json")
    return json.loads(file.read_text())


@pytest.mark.compiles
def test_a_contender_against_itself_scores_exactly_one(finished):
    _, summary, _ = finished
    twin = summary["contenders"]["twin"]
    one = {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert twin["speedup"] == twin["train_ratio"] == twin["test_ratio"] == one
    assert (twin["censored"], twin["failure_rate"]) == (0, 0)
    # Power: another step size does not score one.
    assert summary["contenders"]["fast"]["speedup"]["low"] > 1.05


def test_the_knob_and_the_losses_are_those_of_gradient_descent(finished):
    folder, summary, _ = finished
    grid = 0.1 * 10 ** np.array([-0.5, 0, 0.5])
    finals = [sgd_losses([CURVATURE], rate, NUM_STEPS)[-1] for rate in grid]
    found = cell(folder, "exact", "adamw")
    np.testing.assert_allclose(found["tuning"]["scores"], finals, rtol=1e-4, atol=1e-12)
    assert found["value"] == pytest.approx(grid[np.argmin(finals)], rel=1e-6)
    assert found["at_edge"] == (np.argmin(finals) != 1)
    losses = sgd_losses([CURVATURE], 0.4, NUM_STEPS)
    fast = cell(folder, "exact", "fast")
    np.testing.assert_allclose(fast["train_curves"], [losses[:-1]] * 3, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(fast["final_loss"], [losses[-1]] * 3, rtol=1e-3, atol=1e-30)
    assert fast["tuning"]["scores"] is None
    # Half the squared distance from where it went, 1, to the test pool, 3.
    test_loss = summary["contenders"]["fast"]["tasks"]["pools"]["test_loss"]
    assert test_loss == pytest.approx(0.5 * (3 - (1 - 0.6**NUM_STEPS)) ** 2, rel=1e-4)
    assert summary["contenders"]["fast"]["tasks"]["exact"]["test_ratio"] is None


def test_speedups_are_those_of_the_curves(finished):
    folder, summary, _ = finished
    adam = jax.jit(
        jax.vmap(
            lambda rate: (
                learning_curve(
                    quadratic(CURVATURE),
                    optax.adam(rate),
                    (),
                    jax.random.key(0),
                    num_steps=2 * NUM_STEPS,
                    num_seeds=1,
                    num_eval_batches=1,
                ).train_loss
            )
        )
    )(10**-2.5 * 10 ** jnp.array([-0.5, 0, 0.5]))
    curves = {n: np.array(cell(folder, "exact", n)["train_curves"]) for n in ("fast", "adamw")}
    found = summary["contenders"]["fast"]["tasks"]["exact"]
    expected = speedup_over(curves["fast"], curves["adamw"])
    np.testing.assert_array_equal(found["speedup"], expected.ratio)
    final = smooth(curves["fast"])[:, -1]
    over_envelope = speedup_over_envelope(final, envelope(adam), num_steps=NUM_STEPS)
    np.testing.assert_allclose(found["envelope"], over_envelope, rtol=1e-3)


def test_failures_are_counted_and_score_the_worst(finished):
    wild = finished[1]["contenders"]["wild"]
    assert (wild["failure_rate"], wild["censored"]) == (1, 1)
    assert wild["speedup"]["estimate"] == wild["envelope"]["estimate"] == 0
    assert wild["train_ratio"]["estimate"] == wild["test_ratio"]["estimate"] == 100


def without_times(summary):
    return {
        name: {k: v for k, v in entry.items() if k not in ("overhead", "tasks")}
        for name, entry in summary["contenders"].items()
    }


def test_a_suite_goes_on_where_it_was_stopped(finished):
    folder, summary, lines = finished
    cells = [line for line in lines if "process time" in line]
    assert len(cells) == 2 * (1 + len(CONTENDERS))
    (file,) = (folder / "exact").glob("twin-*.json")
    file.unlink()

    def run(contenders, settings=SETTINGS):
        lines = []
        result = run_suite(
            contenders, folder, tasks=tasks(), settings=settings, on_report=lines.append
        )
        return result, [line.partition(":")[0] for line in lines if "process time" in line]

    again, computed = run(CONTENDERS)
    assert computed == ["exact / twin"]
    assert without_times(again) == without_times(summary)
    again, computed = run(CONTENDERS)
    assert computed == []
    # The same files: also the times are those of the first run.
    assert again["contenders"]["fast"] == summary["contenders"]["fast"]
    _, computed = run([*CONTENDERS[:1], sgd("new", 0.2, is_tuned=False)])
    assert computed == ["exact / new", "pools / new"]
    # What a name stands for is part of the hash.
    _, computed = run([*CONTENDERS[:1], sgd("new", 0.3, is_tuned=False)])
    assert computed == ["exact / new", "pools / new"]
    _, computed = run([*CONTENDERS[:1], sgd("new", 0.3, is_tuned=False, digest="other")])
    assert computed == ["exact / new", "pools / new"]


def test_the_reference_joins_and_baselines_of_a_comparison_are_taken(tmp_path):
    summary = run_suite(
        [Baseline("fixed", optax.sgd, 0.1)],
        tmp_path,
        tasks=tasks()[:1],
        settings=SuiteSettings(num_values=2, num_tuning_seeds=1, num_eval_batches=1, max_steps=3),
    )
    assert list(summary["contenders"]) == ["adamw", "fixed"]
    assert summary["tasks"]["exact"] == {"group": "toy", "num_steps": 3}
    assert as_contender(Baseline("tuned", optax.sgd)).is_tuned


def test_table_and_figure_show_every_contender(finished, tmp_path):
    summary = json.loads(json.dumps(finished[1]))
    console = Console(file=io.StringIO(), width=100)
    console.print(suite_table(summary))
    first_words = [line.split()[:1] for line in console.file.getvalue().splitlines()]
    rows = [word for words in first_words for word in words if word in summary["contenders"]]
    assert rows[-1] == "wild"
    assert sorted(rows) == sorted(summary["contenders"])
    png, svg = suite_figure(summary, tmp_path / "suite", title="toys")
    assert png.stat().st_size > 0
    assert "speed-up" in svg.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_values": 0}, "num_values must be at least 1"), ({"max_steps": 0}, "max_steps")],
)
def test_counts_below_one_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SuiteSettings(**settings)


def test_repeated_names_and_slashes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="contenders=.*different names"):
        run_suite([sgd("adamw", 0.1)] * 2, tmp_path, tasks=tasks())
    with pytest.raises(ValueError, match="tasks=.*must be some"):
        run_suite(CONTENDERS, tmp_path, tasks=())
    with pytest.raises(ValueError, match="no slash"):
        run_suite([sgd("a/b", 0.1)], tmp_path, tasks=tasks())


@pytest.mark.parametrize("baseline", suite_baselines(), ids=lambda b: b.name)
def test_every_baseline_keeps_the_dtypes_of_mixed_parameters_in_a_loop(baseline):
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}

    def train(value):
        tx = keep_dtypes(baseline.make(value, 4))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params, value=jnp.ones(()))
            return (optax.apply_updates(params, updates), state), None

        (end, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=4)
        return end if baseline.eval_params is None else baseline.eval_params(state, end)

    end = jax.eval_shape(jax.vmap(train), jnp.ones(2))
    dtypes = jax.tree.map(lambda x: x.dtype, end)
    if baseline.eval_params is None:
        assert dtypes == jax.tree.map(lambda x: x.dtype, params)


@pytest.mark.parametrize("is_tuned", [True, False])
def test_shipped_weights_follow_the_cosine_of_the_baselines(is_tuned, tmp_path, monkeypatch):
    theta = learned.celo2(0.02).init(jax.random.key(0))
    (tmp_path / "weights").mkdir()
    settings = {"learning_rate": 0.02}
    learned.save(tmp_path / "weights" / "rule.npz", theta, optimizer="celo2", settings=settings)
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    contender = pretrained_contender("rule", is_tuned=is_tuned)
    assert contender.name == ("rule" if is_tuned else "rule:default")
    assert (contender.centre, contender.is_tuned) == (0.02, is_tuned)
    params = {"w": jnp.ones((2, 3))}
    ends = []
    for tx in (
        contender.make(0.1, 4),
        learned.celo2(cosine(0.1, 4)).optimizer(theta, num_steps=4),
    ):
        tx, moved = optax.with_extra_args_support(tx), params
        state = tx.init(moved)
        for _ in range(2):
            updates, state = tx.update(params, state, moved, value=jnp.ones(()))
            moved = optax.apply_updates(moved, updates)
        ends.append(moved["w"])
    np.testing.assert_array_equal(*ends)
    with pytest.raises(ValueError, match="'other' is unknown; choose from"):
        pretrained_contender("other")


def test_digests_tell_thetas_apart():
    theta = {"w": np.ones((2, 2), np.float32)}
    assert theta_digest(theta) == theta_digest({"w": jnp.ones((2, 2))})
    others = [{"w": np.ones(4, np.float32)}, {"v": theta["w"]}, {"w": 2 * theta["w"]}]
    assert len({theta_digest(x) for x in [theta, *others]}) == 4


def test_more_work_costs_more():
    timer = UpdateTimer({"w": jnp.ones((64, 64))})
    heavy = optax.chain(*[optax.scale_by_adam() for _ in range(30)])
    measured = timer.ratio(heavy)
    assert measured["ratio"] == measured["seconds"] / measured["adam_seconds"]
    assert measured["ratio"] > 2


def test_the_tasks_have_names_of_their_own_and_cover_the_shifts():
    found = suite_tasks()
    names = [task.name for task in found]
    assert len(names) == len(set(names)) >= 20
    assert {"mlp", "tabular", "convnet", "generative", "attention", "recurrent", "long", "batch",
            "bfloat16", "convex", "function"} == {task.group for task in found}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suite_task", suite_tasks(), ids=lambda t: t.name)
def test_every_task_is_one_problem_with_finite_losses_and_gradients(suite_task):
    family, pools, num_steps = suite_task.make()
    key_one, key_two = jax.random.split(jax.random.key(0))
    one, two = family.sample(key_one), family.sample(key_two)
    jax.tree.map(np.testing.assert_array_equal, one, two)

    @jax.jit
    def gradient(pool):
        key_init, key_batch, key_loss = jax.random.split(jax.random.key(1), 3)
        params = family.init(one, key_init)
        batch = family.batch(pool, one, key_batch)
        return jax.value_and_grad(family.loss, has_aux=True)(params, one, batch, key_loss)

    for pool in pools:
        (loss, _), grads = gradient(pool)
        assert np.isfinite(loss)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
        if not jax.tree.leaves(pool):
            break
    assert 200 <= num_steps <= 3000


@pytest.mark.slow
def test_without_noise_tuned_adam_from_new_starts_scores_about_one_against_its_envelope(tmp_path):
    # On a floor of noise no step is the one at which a running minimum reaches a loss: there the
    # score of Adam is anything from a half to two, however many seeds the envelope averages.
    family = noisy_quadratic(noise=0.0, curvatures=(0.2, 0.5, 1.0, 2.0))
    noisy = SuiteTask("noisy", "toy", lambda: SuiteProblem(family, Split((), ()), 300))

    def adam(name, centre, **settings):
        return Contender(name, lambda value, num_steps: optax.adam(value), centre, **settings)

    contenders = [adam("adamw", 10**-1.5), adam("timid", 10**-2.5, is_tuned=False)]
    found = run_suite(contenders, tmp_path, tasks=[noisy])["contenders"]
    # The bounds that VeLO's evaluation states for Adam at its best learning rate.
    assert 0.85 <= found["adamw"]["envelope"]["estimate"] <= 1.15
    assert found["timid"]["envelope"]["estimate"] < 0.5  # the test has power


@pytest.mark.slow
def test_the_command_runs_two_tasks_and_reuses_their_cells(tmp_path, capsys):
    command = [
        *("eval", "--suite", "--suite-tasks", "quadratic,rosenbrock", "--contenders"),
        *("sgd_momentum", "adam", "--max-steps", "5", "--values", "3", "--out", str(tmp_path)),
    ]
    assert cli.main(command) == 0
    first = json.loads((tmp_path / "suite.json").read_text())
    assert "quadratic / adam:" in capsys.readouterr().out
    assert list(first["tasks"]) == ["quadratic", "rosenbrock"]
    assert set(first["contenders"]) == {"adamw", "adam", "sgd_momentum"}
    assert (tmp_path / "suite.png").stat().st_size > 0
    assert cli.main(command) == 0
    assert "quadratic / adam:" not in capsys.readouterr().out
    assert json.loads((tmp_path / "suite.json").read_text()) == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--suite --suite-tasks mlp_wid", "unknown suite task 'mlp_wid'; did you mean mlp_wide"),
        ("--suite --contenders addam", "unknown contender 'addam'; did you mean adam"),
        ("--suite --contenders rule:best", "unknown option of weights 'best'"),
        ("--suite --values 0", "num_values must be at least 1"),
        ("", "name a run's folder, or add --suite"),
    ],
)
def test_the_command_refuses_bad_names_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(learned, "pretrained_names", lambda: ("rule",))
    assert cli.main(["eval", *words.split(), "--out", str(tmp_path / "new")]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
