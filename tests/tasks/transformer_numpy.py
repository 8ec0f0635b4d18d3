"""The blocks of a transformer in NumPy, one sequence, one head and one query at a time."""

import math

import numpy as np


def norm(x, scale):
    return scale * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)


def gelu(x):
    """The approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x, block, *, heads, causal):
    """Multi-head attention of a sequence [t, width] with itself."""
    length, width = x.shape
    size = width // heads
    q, k, v = np.split(x @ block["qkv"], 3, axis=1)
    mixed = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for query in range(length):
            seen = query + 1 if causal else length
            scores = k[:seen, part] @ q[query, part] / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            mixed[query, part] = weights / weights.sum() @ v[:seen, part]
    return mixed @ block["out"]


def blocks(x, params, *, heads, causal):
    """A stack of blocks on one sequence [t, width], normalised at the end."""
    for block in params["blocks"]:
        x = x + attention(norm(x, block["attention_scale"]), block, heads=heads, causal=causal)
        inner = gelu(norm(x, block["mlp_scale"]) @ block["up"]["w"] + block["up"]["b"])
        x = x + inner @ block["down"]["w"] + block["down"]["b"]
    return norm(x, params["scale"])
