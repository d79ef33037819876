"""A gymnasium vector environment behind Stable-Baselines3's VecEnv, at next to no cost a step.

Axes: N environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.tasks.batch import BatchEnv
from envs.tasks.observations import copied, only, take, truth
from envs.vector.episodes import Episodes
from envs.vector.group import counts_episodes
from envs.vector.infos import RESET_STEP, Infos, info_of
from envs.vector.state import set_state, state_of
from envs.wrappers.arrays import Arranged, needs_arranging


class VectorEnvAdapter(VecEnv):
    """Steps a gymnasium `VectorEnv`, of any autoreset mode, as an SB3 `VecEnv`. Observations come as arrays: see
    `envs.wrappers.arrays`.

    Where an episode ended, and only there, an info is written: what the environment said, "terminal_observation",
    "TimeLimit.truncated" (ended by a time limit alone), and "episode": {"r": return, "l": steps, "t": seconds since
    this object was made}, so that no Monitor is needed (asked whether a Monitor is there, it says yes).

    A vector environment that resets in the next step spends a step on it: action and reward mean nothing there. That
    step is marked with infos[i][RESET_STEP] = True, its done is False, and no episode counts it. One that never resets
    by itself is reset here, in the step that ends an episode, by the option "reset_mask".
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.env = env
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._resets = mode is AutoresetMode.DISABLED
        self.autoreset_mode = AutoresetMode.SAME_STEP if self._resets else mode
        space = env.single_observation_space
        self._arranged = Arranged(space) if needs_arranging(space) else None
        seen = space if self._arranged is None else self._arranged.space
        super().__init__(env.num_envs, seen, env.single_action_space)
        self._actions: Any = None
        self._episodes = Episodes(self.num_envs)
        self._resetting: list[int] | None = None
        self._counted = _counts_episodes(env)

    def reset(self) -> VecEnvObs:
        seeds, options = self._seeds, self._options
        if any(entry != options[0] for entry in options):
            raise ValueError("a vector environment takes the same reset options for all; use backend='serial'")
        seed: Any = None if all(seed is None for seed in seeds) else list(seeds)
        # Gymnasium's rule is that seed s means s + i for environment i, and not every vector environment takes a list.
        if seed is not None and seed[0] is not None and seed == [seed[0] + i for i in range(self.num_envs)]:
            seed = int(seed[0])
        observations, infos = self.env.reset(seed=seed, options=options[0] or None)
        self.reset_infos = [info_of(infos, i) for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self._episodes.start(range(self.num_envs))
        self._resetting = None
        return self._arrays(observations)  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        return self.step(self._actions)

    def step(self, actions: NDArray[Any]) -> VecEnvStepReturn:
        """(N, ...) -> observations (N, ...), rewards (N,) float32, dones (N,) bool, infos."""
        observations, rewards, terminations, truncations, raw_infos = self.env.step(actions)
        rewards = rewards.astype(np.float32, copy=False)
        self._episodes.add(rewards)
        if terminations.dtype != np.bool_ or truncations.dtype != np.bool_:
            terminations, truncations = _truths(terminations, "terminations"), _truths(truncations, "truncations")
        dones = np.logical_or(terminations, truncations)
        if self._resets and np.count_nonzero(dones):
            observations, raw_infos = self._reset(dones, observations, raw_infos)
        infos = Infos(self.num_envs, raw_infos)
        if self._resetting is not None:
            # The episodes that ended a step ago start with this step's observation.
            for i in self._resetting:
                self.reset_infos[i] = info_of(raw_infos, i)
                infos[i] = {RESET_STEP: True}
            self._episodes.start(self._resetting)
            self._resetting = None
        if np.count_nonzero(dones):
            self._end_episodes(dones.nonzero()[0].tolist(), terminations, observations, raw_infos, infos)
        return self._arrays(observations), rewards, dones, infos  # type: ignore[return-value]

    def _arrays(self, observations: Any) -> Any:
        return observations if self._arranged is None else self._arranged.batch(observations)

    def _reset(self, dones: NDArray[np.bool_], last: Any, raw_infos: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Resets where an episode ended: the observations after it, and infos as those of the mode SAME_STEP."""
        ended = _Ended({row: self._one(last, row) for row in dones.nonzero()[0].tolist()})
        observations, begun = self.env.reset(options={"reset_mask": dones})
        # What an environment says of its reset stands only where there was one.
        return observations, {**begun, "final_obs": ended, "final_info": raw_infos}

    def _one(self, observations: Any, row: int) -> Any:
        """A copy of the observation of one environment, as arrays; last ones gymnasium gives as an array of objects."""
        if isinstance(observations, _Ended):
            return observations[row]
        if self._arranged is None:
            return take(observations, row) if isinstance(observations, dict | tuple) else copied(observations[row])
        if isinstance(observations, np.ndarray) and observations.dtype == object:
            return only(self._arranged.rows_of_one(observations[row]))
        return take(self._arranged.batch(observations), row)

    def _end_episodes(
        self,
        rows: list[int],
        terminations: NDArray[np.bool_],
        observations: Any,
        raw_infos: dict[str, Any],
        infos: Infos,
    ) -> None:
        last_observations: Any = observations
        last: Any = raw_infos
        first: dict[str, Any] | None = None
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            last_observations, last = raw_infos["final_obs"], raw_infos.get("final_info")
            first = {name: values for name, values in raw_infos.items() if name not in _LAST_STEP}
        for i, episode in zip(rows, self._episodes.end(rows), strict=True):
            info = info_of(last, i)
            info["terminal_observation"] = self._one(last_observations, i)
            info["TimeLimit.truncated"] = not terminations[i]
            if not self._counted or "episode" not in info:
                info["episode"] = episode
            infos[i] = info
            if first is not None:
                self.reset_infos[i] = info_of(first, i)
        if first is None:
            self._resetting = rows

    def snapshot(self) -> dict[str, Any] | None:
        """Where the environments stand, as plain data; None where only they themselves know."""
        if not isinstance(self.env, BatchEnv):
            return None
        return {"kind": "vector", "env": state_of(self.env), "episodes": self._episodes.state()}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Brings the environments to where they stood. False where that is not possible: reset them then."""
        if not isinstance(self.env, BatchEnv) or state["kind"] != "vector":
            return False
        set_state(self.env, state["env"])
        self._episodes.set_state(state["episodes"])
        self._reset_seeds()
        return True

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)  # type: ignore[arg-type]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the environments; one of the vector environment itself is every environment's."""
        env: Any = self.env
        many = hasattr(env, "get_attr")
        values = env.get_attr(attr_name) if many else [getattr(env, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        rows = list(self._get_indices(indices))
        if hasattr(self.env, "set_attr"):
            values = [value] * self.num_envs if len(rows) == self.num_envs else self.get_attr(attr_name)
            for i in rows:
                values[i] = value
            self.env.set_attr(attr_name, values)
        elif len(rows) == self.num_envs:
            setattr(self.env, attr_name, value)
        else:
            raise ValueError(f"{attr_name!r} is one for all environments of {self.env}: set it for all of them")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environments. One that steps them all in NumPy has only `render`."""
        if method_name == "render":
            values: Any = self.get_images()
        elif hasattr(self.env, "call"):
            values = self.env.call(method_name, *method_args, **method_kwargs)
        else:
            raise AttributeError(
                f"{self.env} has no method {method_name!r} for one environment at a time; make it with backend='serial'"
            )
        return [values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


class _Ended(dict[int, Any]):
    """The last observations of episodes, by environment."""


_LAST_STEP = frozenset(("final_obs", "_final_obs", "final_info", "_final_info"))


def _truths(values: Any, name: str) -> NDArray[np.bool_]:
    return np.array([truth(value, name) for value in values], dtype=np.bool_)


def _counts_episodes(env: Any) -> bool:
    """Whether a wrapper among these counts episodes, so that "episode" in their infos is its word."""
    while isinstance(env, VectorWrapper):
        if isinstance(env, RecordEpisodeStatistics):
            return True
        env = env.env
    return all(map(counts_episodes, getattr(env, "envs", None) or [None]))
