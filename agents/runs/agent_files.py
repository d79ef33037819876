"""An agent's file as a run: what ``evaluate.py`` makes of a .zip that lies in no run's directory.

It has weights and spaces but no settings; the environment must be named. A directory next to the file, NAME-evaluation,
holds what a run's does: settings, the agent, and the evaluations made of it. A model of sb3-contrib is imported.
"""

import hashlib
import shutil
import zipfile
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import configs
from agents.analysis.episodes import playing
from agents.analysis.report.history import RunError, read_versions
from agents.checkpoint import CheckpointError
from agents.deploy.contrib import import_contrib
from agents.deploy.player import Player
from agents.memory import MEMORIES
from agents.runs.construction import make_environments, own_classes
from agents.runs.directory import RunDirectory, numbered_paths, write_atomically
from configs import CheckpointFault, Settings, SettingsError, reported_as
from configs.settings import PolicySettings


def run_of(file: Path, task: Settings | None) -> RunDirectory:
    """The run that a file belongs to: the one it lies in, or one made for it.

    Args:
        task: settings of the environment to play it in; None: those of the run that it lies in.

    Raises:
        SettingsError: it lies in no run and there is no ``task``.
        CheckpointFault: it is no agent's file, or does not fit the environment.
    """
    for folder in (file.parent, file.parent.parent):
        if task is None and (folder / "settings.yaml").is_file():
            return RunDirectory(folder, agent=file)
    if task is None:
        raise SettingsError(
            f"{file} lies in no run's directory, so its environment is not known; add --env ID, or --config FILE with "
            "the settings of its environment"
        )
    with reported_as(CheckpointFault, f"{file} in {task.env.id}", RunError, CheckpointError, OSError, ValueError):
        return _made_for(file, task)


def _made_for(file: Path, task: Settings) -> RunDirectory:
    # A script's environment has no wrappers but its own, and the agent's file knows of a last action and reward.
    env = replace(task.env, wrappers=task.env.wrappers or (), previous_action_reward=False)
    task = replace(task, env=env)
    with closing(make_environments(task, 1)) as tried:
        model = import_contrib(file, tried, device="cpu") if _is_contrib(file) else None
        player = Player.load(file, custom_objects=own_classes(task.policy)) if model is None else Player.of(model)
        with playing(player, tried):  # which raises where they do not fit
            pass
    settings = replace(task, policy=_policy_of(player, task.policy))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for path in numbered_paths(file.parent, f"{file.stem}-evaluation"):
        if path.exists() and _is_of(path, digest, settings):
            return RunDirectory(path)
        if not path.exists():
            break
    run = RunDirectory.create(path.parent, path.name)
    with run.removed_if_nothing_came_of_it():
        write_atomically(run.settings, configs.dump(settings))
        configs.sign(run.path, settings)
        run.write_versions(agent_sha256=digest)
        if model is None:
            shutil.copyfile(file, run.best)
        else:
            model.save(run.best)
    return run


def _is_contrib(file: Path) -> bool:
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        return "policy.pth" in archive.namelist()
    return False


def _policy_of(player: Player, policy: PolicySettings) -> PolicySettings:
    """The settings' own, with the memory that the agent has."""
    names = [name for name, kind in MEMORIES.items() if kind is type(player.policy.memory_actor)]
    return replace(policy, memory=names[0], memory_kwargs={}) if names else policy


def _is_of(path: Path, digest: str, settings: Settings) -> bool:
    with suppress(SettingsError):
        same_task = configs.read(path / "settings.yaml").env == settings.env
        return same_task and read_versions(path).get("agent_sha256") == digest
    return False
