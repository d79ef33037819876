"""Families of environments: every one has settings that train, and what is missing says how it is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import configs
import envs
import train
from configs.command_line import find_config
from configs.errors import describe
from envs.vector import families
from envs.vector.errors import UnknownEnvError
from envs.vector.families import FAMILIES, Family, family_of, find, fit, listed, package_blamed
from tests.runs import QUIET, TINY

CONFIGURED = [family for family in FAMILIES if (Path(configs.__file__).parent / f"{family.name}.yaml").is_file()]
NOWHERE = Family("nowhere", "no_such_package", "no-such-package", "Nowhere-")
ROBOTS = ["Hopper", "Walker2d", "HalfCheetah", "Ant"]


def installed(name: str) -> Any:
    family = next(family for family in FAMILIES if family.name == name)
    return pytest.mark.skipif(not family.is_installed, reason=f"needs {family.module}: {family.command}")


def test_the_families_of_the_documentation_have_settings() -> None:
    names = {"popgym", "minigrid", "atari", "mujoco", "box2d", "memory_gym", "robotics", "pybullet"}
    assert names == {family.name for family in CONFIGURED}


@pytest.mark.parametrize("family", CONFIGURED, ids=lambda family: family.name)
def test_settings_of_a_family_are_sound_and_of_one_of_its_ids(family: Family) -> None:
    settings = configs.read(find_config(family.name))
    assert family_of(settings.env.id) == family


@pytest.mark.families
@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=installed(family.name), id=family.name) for family in CONFIGURED]
)
def test_settings_of_a_family_train(family: Family, tmp_path: Path) -> None:
    words = [*TINY, *QUIET, "--algorithm.batch-size", "32", "--algorithm.n-epochs", "1", "--total-timesteps", "64"]
    assert train.main(["--config", family.name, *words, "--runs", str(tmp_path), "--name", "run"]) == 0
    assert list((tmp_path / "run" / "checkpoints").glob("*.zip"))


@pytest.mark.families
@installed("mujoco")
@pytest.mark.parametrize("robot", ROBOTS)
def test_robots_show_positions_or_velocities_alone(robot: str) -> None:
    kwargs = {"include_cfrc_ext_in_observation": False} if robot == "Ant" else {}
    full = gymnasium.make(f"{robot}-v5", **kwargs)
    structure = full.unwrapped.observation_structure  # type: ignore[attr-defined]
    seen, _ = full.reset(seed=3)
    positions, _ = gymnasium.make(f"{robot}NoVel-v5").reset(seed=3)
    velocities, _ = gymnasium.make(f"{robot}VelOnly-v5").reset(seed=3)
    assert positions.tolist() == seen[: structure["qpos"]].tolist()
    assert velocities.tolist() == seen[structure["qpos"] :].tolist()


@pytest.mark.families
@installed("atari")
@pytest.mark.parametrize(
    ("id", "kwargs", "skip", "inside"),
    [
        ("ALE/Breakout-v5", {}, 4, 1),
        ("BreakoutNoFrameskip-v4", {}, 4, 1),
        ("ALE/Breakout-v5", {"frameskip": 2}, 1, 2),  # what is given stays
    ],
)
def test_an_atari_game_is_seen_in_small_gray_frames(id: str, kwargs: dict[str, Any], skip: int, inside: int) -> None:
    pytest.importorskip("cv2")
    found = fit(id, kwargs, has_memory=True)
    assert found is not None
    assert found.wrappers == ({"atari": {"frame_skip": skip}},)
    assert found.kwargs == {"frameskip": inside}
    env = envs.make(id, 1, env_kwargs=found.kwargs, wrappers=found.wrappers)
    assert env.observation_space.shape == (84, 84)
    assert env.get_attr("spec")[0].kwargs["repeat_action_probability"] == find(id).kwargs["repeat_action_probability"]


@pytest.mark.families
@installed("atari")
def test_without_memory_four_frames_are_seen_and_a_ram_is_no_picture() -> None:
    found = fit("ALE/Breakout-v5", {}, has_memory=False)
    assert found is not None
    assert found.wrappers[-1] == {"history": {"length": 4}}
    assert fit("ALE/Breakout-v5", {"obs_type": "ram"}, has_memory=True) is None
    assert fit("CartPole-v1", {}, has_memory=True) is None


def test_a_list_has_every_family_with_ids_or_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (NOWHERE, FAMILIES[4]))
    ours, missing, _ = listed()
    assert "CartPoleNoVel-v1" in ours
    assert missing.split() == ["nowhere", "not", "installed", "pip", "install", "no-such-package"]


def test_the_command_line_lists_environments(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--list-envs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ours", *(family.name for family in FAMILIES)]


def test_a_missing_package_and_a_broken_one_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_package.py").write_text("raise OSError('libfoo.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    broken = Family("broken", "broken_package", "broken-package", "Broken-")
    monkeypatch.setattr(families, "FAMILIES", (NOWHERE, broken))
    with pytest.raises(UnknownEnvError, match="no_such_package is not installed: pip install no-such-package"):
        envs.make("Nowhere-v0")
    with pytest.raises(UnknownEnvError, match=r"OSError: libfoo.so is missing; .* pip install broken-package"):
        envs.make("Broken-v0")


def test_what_fails_inside_a_package_names_its_line_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (NOWHERE,))
    with pytest.raises(AssertionError) as caught, package_blamed("Nowhere-v0"):
        raise AssertionError
    said = describe(caught.value)
    assert said.startswith("AssertionError, raised by: raise AssertionError. It comes from the package")
    assert said.endswith("pip install no-such-package")
    with pytest.raises(TypeError) as argument, package_blamed("Nowhere-v0"):
        raise TypeError("no such argument")
    assert not hasattr(argument.value, "__notes__")
