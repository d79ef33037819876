"""Running normalisation around environments, for whatever their observations are."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize


def normalize(
    env: VecEnv,
    *,
    observations: bool = True,
    rewards: bool = True,
    gamma: float = 0.99,
    clip_observations: float = 10.0,
    clip_rewards: float = 10.0,
) -> VecEnv:
    """``env`` in a ``VecNormalize`` over those parts of its observations for which a mean makes sense.

    Images are scaled by the policy and discrete parts are categories: both are left alone. Where nothing is left to
    normalise the environment comes back as it is.
    """
    keys = _measurements(env.observation_space) if observations else None
    if not keys and not rewards:
        return env
    is_dict = isinstance(env.observation_space, spaces.Dict)
    return VecNormalize(
        env,
        norm_obs=bool(keys),
        norm_reward=rewards,
        clip_obs=clip_observations,
        clip_reward=clip_rewards,
        gamma=gamma,
        norm_obs_keys=keys if is_dict and keys else None,
    )


def _measurements(space: spaces.Space[Any]) -> list[str]:
    """The keys of a Dict observation that hold measurements; ``[""]`` or ``[]`` for a plain one."""
    if isinstance(space, spaces.Dict):
        return [key for key, part in space.spaces.items() if _is_measurement(part)]
    return [""] if _is_measurement(space) else []


def _is_measurement(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and not is_image_space(space)
