import numpy as np
import pytest

from metaopt import cli, train
from tests.cli.test_main import refused


def make_run(folder, offset):
    """Losses offset + 1/step with one that is not finite, and a probe every 10 steps."""
    metrics = train.Metrics(folder, 0)
    for step in range(1, 41):
        loss = float("nan") if step == 20 else offset + 1 / step
        metrics.write(step, {"loss": loss})
        if step % 10 == 0:
            metrics.write(step, {"probe/held-out": offset + step})
    metrics.close()
    return folder


def test_curves_are_the_numbers_of_the_metrics(tmp_path):
    curves = train.run_curves(make_run(tmp_path, 2.0), decay=0.5)
    steps = np.array([s for s in range(1, 41) if s != 20])
    np.testing.assert_array_equal(curves.loss[0], steps)
    np.testing.assert_allclose(curves.loss[1], 2 + 1 / steps)
    # The debiased average, by its definition: weights 0.5^(n-i), normalised.
    for n in (0, 1, 25):
        weights = 0.5 ** np.arange(n, -1, -1.0)
        expected = np.sum(weights * curves.loss[1][: n + 1]) / weights.sum()
        np.testing.assert_allclose(curves.smoothed[1][n], expected, rtol=1e-6)
    np.testing.assert_array_equal(curves.probes["held-out"], [[10, 20, 30, 40], [12, 22, 32, 42]])


@pytest.mark.compiles
def test_runs_are_drawn_over_one_another_with_their_names(tmp_path, capsys):
    for name, offset in (("fast", 1.0), ("slow", 3.0)):
        (tmp_path / name).mkdir()
        make_run(tmp_path / name, offset)
    words = ["plot", str(tmp_path / "fast"), str(tmp_path / "slow"), "--out", str(tmp_path / "x/y")]
    assert cli.main(words) == 0
    assert str(tmp_path / "x" / "y.png") in capsys.readouterr().out
    assert (tmp_path / "x" / "y.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "x" / "y.svg").read_text()
    for text in ("fast", "slow", "fast, held-out", "outer step"):
        assert f"<!-- {text} -->" in svg


def test_one_run_is_drawn_into_its_own_folder(tmp_path, capsys):
    make_run(tmp_path, 0.0)
    assert cli.main(["plot", str(tmp_path)]) == 0
    assert (tmp_path / "curves.svg").exists()
    assert "<!-- held-out -->" in (tmp_path / "curves.svg").read_text()


def test_folders_without_metrics_and_repeated_ones_are_refused(tmp_path, capsys):
    assert "has no metrics" in refused(capsys, "plot", str(tmp_path))
    make_run(tmp_path, 0.0)
    assert "a folder is named twice" in refused(capsys, "plot", str(tmp_path), str(tmp_path))


def test_plotting_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run to plot"):
        train.plot_runs([], tmp_path / "x")
