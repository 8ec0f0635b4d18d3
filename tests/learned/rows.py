"""Every public learned optimizer: `(name, thunk)` rows for the conformance tests."""

import optax

from metaopt import learned

ROWS = [
    ("adafac_mlp", lambda: learned.adafac_mlp(step_mult=0.1)),
    ("celo2", lambda: learned.celo2()),
    ("celo2_orthogonalised", lambda: learned.celo2(orthogonalise=True, weight_decay=0.1)),
    (
        "cosine_decayed",
        lambda: learned.cosine_decayed(
            learned.hyperparameters(optax.sgd, learning_rate=learned.positive(0.1))
        ),
    ),
    ("mlp", lambda: learned.mlp(hidden_size=8)),
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
]
