"""Several gymnasium environments stepped one after the other into given arrays: what a process has to do.

Axes: N environments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from envs.tasks.observations import Tree, put, take, truth
from envs.vector.errors import EnvError
from envs.vector.infos import FAILED
from envs.vector.state import EpisodeSeed
from envs.wrappers.transforms import wrap

Maker = Callable[[], gymnasium.Env[Any, Any]]


# So many steps are looked at in every detail; then an observation of the right type and shape is trusted.
_FIRST_STEPS = 100


class Group:
    """N environments. The next episode starts in the step that ends one."""

    def __init__(self, makers: Sequence[Maker], first: int = 0, max_restarts: int = 0) -> None:
        """`first`: the number of the first of them among all. `max_restarts`: see `SerialVecEnv`."""
        self.envs = [_make(maker, first + i) for i, maker in enumerate(makers)]
        self._makers = list(makers)
        self._space = self.envs[0].observation_space
        self._counted = [counts_episodes(env) for env in self.envs]
        self.first = first
        self._steps = 0
        self._restarts_left = max_restarts
        # Is called after every step that is lived again, for who waits to know that it goes on.
        self.alive: Callable[[], None] = lambda: None
        # Where episodes have seeds of their own, those of the ones under way.
        self._seeds: list[EpisodeSeed | None] = [None] * len(self.envs)
        self._seen: list[Any] = [None] * len(self.envs)
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError(
                "the same environment was given more than once: each callable has to make one of its own, for example "
                "[lambda: gymnasium.make('CartPole-v1') for _ in range(4)]"
            )
        for i, env in enumerate(self.envs):
            for kind in ("observation_space", "action_space"):
                one, other = getattr(self.envs[0], kind), getattr(env, kind)
                if one != other:
                    raise ValueError(
                        f"the {kind} of environment {first + i} is {other}, that of environment {first} is {one}: "
                        "they have to be alike"
                    )

    def reset(
        self, seeds: Sequence[int | EpisodeSeed | None], options: Sequence[dict[str, Any]], observations: Tree
    ) -> list[dict[str, Any]]:
        """Start an episode everywhere: observations into `observations`, (N, ...); what the environments said.

        After an `EpisodeSeed` the episodes that follow have seeds of their own too. An environment that raises is made
        anew, and its info says why under FAILED.
        """
        said = []
        for i, seed in enumerate(seeds):
            self._seeds[i] = seed if isinstance(seed, EpisodeSeed) else None
            number = seed.value if isinstance(seed, EpisodeSeed) else seed
            try:
                info = self._reset(i, number, options[i], observations)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failure = self._made_anew(i, "reset", error)
                try:
                    info = self._reset(i, number, options[i], observations)
                except Exception as again:
                    raise self._failure(i, "starting anew after a reset", again) from again
                info = {**info, FAILED: str(failure)}
            said.append(info)
        return said

    def _reset(self, row: int, seed: int | None, options: dict[str, Any], observations: Tree) -> dict[str, Any]:
        observation, info = self.envs[row].reset(seed=seed, options=options or None)
        put(observations, row, observation, self._space)
        self._seen[row] = observation
        return info

    def step(
        self, actions: NDArray[Any], observations: Tree, rewards: NDArray[np.float32], dones: NDArray[np.bool_]
    ) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
        """One step everywhere, into the three arrays, (N, ...).

        Returns what the environments said, with "terminal_observation" and "TimeLimit.truncated" where an episode
        ended, and there, by position, what the next episode's reset said. An environment that raises is made anew, its
        episode ends as by a time limit where it was last seen, and its info says why under `FAILED`.
        """
        self._steps += 1
        infos, resets = [], {}
        every = self._steps <= _FIRST_STEPS
        for i, env in enumerate(self.envs):
            try:
                observation, rewards[i], terminated, truncated, info = env.step(actions[i])
                terminated, truncated = truth(terminated, "terminated"), truth(truncated, "truncated")
                dones[i] = done = terminated or truncated
                if done:
                    put(observations, i, observation, self._space, every)
                    last = take(observation, ...) if isinstance(observation, dict | tuple) else np.array(observation)
                    # A copy: an environment may hand out the same dict at every step.
                    info = {**info, "terminal_observation": last, "TimeLimit.truncated": truncated and not terminated}
                    if not self._counted[i]:
                        info.pop("episode", None)  # the environment's own business, and no count of an episode
                    observation, resets[i] = self._next_episode(i)
                put(observations, i, observation, self._space, every)
                self._seen[i] = observation
            except KeyboardInterrupt:  # the user's
                raise
            except BaseException as error:  # sys.exit() too
                info, resets[i] = self._start_anew(i, observations, error)
                rewards[i], dones[i] = 0.0, True
            infos.append(info)
        return infos, resets

    def replay(self, row: int, seed: EpisodeSeed, actions: NDArray[Any]) -> Any:
        """Live an episode again up to now, (T, ...): the last observation; None where it ended or failed on the way."""
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
        return take(observation, ...) if isinstance(observation, dict | tuple) else np.array(observation)

    def close(self) -> None:
        """Closes every environment. Raises EnvError for the first that fails in it, when all have been asked."""
        failures = []
        for i, env in enumerate(self.envs):
            try:
                env.close()
            except (Exception, SystemExit) as error:
                failures.append((self._failure(i, "close", error), error))
        for failure, cause in failures:
            raise failure from cause

    def _next_episode(self, row: int) -> tuple[Any, dict[str, Any]]:
        seed = self._seeds[row]
        if seed is None:
            return self.envs[row].reset()
        begun = self.envs[row].reset(seed=seed.next().value)
        self._seeds[row] = seed.next()
        return begun

    def _start_anew(self, row: int, observations: Tree, error: BaseException) -> tuple[dict[str, Any], dict[str, Any]]:
        """In place of an environment that raised a new one: the info of the step, and what its reset said."""
        failure = self._made_anew(row, f"step {self._steps}", error)
        last = self._seen[row]
        info = {
            FAILED: str(failure),
            "terminal_observation": take(last, ...) if isinstance(last, dict | tuple) else np.array(last),
            "TimeLimit.truncated": True,
        }
        try:
            observation, said = self._next_episode(row)
            put(observations, row, observation, self._space)
            self._seen[row] = observation
        except Exception as again:
            raise self._failure(row, f"starting anew after step {self._steps}", again) from again
        return info, said

    def _made_anew(self, row: int, moment: str, error: BaseException) -> EnvError:
        """Puts a new environment in the place of one that raised, and returns what to say of that."""
        failure = self._failure(row, moment, error)
        if not self._restarts_left:
            raise failure from error
        self._restarts_left -= 1
        with contextlib.suppress(Exception, SystemExit):
            self.envs[row].close()
        try:
            self.envs[row] = _make(self._makers[row], self.first + row)
        except Exception as again:
            raise self._failure(row, f"starting anew after {moment}", again) from again
        return failure

    def _failure(self, row: int, moment: str, error: BaseException) -> EnvError:
        return EnvError(f"environment {self.first + row} ({_name(self.envs[row])}) failed in {moment}: {_told(error)}")


def make_one(
    source: EnvSpec | Callable[[], gymnasium.Env[Any, Any]],
    render_mode: str | None,
    kwargs: dict[str, Any],
    inside: list[Any],
    checked: bool,
) -> gymnasium.Env[Any, Any]:
    """One environment of an id or a function, with wrappers inside it.

    Here, and not beside `envs.make`, for workers to find it without importing torch.
    """
    if isinstance(source, EnvSpec):
        rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        env = gymnasium.make(source, disable_env_checker=None if checked else True, **rendering, **kwargs)
    else:
        env = source()
    return wrap(env, inside)


def counts_episodes(env: Any) -> bool:
    """Whether a wrapper around the environment counts episodes, so that "episode" in its infos is the wrapper's word.

    By name, for what is not loaded need not be.
    """
    while isinstance(env, gymnasium.Wrapper):
        if any((cls.__module__.split(".")[0], cls.__name__) in _COUNTERS for cls in type(env).__mro__):
            return True
        env = env.env
    return False


_COUNTERS = {("stable_baselines3", "Monitor"), ("gymnasium", "RecordEpisodeStatistics")}


def is_wrapped(env: gymnasium.Env[Any, Any], wrapper_class: Any) -> bool:
    """Whether a wrapper of the class lies around the environment."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, wrapper_class):
            return True
        env = env.env
    return False


def _make(maker: Maker, number: int) -> gymnasium.Env[Any, Any]:
    try:
        env = maker()
    except SystemExit as error:
        raise EnvError(f"environment {number} could not be made: {_told(error)}") from error
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"environment {number}: expected a gymnasium.Env, got {env!r}")
    return env


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _told(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}), which an environment cannot: it raises an error instead"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
