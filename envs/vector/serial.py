"""Gymnasium environments stepped one after the other in this process, behind Stable-Baselines3's VecEnv.

Axes: N environments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.tasks.observations import allocate, copied, leaves
from envs.vector.episodes import Episodes, note_ends, warn_of_restarts
from envs.vector.group import Group, Maker, is_wrapped
from envs.vector.state import Journal, lived_again


class SerialVecEnv(VecEnv):
    """What SB3's DummyVecEnv with a Monitor around each environment does, without copying what nobody else holds.

    The infos are the environments' own; where an episode ended, they also hold "terminal_observation",
    "TimeLimit.truncated" (ended by a time limit alone) and "episode": {"r", "l", "t"} (asked whether a Monitor is
    there, this says yes).

    An environment that raises, or calls sys.exit(), is an `EnvError`; or, up to `max_restarts` times in all, it is made
    anew: its episode ends as by a time limit with the observation before, a warning tells, and
    infos[i][envs.vector.infos.FAILED] says why; reset_infos[i] does where it failed in a reset.

    `resumable` gives every episode a seed of its own and keeps the actions of those under way, so that `restore` can
    bring environments, made anew, to where others were at their `snapshot`.
    """

    def __init__(self, makers: Sequence[Maker], *, resumable: bool = False, max_restarts: int = 0) -> None:
        self._group = Group(makers, max_restarts=max_restarts)
        self._max_restarts, self.restarts = max_restarts, 0
        self.envs = self._group.envs
        space = self.envs[0].observation_space
        list(leaves(space))  # an observation that is no array is refused here
        super().__init__(len(self.envs), space, self.envs[0].action_space)
        self._actions: Any = None
        self._episodes = Episodes(self.num_envs)
        self._journal = Journal(self.num_envs) if resumable else None
        self._last: Any = None

    def reset(self) -> VecEnvObs:
        observations = self._last = allocate(self.observation_space, self.num_envs, np.empty)
        seeds = self._seeds if self._journal is None else self._journal.start_all(self._seeds)
        self.reset_infos = self._group.reset(seeds, self._options, observations)
        self._note_restarts(self.reset_infos, range(self.num_envs))
        self._reset_seeds()
        self._reset_options()
        self._episodes.start_all()
        return observations  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        return self.step(self._actions)

    def step(self, actions: NDArray[Any]) -> VecEnvStepReturn:
        """(N, ...) -> observations (N, ...), rewards (N,) float32, dones (N,) bool, infos."""
        observations = self._last = allocate(self.observation_space, self.num_envs, np.empty)
        rewards = np.empty(self.num_envs, dtype=np.float32)
        dones = np.empty(self.num_envs, dtype=np.bool_)
        if self._journal is not None:
            self._journal.add(actions)
        infos, resets = self._group.step(actions, observations, rewards, dones)
        self._episodes.add(rewards)
        if resets:
            note_ends(infos, resets, self._episodes, self.reset_infos)
            self._note_restarts(infos, resets)
            if self._journal is not None:
                for i in resets:
                    self._journal.end(i)
        return observations, rewards, dones, infos

    def snapshot(self) -> dict[str, Any] | None:
        """Where the environments stand, as plain data; None before a reset, and if they were not made resumable."""
        if self._journal is None or self._last is None:
            return None
        kept = {"observations": copied(self._last), "episodes": self._episodes.state()}
        return {"kind": "episodes", **self._journal.state(), **kept}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Lives the episodes of a snapshot again. False where they did not end where they were: reset then."""
        if self._journal is None or state["kind"] != "episodes" or len(state["seeds"]) != self.num_envs:
            return False
        self._reset_seeds()
        blank = partial(allocate, self.observation_space, self.num_envs, np.empty)
        if not lived_again(state, self._journal, blank, self._replay):
            return False
        self._last = state["observations"]
        self._episodes.set_state(state["episodes"])
        return True

    def _note_restarts(self, infos: list[dict[str, Any]], rows: Iterable[int]) -> None:
        self.restarts += warn_of_restarts(infos, rows, self.restarts, self._max_restarts)

    def _replay(self, lives: dict[int, Any]) -> list[Any]:
        return [self._group.replay(i, *life) for i, life in lives.items()]

    def close(self) -> None:
        self._group.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return [env.render() for env in self.envs]  # type: ignore[misc]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [self.envs[i].get_wrapper_attr(attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute where it is: on the wrapper or environment that has it, else on the outermost."""
        for i in self._get_indices(indices):
            self.envs[i].set_wrapper_attr(attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return [
            self.envs[i].get_wrapper_attr(method_name)(*method_args, **method_kwargs)
            for i in self._get_indices(indices)
        ]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [wrapper_class is Monitor or is_wrapped(self.envs[i], wrapper_class) for i in self._get_indices(indices)]
