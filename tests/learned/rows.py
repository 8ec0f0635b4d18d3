"""Every public learned optimizer: `(name, thunk)` rows for the conformance tests."""

import optax

from metaopt import learned

ROWS = [
    ("adafac_mlp", lambda: learned.adafac_mlp(step_mult=0.1)),
    ("adam_mlp", lambda: learned.adam_mlp(0.1)),
    (
        "adam_mlp_orthogonalised",
        lambda: learned.adam_mlp(
            0.1, nesterov=True, orthogonalise=True, normalise_output=True, decay_power=2.0
        ),
    ),
    ("celo2", lambda: learned.celo2()),
    ("celo2_orthogonalised", lambda: learned.celo2(orthogonalise=True, weight_decay=0.1)),
    ("celo2_mixed", lambda: learned.celo2_mixed(weight_decay=0.1)),
    (
        "mup",
        lambda: learned.mup(
            learned.mlp(hidden_size=2),
            # The layer in the middle of three is a hidden one.
            lambda p: learned.mup_scale([p, p, p], learned.mlp_roles([p, p, p]))[1],
        ),
    ),
    ("celo_phase_1", lambda: learned.celo(phase=1, hidden_size=3, step_mult=0.1)),
    ("celo", lambda: learned.celo(phase=2, hidden_size=3, bank_size=2, step_mult=0.1)),
    (
        "celo_scheduled",
        lambda: learned.celo_scheduled(optax.adam(0.1, eps_root=1e-8), hidden_size=3),
    ),
    (
        "cosine_decayed",
        lambda: learned.cosine_decayed(
            learned.hyperparameters(optax.sgd, learning_rate=learned.positive(0.1))
        ),
    ),
    ("adafac_nominal", lambda: learned.adafac_nominal(step_mult=0.1, weight_decay=0.01)),
    ("symbolic", lambda: learned.symbolic(learned.simplify(learned.program("adamw")))),
    ("lstm", lambda: learned.lstm(hidden_size=3)),
    ("lstm_raw", lambda: learned.lstm(hidden_size=3, num_layers=1, preprocess="raw")),
    (
        "long_runs",
        lambda: learned.long_runs(learned.mlp(hidden_size=2), max_steps=2, weight_decay=0.1),
    ),
    ("mlp", lambda: learned.mlp(hidden_size=8)),
    ("nn_adam", lambda: learned.nn_adam(hidden_size=3, learning_rate=0.1)),
    ("rnn_mlp", lambda: learned.rnn_mlp(hidden_size=3, lstm_size=2, step_mult=0.1)),
    (
        "hyperparameters_adam",
        lambda: learned.hyperparameters(
            optax.adam,
            learning_rate=learned.positive(1e-2),
            b1=learned.fraction(0.9),
            b2=learned.fraction(0.99),
            eps_root=1e-8,
        ),
    ),
    (
        "hyperparameters_warmup_cosine",
        lambda: learned.hyperparameters(
            optax.sgd,
            learning_rate=learned.warmup_cosine(0.1, warmup=0.2),
            momentum=learned.fraction(0.9),
        ),
    ),
    (
        "hyperparameters_log_linear",
        lambda: learned.hyperparameters(
            optax.sgd, learning_rate=learned.log_linear(0.01, 0.1, 0.01)
        ),
    ),
    ("velo", lambda: learned.velo(hidden_size=3, bank_size=2)),
    (
        "muvelo",
        lambda: learned.velo(
            hidden_size=3, bank_size=2, mix_mult=1, param_scale=False, loss_horizon=20
        ),
    ),
]
