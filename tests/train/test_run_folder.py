import json
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from metaopt import train
from tests.train.problems import equal_bits

THETA = {"file": jnp.arange(6.0).reshape(2, 3), "layers": ({"b": jnp.ones(2, jnp.bfloat16)},)}


def test_theta_comes_back_with_its_dtypes(tmp_path):
    train.save_theta(tmp_path / "theta.npz", THETA)
    assert equal_bits(train.load_theta(tmp_path / "theta.npz", THETA), THETA)
    with np.load(tmp_path / "theta.npz", allow_pickle=False) as stored:
        assert set(stored.files) == {"file", "layers/0/b"}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"file": jnp.zeros((2, 3))}, "unexpected layers/0/b"),
        (THETA | {"more": jnp.zeros(1)}, "missing more"),
        (THETA | {"file": jnp.zeros((3, 2))}, r"file has shape \(2, 3\), expected \(3, 2\)"),
    ],
)
def test_a_theta_that_does_not_fit_is_refused(tmp_path, like, message):
    train.save_theta(tmp_path / "theta.npz", THETA)
    with pytest.raises(ValueError, match=message):
        train.load_theta(tmp_path / "theta.npz", like)


def test_pickled_content_is_never_executed(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive, archive.open("a.npy", "w") as f:
        np.lib.format.write_array(f, np.array([{"x": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="a.npy holds object, which is no kind of number"):
        train.load_theta(tmp_path / "bad.npz", {"a": jnp.zeros(1)})


def test_settings_are_stored_and_compared(tmp_path):
    settings = {"outer": {"steps": 5, "lr": 0.1}, "names": ("a",)}
    train.open_folder(tmp_path / "run", settings)
    train.open_folder(tmp_path / "run", settings)
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert stored["settings"] == {"outer": {"steps": 5, "lr": 0.1}, "names": ["a"]}
    assert set(stored["versions"]) == {"metaopt", "jax", "jaxlib", "optax"}
    with pytest.raises(train.RunFolderError, match=r"outer.lr: 0.1 there, 0.2 now"):
        train.open_folder(tmp_path / "run", settings | {"outer": {"steps": 5, "lr": 0.2}})


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(train.RunFolderError, match="is not empty and holds no run"):
        train.open_folder(tmp_path, {})
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(train.RunFolderError, match="cannot be written"):
        train.open_folder(tmp_path / "file" / "run", {})


def test_broken_settings_are_not_overwritten(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(train.RunFolderError, match="not valid JSON"):
        train.open_folder(tmp_path, {})
    assert (tmp_path / "settings.json").read_text() == "{"
