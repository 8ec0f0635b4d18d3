import io
import json
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from metaopt.core import Split
from metaopt.eval import Baseline, compare, figure, smooth, table, to_json
from tests.eval.families import fit_pool


@pytest.fixture(scope="module")
def comparison():
    """A tuned contender at the edge of its grid, and one that overflows."""
    return compare(
        [Baseline("[steady]", optax.sgd), Baseline("wild", optax.sgd, 1e12)],
        fit_pool(),
        Split(np.float32(1.0), np.float32(3.0)),
        jax.random.key(0),
        num_steps=10,
        grid=(0.05, 0.1),
        num_seeds=2,
        num_tuning_seeds=1,
        num_eval_batches=1,
    )


def test_table_shows_what_gradient_descent_gives(comparison):
    stream = io.StringIO()
    Console(file=stream, width=100).print(table(comparison))
    text = stream.getvalue()
    steady, wild = (next(x for x in text.splitlines() if n in x) for n in ("steady", "wild"))
    # The error shrinks by 0.9 a step: losses ½ 0.81ᵗ, and the pool of the validation is at 3.
    mean, final = np.mean(0.5 * 0.81 ** np.arange(10)), 0.5 * 0.81**10
    validation, accuracy = 0.5 * (2 + 0.9**10) ** 2, 0.9**10
    expected = ["[steady]", "0.1*", f"{mean:.3g}", f"{final:.3g}", f"{validation:.3g}"]
    expected += [f"{accuracy:.1%}", "0%", "10", "1.00", "[1.00,", "1.00]"]
    assert steady.split() == expected
    assert wild.split()[-5:] == ["100%", ">10", "0.00", "[0.00,", "0.00]"]


def test_json_keeps_protocol_numbers_and_curves_and_is_valid(comparison):
    record = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    assert record["protocol"]["grid"] == [0.05, 0.1]
    assert record["protocol"]["reference"] == "[steady]"
    steady, wild = record["contenders"]
    expected = smooth(0.5 * 0.81 ** np.arange(10))
    for level in ("mean", "low", "high"):
        np.testing.assert_allclose(steady["curve"][level], expected, rtol=1e-5)
    assert steady["curve"]["step"] == list(range(1, 11))
    np.testing.assert_allclose(steady["final_loss"], 0.5 * 0.81**10, rtol=1e-5)
    np.testing.assert_allclose(
        steady["tuning_scores"][1], np.mean(0.5 * 0.81 ** np.arange(10)), rtol=1e-5
    )
    assert steady["at_edge"]
    assert steady["num_configurations"] == 2
    assert wild["failed"] == [True, True]
    assert wild["validation_losses"] == [None, None]
    assert wild["curve"]["mean"][-1] is None
    assert wild["speedup_iqm"] == {"estimate": 0, "low": 0, "high": 0}


def test_figure_writes_the_same_files_from_results_and_from_json(comparison, tmp_path):
    png, svg = figure(comparison, tmp_path / "new" / "curves.png", title="Fit")
    record = json.loads(json.dumps(to_json(comparison)))
    again = figure(record, tmp_path / "again", title="Fit")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert png.read_bytes() == again[0].read_bytes()
    assert svg.read_bytes() == again[1].read_bytes()
    root = ElementTree.parse(svg).getroot()
    assert root.tag.endswith("svg")
    # Text is drawn as paths, with the words kept as comments.
    for words in ("inner step", "training loss, smoothed", "[steady] (lr 0.1)", "Fit"):
        assert f"<!-- {words} -->" in svg.read_text()


def test_figure_is_linear_where_losses_are_not_positive(comparison, tmp_path):
    record = to_json(comparison)
    for contender in record["contenders"]:
        curve = contender["curve"]
        contender["curve"] = curve | {"low": [-1.0] * len(curve["low"])}
    _, svg = figure(record, tmp_path / "curves", loss_label="loss (nats)")
    assert "<!-- loss (nats), smoothed -->" in svg.read_text()
    assert "^{" not in svg.read_text()  # no powers of ten on the axis
