import collections

import pytest

from tests import bad_input


@pytest.fixture(scope="module")
def calls():
    """Recorded once: building every row takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        return bad_input.recorded_calls(patch)


def unclear(attempts) -> str:
    """What did not end in an error that names the argument, a line each."""
    attempts = list(attempts)
    assert len(attempts) > 50  # Or nothing was tried.
    return "\n".join(
        f"{x.factory}: {x.what}={x.value} was {x.outcome}: {x.message[:120]}"
        for x in attempts
        if x.outcome != "clear"
    )


@pytest.mark.slow
def test_arguments_of_a_wrong_kind_are_named(calls):
    found = unclear(bad_input.settings(calls))
    assert not found, found


@pytest.mark.slow
def test_estimators_name_a_wrong_theta_and_a_wrong_key():
    found = unclear(bad_input.estimators())
    assert not found, found


@pytest.mark.slow
def test_problems_that_break_their_contract_are_named(calls):
    found = unclear(bad_input.problems(calls))
    assert not found, found


@pytest.mark.slow
def test_learned_optimizers_name_a_wrong_theta_and_wrong_params():
    found = unclear(bad_input.learned_optimizers())
    assert not found, found


@pytest.mark.slow
def test_settings_of_the_command_line_are_named_before_anything_is_written(tmp_path, monkeypatch):
    found = unclear(bad_input.command_line(tmp_path, monkeypatch))
    assert not found, found


def test_outcomes_are_told_apart():
    def fails(error):
        raise error

    good = bad_input.attempt("f", "x", "1", ("x",), fails, ValueError("f: x is bad"))
    other = bad_input.attempt("f", "x", "1", ("x",), fails, ValueError("f: it is bad"))
    wrong = bad_input.attempt("f", "x", "1", ("x",), fails, KeyError("x"))
    silent = bad_input.attempt("f", "x", "1", ("x",), lambda: None)
    outcomes = collections.Counter(x.outcome for x in (good, other, wrong, silent))
    assert outcomes == {"clear": 1, "error": 2, "accepted": 1}
