"""From an id and wrappers to a fast vector environment behind Stable-Baselines3's VecEnv.

Axes: N environments.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from envs.tasks.observations import copied, take, write
from envs.vector.adapter import VectorEnvAdapter
from envs.vector.errors import EnvError, UnknownEnvError
from envs.vector.group import make_one
from envs.vector.processes import SubprocessVecEnv
from envs.vector.serial import SerialVecEnv
from envs.vector.state import set_state, state_of
from envs.wrappers.arrays import needs_arranging, needs_arranging_one_by_one
from envs.wrappers.transforms import Flatten, Transform, as_arrays, build, is_transform, named, wrap

__all__ = [
    "EnvError",
    "SerialVecEnv",
    "SubprocessVecEnv",
    "UnknownEnvError",
    "VectorEnvAdapter",
    "WrappedVecEnv",
    "make",
]

Backend = Literal["auto", "vector", "serial", "subprocess", "gymnasium"]


def make(
    id: str | Callable[[], gymnasium.Env[Any, Any]],
    n_envs: int = 8,
    *,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Any] = (),
    backend: Backend = "auto",
    render_mode: str | None = None,
    workers: int | None = None,
    timeout: float | None = None,
    max_restarts: int = 0,
    resumable: bool = False,
) -> VecEnv:
    """`n_envs` environments that step together, as Stable-Baselines3 takes them.

    `id`: a gymnasium id, "module:id" to import a module first, or a function that makes one environment.
    `seed`: environment i gets seed + i at its first reset. None: unpredictable.
    `env_kwargs`: further arguments of `gymnasium.make`, `max_episode_steps` included.
    `wrappers`: from the innermost out; each a name of `envs.wrappers.transforms.WRAPPERS`, (name, settings),
    {name: settings}, or in place of a name "module:Class" or a class for a `gymnasium.Wrapper`.
    `backend`: "vector" steps all environments in one NumPy program, where the id has one; "serial" one after the other;
    "subprocess" in worker processes, for environments slower than a message to a worker and back (some 0.2 ms).
    "gymnasium" is what `gymnasium.make_vec` makes, with `gymnasium.vector.VectorWrapper`s among the wrappers around it.
    "auto" is "vector" where that is possible and starts the next episode in the step that ended one, else "serial".
    `workers`, `timeout`: see `SubprocessVecEnv`. `max_restarts`, `resumable`: see `GroupedVecEnv`; "vector" of this
    package can always be resumed.

    The last info of an episode has "terminal_observation", "TimeLimit.truncated" and "episode": {"r", "l", "t"}, so
    that no Monitor is needed. Observations are arrays: nested Dict and Tuple ones come flattened ("outer/inner"),
    texts, sequences and graphs as `envs.wrappers.arrays` says.

    Raises UnknownEnvError for an id that is not registered, ValueError for settings that do not fit.
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, not {n_envs}")
    kwargs = dict(env_kwargs or {})
    inside, around = _split(named(wrappers))
    spec = find(id) if isinstance(id, str) else None
    if spec is None and not callable(id):
        raise TypeError(f"expected an environment's id or a function that makes one, got {id!r}")
    for what, value in (("a number of workers", workers), ("a timeout", timeout)):
        if value is not None and backend != "subprocess":
            raise ValueError(f"{what} goes with the backend 'subprocess', not with {backend!r}: leave it out")
    if spec is None and (kwargs or render_mode):
        raise ValueError("env_kwargs and render_mode go with an id; give them to what the function that is `id` makes")
    obstacle = _no_vector(spec, inside, render_mode)
    if backend == "auto":
        resets = None if obstacle else _vector_metadata(spec).get("autoreset_mode")
        backend = "vector" if resets is AutoresetMode.SAME_STEP else "serial"
    # The checker's warnings are the same for all environments: one of them is enough.
    source: Any = spec or id
    makers = [partial(make_one, source, render_mode, kwargs, inside, i == 0) for i in range(n_envs)]
    venv: VecEnv
    if backend == "vector":
        if obstacle:
            raise ValueError(f"backend 'vector' is not possible: {obstacle}; use 'serial' or 'subprocess'")
        # Not every vector environment takes a render_mode.
        rendering = {} if render_mode is None else {"render_mode": render_mode}
        entry: Any = dict(vectorization_mode="vector_entry_point", **rendering, **kwargs)
        venv = VectorEnvAdapter(gymnasium.make_vec(spec, n_envs, **entry))  # type: ignore[arg-type]
    elif backend == "gymnasium":
        venv = VectorEnvAdapter(_made_by_gymnasium(spec, n_envs, render_mode, kwargs, inside))
    elif backend == "serial":
        venv = SerialVecEnv(makers, resumable=resumable, max_restarts=max_restarts)
    elif backend == "subprocess":
        venv = SubprocessVecEnv(
            makers, workers=workers, timeout=timeout, resumable=resumable, max_restarts=max_restarts
        )
    else:
        raise ValueError(f"backend must be one of {', '.join(map(repr, get_args(Backend)))}, not {backend!r}")
    try:
        if needs_arranging(venv.observation_space) and (not around or around[0][0] is not Flatten):
            around.insert(0, (Flatten, {}))
        for transform, settings in around:
            venv = WrappedVecEnv(venv, transform, settings)
    except Exception:
        venv.close()
        raise
    if seed is not None:
        venv.seed(seed)
    return venv


class WrappedVecEnv(VecEnvWrapper):
    """A vector environment with a transform around it, last observations of episodes included."""

    def __init__(self, venv: VecEnv, transform: type[Transform], settings: Mapping[str, Any] | None = None) -> None:
        self.transform = build(transform, settings or {}, venv.observation_space, venv.action_space, venv.num_envs)
        super().__init__(venv, observation_space=self.transform.observation_space)
        self._inner: Any = venv
        self._level = 0
        inner: Any = venv
        while isinstance(inner, VecEnvWrapper):
            self._level += isinstance(inner, WrappedVecEnv)
            inner = inner.venv
        self._same_step = getattr(inner, "autoreset_mode", AutoresetMode.SAME_STEP) is AutoresetMode.SAME_STEP
        self._new_seeds: Sequence[int | None] | None = None
        self._resetting: NDArray[np.intp] | None = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._new_seeds = self.venv.seed(seed)
        return self._new_seeds

    def reset(self) -> VecEnvObs:
        observations = self.venv.reset()
        self.reset_infos = self.venv.reset_infos
        if self._new_seeds is not None:
            self.transform.seed(self._new_seeds, self._level)
            self._new_seeds = None
        self._resetting = None
        return self.transform.begin(observations, np.arange(self.num_envs))  # type: ignore[no-any-return]

    def snapshot(self) -> dict[str, Any] | None:
        """Where environments and transform stand, as plain data; None where only the environments know."""
        inside = self._inner.snapshot()
        if inside is None:
            return None
        resetting = None if self._resetting is None else self._resetting.copy()
        return {"inside": inside, "transform": state_of(self.transform), "resetting": resetting}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Brings both to where they stood. False where that is not possible: reset them then."""
        if "inside" not in state or not self._inner.restore(state["inside"]):
            return False
        set_state(self.transform, state["transform"])
        self._resetting, self._new_seeds = state["resetting"], None
        return True

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        if self._resetting is None and not np.count_nonzero(dones):
            return self.transform.follow(observations, self._actions, rewards), rewards, dones, infos
        ended = dones.nonzero()[0]
        # The transform sees each episode to its end before it sees the next one's start.
        to_the_end: Any = observations
        if self._same_step:
            to_the_end = copied(observations)
            for i in ended.tolist():
                write(to_the_end, i, infos[i]["terminal_observation"])
        seen = self.transform.follow(to_the_end, self._actions, rewards)
        for i in ended.tolist():
            infos[i]["terminal_observation"] = take(seen, i)
        started = ended if self._same_step else self._resetting
        if started is not None and started.size:
            write(seen, started, self.transform.begin(take(observations, started), started))
        self._resetting = ended if ended.size and not self._same_step else None
        return seen, rewards, dones, infos


def adapted(env: Any) -> Any:
    """What an algorithm of Stable-Baselines3's is given to learn in, as it can take it; all else is itself.

    A gymnasium vector environment comes as a `VecEnv`; observations of an environment or of a `VecEnv` that are no
    arrays, or nested, as arrays.
    """
    if isinstance(env, VectorEnv):
        return VectorEnvAdapter(env)
    if isinstance(env, VecEnv):
        space = env.observation_space
        arrangeable = needs_arranging(space) and not needs_arranging_one_by_one(space)
        return WrappedVecEnv(env, Flatten) if arrangeable else env
    return as_arrays(env) if isinstance(env, gymnasium.Env) else env


def _made_by_gymnasium(
    spec: EnvSpec | None, n_envs: int, render_mode: str | None, kwargs: dict[str, Any], inside: list[Any]
) -> VectorEnv[Any, Any, Any]:
    """By its `make_vec`; the wrappers of one environment inside, those of a vector around."""
    if spec is None:
        raise ValueError("backend 'gymnasium' needs an id; give RecurrentPPO a vector environment that you made")
    rendering = {} if render_mode is None else {"render_mode": render_mode}
    wrappers = [(wrapper, settings) for wrapper, settings in inside if not _wraps_vectors(wrapper)]
    around = [(wrapper, settings) for wrapper, settings in inside if _wraps_vectors(wrapper)]
    if wrappers or spec.vector_entry_point is None:
        rendering["vectorization_mode"] = "sync"
        rendering["wrappers"] = [partial(wrap, wrappers=[each]) for each in wrappers]  # type: ignore[assignment]
    vector = gymnasium.make_vec(spec, n_envs, **rendering, **kwargs)  # type: ignore[arg-type]
    for wrapper, settings in around:
        vector = wrapper(vector, **settings)
    return vector


def _wraps_vectors(wrapper: Any) -> bool:
    return isinstance(wrapper, type) and issubclass(wrapper, VectorWrapper)


def find(id: str) -> EnvSpec:
    """What gymnasium knows under an id. The package of a well-known family of ids is imported where it is installed.

    Raises UnknownEnvError, which names the package to install or ids that are near.
    """
    envs_module, _, name = id.rpartition(":")
    if envs_module:
        importlib.import_module(envs_module)
    family = next((family for pattern, family in FAMILIES.items() if re.match(pattern, name)), None)
    missing = ""
    if family is not None and name not in gymnasium.registry:
        missing = _imported(family)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        installed = family is None or sys.modules.get(family.module) is not None
        raise UnknownEnvError(f"no environment has the id {name!r}.{missing}{_near(name) * installed}") from error


class Family(NamedTuple):
    """Ids that a package registers when it is imported: its module, and what to install."""

    module: str
    install: str


_ALE, _ROBOTICS = Family("ale_py", "ale-py"), Family("gymnasium_robotics", "gymnasium-robotics")
_MEMORY_GYM = Family("memory_gym", "--no-deps memory-gym pygame-ce")
_ROADS = "highway|merge|roundabout|parking|intersection|racetrack|exit|lane-keeping|two-way|u-turn"
FAMILIES: dict[str, Family] = {
    r"ALE/|\w+(NoFrameskip|Deterministic)-v": _ALE,
    r"MiniGrid-|BabyAI-": Family("minigrid", "minigrid"),
    r"popgym-": Family("popgym", "popgym"),
    r"MortarMayhem|MysteryPath|SearingSpotlights": _MEMORY_GYM,
    rf"({_ROADS})(-\w+)*-v": Family("highway_env", "highway-env"),
    r"Fetch|PointMaze|AntMaze|FrankaKitchen|AdroitHand|HandManipulate|HandReach|MaMuJoCo": _ROBOTICS,
    r"MiniWorld-": Family("miniworld", "miniworld"),
    r"Crafter": Family("crafter", "crafter"),
    r"\w+BulletEnv-v": Family("pybullet_envs_gymnasium", "pybullet_envs_gymnasium"),
}
"""By the beginnings of their ids, regular expressions."""


def _imported(family: Family) -> str:
    """Imports a package that registers environments; says why its ids are unknown all the same, if they are."""
    try:
        importlib.import_module(family.module)
    except ModuleNotFoundError as error:
        if error.name == family.module:
            return f" Its package {family.module} is not installed: pip install {family.install}"
        return f" Its package {family.module} is installed, but fails to import ({error}): install what it needs"
    except Exception as error:
        return f" Its package {family.module} is installed, but fails to import: {type(error).__name__}: {error}"
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


def _split(wrappers: list[tuple[Any, dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    """Wrappers inside each environment, up to the last that is gymnasium's, and those around all of them at once."""
    last = max((i for i, (wrapper, _) in enumerate(wrappers) if not is_transform(wrapper)), default=-1)
    return wrappers[: last + 1], wrappers[last + 1 :]


def _no_vector(spec: EnvSpec | None, inside: list[Any], render_mode: str | None) -> str:
    """Why the environments cannot step as one NumPy program; "" where they can."""
    if spec is None:
        return "a function makes one environment, a vector needs an id"
    if spec.vector_entry_point is None:
        return f"{spec.id} has no vector_entry_point"
    if inside:
        return f"{inside[-1][0]} wraps one environment at a time"
    if spec.additional_wrappers:
        return f"{spec.id} is registered with wrappers for one environment at a time"
    if render_mode is not None and render_mode not in _vector_metadata(spec).get("render_modes", ()):
        return f"the vector of {spec.id} does not render as {render_mode!r}"
    return ""


def _vector_metadata(spec: Any) -> Mapping[str, Any]:
    entry_point = spec.vector_entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    metadata = getattr(creator, "metadata", {})
    return metadata if isinstance(metadata, Mapping) else {}
