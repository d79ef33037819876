"""Environments written once, for a batch, and served both ways gymnasium knows.

`BatchEnv` is the dynamics of N environments in NumPy: a `gymnasium.vector.VectorEnv` that starts the next episode in
the step that ended the last one. `SingleEnv` is the same dynamics with N = 1 as a `gymnasium.Env`. With seed s,
environment i of a batch has exactly the episodes of a single environment with seed s + i.

Axes: N environments, R some of them ("rows").
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.tasks.observations import Tree, copied, only, take, write
from envs.tasks.streams import Streams

Rows = NDArray[np.intp]
Uniforms = NDArray[np.float64]
Outcome = tuple[NDArray[np.float32], NDArray[np.bool_]]
METADATA: dict[str, Any] = {
    "render_modes": ["rgb_array", "ansi"],
    "render_fps": 10,
    "autoreset_mode": AutoresetMode.SAME_STEP,
}


class BatchEnv(VectorEnv[Any, Any, Any]):
    """N environments stepped at once; a step in which no episode ends costs the physics and little else.

    A subclass gives the dynamics: `_begin`, `_advance`, `_observe`, and, where they apply, `_outcome`, `_picture` and
    `_text`. Its constructor passes `max_episode_steps` and `render_mode` on.
    """

    metadata = METADATA
    # What a perfect memory and the best policy without memory earn on average, where that is known.
    best_return: float | None = None
    memoryless_return: float | None = None

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        uniforms: int,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`uniforms`: how many uniform random numbers an episode takes.

        `max_episode_steps`: the episode is truncated after so many steps (None: never).
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, or None for no limit, not {max_episode_steps}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, not {render_mode!r}")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.max_episode_steps = max_episode_steps
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._streams = Streams(num_envs, uniforms)
        self._every_row: Rows = np.arange(num_envs)
        self._steps = 0
        self._started_at = np.zeros(num_envs, dtype=np.int64)
        # No episode reaches its time limit before this step. Episodes only ever start later, so a stale value is early,
        # never late, and need not be kept up to date.
        self._limit_from = 0
        self._ready = False

    @property
    def longest_episode(self) -> int | None:
        """Steps that an episode may have, besides the time limit; None: nothing says."""
        return None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode everywhere, or where `options["reset_mask"]`, (N,) bool, says.

        `seed` s gives environment i the seed s + i; a sequence gives each its own (None: goes on with the numbers it
        has). The other options are those of the environment.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        rows = self._every_row if mask is None else np.flatnonzero(mask)
        seeds = _seeds(seed, self.num_envs)
        for row in rows.tolist():
            if seeds[row] is not None:
                self._streams.seed(row, seeding.np_random(seeds[row])[0])
        self._restart(rows, options)
        self._ready = True
        return self._observe(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """(N, ...) -> observations (N, ...), rewards (N,) float32, terminations and truncations (N,) bool, infos.

        Where an episode ended the observation is the first of the next one. Then, and only then, `infos` holds
        "final_obs" (N, ...) with the last observation where "_final_obs" (N,) is True, and "final_info".
        """
        if not self._ready:
            raise ResetNeeded("reset() must be called before step()")
        rewards, terminations = self._advance(actions)
        observations = self._observe()
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        finished = terminations
        self._steps += 1
        if self.max_episode_steps is not None and self._steps >= self._limit_from:
            np.greater_equal(self._steps - self._started_at, self.max_episode_steps, truncations)
            finished = terminations | truncations
        if not np.count_nonzero(finished):
            return observations, rewards, terminations, truncations, {}
        rows = finished.nonzero()[0]
        infos = {
            "final_obs": observations,
            "_final_obs": finished.copy(),
            "final_info": self._final_info(rows, finished),
        }
        self._restart(rows, {})
        observations = copied(observations)
        write(observations, rows, take(self._observe(), rows))
        return observations, rewards, terminations, truncations, infos

    def render(self) -> tuple[Any, ...] | None:
        """One frame an environment, (height, width, 3) uint8 or text; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() was called, but no render_mode was given when the environment was made")
            return None
        draw = self._text if self.render_mode == "ansi" else self._picture
        return tuple(draw(row) for row in range(self.num_envs))

    @abstractmethod
    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        """Put the environments `rows`, (R,), at the start of an episode that `uniforms`, (R, uniforms), decides."""

    @abstractmethod
    def _advance(self, actions: Any) -> Outcome:
        """One step of the dynamics: rewards (N,) and whether the episode ended there (N,), as new arrays."""

    @abstractmethod
    def _observe(self) -> Tree:
        """The present observations, (N, ...), as a new array, or a dict of such."""

    def _outcome(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """What the info of the last step of an episode says, name -> (R,)."""
        return {}

    def _picture(self, row: int) -> NDArray[np.uint8]:
        raise NotImplementedError(f"{type(self).__name__} draws no picture")

    def _text(self, row: int) -> str:
        raise NotImplementedError(f"{type(self).__name__} writes no text")

    def _restart(self, rows: Rows, options: dict[str, Any]) -> None:
        self._begin(rows, self._streams.take(rows), options)
        self._started_at[rows] = self._steps
        if self.max_episode_steps is not None and self._steps >= self._limit_from:
            self._limit_from = int(self._started_at.min()) + self.max_episode_steps

    def _final_info(self, rows: Rows, finished: NDArray[np.bool_]) -> dict[str, Any]:
        info: dict[str, Any] = {}
        for name, values in self._outcome(rows).items():
            info[name] = np.zeros(self.num_envs, dtype=values.dtype)
            info[name][rows] = values
            info[f"_{name}"] = finished.copy()
        return info


class SingleEnv(gymnasium.Env[Any, Any]):
    """One environment: a batch of one, without the batch axis. The time limit is left to `gymnasium.make`."""

    task: ClassVar[Any]

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        """`settings`: those of the task."""
        self.batch: BatchEnv = self.task(num_envs=1, max_episode_steps=None, render_mode=render_mode, **settings)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space
        self.render_mode = render_mode
        self.best_return, self.memoryless_return = self.batch.best_return, self.batch.memoryless_return

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a seed makes it and those that follow reproducible."""
        super().reset(seed=seed)
        if self.np_random is not self.batch._streams.generators[0]:
            self.batch._streams.seed(0, self.np_random)
        observations, _ = self.batch.reset(options=options)
        return only(observations), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.Discrete) and not self.action_space.contains(action):
            raise ValueError(f"the action must be an integer in [0, {self.action_space.n}), not {action!r}")
        if not self.batch._ready:
            raise ResetNeeded("reset() must be called before step()")
        rewards, terminations = self.batch._advance(np.asarray(action)[None])
        terminated = bool(terminations[0])
        outcome = self.batch._outcome(self.batch._every_row) if terminated else {}
        info = {name: values[0].item() for name, values in outcome.items()}
        return only(self.batch._observe()), float(rewards[0]), terminated, False, info

    def render(self) -> Any:
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.batch.close()


def single(task: type[BatchEnv]) -> type[SingleEnv]:
    """The class of single environments of a task, as `<task>Env` of its module."""
    members = {"task": task, "metadata": task.metadata, "__module__": task.__module__, "__doc__": f"One {task}."}
    return type(f"{task.__name__}Env", (SingleEnv,), members)


def _seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """A seed for each environment."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + row for row in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"expected one seed for each of {num_envs} environments, got {len(seed)}")
    return list(seed)


def check_at_least(least: int, **settings: int) -> None:
    """Raises ValueError for a setting below `least`."""
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
