"""A small real problem with a convex loss: logistic regression of tumours, without a bias."""

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer


def breast_cancer(*, unit_rows=False):
    """Standardised columns and labels ±1; with `unit_rows`, rows of length 1."""
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    if unit_rows:
        inputs = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    return inputs, 2.0 * labels - 1


def logistic_loss(w, batch, l2=0.0):
    """The mean loss of `batch = (inputs, labels)`, and half of l2 times the squared length."""
    inputs, labels = batch
    return jnp.mean(jnp.logaddexp(0, -labels * (inputs @ w))) + l2 / 2 * jnp.sum(w**2)
