"""VeLO and Celo in plain NumPy, from the equations: decays last, one feature at a time."""

import numpy as np

DECAYS = np.array([0.9, 0.99, 0.999])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_size(x):
    return 0.5 * np.clip(np.log(1e-8 + np.abs(10 * x)), -5, 5)


class LossFeatures:
    """Nine numbers about the losses so far."""

    def __init__(self, horizon):
        self.decays = np.exp(-1 / np.logspace(1, np.log10(horizon), 10))
        self.means, self.minima, self.t = np.zeros(10), np.full(10, 999999999999.0), 0

    def __call__(self, loss):
        scale = 1 - self.decays ** (self.t + 1)
        ref = loss if self.t == 0 else np.max(self.means / scale)
        loss = min(2 * abs(ref), loss)
        self.means = self.decays * self.means + (1 - self.decays) * loss
        c = self.means / scale
        self.minima = np.minimum(self.minima, c)
        self.t += 1
        if self.t <= 2:
            return np.zeros(9)
        ratio = (c[:9] - self.minima[:9]) / np.maximum(1e-8, c[1:] - self.minima[:9])
        return np.clip(ratio - 1, -1, 1)


def own_inputs(p, m, r):
    """What VeLO's scheduler reads of one tensor."""
    axes = tuple(range(p.ndim))
    nu = 1 / np.sqrt(max(1e-9, np.mean(p**2)))
    m, r = m * nu, r * nu
    mean_m = m.mean(axis=axes)
    one_hot = np.eye(5)[sum(size > 1 for size in p.shape)]
    var_m = ((m - mean_m) ** 2).mean(axis=axes)
    var_r = ((r - mean_m) ** 2).mean(axis=axes)
    return np.concatenate([log_size(r.mean(axis=axes)), one_hot, log_size(var_m), log_size(var_r)])


def scheduler(theta, state, inputs):
    """Controls, step heads and the new state."""

    def dense(name, x):
        return x @ theta[name]["w"] + theta[name]["b"]

    y = dense("own", inputs) + np.maximum(dense("shared", inputs), 0).max(axis=0)
    h, c = state
    i, g, f, o = np.split(dense("lstm", np.concatenate([y, h], axis=1)), 4, axis=1)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return dense("controls", h), dense("step", h)[:, 0], (h, c)


def features(g, p, m, r, factored):
    """Thirty normalised numbers per entry of a vector, or of a matrix that is not tall."""
    axes, shape = tuple(range(p.ndim)), p.shape
    rho = 1 / np.sqrt(r + 1e-6)
    if p.ndim == 2:
        row, col = factored
        factor = 1 / np.sqrt(row / (row.mean(axis=0, keepdims=True) + 1e-9) * col)
        tail = factor * m
    else:
        row = col = factored[0]
        factor, tail = 1 / np.sqrt(row + 1e-9), m / np.sqrt(row)
    g, p = g[..., None], p[..., None]
    groups = [g, np.clip(g, -0.1, 0.1), p, m, r, m * rho, rho, factor * g, g * rho]
    groups += [row, col, 1 / np.sqrt(row + 1e-8), 1 / np.sqrt(col + 1e-8), tail]
    x = np.concatenate([np.broadcast_to(f, (*shape, f.shape[-1])) for f in groups], axis=-1)
    return x / np.sqrt(1e-5 + (x**2).mean(axis=axes, keepdims=True))


def network(weights, x):
    for i in range(3):
        x = x @ weights[f"linear_{i}"]["w"] + weights[f"linear_{i}"]["b"]
        x = np.maximum(x, 0) if i < 2 else x
    return x[..., 0], x[..., 1]


def run(theta, params, grads, losses, *, num_steps, horizon, celo, mix, factor, mults, param_scale):
    """All parameters, a list of arrays, after following lists of gradients and losses."""
    step_mult, exp_mult = mults
    params, loss_features = list(params), LossFeatures(horizon)
    initial = theta["scheduler"]["initial"]
    state = tuple(np.tile(initial[name], (len(params), 1)) for name in ("hidden", "cell"))
    m = [np.zeros((*p.shape, 3)) for p in params]
    r = [np.zeros((*p.shape, 1)) for p in params]
    factored = [
        (np.zeros((p.shape[0], 1, 3)), np.zeros((1, p.shape[1], 3)))
        if p.ndim == 2
        else (np.zeros((*p.shape, 3)),)
        for p in params
    ]
    for t, (gradients, loss) in enumerate(zip(grads, losses, strict=True)):
        parts = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1, 1.1])
        shared = np.concatenate([np.tanh(10 * (t / num_steps - parts)), loss_features(loss)])
        inputs = np.stack(
            [
                shared if celo else np.concatenate([shared, own_inputs(p, m[i], r[i])])
                for i, p in enumerate(params)
            ]
        )
        controls, head, state = scheduler(theta["scheduler"], state, inputs)
        for i, (g, p) in enumerate(zip(gradients, params, strict=True)):
            q = (g**2)[..., None]
            m[i] = DECAYS * m[i] + (1 - DECAYS) * g[..., None]
            r[i] = 0.999 * r[i] + 0.001 * q
            means = (
                [q.mean(axis=1, keepdims=True), q.mean(axis=0, keepdims=True)]
                if p.ndim == 2
                else [q]
            )
            factored[i] = tuple(
                DECAYS * old + (1 - DECAYS) * new
                for old, new in zip(factored[i], means, strict=True)
            )
            weights = {
                name: {key: mix(controls[i], w) for key, w in layer.items()}
                for name, layer in theta["network"].items()
            }
            a, s = network(weights, features(g, p, m[i], r[i], factored[i]))
            scale = np.sqrt(np.mean(p**2) + 1e-9) if param_scale else 1.0
            params[i] = p - factor(head[i]) * step_mult * a * scale * np.exp(exp_mult * s)
    return params
