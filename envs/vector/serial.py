"""Gymnasium environments stepped one after the other in this process, behind Stable-Baselines3's VecEnv.

Axes: N environments.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.tasks.observations import Tree, copied, leaves, write
from envs.vector.episodes import Episodes
from envs.vector.errors import EnvError
from envs.vector.group import Group, Info, Maker
from envs.vector.infos import FAILED
from envs.vector.state import EpisodeSeed, Journal, same
from envs.wrappers.transforms import wrappers_of

Call = Callable[[Group, int], Any]
"""Something to do with one environment of a group, by its position."""


class GroupedVecEnv(VecEnv):
    """Groups of gymnasium environments as one vector environment.

    The infos are the environments' own; where an episode ended, they also hold "terminal_observation",
    "TimeLimit.truncated" (ended by a time limit alone) and "episode": {"r", "l", "t"} (asked whether a Monitor is
    there, this says yes).

    An environment that raises, or calls sys.exit(), is an `EnvError`; or, up to `max_restarts` times in all, it is
    restarted: its episode is truncated at the observation before, a warning tells, and
    infos[i][envs.vector.infos.FAILED] says why; reset_infos[i] does where it failed in a reset.

    `resumable` gives every episode a seed of its own and keeps the actions of those under way, so that `restore` can
    bring new environments to where others were at their `snapshot`.
    """

    def __init__(self, num_envs: int, spaces: Mapping[str, Any], *, resumable: bool, max_restarts: int) -> None:
        list(leaves(spaces["observation_space"]))  # an observation that is no array is refused here
        super().__init__(num_envs, **spaces)
        self._max_restarts, self.restarts = max_restarts, 0
        self._episodes = Episodes(num_envs)
        self._journal = Journal(num_envs) if resumable else None
        self._last: Any = None

    def reset(self) -> VecEnvObs:
        seeds = self._seeds if self._journal is None else self._journal.start_all(self._seeds)
        self._last, self.reset_infos = self._begin(seeds, self._options)
        self._note_restarts(self.reset_infos)
        self._reset_seeds()
        self._reset_options()
        self._episodes.start(range(self.num_envs))
        return self._last  # type: ignore[no-any-return]

    def number_from(self, first: int) -> None:
        """The first environment is number `first` of those that several processes have: their episodes have seeds by
        that number."""
        if self._journal is not None:
            self._journal.first = first

    @abstractmethod
    def _begin(self, seeds: Sequence[Any], options: Sequence[dict[str, Any]]) -> tuple[Tree, list[Info]]:
        """Episodes begin everywhere: observations (N, ...) and infos."""

    @abstractmethod
    def _call(self, call: Call, indices: VecEnvIndices = None) -> list[Any]:
        """`call(group, position)` for each environment."""

    def _stepped(
        self,
        observations: Tree,
        rewards: NDArray[np.float32],
        dones: NDArray[np.bool_],
        infos: list[Info],
        resets: dict[int, Info],
    ) -> VecEnvStepReturn:
        """What a step returns. `resets`: infos of the resets where an episode ended."""
        self._last = observations
        self._episodes.add(rewards)
        if resets:
            for (i, reset_info), episode in zip(resets.items(), self._episodes.end(resets), strict=True):
                # One that is there is a Monitor's among the wrappers, which sees rewards before wrappers outside it do.
                infos[i].setdefault("episode", episode)
                self.reset_infos[i] = reset_info
                if self._journal is not None:
                    self._journal.end(i)
            self._note_restarts(infos[i] for i in resets)
        return observations, rewards, dones, infos

    def _note_restarts(self, infos: Iterable[Info]) -> None:
        """Warns of every environment that failed, and gives up where they were too many."""
        for failure in [info[FAILED] for info in infos if FAILED in info]:
            self.restarts += 1
            if self.restarts > self._max_restarts:
                self._fail(failure)
            times = f"{self.restarts} of at most {self._max_restarts} times"
            warnings.warn(
                f"{failure}; it was restarted and its episode truncated ({times})", RuntimeWarning, stacklevel=4
            )

    def _fail(self, message: str) -> NoReturn:
        raise EnvError(message)

    def snapshot(self) -> dict[str, Any] | None:
        """Where the environments stand, as plain data; None before a reset, and if they were not made resumable."""
        if self._journal is None or self._last is None:
            return None
        kept = {"observations": copied(self._last), "episodes": self._episodes.state()}
        return {"kind": "episodes", **self._journal.state(), **kept}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Replays the episodes of a snapshot. False where one did not end where it was: reset then."""
        if self._journal is None or state["kind"] != "episodes" or len(state["seeds"]) != self.num_envs:
            return False
        self._reset_seeds()
        self._journal.seeds = seeds = [EpisodeSeed(*seed) for seed in state["seeds"]]
        episodes = list(zip(seeds, state["actions"], strict=True))
        if any(actions is None for _, actions in episodes):
            return False
        seen = self._call(lambda group, i: group.replay(i, *episodes[group.first + i]))
        if any(observation is None for observation in seen):
            return False
        observations = create_empty_array(self.observation_space, self.num_envs, np.empty)
        for i, observation in enumerate(seen):
            write(observations, i, observation)
        if not same(observations, state["observations"]):
            return False
        self._journal.set_state(seeds, state["actions"])
        self._last = state["observations"]
        self._episodes.set_state(state["episodes"])
        return True

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return self.env_method("render")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._call(lambda group, i: group.envs[i].get_wrapper_attr(attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute where it is: on the wrapper or environment that has it, else on the outermost."""
        self._call(lambda group, i: group.envs[i].set_wrapper_attr(attr_name, value), indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        def call(group: Group, i: int) -> Any:
            return group.envs[i].get_wrapper_attr(method_name)(*method_args, **method_kwargs)

        return self._call(call, indices)

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        if wrapper_class is Monitor:
            return [True for _ in self._get_indices(indices)]

        def call(group: Group, i: int) -> bool:
            return any(isinstance(wrapper, wrapper_class) for wrapper in wrappers_of(group.envs[i]))

        return self._call(call, indices)


class SerialVecEnv(GroupedVecEnv):
    """What SB3's DummyVecEnv with a Monitor around each environment does, without copying what nobody else holds."""

    def __init__(self, makers: Sequence[Maker], *, resumable: bool = False, max_restarts: int = 0) -> None:
        self._group = Group(makers, max_restarts=max_restarts)
        self.envs = self._group.envs
        super().__init__(len(self.envs), self._group.spaces, resumable=resumable, max_restarts=max_restarts)
        self._actions: Any = None

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        return self.step(self._actions)

    def step(self, actions: NDArray[Any]) -> VecEnvStepReturn:
        """(N, ...) -> observations (N, ...), rewards (N,) float32, dones (N,) bool, infos."""
        observations = create_empty_array(self.observation_space, self.num_envs, np.empty)
        rewards = np.empty(self.num_envs, dtype=np.float32)
        dones = np.empty(self.num_envs, dtype=np.bool_)
        if self._journal is not None:
            self._journal.add(actions)
        infos, resets = self._group.step(actions, observations, rewards, dones)
        return self._stepped(observations, rewards, dones, infos, resets)

    def close(self) -> None:
        self._group.close()

    def _begin(self, seeds: Sequence[Any], options: Sequence[dict[str, Any]]) -> tuple[Tree, list[Info]]:
        observations = create_empty_array(self.observation_space, self.num_envs, np.empty)
        return observations, self._group.reset(seeds, options, observations)

    def _call(self, call: Call, indices: VecEnvIndices = None) -> list[Any]:
        return [call(self._group, i) for i in self._get_indices(indices)]
