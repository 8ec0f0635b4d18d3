import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaopt.data import TextPool, sample_windows, text
from metaopt.data._text import encode
from tests.helpers import standard_errors


def decode(tokens, alphabet):
    return "".join(alphabet[i] for i in np.asarray(tokens))


def test_the_parts_are_disjoint_blocks_of_english():
    dataset = text()
    parts = [dataset.train, dataset.validation, dataset.test]
    assert {part.tokens.dtype for part in parts} == {jnp.dtype(jnp.int32)}
    sizes = [len(part.tokens) for part in parts]
    assert sum(sizes) > 30_000
    assert 0.75 < sizes[0] / sum(sizes) < 0.85
    assert min(sizes[1:]) > 0.07 * sum(sizes)
    train, validation, test = (decode(part.tokens, dataset.alphabet) for part in parts)
    # Blocks of 1,000 characters that occur in one part alone.
    for held_out, others in [(validation, train + test), (test, train + validation)]:
        for start in range(0, len(held_out) - 100, 1000):
            assert held_out[start : start + 100] not in others
    words = set(train.split())
    assert {"the", "of", "and", "dataset", "features", "is"} <= words


def test_the_alphabet_is_fixed_and_every_token_is_in_it():
    dataset = text()
    assert len(dataset.alphabet) == len(set(dataset.alphabet)) == 70
    for part in (dataset.train, dataset.validation, dataset.test):
        tokens = np.asarray(part.tokens)
        assert tokens.min() >= 0
        assert tokens.max() < 70
    assert decode(encode("Table ====== 3 × 4\n"), dataset.alphabet) == "table === 3 ? 4\n"


def test_windows_are_pieces_of_the_text_that_start_anywhere():
    pool = TextPool(jnp.arange(6) * 10)
    windows = jax.jit(lambda pool, key: sample_windows(pool, key, batch_size=4000, length=3))(
        pool, jax.random.key(0)
    )
    windows = np.asarray(windows)
    assert windows.shape == (4000, 3)
    assert (np.diff(windows, axis=1) == 10).all()
    assert standard_errors(windows[:, :1] == np.array([[0, 10, 20, 30]]), [0.25] * 4) < 4.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0, "length": 2}, "batch_size=0 is below 1"),
        ({"batch_size": 1, "length": 0}, "length=0 is below 1"),
        ({"batch_size": 1, "length": 7}, "length=7 exceeds the 6 tokens of the pool"),
    ],
)
def test_bad_windows_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"sample_windows: {message}"):
        sample_windows(TextPool(jnp.arange(6)), jax.random.key(0), **settings)
