"""Families of environments: which package registers which ids, and what an id trains well with.

A package is imported where one of its ids is asked for, and never before.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from envs.tasks.batch import BatchEnv
from envs.vector.errors import UnknownEnvError

OURS = "ours"
SHOWN = 6
"""Ids of a family that a list shows."""
FRAMES = 4
"""Frames an action is repeated for, and frames stacked for an agent without memory (Mnih et al. 2015)."""


class Family(NamedTuple):
    """Ids that a package registers when it is imported: its module, and what to install.

    `ids`: a regular expression of their beginnings. `install`: what follows `pip install`.
    """

    name: str
    module: str
    install: str
    ids: str

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    @property
    def command(self) -> str:
        return f"pip install {self.install}"


_ROBOTS = "Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|Inverted(Double)?Pendulum|Pusher|Reacher|Swimmer|Walker2d"
_ROADS = "highway|merge|roundabout|parking|intersection|racetrack|exit|lane-keeping|two-way|u-turn"
_GOALS = "Fetch|PointMaze|AntMaze|FrankaKitchen|AdroitHand|HandManipulate|HandReach|MaMuJoCo"
FAMILIES = (
    Family("popgym", "popgym", "popgym", r"popgym-"),
    Family("minigrid", "minigrid", "minigrid", r"MiniGrid-|BabyAI-"),
    Family("atari", "ale_py", "ale-py opencv-python-headless", r"ALE/|[A-Z]\w+(NoFrameskip|Deterministic)-v"),
    Family("mujoco", "mujoco", "mujoco", rf"({_ROBOTS})(NoVel|VelOnly)?-v"),
    Family(
        "box2d", "Box2D", "box2d pygame-ce", r"(LunarLander|BipedalWalker|CarRacing)(Continuous|Hardcore)?(NoVel)?-v"
    ),
    Family(
        "memory_gym", "memory_gym", "pygame-ce && pip install --no-deps memory-gym", r"MortarMayhem|MysteryPath|Searing"
    ),
    Family("robotics", "gymnasium_robotics", "gymnasium-robotics", _GOALS),
    Family("pybullet", "pybullet_envs_gymnasium", "pybullet_envs_gymnasium", r"\w+BulletEnv-v"),
    Family("highway", "highway_env", "highway-env", rf"({_ROADS})(-\w+)*-v"),
    Family("miniworld", "miniworld", "miniworld", r"MiniWorld-"),
    Family("crafter", "crafter", "crafter", r"Crafter"),
)
"""Those that are tested with a file of their name in `configs/`, and others."""


def maker_of(id: str) -> Callable[..., Any] | None:
    """The function that "module:function" names; None where that is an id that the module registers, or no function."""
    module, colon, name = id.rpartition(":")
    if not colon or not name.isidentifier():
        return None
    found = getattr(importlib.import_module(module), name, None)
    return found if callable(found) and name not in gymnasium.registry else None


class Fit(NamedTuple):
    """What an id trains well with: wrappers, arguments of `gymnasium.make`, and why, in a line."""

    wrappers: tuple[Any, ...]
    kwargs: dict[str, Any]
    why: str


def family_of(id: str) -> Family | None:
    module, _, name = id.rpartition(":")
    if module and name.isidentifier():  # a function of the user's own
        return None
    return next((family for family in FAMILIES if re.match(family.ids, name)), None)


def find(id: str) -> EnvSpec:
    """What gymnasium knows under an id. The package of a well-known family of ids is imported where it is installed.

    Raises UnknownEnvError, which names the package to install or ids that are near.
    """
    module, _, name = id.rpartition(":")
    if module:
        importlib.import_module(module)
    family = family_of(name)
    missing = ""
    if family is not None and name not in gymnasium.registry:
        missing = _imported(family)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        installed = family is None or sys.modules.get(family.module) is not None
        raise UnknownEnvError(f"no environment has the id {name!r}.{missing}{_near(name) * installed}") from error


def fit(id: str, kwargs: Mapping[str, Any], *, has_memory: bool) -> Fit | None:
    """What an id trains well with, of an Atari game that is seen as frames; None where there is nothing to add.

    Gray frames of 84 x 84 and an action for four of them, as Machado et al. 2018. Sticky actions and everything else
    that `kwargs` say stay as they are. One frame is seen at a time where there is a memory, four where there is none.

    Raises UnknownEnvError for an id that is not registered.
    """
    family = family_of(id)
    if family is None or family.name != "atari" or "-ram" in id:
        return None
    spec = find(id)
    arguments = {**spec.kwargs, **kwargs}
    if arguments.get("obs_type", "rgb") == "ram":
        return None
    skipped_inside = "frameskip" in kwargs and kwargs["frameskip"] != 1
    skip = 1 if skipped_inside else FRAMES
    wrappers: tuple[Any, ...] = ({"atari": {"frame_skip": skip}},)
    frames = "its memory in place of stacked frames"
    if not has_memory:
        wrappers = (*wrappers, {"history": {"length": FRAMES}})
        frames = f"the last {FRAMES} at once, for there is no memory"
    sticky = arguments.get("repeat_action_probability", 0.25)
    each = "the emulator skips frames as it is set to" if skipped_inside else f"an action for {FRAMES} frames"
    why = f"gray frames of 84 x 84, {each}, sticky with probability {sticky:g}; {frames}"
    return Fit(wrappers, dict(kwargs) if skipped_inside else {**kwargs, "frameskip": 1}, why)


def longest_episode(id: str, kwargs: Mapping[str, Any]) -> int | None:
    """Steps that an episode of an environment with these arguments may have; None: nothing says."""
    try:
        if maker_of(id) is not None:
            return None
        spec = find(id)
        limits = [kwargs.get("max_episode_steps", spec.max_episode_steps)]
        if str(spec.vector_entry_point).startswith(f"{BatchEnv.__module__.rpartition('.')[0]}."):
            created: Any = load_env_creator(str(spec.vector_entry_point))
            limits.append(created(**{**spec.kwargs, **kwargs}).longest_episode)
    except Exception:  # whatever it is, it is reported where the environments are made
        return None
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


@contextmanager
def package_blamed(id: Any) -> Iterator[None]:
    """Adds to what fails inside an environment's package how that is installed, as a note of the error.

    A ValueError or a TypeError is most often one of the arguments, and stays as it is.
    """
    family = family_of(id) if isinstance(id, str) else None
    try:
        yield
    except Exception as error:
        if family is not None and not isinstance(error, ValueError | TypeError):
            error.add_note(f"It comes from the package {family.module}, which is installed by: {family.command}")
        raise


def listed() -> Iterator[str]:
    """A line about ours and about every family: whether it is installed, how it would be, and some of its ids."""
    ours = [id for id, spec in gymnasium.registry.items() if str(spec.entry_point).startswith(f"{_HOME}.tasks")]
    yield f"{OURS:12} installed      {_some(ours)}"
    for family in FAMILIES:
        if not family.is_installed:
            yield f"{family.name:12} not installed  {family.command}"
            continue
        trouble = _imported(family)
        ids = [id for id in gymnasium.registry if re.match(family.ids, id)]
        yield f"{family.name:12} {'installed      ' + _some(ids) if ids else 'broken        ' + trouble}"


_HOME = __name__.rpartition(".vector")[0]


def _some(ids: list[str]) -> str:
    """The number of ids, and the newest version of a few that are not like each other."""
    stems: dict[str, str] = {}
    for id in ids:
        stems[id.rpartition("-v")[0]] = id
    chosen = list(stems.values())
    few = chosen[:: max(1, -(-len(chosen) // SHOWN))][:SHOWN]
    return f"{len(ids)} ids: {', '.join(few)}{', ...' * (len(few) < len(ids))}"


def _imported(family: Family) -> str:
    """Imports a package that registers environments; says why its ids are unknown all the same, if they are."""
    try:
        importlib.import_module(family.module)
    except ModuleNotFoundError as error:
        if error.name == family.module:
            return f" Its package {family.module} is not installed: {family.command}"
        return f" Its package {family.module} is installed, but fails to import ({error}): {family.command}"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return f" Its package {family.module} is installed, but fails to import: {reason}; once more: {family.command}"
    return f" Its package {family.module} is installed and registers no such id with gymnasium."


def _near(id: str) -> str:
    """Which ids may have been meant: those that are nearly the same without the version."""
    known = {name.lower(): name for name in gymnasium.registry}
    stems = {name.rpartition("-v")[0] or name: name for name in known}
    stem = id.lower().rpartition("-v")[0] or id.lower()
    close = difflib.get_close_matches(stem, stems, n=3, cutoff=0.7)
    near = [known[stems[name]] for name in close]
    if near:
        return f" Perhaps you meant {' or '.join(map(repr, near))}."
    return " If a package registers it, name the package's module before it: 'module:id'."
