"""From an id and wrappers to a fast vector environment behind Stable-Baselines3's VecEnv.

Axes: N environments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, get_args

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
    "find",
    "make",
]

Backend = Literal["auto", "vector", "serial", "subprocess", "gymnasium"]


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
    max_restarts: int = 0,
    resumable: bool = False,
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
    "gymnasium" is what `gymnasium.make_vec` makes, with `gymnasium.vector.VectorWrapper`s among the wrappers around it.
    "auto" is "vector" where that is possible and starts the next episode in the step that ended one, else "serial".
    `workers`, `timeout`: see `SubprocessVecEnv`. `max_restarts`, `resumable`: see `GroupedVecEnv`; "vector" of this
    package can always be resumed.

    The last info of an episode has "terminal_observation", "TimeLimit.truncated" and "episode": {"r", "l", "t"}, so
    that no Monitor is needed. Observations are arrays: nested Dict and Tuple ones come flattened ("outer/inner"),
    texts, sequences and graphs as `envs.wrappers.arrays` says.

    Raises UnknownEnvError for an id that is not registered, ValueError for settings that do not fit.
    """
    with package_blamed(id):
        return _made(
            id,
            n_envs,
            seed=seed,
            env_kwargs=env_kwargs,
            wrappers=wrappers,
            backend=backend,
            render_mode=render_mode,
            workers=workers,
            timeout=timeout,
            max_restarts=max_restarts,
            resumable=resumable,
        )


def _made(
    id: str | Callable[[], Any],
    n_envs: int,
    *,
    seed: int | None,
    env_kwargs: Mapping[str, Any] | None,
    wrappers: Sequence[Any],
    backend: Backend,
    render_mode: str | None,
    workers: int | None,
    timeout: float | None,
    max_restarts: int,
    resumable: bool,
) -> VecEnv:
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, not {n_envs}")
    kwargs = dict(env_kwargs or {})
    inside, around = _split(named(wrappers))
    if isinstance(id, str):
        id = maker_of(id) or id
    spec = find(id) if isinstance(id, str) else None
    if spec is None and not callable(id):
        raise TypeError(f"expected an environment's id or a function that makes one, got {id!r}")
    for what, value in (("a number of workers", workers), ("a timeout", timeout)):
        if value is not None and backend != "subprocess":
            raise ValueError(f"{what} goes with the backend 'subprocess', not with {backend!r}: leave it out")
    if spec is None and render_mode is not None:
        kwargs["render_mode"] = _rendered_by(id, render_mode)
    obstacle = _no_vector(spec, inside, render_mode)
    if backend == "auto":
        resets = None if obstacle else _vector_metadata(spec).get("autoreset_mode")
        backend = "vector" if resets is AutoresetMode.SAME_STEP else "serial"
    # The checker's warnings are the same for all environments: one of them is enough.
    source: Any = spec or partial(id, **kwargs)  # type: ignore[operator]
    makers = [partial(make_one, source, render_mode, kwargs, inside, i == 0) for i in range(n_envs)]
    venv: VecEnv
    first = _FirstMade(source) if spec is None and backend == "serial" else None
    if first is not None:
        makers[0] = partial(make_one, first, render_mode, kwargs, inside, True)
    if first is not None and is_game(first.made):
        if inside:
            raise ValueError(f"{inside[-1][0]} wraps one environment at a time, and {id} makes games of several agents")
        venv = ParallelGames([first, *[source] * (n_envs - 1)])
    elif backend == "vector":
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
