"""Few-shot continual learning: the support set of an episode arrives in parts.

    episode of G N classes with c K shots   →   stream of S = G c support sets of N classes, K shots

The first c sets show K examples each of the first N classes, the next c sets of the next N, and so
on; the query set asks for all of them. c = S: one set of classes, new samples; c = 1: new classes
in every set; with `overwrite`, new classes take over the N labels of the old ones, so that a label
means several classes. Antoniou et al. 2020, arXiv:2004.11967, §3 and §4 (their NSS is S and their
CCI is c; that every group of classes has its full c sets is a restriction of ours).
"""

import jax
import jax.numpy as jnp

from metaopt.core import TaskFamily, checked
from metaopt.data._check import at_least_one
from metaopt.tasks._few_shot import Query, Support


@checked
def few_shot_continual(
    family: TaskFamily,
    *,
    num_ways: int,
    num_sets: int,
    class_change: int = 1,
    overwrite: bool = False,
) -> TaskFamily:
    """A few-shot family whose support sets are streams.

    Args:
        family: made by `few_shot`, `few_shot_embedding` or their kin, with all classes and shots of
            a stream: `num_ways * num_sets / class_change` ways and `class_change` times the shots
            of one support set.
        num_ways: classes N of one support set. Static.
        num_sets: support sets S of a task. Static.
        class_change: sets c after which the classes change, a divisor of `num_sets`. Static.
        overwrite: whether labels are those of the place of a class in its set, `0, ..., N - 1`;
            otherwise every class has its own. With it, only the first N outputs of the family's
            network are ever right. Static.

    Returns:
        The family with other batches: those of `data.inner` have the axis of the support sets in
        front; those of `data.outer` are as before, up to the labels. With one set, a task is an
        episode of `family`.

    Raises:
        ValueError: if a count is below 1 or `class_change` does not divide `num_sets`; when traced,
            if the support set of `family` has other ways, or shots that `class_change` does not
            divide.
    """
    name = "few_shot_continual"
    at_least_one(name, num_ways=num_ways, num_sets=num_sets, class_change=class_change)
    if num_sets % class_change:
        raise ValueError(
            f"{name}: class_change={class_change} does not divide num_sets={num_sets}; every group "
            "of classes has all its sets."
        )
    num_groups = num_sets // class_change

    def relabelled(batch):
        return batch._replace(labels=batch.labels % num_ways) if overwrite else batch

    def split(x):
        """[group, class, set of the group, shot, ...] to [set, example of the set, ...]."""
        num_shots = x.shape[0] // (num_groups * num_ways * class_change)
        parts = x.reshape(num_groups, num_ways, class_change, num_shots, *x.shape[1:])
        return jnp.moveaxis(parts, 2, 1).reshape(num_sets, num_ways * num_shots, *x.shape[1:])

    def batch(data, task_params, key):
        if not isinstance(data, Support | Query):
            raise ValueError(
                f"{name}: data is a {type(data).__name__}; pass metaopt.tasks.episodes(pool), "
                "whose two sides tell streams from query sets."
            )
        drawn = family.batch(data, task_params, key)
        if isinstance(data, Query):
            return relabelled(drawn)
        ways, shots = len(task_params.classes), len(drawn.labels) // len(task_params.classes)
        if ways != num_groups * num_ways or shots % class_change:
            raise ValueError(
                f"{name}: the family has {ways} ways and {shots} shots; make it with "
                f"{num_groups * num_ways} ways and a multiple of {class_change} shots."
            )
        return jax.tree.map(split, relabelled(drawn))

    return family._replace(batch=batch)
