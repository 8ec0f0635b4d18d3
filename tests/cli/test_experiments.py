import json

import pytest

from metaopt import cli
from tests.cli.test_main import refused

SCRIPT = '''"""Adds numbers.

Command:   python experiments/adds.py
Hardware:  one core of an x86-64 CPU, shared
           with other work: about six minutes of its time.
Expected:  their sum, in 3 seconds.
"""

import pathlib
import sys

pathlib.Path(sys.argv[1]).write_text(" ".join(sys.argv[2:]))
raise SystemExit(3)
'''


@pytest.fixture
def checkout(tmp_path):
    """A folder with a described script that has results, and one that says nothing."""
    folder = tmp_path / "experiments"
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "adds.json").write_text("{}")
    (folder / "adds.py").write_text(SCRIPT)
    (folder / "mute.py").write_text("")
    return folder


def listed(capsys, *words):
    assert cli.main(["experiments", "list", "--json", *words]) == 0
    return {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_scripts_are_described_by_their_docstrings(checkout, capsys):
    found = listed(capsys, "--folder", str(checkout))
    assert list(found) == ["adds", "mute"]
    assert found["adds"]["title"] == "Adds numbers."
    assert found["adds"]["time"] == "about six minutes"
    assert found["adds"]["has_results"] is True
    assert (found["mute"]["title"], found["mute"]["time"]) == ("", None)
    assert found["mute"]["has_results"] is False

    assert cli.main(["experiments", "list", "--folder", str(checkout)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["adds", "Adds", "numbers.", "about", "six", "minutes", "yes"]
    assert lines[2].split() == ["mute", "-", "no"]


def test_the_folder_of_the_working_directory_is_found(checkout, capsys, monkeypatch):
    monkeypatch.chdir(checkout.parent)
    assert "mute" in listed(capsys)


def test_elsewhere_the_checkout_of_the_package_is_found(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = listed(capsys)
    assert found["hypergradients"]["time"] == "two minutes"
    assert found["hypergradients"]["has_results"]


@pytest.mark.parametrize("given", [["--folder", "{}"], ["--folder={}"]])
def test_a_script_gets_all_its_options_and_gives_its_status(checkout, tmp_path, given):
    out = tmp_path / "out"
    folder = [word.format(checkout) for word in given]
    words = ["experiments", "run", *folder, "adds", str(out), "--help", "--folder", "x"]
    assert cli.main(words) == 3
    assert out.read_text() == "--help --folder x"


def test_outside_a_checkout_the_error_says_where_experiments_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metaopt.cli._experiments._CHECKOUT", tmp_path / "site-packages")
    for words in (["list"], ["run", "adds"]):
        error = refused(capsys, "experiments", *words)
        assert "holds no experiments; they come with a checkout" in error
        assert "--folder" in error


def test_bad_words_are_refused(checkout, capsys):
    run = ("experiments", "run", "--folder", str(checkout))
    assert "unknown action 'runs'; did you mean run?" in refused(capsys, "experiments", "runs")
    assert "did you mean adds?" in refused(capsys, *run, "add")
    assert "run needs a name" in refused(capsys, *run)
    assert "run needs a name" in refused(capsys, "experiments", "run")


def test_help_tells_both_actions(capsys):
    assert cli.main(["experiments", "--help"]) == 0
    text = capsys.readouterr().out
    assert "metaopt experiments list" in text
    assert "metaopt experiments run" in text
