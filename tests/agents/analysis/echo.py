"""A task and memories whose answers are known by hand.

Echo shows a random bit, -1 or 1, at each of ``length`` steps; from step ``lag`` on the action must name the bit shown
``lag`` steps before. DelayLine remembers just that, and the policy made here acts on nothing else.

Axes: T steps, B environments, K steps of delay.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from agents import RecurrentPPO
from agents.deploy.player import Player
from agents.memory import Memory, State


class Echo(gym.Env[Any, Any]):
    """Rewards 1 where the action is the bit of ``lag`` steps before; the infos hold the bit shown as "bit"."""

    def __init__(self, lag: int = 2, length: int = 12) -> None:
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)
        self._lag, self._length, self._t = lag, length, 0
        self._bits = np.zeros(length + 1, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._bits, self._t = drawn(self.np_random, self._length), 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        bit, before = self._bits[self._t], self._t - self._lag
        reward = float(before >= 0 and action == self._bits[before])
        self._t += 1
        return self._shown(), reward, self._t == self._length, False, {"bit": float(bit)}

    def _shown(self) -> Any:
        return np.array([2 * self._bits[self._t] - 1], dtype=np.float32)


def drawn(rng: np.random.Generator, length: int) -> NDArray[np.int64]:
    return rng.integers(2, size=length + 1)


def bits(seed: int, length: int = 12) -> NDArray[np.int64]:
    """What the first episode of an environment with this seed shows."""
    return drawn(seeding.np_random(seed)[0], length)


def echo(n_envs: int, lag: int = 2, length: int = 12) -> DummyVecEnv:
    return DummyVecEnv([lambda: Echo(lag, length) for _ in range(n_envs)])


class DelayLine(Memory):
    """Gives what came in ``lag`` steps before, 0 where that was in another episode. State: (B, K, F), oldest first."""

    def __init__(self, input_size: int, lag: int = 2) -> None:
        super().__init__(input_size, output_size=input_size)
        self.lag = lag
        self.scale = torch.nn.Parameter(torch.ones(()))

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, self.lag, self.input_size),)

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        (line,) = self.reset(state, episode_starts)
        line = torch.cat((line, features.unsqueeze(1)), dim=1)
        return self.scale * line[:, 0], (line[:, 1:],)

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        outputs = []
        for now, starts in zip(features, episode_starts, strict=True):
            output, state = self.step(now, state, starts)
            outputs.append(output)
        return torch.stack(outputs)


def delaying(lag: int = 2) -> Player:
    """An agent that names the bit of ``lag`` steps before, and 0 where it knows none."""
    policy = dict(memory=DelayLine, memory_kwargs=dict(lag=lag), net_arch=[], critic_memory="none")
    agent = RecurrentPPO("RecurrentPolicy", echo(1, lag), n_steps=8, batch_size=8, policy_kwargs=policy, seed=0)
    with torch.no_grad():
        agent.policy.action_net.weight.copy_(torch.tensor([[-3.0], [3.0]]))
        agent.policy.action_net.bias.copy_(torch.tensor([1e-3, 0.0]))
    return Player(agent.policy)
