"""Transformer language models: embeddings of tokens and positions, causal blocks, a linear head.

Radford et al. 2019 (GPT-2) in small, without weight tying and dropout; the blocks are those of
`_transformer`.
"""

import jax
import jax.numpy as jnp

from metaopt.core import TaskFamily, checked
from metaopt.tasks._language import embed, head_init, language_family
from metaopt.tasks._transformer import transformer


@checked
def transformer_lm(
    vocab_size: int,
    *,
    depth: int = 2,
    width: int = 32,
    heads: int = 2,
    expansion: int = 2,
    length: int = 32,
    batch_size: int = 16,
) -> TaskFamily:
    """A causal transformer that predicts the next token of windows of a text.

    The normaliser is `clip_classification`.

    Args:
        vocab_size: number of tokens V, at least 2. Static.
        depth: number of blocks. Static.
        width: size of the residual stream. Static.
        heads: attention heads, a divisor of `width`. Static.
        expansion: width of a block's perceptron over that of the stream. Static.
        length: predictions in a window, and positions that have an embedding. Static.
        batch_size: windows in a minibatch. Static.

    Returns:
        A family with `data` a `metaopt.data.TextPool`, batches int32 [batch_size, length + 1],
        `task_params = ()`, `params = {"embed": [V, width], "position": [length, width],
        "blocks": (block, ...), "scale": [width], "head": {"w": [width, V], "b": [V]}}` and `aux` of
        type `Metrics`.

    Raises:
        ValueError: if a size is below 1, `vocab_size` is below 2 or `width` is not a multiple of
            `heads`; when traced, if `data` has no `tokens`, or fewer than a window.
    """
    init, apply = causal_network(
        vocab_size, depth=depth, width=width, heads=heads, expansion=expansion, length=length
    )
    return language_family("transformer_lm", init, apply, vocab_size, length, batch_size)


def causal_network(
    vocab_size: int, *, depth: int, width: int, heads: int, expansion: int, length: int
):
    """The pair `(key) -> params`, `(params, tokens [n, t]) -> logits [n, t, vocab_size]`."""
    init_blocks, apply_blocks = transformer(
        "transformer_lm", depth=depth, width=width, heads=heads, expansion=expansion, causal=True
    )

    def init(key):
        key_embed, key_position, key_blocks, key_head = jax.random.split(key, 4)
        return {
            "embed": jax.random.normal(key_embed, (vocab_size, width)),
            # Small, so that a token is read first and its place second.
            "position": 0.1 * jax.random.normal(key_position, (length, width)),
            **init_blocks(key_blocks),
            "head": {"w": head_init(key_head, (width, vocab_size)), "b": jnp.zeros(vocab_size)},
        }

    def apply(params, tokens):
        x = embed(params["embed"], tokens) + params["position"][None, : tokens.shape[1]]
        x = apply_blocks(params, x)
        return x @ params["head"]["w"] + params["head"]["b"][None, None]

    return init, apply
