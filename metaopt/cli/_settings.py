"""Settings of a run: frozen dataclasses that name everything, and presets of them.

A run's settings are stored in its folder; together with the version of metaopt they say what the
run is. Names are looked up and combinations checked in `metaopt.cli._problem`, before anything
compiles.
"""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Iterable
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """The training problems."""

    names: tuple[str, ...] = ("digits/mlp",)
    """Families, as POOL/MODEL (see `metaopt list`); with several, gradients are averaged."""
    hidden: tuple[int, ...] = (32,)
    """Hidden widths of MLPs and autoencoders, channels of convnets."""
    activation: str = "relu"
    """Activation function of the networks."""
    batch_size: int = 32
    """Examples per inner step."""
    augment: tuple[str, ...] = ()
    """Augmentations of every family, applied in this order (see `metaopt list`)."""
    outer_loss: Literal["train", "same_batch", "validation"] = "train"
    """The meta-loss: training loss before the update, or loss after it, on held-out data or not."""
    data_dir: str | None = None
    """Where prepared TFDS datasets are; its default directory if not given."""
    sampled: int = 0
    """Families drawn from the task distribution, randomly augmented, besides those named."""
    sampled_seed: int = 0
    """Seed of that draw; another one is another set of families."""
    sampled_seconds: float = 1e-4
    """Their budget of estimated seconds per inner step of a task."""


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The learned optimizer."""

    name: str = "celo2"
    """Which one (see `metaopt list`)."""
    learning_rate: float = 0.02
    """Step size of celo2, celo2_mixed and adam_mlp, initial step size of nn_adam and of learnable
    hyperparameters; unused by the others."""
    decay: Literal["none", "cosine"] = "cosine"
    """Whether updates decay to zero along each trajectory during meta-training."""
    hidden_size: int | None = None
    """Width of the network, or units of the LSTM of lstm, velo and celo; its own default if not
    given."""
    bank_size: int | None = None
    """Networks in the bank of velo and celo."""
    step_mult: float | None = None
    """What multiplies the steps of mlp, adafac_mlp, rnn_mlp, velo and celo."""
    phase: Literal[1, 2] | None = None
    """Of celo: 1 trains the rule, 2 (if not given) the schedule; the rest of theta is frozen."""
    mup: bool = False
    """Whether steps of hidden weights are divided by their fan-in; for perceptrons."""


@dataclasses.dataclass(frozen=True)
class EstimatorSettings:
    """The meta-gradient."""

    name: str = "pes"
    """Which estimator (see `metaopt list`)."""
    sigma: float = 0.01
    """Scale of the perturbations, in units of theta."""
    truncation: int = 50
    """Inner steps per estimate, for truncated estimators."""
    horizon: tuple[int, int] = (100, 500)
    """Shortest and longest trajectory in inner steps, drawn log-uniformly."""
    share: int | None = None
    """Inner steps between new noise, for gpes; the truncation if not given."""
    num_tasks: int = 16
    """Tasks per family that train side by side."""
    sign: bool = False
    """Whether loss differences are replaced by their signs, for es, truncated_es, pes and nres."""
    objective: Literal["mean", "last", "min"] = "mean"
    """Which loss of a whole trajectory counts, for es and backprop."""
    gradient: Literal["reverse", "mixed", "first_order", "auto"] = "reverse"
    """How backprop and truncated_backprop pass through the inner gradient; first_order drops it."""


@dataclasses.dataclass(frozen=True)
class OuterSettings:
    """The optimization of theta: Adam with clipping, warm-up and a cosine."""

    optimizer: Literal["adam", "adamw", "grams", "adagrad_norm"] = "adam"
    """Adam, with decoupled weight decay, Grams, or one step size for all from their norms."""
    weight_decay: float = 0.0
    """Of adamw."""

    steps: int = 1500
    """Outer steps."""
    learning_rate: float = 5e-3
    """Peak learning rate."""
    warmup: int = 50
    """Outer steps of linear warm-up."""
    final_fraction: float = 0.1
    """Final learning rate as a fraction of the peak."""
    clip: float | None = 1.0
    """Global norm to which meta-gradients are clipped; None: not clipped."""
    auto_clip: float | None = None
    """Percentile of earlier global norms to which meta-gradients are clipped, before `clip`."""
    clip_value: float | None = None
    """What each entry of the meta-gradient is clipped to, before its norm."""
    update_clip: float | None = None
    """Global norm to which updates are clipped, after Adam."""
    accumulate: int = 1
    """Outer steps whose gradients are averaged into one update."""
    b2: float = 0.99
    """Adam's second-moment decay."""


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """Probes during the run and the comparison after it."""

    probe_every: int = 50
    """Outer steps between probes."""
    probe_tasks: int = 8
    """Held-out tasks of a probe."""
    horizon: int = 500
    """Inner steps of probes and comparisons."""
    grid: tuple[float, float] = (1e-3, 1.0)
    """Smallest and largest learning rate of the tuning grid, the same for every contender."""
    grid_per_decade: int = 4
    """Grid points per factor of ten."""
    tuning_seeds: int = 10
    """Seeds on which learning rates are chosen."""
    seeds: int = 20
    """Other seeds, on which results are reported."""
    held_out: tuple[str, ...] = ("deeper",)
    """Shifted problems besides the one of the training (see `metaopt list`)."""


@dataclasses.dataclass(frozen=True)
class DiagnoseSettings:
    """What `metaopt diagnose` measures."""

    task: TaskSettings = TaskSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    estimators: tuple[str, ...] = ("backprop", "truncated_backprop", "es", "pes", "nres")
    """Estimators to compare, separated by spaces or commas (see `metaopt list`; also combined)."""
    horizons: tuple[int, ...] = (10, 30, 100)
    """Inner steps of trajectories, separated by spaces or commas."""
    truncation: int | None = None
    """Inner steps per window; about a fifth of each horizon if not given."""
    sigma: float = 0.01
    """Scale of the perturbations, in units of theta."""
    num_tasks: int = 8
    """Tasks that an estimate averages over."""
    samples: int = 32
    """Samples of each estimator."""
    reference_samples: int = 64
    """Estimates of the reference gradient."""
    seed: int = 0
    """Seed of everything random."""


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Everything that identifies a run."""

    task: TaskSettings = TaskSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    estimator: EstimatorSettings = EstimatorSettings()
    outer: OuterSettings = OuterSettings()
    eval: EvalSettings = EvalSettings()
    seed: int = 0
    """Seed of everything random in the run."""
    checkpoint_every: int = 100
    """Outer steps between checkpoints."""
    init_theta: str | None = None
    """A theta.npz to start from, of the same optimizer. In a stored setting a relative path is
    looked up from the run's folder."""


def stored(settings: RunSettings, folder: pathlib.Path) -> dict[str, Any]:
    """What identifies a run in its folder: the stored settings where they are the same run's.

    A run of an older version lacks settings that came later; with their defaults they are equal.
    """
    file = folder / "settings.json"
    content = to_dict(settings)
    if not file.exists():
        return content
    try:
        old = json.loads(file.read_text())["settings"]
        return old if from_dict(old) == settings else content
    except (ValueError, KeyError, TypeError):
        return content  # Whoever opens the folder tells what is wrong with it.


def known(kind: str, name: str, choices: Iterable[str]) -> str:
    """`name` if it is one of `choices`, else a ValueError that lists near matches."""
    choices = list(choices)
    if name in choices:
        return name
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}."
    raise ValueError(f"unknown {kind} {name!r}; {hint}")


def to_dict(settings: RunSettings) -> dict[str, Any]:
    """Settings as plain JSON content."""
    return dataclasses.asdict(settings)


def from_dict(content: dict[str, Any]) -> RunSettings:
    """Settings from what `to_dict` made, possibly by way of JSON.

    Raises:
        ValueError: for a name that these settings do not have.
    """
    return _build(RunSettings, content)


def _build(cls, content):
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for name, value in content.items():
        if name not in fields:
            raise ValueError(f"unknown setting {name!r}; it comes from another version of metaopt.")
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            values[name] = _build(type(default), value)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
