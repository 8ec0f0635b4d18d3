import dataclasses
import json

import pytest

from metaopt.cli import _settings as settings


def test_settings_survive_json():
    changed = dataclasses.replace(
        settings.preset("quick"),
        task=settings.TaskSettings(names=("quadratic", "digits/mlp"), hidden=(4, 5)),
        seed=7,
    )
    restored = settings.from_dict(json.loads(json.dumps(settings.to_dict(changed))))
    assert restored == changed
    assert hash(restored) == hash(changed)


def test_unknown_settings_are_named():
    content = settings.to_dict(settings.preset("digits"))
    content["estimator"]["beta"] = 1
    with pytest.raises(ValueError, match="unknown setting 'beta'"):
        settings.from_dict(content)


@pytest.mark.parametrize(
    ("name", "message"),
    [("digit", "did you mean digits?"), ("zzz", "choose from quick, digits")],
)
def test_near_matches_are_offered(name, message):
    with pytest.raises(ValueError, match=message):
        settings.preset(name)
