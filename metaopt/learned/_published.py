"""Weights in the trees that they are published in.

Keys may be nested dictionaries or joined by "/". VeLO and Celo:

    lstm_init_state  hidden, cell (1, H)
    rnn_params       linear, linear_1, linear_2: w (inputs, H), b;   rnn/linear: w (2H, 4H), b
                     rnn_to_controls: w (H, B), b;   step_size: w (H, 1), b
    ff_mod_stack/~   w0__0 ... w0__13 (B, size, h), b0 (B, h), w1, b1, w2 (B, h, 3), b2

The first layer of a network is kept as fourteen arrays, one per group of features. The output of
`linear` is not used: it is left out of `theta`, and comes back as zeros. Celo2 has `ff_mod_stack`
alone, without the leading axis B. The other rules:

    MLP               mlp/~: linear_0, linear_1, linear_2: w, b
    Adafactor MLP     momentum_decays, rms_decays, adafactor_decays;  nn/~: w0, b0, w1, b1, ...
    RNN-MLP           lstm_init_state, initial_from_mlp, initial_from_lstm, rnn_params/rnn/linear,
                      rnn_to_in_params/rnn_to_in, rnn_to_ff_params/rnn_to_ff,
                      ffmod_params/mlp/~/linear_0, ...
    LSTM and Adam     per_layer_{lr, beta1, beta2, epsilon}, lstm_init_state,
                      rnn_params/rnn/linear, rnn_to_controls_params/rnn_to_controls
"""

from itertools import accumulate

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

# Sizes of the groups of features, in the order of `_entry_network`.
GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
LAYERS = {
    "own": "linear_2",
    "shared": "linear_1",
    "lstm": "rnn/linear",
    "controls": "rnn_to_controls",
    "step": "step_size",
}
# Of LSTM-controlled Adam, in the order of its `theta`.
CONTROLS = ("lr", "beta1", "beta2", "epsilon")


def from_published(published: PyTree, *, what: str) -> PyTree:
    """`theta` of whichever optimizer the names belong to.

    Args:
        published: nested dictionaries of arrays.
        what: begins the message of an error.

    Raises:
        ValueError: if the names are of no known optimizer, or some of them are missing.
    """
    paths = _joined(published)
    recognised = {
        "per_layer_lr": _nn_adam,
        "ffmod_params/mlp/~/linear_0/w": _rnn_mlp,
        "rnn_params/linear/w": scheduled_from_published,
        "ff_mod_stack/~/w0__0": _celo2,
        "momentum_decays": _adafac_mlp,
        "mlp/~/linear_0/w": lambda paths: _layers(paths, "mlp/~/"),
    }
    for name, convert in recognised.items():
        if name in paths:
            try:
                return jax.tree.map(jnp.asarray, convert(paths))
            except KeyError as error:
                raise ValueError(f"{what} lacks {error}, which goes with {name!r}.") from error
            except (TypeError, IndexError) as error:
                raise ValueError(f"{what} holds something else than arrays: {error}.") from error
    raise ValueError(
        f"{what} holds weights of no known optimizer; it begins with {sorted(paths)[:4]}, and one "
        f"of {list(recognised)} was expected."
    )


def scheduled_from_published(tree: PyTree) -> PyTree:
    """`theta` of `velo` or `celo` from nested dictionaries, or one whose keys are joined by "/"."""
    paths = _joined(tree)
    stack = {
        path.removeprefix("ff_mod_stack/~/"): x
        for path, x in paths.items()
        if path.startswith("ff_mod_stack/")
    }
    first = jnp.concatenate([stack[f"w0__{i}"] for i in range(len(GROUPS))], axis=-2)
    weights = [first, stack["w1"], stack["w2"]]
    scheduler = {
        ours: {name: paths[f"rnn_params/{theirs}/{name}"] for name in ("w", "b")}
        for ours, theirs in LAYERS.items()
    }
    scheduler["initial"] = _start(paths)
    network = {f"linear_{i}": {"w": w, "b": stack[f"b{i}"]} for i, w in enumerate(weights)}
    return jax.tree.map(jnp.asarray, {"scheduler": scheduler, "network": network})


def scheduled_to_published(theta: PyTree) -> PyTree:
    """The inverse: nested dictionaries as they are published."""
    scheduler, network = theta["scheduler"], theta["network"]
    first = jnp.split(network["linear_0"]["w"], list(accumulate(GROUPS))[:-1], axis=-2)
    stack = {f"w0__{i}": w for i, w in enumerate(first)}
    stack |= {f"b{i}": network[f"linear_{i}"]["b"] for i in range(3)}
    stack |= {f"w{i}": network[f"linear_{i}"]["w"] for i in (1, 2)}
    layers = {theirs: scheduler[ours] for ours, theirs in LAYERS.items()}
    return {
        "lstm_init_state": jax.tree.map(lambda x: x[None], scheduler["initial"]),
        "rnn_params": {"linear": jax.tree.map(jnp.zeros_like, scheduler["own"]), **layers},
        "ff_mod_stack": {"~": stack},
    }


def _celo2(paths):
    stack = {path.removeprefix("ff_mod_stack/~/"): x for path, x in paths.items()}
    first = jnp.concatenate([stack[f"w0__{i}"] for i in range(len(GROUPS))], axis=-2)
    weights = [first, stack["w1"], stack["w2"]]
    return {f"linear_{i}": {"w": w, "b": stack[f"b{i}"]} for i, w in enumerate(weights)}


def _adafac_mlp(paths):
    decays = {"momenta": "momentum", "second": "rms", "factored": "adafactor"}
    num_layers = sum(path.startswith("nn/~/w") for path in paths)
    return {
        "decays": {ours: paths[f"{theirs}_decays"] for ours, theirs in decays.items()},
        "network": {
            f"linear_{i}": {name: paths[f"nn/~/{name}{i}"] for name in ("w", "b")}
            for i in range(num_layers)
        },
    }


def _rnn_mlp(paths):
    modules = {
        "lstm": "rnn_params/rnn/linear",
        "to_all": "rnn_to_in_params/rnn_to_in",
        "to_mlp": "rnn_to_ff_params/rnn_to_ff",
    }
    start = {
        **_start(paths),
        "from_mlp": paths["initial_from_mlp"],
        "to_all": paths["initial_from_lstm"],
    }
    return {
        **{ours: _dense(paths, theirs) for ours, theirs in modules.items()},
        "mlp": _layers(paths, "ffmod_params/mlp/~/"),
        "state": start,
    }


def _nn_adam(paths):
    return {
        "lstm": _dense(paths, "rnn_params/rnn/linear"),
        "head": _dense(paths, "rnn_to_controls_params/rnn_to_controls"),
        "controls": jnp.stack([jnp.asarray(paths[f"per_layer_{x}"]) for x in CONTROLS]),
        "state": _start(paths),
    }


def _start(paths):
    return {name: paths[f"lstm_init_state/{name}"][0] for name in ("hidden", "cell")}


def _dense(paths, prefix):
    return {name: paths[f"{prefix}/{name}"] for name in ("w", "b")}


def _layers(paths, prefix):
    num_layers = sum(path.startswith(prefix) and path.endswith("/w") for path in paths)
    return {f"linear_{i}": _dense(paths, f"{prefix}linear_{i}") for i in range(num_layers)}


def _joined(tree: PyTree) -> dict:
    def name(path):
        return "/".join(str(getattr(entry, "key", entry)) for entry in path)

    return {name(path): x for path, x in jax.tree.leaves_with_path(tree)}
