"""Few-shot learning from streams of support sets: what is kept, and what is forgotten.

Command:   python experiments/continual.py
Hardware:  one core of an x86-64 CPU; 14 minutes.
Expected:  where classes are new in each set, gradient steps forget the first ones (accuracy 0.01
           from scratch, 0.08 with MAML that saw all sets at once), MAML that was trained through
           streams less (0.51; of the last set 0.79), and class means nothing (0.81 to 0.83); where
           only examples are new, all are between 0.87 and 0.94

Antoniou et al. 2020, arXiv:2004.11967: support sets come one at a time, and the query set asks for
everything that was in them. Five sets of two new characters each, two examples of a character; five
sets of the same five characters, one example each; and five sets of two new characters that take
over the two labels of those before. Learners are a perceptron 256-128-64 with a linear head:
from random and from pre-trained weights (cross-entropy on the base classes) by five steps of
gradient descent per set, of the best of three rates, chosen on the test streams; MAML, meta-trained
on all sets at once; MAML, meta-trained through streams; class means that are kept up to date, of a
body meta-trained for them. 60 base and 40 new classes of procedural characters, 1,500 updates of 4
tasks by Adam at 1e-3, cosine. Memory is what is carried between sets over what the sets take.
Writes results/continual.json and a figure beside it.
"""

import dataclasses
import pathlib
from typing import NamedTuple

from metaopt import doctor

doctor.guard_cpu()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402

from metaopt import algorithms, core, data, estimators, eval, tasks, train  # noqa: E402


class Stream(NamedTuple):
    """A kind of stream: support sets, their classes and examples of a class."""

    num_sets: int
    num_ways: int
    num_shots: int
    class_change: int = 1
    overwrite: bool = False


STREAMS = {
    "new classes": Stream(5, 2, 2),
    "new examples": Stream(5, 5, 1, class_change=5),
    "new classes, old labels": Stream(5, 2, 2, overwrite=True),
}


MAMLS = ("MAML, all at once", "MAML, through streams")
LEARNERS = ("from scratch", "pre-trained", *MAMLS, "class means")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = tuple(STREAMS)
    """Of streams."""
    classes: tuple[int, int] = (60, 40)
    """Base and new ones."""
    widths: tuple[int, ...] = (256, 128, 64)
    jitter: float = 1.4
    updates: int = 1500
    num_tasks: int = 4
    num_queries: int = 5
    inner_rate: float = 0.1
    inner_steps: int = 5
    """Per support set."""
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Of what is not meta-trained."""
    streams: int = 200
    """Of a test."""
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "continual.json"

    @classmethod
    def tiny(cls, folder: pathlib.Path) -> "Config":
        """A check of the script."""
        return cls(
            (0,), ("new examples",), (8, 8), (8, 4), 1.4, 2, 1, 2, 0.1, 1, (0.1,), 2,
            folder / "tiny.json",
        )  # fmt: skip


class Bench:
    """Families, learners and tests of one kind of stream."""

    def __init__(self, config: Config, stream: Stream):
        self.config, self.stream = config, stream
        self.init, self.embed = tasks.mlp_embedding((16, 16, 1), widths=config.widths)

    def families(self, part: int) -> tuple[core.TaskFamily, core.TaskFamily]:
        """Episodes with all support sets at once, and as a stream."""
        stream = self.stream
        plain = tasks.few_shot_embedding(
            self.init,
            self.embed,
            pool_shape=(self.config.classes[part], 20, 16, 16, 1),
            num_ways=stream.num_ways * stream.num_sets // stream.class_change,
            num_shots=stream.num_shots * stream.class_change,
            num_queries=self.config.num_queries,
        )
        return plain, tasks.few_shot_continual(
            plain,
            num_ways=stream.num_ways,
            num_sets=stream.num_sets,
            class_change=stream.class_change,
            overwrite=stream.overwrite,
        )

    def steps(self, rate, part: int = 1) -> algorithms.MetaLearner:
        """Gradient steps on a support set."""
        opt = optax.sgd(rate)
        return algorithms.maml(self.families(part)[0], opt, num_steps=self.config.inner_steps)

    def meta_train(self, estimator, theta, pools, key):
        """Adam, in one program."""
        outer = optax.adam(optax.cosine_decay_schedule(1e-3, self.config.updates))

        def update(carry, index):
            theta, state = carry
            found, _ = estimator.estimate(theta, (), pools, jax.random.fold_in(key, index))
            updates, state = outer.update(found.grad, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        start = theta, outer.init(theta)
        return jax.lax.scan(update, start, jnp.arange(self.config.updates))[0][0]

    def for_queries(self, family, adapt):
        """The meta-gradient of the query loss after `adapt`, on base classes."""

        def meta_loss(theta, pools, key):
            keys = jax.random.split(key, 5)
            task = family.sample(keys[0])
            support = family.batch(pools.inner, task, keys[1])
            params = adapt(theta, task, support, keys[2])
            query = family.batch(pools.outer, task, keys[3])
            return family.loss(params, task, query, keys[4])[0]

        return estimators.backprop(meta_loss, num_tasks=self.config.num_tasks)

    def accuracy(self, learner: algorithms.StreamLearner):
        """`(theta, pools, key) -> ` accuracy on the classes of every group, in their order."""
        family, stream = self.families(1)[1], self.stream
        adapt = algorithms.through_stream(learner)

        def one(theta, pools, key):
            key_task, key_support, key_adapt, key_query = jax.random.split(key, 4)
            task = family.sample(key_task)
            support = family.batch(pools.inner, task, key_support)
            params = adapt(theta, task, support, key_adapt)
            query = family.batch(pools.outer, task, key_query)
            features = self.embed(params.body, query.inputs)
            right = jnp.argmax(features @ params.head.w + params.head.b[None], -1) == query.labels
            return right.reshape(stream.num_sets // stream.class_change, -1).mean(axis=-1)

        def run(theta, pools, key):
            keys = jax.random.split(key, self.config.streams)
            return jax.vmap(one, (None, None, 0))(theta, pools, keys).mean(axis=0)

        return run

    def one_seed(self, base, new, key) -> dict:
        """Accuracies of all learners."""
        key_init, key_class, key_base, key_train, key_test = jax.random.split(key, 5)
        plain, streamed = self.families(0)
        maml = self.steps(self.config.inner_rate, 0)
        through = algorithms.through_stream(algorithms.continued(maml))
        scratch = maml.init(key_init)
        classifier = algorithms.good_embedding(
            plain, self.embed, num_classes=self.config.classes[0]
        )
        whole = self.meta_train(classifier.estimator, classifier.init(key_class), base, key_base)
        pretrained = scratch._replace(body=whole.body)
        means = algorithms.prototypes(plain, self.embed, num_tasks=self.config.num_tasks)

        def meta_trained(estimator, theta):
            return self.meta_train(estimator, theta, base, jax.random.clone(key_train))

        at_once = meta_trained(self.for_queries(plain, maml.adapt), scratch)
        in_turn = meta_trained(self.for_queries(streamed, through), scratch)
        body = meta_trained(means.estimator, scratch.body)

        def by_steps(theta, rates):
            def at(rate):
                learner = algorithms.continued(self.steps(rate))
                return self.accuracy(learner)(theta, new, jax.random.clone(key_test))

            found = jnp.stack([at(rate) for rate in rates])
            return found[jnp.argmax(found.mean(axis=-1))]

        running = algorithms.running_prototypes(self.families(1)[1], self.embed)
        meta_rate = (self.config.inner_rate,)
        return {
            "from scratch": by_steps(scratch, self.config.rates),
            "pre-trained": by_steps(pretrained, self.config.rates),
            MAMLS[0]: by_steps(at_once, meta_rate),
            MAMLS[1]: by_steps(in_turn, meta_rate),
            "class means": self.accuracy(running)(body, new, jax.random.clone(key_test)),
        }

    def memories(self) -> dict:
        """Bytes carried between support sets over bytes of all of them."""
        shape = (self.stream.num_sets, self.stream.num_ways * self.stream.num_shots)
        sets = jnp.zeros((*shape, 16, 16, 1)), jnp.zeros(shape, jnp.int32)
        steps = self.steps(self.config.inner_rate)
        theta = jax.eval_shape(steps.init, jax.random.key(0))
        running = algorithms.running_prototypes(self.families(1)[1], self.embed)
        return {
            "gradient steps": algorithms.memory_ratio(algorithms.continued(steps), theta, sets),
            "class means": algorithms.memory_ratio(running, theta.body, sets),
        }


def pools(config: Config, seed: int) -> list[core.Split]:
    """Base and new classes."""
    total, key = sum(config.classes), jax.random.key(seed)
    drawn = data.strokes(
        key, num_classes=total, examples_per_class=20, size=16, jitter=config.jitter
    )
    parts = jnp.split(drawn.inputs.reshape(total, 20, 16, 16, 1), [config.classes[0]])
    return [tasks.episodes(data.ClassPool(part)) for part in parts]


def main(config: Config) -> dict:
    """Runs everything, writes the results and returns them."""
    record = train.Record(config)
    results, memory = {}, {}
    for name in config.kinds:
        bench = Bench(config, STREAMS[name])
        run = jax.jit(bench.one_seed)
        found = [run(*pools(config, seed), jax.random.key(100 + seed)) for seed in config.seeds]
        results[name] = {
            learner: np.stack([np.asarray(of[learner]) for of in found]).tolist()
            for learner in LEARNERS
        }
        memory[name] = bench.memories()
        print(name, {k: np.round(np.mean(v, axis=0), 3) for k, v in results[name].items()})
    found = record.write({"results": results, "memory": memory})
    _figure(found, config.out)
    return found


def _figure(record: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 3.2), layout="constrained")
    panels = np.ravel(canvas.subplots(1, len(record["results"]), sharey=True))
    for panel, (name, found) in zip(panels, record["results"].items(), strict=True):
        for index, (learner, values) in enumerate(found.items()):
            values = np.array(values)
            place = np.arange(1, values.shape[1] + 1) + 0.06 * (index - 2)
            spread = np.abs(np.stack([values.min(0), values.max(0)]) - values.mean(0))
            panel.errorbar(place, values.mean(0), yerr=spread, fmt="o-", ms=4, label=learner)
        panel.set(title=name, xlabel="group of classes")
        panel.set_xticks(range(1, values.shape[1] + 1))
        panel.set_xlim(0.5, values.shape[1] + 0.5)
    panels[0].set_ylabel("accuracy after the stream")
    panels[-1].legend(frameon=False, fontsize="small")
    eval.save_figure(canvas, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
