"""CartPole without velocities whose pole cannot fall: every episode has exactly the length that is asked for.

Importing this module registers ``benchmarks/EndlessCartPole-v0``, which takes ``max_episode_steps``.
"""

from typing import Any

import gymnasium as gym
import numpy as np

from envs.tasks.control import CartPole


class EndlessCartPole(CartPole):
    """The dynamics are CartPole's, and cost what they always do. Episodes end at the time limit only.

    The first episode of environment i of N starts i / N of the way through, so that they end one after the other, as
    they do in training.
    """

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self._limits[:] = np.inf
        self._first = True

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        if self._first and self.max_episode_steps is not None:
            self._started_at -= np.arange(self.num_envs) * self.max_episode_steps // self.num_envs
            self._limit_from = 0
            self._first = False
        return result


gym.register("benchmarks/EndlessCartPole-v0", vector_entry_point=EndlessCartPole, max_episode_steps=500)
