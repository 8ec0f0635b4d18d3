import dataclasses
import json

import pytest

from metaopt.cli import _phases as phases
from metaopt.cli import _presets as presets
from metaopt.cli import _settings as settings


def test_settings_survive_json():
    changed = dataclasses.replace(
        presets.preset("quick"),
        task=settings.TaskSettings(names=("quadratic", "digits/mlp"), hidden=(4, 5)),
        seed=7,
    )
    restored = settings.from_dict(json.loads(json.dumps(settings.to_dict(changed))))
    assert restored == changed
    assert hash(restored) == hash(changed)


def test_unknown_settings_are_named():
    content = settings.to_dict(presets.preset("digits"))
    content["estimator"]["beta"] = 1
    with pytest.raises(ValueError, match="unknown setting 'beta'"):
        settings.from_dict(content)


@pytest.mark.parametrize(
    ("name", "message"),
    [("digit", "did you mean digits?"), ("zzz", "choose from quick, digits")],
)
def test_near_matches_are_offered(name, message):
    with pytest.raises(ValueError, match=message):
        presets.preset(name)


def test_settings_of_an_older_version_take_the_defaults_of_what_came_later():
    content = settings.to_dict(settings.RunSettings())
    later = {
        "task": ("sampled", "sampled_seed", "sampled_seconds"),
        "optimizer": ("hidden_size", "bank_size", "step_mult", "phase", "mup"),
        "estimator": ("sign", "objective", "gradient"),
        "outer": ("optimizer", "weight_decay", "clip_value", "update_clip", "accumulate"),
    }
    for part, names in later.items():
        for name in names:
            del content[part][name]
    del content["init_theta"]
    assert settings.from_dict(content) == settings.RunSettings()


def test_a_folder_of_an_older_version_is_the_same_run(tmp_path):
    content = json.loads(json.dumps(settings.to_dict(settings.RunSettings())))
    del content["outer"]["update_clip"], content["init_theta"]
    (tmp_path / "settings.json").write_text(json.dumps({"settings": content}))
    assert settings.stored(settings.RunSettings(), tmp_path) == content
    other = settings.RunSettings(seed=3)
    assert settings.stored(other, tmp_path) == settings.to_dict(other)
    assert settings.stored(other, tmp_path / "none") == settings.to_dict(other)


def test_a_name_stands_for_one_preset_or_for_the_phases_of_a_curriculum():
    assert presets.phase_names("digits") == ("digits",)
    assert presets.phase_names("celo") == ("celo_1", "celo_2")
    assert presets.phase_names("quick,velo") == ("quick", "velo_1", "velo_2")
    with pytest.raises(ValueError, match="did you mean celo"):
        presets.phase_names("quick,cello")


def test_each_phase_starts_from_the_theta_of_the_one_before():
    names = ("quick", "digits", "quick")
    first, second, third = phases.chained(
        [phases.Phase(name, presets.preset(name)) for name in names]
    )
    assert first.settings.init_theta is None
    assert second.settings.init_theta == "../1-quick/theta.npz"
    assert third.settings.init_theta == "../2-digits/theta.npz"
    assert dataclasses.replace(third.settings, init_theta=None) == presets.preset("quick")


def test_a_curriculum_is_read_back_and_others_are_refused(tmp_path):
    phase = phases.Phase("quick", presets.preset("quick"))
    both = phases.chained([phase, phase])
    out = tmp_path / "run"
    phases.open_curriculum(both, out)
    phases.open_curriculum(both, out)
    assert phases.read_phases(out) == both
    assert phases.run_folders(out) == [out / "1-quick"]
    assert phases.run_folders(tmp_path) == [tmp_path]
    with pytest.raises(ValueError, match="holds a run of other settings"):
        phases.open_curriculum([phase], out)
