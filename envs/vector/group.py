"""Several gymnasium environments stepped one after the other into given arrays: what a process has to do.

Axes: N environments.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from envs.tasks.observations import Tree, put, take, truth
from envs.vector.errors import EnvError
from envs.vector.grids import see_directly
from envs.vector.infos import FAILED
from envs.vector.state import EpisodeSeed
from envs.wrappers.arrays import needs_arranging_one_by_one
from envs.wrappers.transforms import as_arrays, wrap, wrappers_of

Maker = Callable[[], gymnasium.Env[Any, Any]]
Info = dict[str, Any]

# So many steps are checked in every detail; then an observation of the right type and shape is trusted.
_FIRST_STEPS = 100


class Group:
    """N environments. The next episode starts in the step that ends one.

    An environment that raises, or calls sys.exit(), is restarted, up to `max_restarts` times in all: a new one takes
    its place and begins the next episode, and its info says why under `FAILED`. After that it is an `EnvError`.
    """

    def __init__(self, makers: Sequence[Maker], first: int = 0, max_restarts: int = 0) -> None:
        """`first`: the number of the first of them among all."""
        self.envs = [_make(maker, first + i) for i, maker in enumerate(makers)]
        self.first = first
        # Called after every step that is replayed, for who waits to know that it goes on.
        self.alive: Callable[[], None] = lambda: None
        self._makers = list(makers)
        self.spaces = spaces_of(self.envs[0])
        self._space = self.spaces["observation_space"]
        self._counted = [counts_episodes(env) for env in self.envs]
        self._steps = 0
        self._restarts_left = max_restarts
        # Where episodes have seeds of their own, those of the ones under way.
        self._seeds: list[EpisodeSeed | None] = [None] * len(self.envs)
        self._seen: list[Any] = [None] * len(self.envs)
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError(
                "the same environment was given more than once: each callable has to make one of its own, for example "
                "[lambda: gymnasium.make('CartPole-v1') for _ in range(4)]"
            )
        for i, env in enumerate(self.envs):
            check_alike(spaces_of(env), first + i, self.spaces, first)

    def reset(
        self, seeds: Sequence[int | EpisodeSeed | None], options: Sequence[dict[str, Any]], observations: Tree
    ) -> list[Info]:
        """Start an episode everywhere: observations into `observations`, (N, ...); returns the infos.

        After an `EpisodeSeed` the episodes that follow have seeds of their own too.
        """
        infos = []
        for i, (seed, chosen) in enumerate(zip(seeds, options, strict=True)):
            self._seeds[i] = seed if isinstance(seed, EpisodeSeed) else None
            number = seed.value if isinstance(seed, EpisodeSeed) else seed
            begin = partial(self._begin, i, observations, seed=number, options=chosen or None)
            try:
                info = begin()
            except KeyboardInterrupt:  # the user's
                raise
            except BaseException as error:  # sys.exit() too
                failure, info = self._restart(i, "reset", error, begin)
                info = {**info, FAILED: failure}
            infos.append(info)
        return infos

    def step(
        self, actions: NDArray[Any], observations: Tree, rewards: NDArray[np.float32], dones: NDArray[np.bool_]
    ) -> tuple[list[Info], dict[int, Info]]:
        """One step everywhere, into the three arrays, (N, ...).

        Returns the infos, with "terminal_observation" and "TimeLimit.truncated" where an episode ended, and there, by
        position, that of the next episode's reset. The episode of an environment that raises is truncated at the
        observation before.
        """
        self._steps += 1
        infos, resets = [], {}
        every = self._steps <= _FIRST_STEPS
        for i, env in enumerate(self.envs):
            try:
                observation, rewards[i], terminated, truncated, info = env.step(actions[i])
                terminated, truncated = truth(terminated, "terminated"), truth(truncated, "truncated")
                put(observations, i, observation, self._space, every)
                self._seen[i] = observation
                dones[i] = done = terminated or truncated
                if done:
                    # A copy: an environment may hand out the same dict at every step.
                    info = {**info, **_end(observations, i, truncated and not terminated)}
                    if not self._counted[i]:
                        info.pop("episode", None)  # the environment's own, and no count of an episode
                    resets[i] = self._begin_next(i, observations)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                put(observations, i, self._seen[i], self._space)
                info = _end(observations, i, True)
                rewards[i], dones[i] = 0.0, True
                begin = partial(self._begin_next, i, observations)
                info[FAILED], resets[i] = self._restart(i, f"step {self._steps}", error, begin)
            infos.append(info)
        return infos, resets

    def replay(self, row: int, seed: EpisodeSeed, actions: NDArray[Any]) -> Any:
        """Replay an episode up to now, (T, ...): the last observation; None where it ended or failed on the way."""
        env = self.envs[row]
        self._seeds[row] = seed
        try:
            observation, _ = env.reset(seed=seed.value)
            for action in actions:
                observation, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    return None
                self.alive()
        except (Exception, SystemExit):
            return None
        self._seen[row] = observation
        return observation

    def close(self) -> None:
        """Closes every environment. Raises EnvError for the first that fails in it, after all are closed."""
        failures = []
        for i, env in enumerate(self.envs):
            try:
                env.close()
            except (Exception, SystemExit) as error:
                failures.append((self._failure(i, "close", error), error))
        for failure, cause in failures:
            raise failure from cause

    def _begin(self, row: int, observations: Tree, **arguments: Any) -> Info:
        observation, info = self.envs[row].reset(**arguments)
        put(observations, row, observation, self._space)
        self._seen[row] = observation
        return info

    def _begin_next(self, row: int, observations: Tree) -> Info:
        seed = self._seeds[row]
        if seed is None:
            return self._begin(row, observations)
        info = self._begin(row, observations, seed=seed.next().value)
        self._seeds[row] = seed.next()
        return info

    def _restart(self, row: int, moment: str, error: BaseException, begin: Callable[[], Info]) -> tuple[str, Info]:
        """A new environment in place of one that raised: why, and the info of its first reset, by `begin`."""
        failure = self._failure(row, moment, error)
        if not self._restarts_left:
            raise failure from error
        self._restarts_left -= 1
        with contextlib.suppress(Exception, SystemExit):
            self.envs[row].close()
        try:
            self.envs[row] = _make(self._makers[row], self.first + row)
            return str(failure), begin()
        except Exception as again:
            raise self._failure(row, f"restarting after {moment}", again) from again

    def _failure(self, row: int, moment: str, error: BaseException) -> EnvError:
        env = self.envs[row]
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        return EnvError(f"environment {self.first + row} ({name}) failed in {moment}: {_reason(error)}")


def _end(observations: Tree, row: int, truncated: bool) -> Info:
    return {"terminal_observation": take(observations, row), "TimeLimit.truncated": truncated}


def make_one(
    source: EnvSpec | Maker, render_mode: str | None, kwargs: dict[str, Any], inside: list[Any], checked: bool
) -> gymnasium.Env[Any, Any]:
    """One environment of an id or a function, with wrappers inside it, and around them what makes arrays of its
    observations where no vector environment could hold them.

    Here, and not with `envs.make`, for workers to find it without importing torch.
    """
    if isinstance(source, EnvSpec):
        rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        env = gymnasium.make(source, disable_env_checker=None if checked else True, **rendering, **kwargs)
    else:
        env = source()
    see_directly(env)
    env = wrap(env, inside)
    needs_it = isinstance(env, gymnasium.Env) and needs_arranging_one_by_one(env.observation_space)
    return as_arrays(env) if needs_it else env


def is_game(env: Any) -> bool:
    """Whether this is a PettingZoo environment of the parallel API, by what it has."""
    return hasattr(env, "possible_agents") and callable(getattr(env, "action_space", None)) and hasattr(env, "step")


def spaces_of(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """By the names of `VecEnv`'s arguments."""
    return {"observation_space": env.observation_space, "action_space": env.action_space}


def check_alike(spaces: dict[str, Any], number: int, expected: dict[str, Any], first: int) -> None:
    """Raises ValueError where the spaces of environment `number` are not those of environment `first`."""
    for kind, space in spaces.items():
        if space != expected[kind]:
            raise ValueError(
                f"the {kind} of environment {number} is {space}, that of environment {first} is {expected[kind]}: "
                "they have to be alike"
            )


def counts_episodes(env: Any) -> bool:
    """Whether a wrapper around the environment counts episodes, and so writes "episode" into its infos.

    By name, for what is not loaded need not be.
    """
    classes = (cls for wrapper in wrappers_of(env) for cls in type(wrapper).__mro__)
    return any((cls.__module__.split(".")[0], cls.__name__) in _COUNTERS for cls in classes)


_COUNTERS = {("stable_baselines3", "Monitor"), ("gymnasium", "RecordEpisodeStatistics")}


def _make(maker: Maker, number: int) -> gymnasium.Env[Any, Any]:
    try:
        env = maker()
    except SystemExit as error:
        raise EnvError(f"environment {number} could not be made: {_reason(error)}") from error
    if not isinstance(env, gymnasium.Env):
        games = "; games of PettingZoo's parallel API step in this process, with backend 'auto'" * is_game(env)
        raise TypeError(f"environment {number}: expected a gymnasium.Env, got {env!r}{games}")
    return env


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}), which an environment cannot: it raises an error instead"
    if str(error):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}, raised by: {frames[-1].line}" if frames else type(error).__name__
