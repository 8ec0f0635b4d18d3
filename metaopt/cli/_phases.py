"""Curricula: runs one after the other, each from the best theta of the one before.

A horizon is static and so is the size of a problem, which makes every phase a program of its own;
it is an ordinary run in a folder of its own, so that a curriculum that was stopped in any way goes
on bit for bit:

    settings.json           the phases with their settings, compared before anything is written
    1-NAME/, 2-NAME/, ...   the runs
"""

import dataclasses
import json
import pathlib
import re
from typing import Any, NamedTuple

from metaopt import train
from metaopt.cli._settings import RunSettings, from_dict, stored, to_dict


class Phase(NamedTuple):
    """A preset's name, and its settings with the changes of the command line."""

    name: str
    settings: RunSettings


def chained(phases: list[Phase]) -> list[Phase]:
    """The same phases, every one but the first starting from the theta of the one before."""
    folders = [folder_name(index, phase) for index, phase in enumerate(phases)]
    starts = [f"../{folder}/theta.npz" for folder in folders[:-1]]
    later = [
        phase._replace(settings=dataclasses.replace(phase.settings, init_theta=start))
        for phase, start in zip(phases[1:], starts, strict=True)
    ]
    return [phases[0], *later]


def folder_name(index: int, phase: Phase) -> str:
    """The folder of a phase in that of the curriculum."""
    return f"{index + 1}-{phase.name}"


def open_curriculum(phases: list[Phase], out: pathlib.Path) -> None:
    """Makes the folder of a curriculum, or checks that it holds this one.

    Raises:
        RunFolderError: as `metaopt.train.open_folder`.
    """
    content: dict[str, Any] = {
        "phases": [{"name": name, "settings": to_dict(settings)} for name, settings in phases]
    }
    # Older versions lack settings; with their defaults they are the same curriculum.
    train.open_folder(out, _content(out) if read_phases(out) == phases else content)


def read_phases(out: pathlib.Path) -> list[Phase]:
    """The phases of the curriculum in a folder; none if it holds something else.

    Raises:
        ValueError: if they are of another version.
    """
    phases = _content(out).get("phases", [])
    try:
        read = [Phase(phase["name"], from_dict(phase["settings"])) for phase in phases]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{out / 'settings.json'} holds damaged phases ({error!r}).") from error
    for phase in read:
        # Names become folders, and a file from elsewhere may hold any.
        if not re.fullmatch(r"[\w-]+", str(phase.name)):
            raise ValueError(
                f"{out / 'settings.json'} has a phase of the name {phase.name!r}; letters, digits, "
                "- and _ are allowed."
            )
    return read


def run_folders(out: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a curriculum's runs that exist, in order; of a single run, its folder."""
    phases = read_phases(out)
    if not phases:
        return [out]
    folders = [out / folder_name(index, phase) for index, phase in enumerate(phases)]
    return [folder for folder in folders if folder.exists()] or folders[:1]


def is_finished(settings: RunSettings, folder: pathlib.Path) -> bool:
    """Whether a run of these settings has taken all its steps.

    Raises:
        RunFolderError: if the folder holds a run of other settings.
    """
    if not (folder / "settings.json").exists():
        return False
    train.open_folder(folder, stored(settings, folder))
    return train.run_status(folder).phase == "finished"


def _content(out: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads((out / "settings.json").read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return content if isinstance(content, dict) else {}
