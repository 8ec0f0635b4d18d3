"""The weights that ship with metaopt, as ready optax transformations.

Each is a small file in `metaopt/learned/weights` with a card beside it: what it was trained on, by
which command and for how long, how it was evaluated, what it is good and bad at.
"""

import importlib.resources
from typing import Any

import optax

from metaopt.core import Scalar
from metaopt.learned._weights import build, load, weights_info


def pretrained(
    name: str,
    *,
    learning_rate: optax.ScalarOrSchedule | None = None,
    weight_decay: Scalar | None = None,
    num_steps: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """A learned optimizer with its trained weights: one line in place of `optax.adamw(...)`.

    Args:
        name: which one, see `pretrained_names`.
        learning_rate: RMS of a step, a number or an optax schedule; by default what the card
            recommends. Steps do not shrink with the gradients, so use a schedule that decays to
            zero. Traced.
        weight_decay: decoupled, times the learning rate; by default the card's. Traced.
        num_steps: the planned number of steps, for rules that look at it. Static or traced.

    Returns:
        An optax transformation. Its `update` needs `params`.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    names = pretrained_names()
    if name not in names:
        raise ValueError(f"pretrained: name={name!r} is unknown; choose from {list(names)}.")
    changes = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    changes = {key: value for key, value in changes.items() if value is not None}
    with importlib.resources.as_file(_folder() / f"{name}.npz") as file:
        optimizer = build(weights_info(file), **changes)
        theta = load(file, optimizer)
    return optimizer.optimizer(theta, num_steps=num_steps)


def pretrained_names() -> tuple[str, ...]:
    """The names that `pretrained` accepts."""
    files = (file.name for file in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".npz") for name in files if name.endswith(".npz")))


def pretrained_card(name: str) -> str:
    """The card of shipped weights, in Markdown.

    Args:
        name: which one, see `pretrained_names`.

    Raises:
        ValueError: if there is none of that name.
    """
    names = pretrained_names()
    if name not in names:
        raise ValueError(f"pretrained_card: name={name!r} is unknown; choose from {list(names)}.")
    return (_folder() / f"{name}.md").read_text()


def _folder():
    return importlib.resources.files("metaopt.learned") / "weights"
