"""Action masks as sb3-contrib's MaskablePPO takes them, as a part of the observations.

There an environment has a method ``action_masks()``, its own or that of ``ActionMasker``, and masks are separate from
the observations. Here they are a part of them, so that buffer, memory, files and exports need not know of masks.

Axes: B environments, N choices of an action (of all its axes in a row) or its bits.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.policy.heads import number_of_choices

ACTION_MASKS = "action_masks"
"""The method, and the key of the observations that shows what it gives."""
OBSERVATION = "observation"
"""The key of what was observed, where that was no Dict."""


class ActionMaskVecEnv(VecEnvWrapper):
    """Environments whose observations show what their ``action_masks()`` give, under the key ``"action_masks"``.

    Observations that are no Dict come under ``"observation"``. An episode's last observation, which no action follows,
    allows everything.

    Raises:
        ValueError: actions are none that can be masked, or an environment gives a mask of another size.
    """

    def __init__(self, venv: VecEnv) -> None:
        self._size = number_of_choices(venv.action_space)
        inside = venv.observation_space
        parts = dict(inside.spaces) if isinstance(inside, spaces.Dict) else {OBSERVATION: inside}
        super().__init__(venv, spaces.Dict({**parts, ACTION_MASKS: spaces.MultiBinary(self._size)}))

    def reset(self) -> Any:
        return self._with_masks(self.venv.reset())

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            if (last := infos[i].get("terminal_observation")) is not None:
                infos[i]["terminal_observation"] = with_masks(last, np.ones(self._size, np.int8))
        return self._with_masks(observations), rewards, dones, infos

    def _with_masks(self, observations: Any) -> Any:
        masks = [np.asarray(each, np.int8).reshape(-1) for each in self.venv.env_method(ACTION_MASKS)]
        for i, mask in enumerate(masks):
            if len(mask) != self._size:
                raise ValueError(
                    f"action_masks() of environment {i} gave {len(mask)} entries, the action space "
                    f"{self.action_space} needs {self._size}"
                )
        return with_masks(observations, np.stack(masks))


def has_action_masks(venv: VecEnv) -> bool:
    """Whether all environments have the method. Not every vector environment answers."""
    try:
        if not venv.has_attr(ACTION_MASKS):
            return False
        # Stable-Baselines3's own answer takes any value, None too, for an attribute; where it is another's (of worker
        # processes, which would have to send the method) it is taken as it is.
        asks_for_value = type(venv.unwrapped).has_attr is VecEnv.has_attr
        return not asks_for_value or all(map(callable, venv.get_attr(ACTION_MASKS)))
    except Exception:  # whatever it raises
        return False


def shows_masks(space: spaces.Space[Any]) -> bool:
    """Whether observations have the key."""
    return isinstance(space, spaces.Dict) and ACTION_MASKS in space.spaces


def as_shown(venv: VecEnv, observation_space: spaces.Space[Any]) -> VecEnv:
    """``venv`` with masks in its observations, if an agent with this space sees them and they are not there."""
    missing = shows_masks(observation_space) and not shows_masks(venv.observation_space)
    return ActionMaskVecEnv(venv) if missing and has_action_masks(venv) else venv


def with_masks(observations: Any, masks: NDArray[Any], key: str = ACTION_MASKS) -> dict[str, Any]:
    """Observations, one or (B, ...), with masks (N,) or (B, N) among them."""
    parts = observations if isinstance(observations, dict) else {OBSERVATION: observations}
    return {**parts, key: masks}
