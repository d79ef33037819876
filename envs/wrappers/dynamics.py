"""What changes an environment itself, one environment at a time.

action_delay   actions take effect some steps late
randomize      parameters are multiplied by factors drawn for every episode
trials         several episodes in a row are one, so that memory carries from each to the next (RL^2)
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

Env = gymnasium.Env[Any, Any]
Step = tuple[Any, float, bool, bool, dict[str, Any]]


class ActionDelay(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Actions take effect `steps` steps late. Until one arrives the environment is given `first`; None stands for
    zero, or the choices' first."""

    def __init__(self, env: Env, *, steps: int = 1, first: Any = None) -> None:
        RecordConstructorArgs.__init__(self, steps=steps, first=first)
        super().__init__(env)
        if steps < 0:
            raise ValueError(f"action_delay: steps must be 0 or more, not {steps}")
        self._first = _null(env.action_space) if first is None else first
        if self._first not in env.action_space:
            raise ValueError(f"action_delay: first ({self._first!r}) is not in {env.action_space}; give one that is")
        self._steps = steps
        self._waiting: deque[Any] = deque()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._waiting = deque([self._first] * self._steps)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        self._waiting.append(np.array(action) if isinstance(action, np.ndarray) else action)
        observation, reward, terminated, truncated, info = self.env.step(self._waiting.popleft())
        return observation, float(reward), terminated, truncated, info


class Randomize(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Parameters of the environment are their first value times a factor, drawn at every episode's start.

    `parameters`: attributes of the unwrapped environment, numbers or arrays of them ("gravity", "model.body_mass"),
    each with the lowest and the highest factor. Factors are drawn evenly in their logarithm. What an environment
    computes from a parameter once, in its constructor, stays as it was: name that too.
    `observe`: the factors are seen as well, under "parameters" of a Dict (the observation there was is "observation"),
    for a critic to be told by the policy's `privileged`.

    The info of a reset has the factors under "parameters" (Tobin et al. 2017, "Domain Randomization").
    """

    def __init__(self, env: Env, *, parameters: Mapping[str, Sequence[float]], observe: bool = False) -> None:
        RecordConstructorArgs.__init__(self, parameters=parameters, observe=observe)
        super().__init__(env)
        self._values = {name: _parameter(env, name) for name in parameters}
        for name, bounds in parameters.items():
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"randomize: {name} needs factors [low, high] with 0 < low <= high, not {bounds!r}")
        self._low, self._high = np.array(list(parameters.values()), dtype=np.float64).reshape(-1, 2).T
        self._rng = np.random.default_rng()
        self._factors = np.ones(len(self._low), np.float32)
        self._observes = observe
        if observe:
            self.observation_space = _with(
                env.observation_space, "parameters", spaces.Box(self._low.astype("f4"), self._high.astype("f4"))
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng([seed, 1])
        drawn = np.exp(self._rng.uniform(np.log(self._low), np.log(self._high)))
        self._factors = np.clip(drawn, self._low, self._high).astype(np.float32)
        for (name, value), factor in zip(self._values.items(), self._factors.tolist(), strict=True):
            *path, attribute = name.split(".")
            owner = reduce(getattr, path, self.env.unwrapped)
            if isinstance(value, np.ndarray):
                getattr(owner, attribute)[...] = value * factor
            else:
                setattr(owner, attribute, value * factor)
        observation, info = self.env.reset(seed=seed, options=options)
        factors = dict(zip(self._values, self._factors.tolist(), strict=True))
        return self._seen(observation), {**info, "parameters": factors}

    def step(self, action: Any) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(observation), float(reward), terminated, truncated, info

    def _seen(self, observation: Any) -> Any:
        if not self._observes:
            return observation
        return {**_named(observation, self.env.observation_space), "parameters": self._factors.copy()}


class Trials(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """`episodes` episodes in a row are one, a trial: memory carries from each to the next (Duan et al. 2016, RL^2).

    All that ends inside a trial is an episode of its own: the step that ends it shows the next one's first observation.
    Whether an episode starts there is seen, 1 or 0: appended to a one-dimensional floating-point Box, else under
    "new_episode" (1,) of a Dict. The trial ends as its last episode does. A wrapper that draws a task at a reset, as
    `randomize`, goes around this one and draws for a trial. The last info has "episode_returns".
    """

    def __init__(self, env: Env, *, episodes: int = 2) -> None:
        RecordConstructorArgs.__init__(self, episodes=episodes)
        super().__init__(env)
        if episodes < 1:
            raise ValueError(f"trials: episodes must be at least 1, not {episodes}")
        self._episodes = episodes
        space, flag = env.observation_space, spaces.Box(0.0, 1.0, (1,), np.float32)
        self._appends = isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
        if isinstance(space, spaces.Box) and self._appends:
            low, high = (np.append(bound, end).astype(space.dtype) for bound, end in ((space.low, 0), (space.high, 1)))
            self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)
        else:
            self.observation_space = _with(space, "new_episode", flag)
        self._returns: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._returns = [0.0]
        observation, info = self.env.reset(seed=seed, options=options)
        return self._seen(observation, 1.0), info

    def step(self, action: Any) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._returns[-1] += float(reward)
        if not (terminated or truncated):
            return self._seen(observation, 0.0), float(reward), False, False, info
        if len(self._returns) == self._episodes:
            return self._seen(observation, 0.0), float(reward), terminated, truncated, {
                **info, "episode_returns": list(self._returns),
            }  # fmt: skip
        self._returns.append(0.0)
        observation, info = self.env.reset()
        return self._seen(observation, 1.0), float(reward), False, False, info

    def _seen(self, observation: Any, starts: float) -> Any:
        if self._appends:
            return np.append(observation, starts).astype(self.observation_space.dtype)
        named = _named(observation, self.env.observation_space)
        return {**named, "new_episode": np.array([starts], np.float32)}


def _null(space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return space.start
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, space.dtype)
    raise ValueError(f"action_delay knows no null action of {space}: give `first`")


def _parameter(env: Env, name: str) -> Any:
    """The present value of an attribute, a number or a copy of an array."""
    try:
        value = operator.attrgetter(name)(env.unwrapped)
    except AttributeError as error:
        raise ValueError(f"randomize: {env.unwrapped} has no parameter {name!r} ({error})") from error
    if isinstance(value, bool) or not isinstance(value, int | float | np.number | np.ndarray):
        raise ValueError(f"randomize: {name} is {value!r}; expected a number or an array of numbers")
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        raise ValueError(f"randomize: the array {name} cannot be written to")
    return value.copy() if isinstance(value, np.ndarray) else float(value)


def _with(space: spaces.Space[Any], key: str, part: spaces.Box) -> spaces.Dict:
    parts = dict(space.items()) if isinstance(space, spaces.Dict) else {"observation": space}
    if key in parts:
        raise ValueError(f"the observation has a part {key!r} already, of {sorted(parts)}")
    return spaces.Dict({**parts, key: part})


def _named(observation: Any, space: spaces.Space[Any]) -> dict[str, Any]:
    return dict(observation) if isinstance(space, spaces.Dict) else {"observation": observation}
