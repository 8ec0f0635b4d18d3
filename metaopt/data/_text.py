"""English text that ships with scikit-learn: the descriptions of its datasets.

Some 40,000 characters of prose, tables and references, as tokens of one character each. The
alphabet is fixed, so that a model of the text has the same shapes whatever the version of
scikit-learn, whose descriptions change now and then.
"""

import importlib.resources
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from metaopt.data._check import at_least_one

# Printable ASCII without capitals, and the end of a line.
_ALPHABET = "\n" + "".join(c for c in map(chr, range(32, 127)) if not c.isupper())
_UNKNOWN = _ALPHABET.index("?")
_BLOCK, _BLOCKS_PER_ROUND = 1000, 10


class TextPool(NamedTuple):
    """A text to draw windows from.

    Attributes:
        tokens: int32 indices into an alphabet, in the order of the text.
    """

    tokens: Int[jax.Array | np.ndarray, " n"]


class TextDataset(NamedTuple):
    """Three disjoint texts. A host-side container: pass one of its pools through `jit`.

    Attributes:
        train: what inner training draws from.
        validation: what choices are made on.
        test: what is reported.
        alphabet: token i stands for `alphabet[i]`; its length is the size of the vocabulary.
    """

    train: TextPool
    validation: TextPool
    test: TextPool
    alphabet: str


def text() -> TextDataset:
    """Loads the descriptions of scikit-learn's datasets as characters, about 40,000 of them.

    Letters are lower-cased, what the alphabet of 70 lacks becomes `?`, and runs of one character
    (the rules and the padding of tables) are cut to three. Of every ten blocks of 1,000
    characters, eight are for training, one for validation and one for testing, so that all three
    touch every subject.

    Returns:
        A dataset whose `alphabet` has 70 characters.

    Raises:
        ImportError: if scikit-learn is missing, or ships no descriptions.
    """
    tokens = encode(_descriptions())
    blocks = [tokens[i : i + _BLOCK] for i in range(0, len(tokens), _BLOCK)]
    places = np.arange(len(blocks)) % _BLOCKS_PER_ROUND

    def part(chosen) -> TextPool:
        return TextPool(jnp.asarray(np.concatenate([blocks[i] for i in np.flatnonzero(chosen)])))

    last = _BLOCKS_PER_ROUND - 1
    return TextDataset(
        part(places < last - 1), part(places == last - 1), part(places == last), _ALPHABET
    )


def sample_windows(
    pool: TextPool, key: PRNGKeyArray, *, batch_size: int, length: int
) -> Int[Array, "batch length"]:
    """Draws windows of a text, their first characters uniformly and with replacement.

    Args:
        pool: the text.
        key: consumed.
        batch_size: number of windows. Static.
        length: characters in a window. Static.

    Returns:
        Tokens; a language model reads all but the last column and predicts all but the first.

    Raises:
        ValueError: if a size is below 1, or the text is shorter than a window.
    """
    at_least_one("sample_windows", batch_size=batch_size, length=length)
    num_starts = len(pool.tokens) - length + 1
    if num_starts < 1:
        raise ValueError(
            f"sample_windows: length={length} exceeds the {len(pool.tokens)} tokens of the pool; "
            "use shorter windows."
        )
    start = jax.random.randint(key, (batch_size,), 0, num_starts)
    return jnp.asarray(pool.tokens)[start[:, None] + jnp.arange(length)[None]]


def encode(characters: str) -> np.ndarray:
    """A text as tokens."""
    shortened = re.sub(r"(.)\1{3,}", r"\1\1\1", characters.lower())
    index = {character: i for i, character in enumerate(_ALPHABET)}
    return np.array([index.get(character, _UNKNOWN) for character in shortened], np.int32)


def _descriptions() -> str:
    try:
        folder = importlib.resources.files("sklearn").joinpath("datasets", "descr")
        files = sorted(
            (file for file in folder.iterdir() if file.name.endswith(".rst")),
            key=lambda file: file.name,
        )
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ImportError(
            f"text: scikit-learn's descriptions cannot be read ({error}); run "
            "`pip install scikit-learn`."
        ) from error
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
