"""From an id and wrappers to a fast vector environment behind Stable-Baselines3's VecEnv.

Axes: N environments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from envs.vector.agents import ParallelGames
from envs.vector.errors import EnvError, UnknownEnvError
from envs.vector.families import find, maker_of, package_blamed
from envs.vector.group import is_game, make_one
from envs.vector.infos import RESET_STEP
from envs.vector.processes import SubprocessVecEnv
from envs.vector.serial import GroupedVecEnv, SerialVecEnv
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
    "find",
    "make",
]

Backend = Literal["auto", "vector", "serial", "subprocess", "ray", "gymnasium"]


def make(
    id: str | Callable[..., Any],
    n_envs: int = 8,
    *,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Any] = (),
    backend: Backend = "auto",
    render_mode: str | None = None,
    workers: int | None = None,
    timeout: float | None = None,
    address: str | None = None,
    max_restarts: int = 0,
    resumable: bool = False,
    first: int = 0,
) -> VecEnv:
    """`n_envs` environments that step together, as Stable-Baselines3 takes them.

    `id`: a gymnasium id, "module:id" to import a module first, or a function that makes one environment, itself or as
    "module:function". One that makes a game of PettingZoo's parallel API gives `n_envs` games, each agent of each an
    environment: see `envs.vector.agents.ParallelGames`.
    `seed`: environment i gets seed + i at its first reset. None: unpredictable.
    `env_kwargs`: further arguments of `gymnasium.make`, `max_episode_steps` included, or of the function.
    `wrappers`: from the innermost out; each a name of `envs.wrappers.transforms.WRAPPERS`, (name, settings),
    {name: settings}, or in place of a name "module:Class" or a class for a `gymnasium.Wrapper`.
    `backend`: "vector" steps all environments in one NumPy program, where the id has one; "serial" one after the other;
    "subprocess" in worker processes, for environments slower than a message to a worker and back (some 0.2 ms).
    "ray" is the same in actors of a Ray cluster, on this machine or on others.
    "gymnasium" is what `gymnasium.make_vec` makes, with `gymnasium.vector.VectorWrapper`s among the wrappers around it.
    "auto" is "vector" where that is possible and starts the next episode in the step that ended one, else "serial".
    `first`: the number of the first of them, where other processes have those before it: environment i gets the seed
    seed + first + i.
    `workers`, `timeout`: see `SubprocessVecEnv`. `address`: of a Ray cluster, see `envs.vector.cluster`.
    `max_restarts`, `resumable`: see `GroupedVecEnv`; "vector" of this
    package can always be resumed.

    The last info of an episode has "terminal_observation", "TimeLimit.truncated" and "episode": {"r", "l", "t"}, so
    that no Monitor is needed. Observations are arrays: nested Dict and Tuple ones come flattened ("outer/inner"),
    texts, sequences and graphs as `envs.wrappers.arrays` says.

    Raises UnknownEnvError for an id that is not registered, ValueError for settings that do not fit.
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, not {n_envs}")
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(map(repr, get_args(Backend)))}, not {backend!r}")
    for what, value in (("a number of workers", workers), ("a timeout", timeout)):
        if value is not None and backend not in ("subprocess", "ray"):
            raise ValueError(f"{what} goes with the backend 'subprocess' or 'ray', not with {backend!r}: leave it out")
    if address is not None and backend != "ray":
        raise ValueError(f"an address goes with the backend 'ray', not with {backend!r}: leave it out")
    inside, around = _split(named(wrappers))
    with package_blamed(id):
        task = _task(id, dict(env_kwargs or {}), inside, render_mode)
        restarts: dict[str, Any] = dict(resumable=resumable, max_restarts=max_restarts)
        if backend == "subprocess":
            venv: VecEnv = SubprocessVecEnv(task.makers(n_envs), workers=workers, timeout=timeout, **restarts)
        elif backend == "ray":
            from envs.vector.cluster import RayVecEnv

            shared: dict[str, Any] = dict(workers=workers, timeout=timeout, address=address)
            venv = RayVecEnv(task.makers(n_envs), **shared, **restarts)
        elif backend == "gymnasium":
            venv = VectorEnvAdapter(_made_by_gymnasium(task, n_envs))
        elif backend == "vector" or (backend == "auto" and task.resets_in_the_same_step()):
            venv = VectorEnvAdapter(task.vector(n_envs))
        else:
            venv = _one_after_the_other(task, n_envs, restarts)
    if isinstance(venv, GroupedVecEnv):
        venv.number_from(first)
    try:
        if needs_arranging(venv.observation_space) and (not around or around[0][0] is not Flatten):
            around.insert(0, (Flatten, {}))
        for transform, settings in around:
            venv = WrappedVecEnv(venv, transform, settings)
    except Exception:
        venv.close()
        raise
    if seed is not None:
        venv.seed(seed + first)
    return venv


class _Task(NamedTuple):
    """What is made: what gymnasium knows under an id, or a function; with which arguments, and wrappers inside."""

    spec: EnvSpec | None
    make: Callable[..., Any] | None
    kwargs: dict[str, Any]
    inside: list[Any]
    render_mode: str | None

    @property
    def source(self) -> Any:
        return self.spec if self.make is None else partial(self.make, **self.kwargs)

    def makers(self, n_envs: int, first: Any = None) -> list[Callable[[], Any]]:
        """`first`: makes the first of them, where another than the source does."""
        # The checker's warnings are the same for all environments: one of them is enough.
        sources = [first or self.source, *[self.source] * (n_envs - 1)]
        return [
            partial(make_one, source, self.render_mode, self.kwargs, self.inside, i == 0)
            for i, source in enumerate(sources)
        ]

    def obstacle(self) -> str:
        """Why the environments cannot step as one NumPy program; "" where they can."""
        return _no_vector(self.spec, self.inside, self.render_mode)

    def resets_in_the_same_step(self) -> bool:
        mode = None if self.obstacle() else _vector_metadata(self.spec).get("autoreset_mode")
        return mode is AutoresetMode.SAME_STEP

    def vector(self, n_envs: int) -> VectorEnv[Any, Any, Any]:
        if obstacle := self.obstacle():
            raise ValueError(f"backend 'vector' is not possible: {obstacle}; use 'serial' or 'subprocess'")
        # Not every vector environment takes a render_mode.
        rendering = {} if self.render_mode is None else {"render_mode": self.render_mode}
        entry: Any = dict(vectorization_mode="vector_entry_point", **rendering, **self.kwargs)
        return gymnasium.make_vec(self.spec, n_envs, **entry)  # type: ignore[arg-type]


def _task(id: Any, kwargs: dict[str, Any], inside: list[Any], render_mode: str | None) -> _Task:
    make = maker_of(id) if isinstance(id, str) else id
    if make is None:
        return _Task(find(id), None, kwargs, inside, render_mode)
    if not callable(make):
        raise TypeError(f"expected an environment's id or a function that makes one, got {id!r}")
    if render_mode is not None:
        kwargs = {**kwargs, "render_mode": _rendered_by(make, render_mode)}
    return _Task(None, make, kwargs, inside, render_mode)


def _one_after_the_other(task: _Task, n_envs: int, restarts: dict[str, Any]) -> VecEnv:
    """Environments, or games of several agents, which only their function knows that it makes."""
    if task.make is None:
        return SerialVecEnv(task.makers(n_envs), **restarts)
    first = _FirstMade(task.source)
    if not is_game(first.made):
        return SerialVecEnv(task.makers(n_envs, first), **restarts)
    if task.inside:
        wrapper, _ = task.inside[-1]
        raise ValueError(f"{wrapper} wraps one environment at a time, and {task.make} makes games of several agents")
    return ParallelGames([first, *[task.source] * (n_envs - 1)])


class _FirstMade:
    """A function that makes environments, called once already to see what it makes."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.made: Any = None
        with suppress(SystemExit):  # which is reported where it is called again
            self.made = make()

    def __call__(self) -> Any:
        made, self.made = self.made, None
        return self._make() if made is None else made


def _rendered_by(make: Any, render_mode: str) -> str:
    """The mode, where a function that makes an environment takes one."""
    parameters = inspect.signature(make).parameters.values()
    if not any(each.name == "render_mode" or each.kind is each.VAR_KEYWORD for each in parameters):
        raise ValueError(f"{make} takes no render_mode, so that what it makes cannot be rendered as {render_mode!r}")
    return render_mode


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
        self._idles = isinstance(inner, ParallelGames)
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
        # An agent that is out of its game starts with every observation, until one of them is the next game's first.
        idle = [i for i, info in enumerate(infos) if RESET_STEP in info] if self._idles else []
        if self._resetting is None and not idle and not np.count_nonzero(dones):
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
        started = np.union1d(ended, np.array(idle, np.intp)) if self._same_step else self._resetting
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


def _made_by_gymnasium(task: _Task, n_envs: int) -> VectorEnv[Any, Any, Any]:
    """By its `make_vec`; the wrappers of one environment inside, those of a vector around."""
    if task.spec is None:
        raise ValueError("backend 'gymnasium' needs an id; give RecurrentPPO a vector environment that you made")
    rendering = {} if task.render_mode is None else {"render_mode": task.render_mode}
    wrappers = [(wrapper, settings) for wrapper, settings in task.inside if not _wraps_vectors(wrapper)]
    around = [(wrapper, settings) for wrapper, settings in task.inside if _wraps_vectors(wrapper)]
    if wrappers or task.spec.vector_entry_point is None:
        rendering["vectorization_mode"] = "sync"
        rendering["wrappers"] = [partial(wrap, wrappers=[each]) for each in wrappers]  # type: ignore[assignment]
    vector = gymnasium.make_vec(task.spec, n_envs, **rendering, **task.kwargs)  # type: ignore[arg-type]
    for wrapper, settings in around:
        vector = wrapper(vector, **settings)
    return vector


def _wraps_vectors(wrapper: Any) -> bool:
    return isinstance(wrapper, type) and issubclass(wrapper, VectorWrapper)


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
