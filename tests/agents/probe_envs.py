"""Environments and models for the tests of the core: small, deterministic, every number says where it comes from.

Axes: T steps, B environments.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from torch import Tensor

from agents import RecurrentPPO
from agents.algorithms.experience import RESET_STEP
from agents.memory import MEMORIES, State
from agents.policy.actor_critic import CRITIC_MEMORIES, RecurrentActorCriticPolicy
from tests.tolerance import close

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "discrete from one": spaces.Discrete(3, start=1),
    "multi discrete": spaces.MultiDiscrete([2, 3]),
    "multi binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "box of two axes": spaces.Box(-2.0, 1.0, (2, 2)),
    "gsde": spaces.Box(-1.0, 1.0, (2,)),
    "squashed gsde": spaces.Box(-3.0, 1.0, (2,)),
}


class Clock(gym.Env[Any, Any]):
    """Observes who and when it is: (environment, episode, step), each divided by 8.

    Rewards are ``10 * episode + step`` scaled by ``reward_scale``. Episodes last as ``lengths`` says, in turn; they end
    by a terminal state where ``episode + index`` is even and by a time limit where it is odd, or as ``ends`` says.
    Every action must lie in the action space.
    """

    def __init__(
        self,
        index: int,
        action_space: spaces.Space[Any],
        lengths: Sequence[int] = (3, 5, 2, 7, 1, 4),
        ends: str = "mixed",
        reward_scale: float = 0.1,
    ) -> None:
        self.index, self.action_space = index, action_space
        self.observation_space = spaces.Box(0.0, np.inf, (3,))
        self._lengths, self._ends, self._reward_scale = lengths, ends, reward_scale
        self._episode, self._step = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode, self._step = self._episode + 1, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = self._reward_scale * (10 * self._episode + self._step)
        self._step += 1
        over = self._step == self._lengths[(self._episode + self.index) % len(self._lengths)]
        by_terminal_state = self._ends == "terminated" or (
            self._ends == "mixed" and (self._episode + self.index) % 2 == 0
        )
        return self._observation(), reward, over and by_terminal_state, over and not by_terminal_state, {}

    def _observation(self) -> Any:
        return np.array([self.index, self._episode, self._step], dtype=np.float32) / 8


class MaskedClock(Clock):
    """The same, and which actions are allowed: not the one numbered ``(step + episode) mod n`` of each axis."""

    def __init__(self, index: int, action_space: spaces.Space[Any], **kwargs: Any) -> None:
        super().__init__(index, action_space, **kwargs)
        self._sizes = (
            [int(action_space.n)] if isinstance(action_space, spaces.Discrete) else [int(n) for n in action_space.nvec]
        )
        self._start = np.atleast_1d(action_space.start)
        self.observation_space = spaces.Dict(clock=self.observation_space, mask=spaces.MultiBinary(sum(self._sizes)))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chosen = np.atleast_1d(action) - self._start
        assert (chosen != self._forbidden()).all(), f"action {action} is forbidden"
        return super().step(action)

    def _forbidden(self) -> Any:
        return np.array([(self._step + self._episode) % size for size in self._sizes])

    def _observation(self) -> Any:
        mask = [np.arange(size) != forbidden for size, forbidden in zip(self._sizes, self._forbidden(), strict=True)]
        return {"clock": super()._observation(), "mask": np.concatenate(mask).astype(np.int8)}


class Recorder(VecEnvWrapper):
    """Keeps all that ever came out of a vector environment, in order: ``steps[t]`` after the t-th action."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.first: Any = None
        self.observations: list[Any] = []
        self.rewards: list[Any] = []
        self.dones: list[Any] = []
        self.infos: list[Any] = []
        self.actions: list[Any] = []

    def reset(self) -> Any:
        self.first = self.venv.reset()
        self.observations = [self.first]
        return self.first

    def step_async(self, actions: Any) -> None:
        self.actions.append(np.array(actions))
        super().step_async(actions)

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.observations.append(observations)
        self.rewards.append(rewards.copy())
        self.dones.append(dones.copy())
        self.infos.append(infos)
        return observations, rewards, dones, infos

    def episode_starts(self) -> Any:
        """(T, B), true where an action was the first of an episode."""
        return np.stack([np.ones(self.num_envs, dtype=bool), *self.dones[:-1]])


class AtRolloutEnd(BaseCallback):
    """Calls a function with the model at the end of every rollout, before the update."""

    def __init__(self, look: Callable[[Any], None]) -> None:
        super().__init__()
        self._look = look

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._look(self.model)


class NextStepReset(VecEnv):
    """A vector environment that resets on the step after an episode's end, and says so in that step's infos.

    The terminal observation is what the ending step returns. The next step ignores its action, returns the first
    observation of the new episode with a reward of 1000 that must not count, and has ``RESET_STEP`` in its infos.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._envs = list(envs)
        super().__init__(len(self._envs), self._envs[0].observation_space, self._envs[0].action_space)
        self._over = np.zeros(self.num_envs, dtype=bool)
        self.transitions: list[tuple[int, int]] = []
        self._t = 0

    def reset(self) -> Any:
        self._over[:] = False
        return np.stack([env.reset()[0] for env in self._envs])

    def step_async(self, actions: Any) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        results = [self._one(i) for i in range(self.num_envs)]
        self._t += 1
        observations, rewards, dones, infos = zip(*results, strict=True)
        return np.stack(observations), np.array(rewards, dtype=np.float32), np.array(dones), list(infos)

    def _one(self, i: int) -> tuple[Any, float, bool, dict[str, Any]]:
        if self._over[i]:
            self._over[i] = False
            return self._envs[i].reset()[0], 1000.0, False, {RESET_STEP: True}
        self.transitions.append((self._t, i))
        observation, reward, terminated, truncated, info = self._envs[i].step(self._actions[i])
        self._over[i] = terminated or truncated
        if self._over[i]:
            info = {**info, "terminal_observation": observation, "TimeLimit.truncated": truncated and not terminated}
        return observation, float(reward), bool(self._over[i]), info

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(env, attr_name, None) for env in self._envs]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(env, method_name)(*args, **kwargs) for env in self._envs]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def vectorized(make: Callable[[int], gym.Env[Any, Any]], n_envs: int) -> DummyVecEnv:
    """A vector of ``make(0), make(1), ...``"""
    return DummyVecEnv([lambda i=i: make(i) for i in range(n_envs)])  # type: ignore[misc]


def clocks(actions: str = "discrete", n_envs: int = 3, **kwargs: Any) -> Recorder:
    return Recorder(vectorized(lambda i: Clock(i, ACTION_SPACES[actions], **kwargs), n_envs))


def small(memory: Any, **kwargs: Any) -> dict[str, Any]:
    """Arguments of a memory that make it small, with two layers where it has layers, and a short window."""
    known = inspect.signature(MEMORIES[memory]).parameters if memory in MEMORIES else {}
    sizes = dict(hidden_size=8, num_layers=2, window=5)
    return {**{name: size for name, size in sizes.items() if name in known}, **kwargs}


def policy_arguments(memory: Any = "lstm", critic_memory: str = "shared", **kwargs: Any) -> dict[str, Any]:
    """``policy_kwargs`` of a small general policy whose outputs depend on all its parts from the start."""
    arguments = dict(
        memory=memory,
        memory_kwargs=small(memory),
        critic_memory=critic_memory,
        net_arch=[7],
        ortho_init=False,
    )
    return {**arguments, **kwargs}


def small_ppo(
    env: Any,
    memory: str = "lstm",
    critic_memory: str = "shared",
    *,
    actions: str | None = None,
    cls: type[Any] = RecurrentPPO,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """A small model with several sequences an environment and several minibatches an epoch."""
    settings: dict[str, Any] = dict(
        n_steps=8, batch_size=8, n_epochs=2, sequence_length=4, learning_rate=1e-2, seed=3, device="cpu"
    )
    if cls is not RecurrentPPO and not issubclass(cls, RecurrentPPO):
        del settings["batch_size"], settings["n_epochs"]
    arguments = policy_arguments(memory, critic_memory, **(policy_kwargs or {}))
    if actions in ("gsde", "squashed gsde"):
        settings.update(use_sde=True, sde_sample_freq=3)
        arguments.update(squash_output=actions == "squashed gsde")
    return cls("RecurrentPolicy", env, policy_kwargs=arguments, **{**settings, **kwargs})


def weights(model: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def equal_weights(left: Any, right: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(left), weights(right), strict=True))


class Watched(RecurrentPPO):
    """Compares, in the epoch before the first optimizer step, what learning computes with what the buffer holds."""

    n_checked = 0
    furthest = 0.0

    def _train_epoch(self, history: Any, auxiliary: Any) -> bool:
        buffer = self.rollout_buffer
        for chosen in [] if history else list(buffer._of_an_epoch(self.batch_size, ahead=True)):
            batch = buffer._batch(chosen)
            values, log_probs, _ = self.policy.evaluate_actions(
                batch.observations, batch.actions, self.state_before(batch), batch.episode_starts
            )
            for found, stored in ((values, batch.old_values), (log_probs, batch.old_log_probs)):
                self.furthest = max(self.furthest, float((found - stored).abs().max()))
            self.n_checked += values.numel()
        return super()._train_epoch(history, auxiliary)

    def first_ratios(self, n_rollouts: int = 4) -> float:
        """Learns, in two calls, and gives the largest difference that was found."""
        total = n_rollouts * self.n_steps * self.n_envs
        self.learn(total // 2)
        self.learn(total // 2, reset_num_timesteps=False)
        assert self.n_checked == total
        return self.furthest


def copy_of(policy: RecurrentActorCriticPolicy) -> RecurrentActorCriticPolicy:
    """A policy of its own with the same weights as they are now, in evaluation mode."""
    copied = type(policy)(**policy._get_constructor_parameters())
    copied.load_state_dict(policy.state_dict())
    copied.set_training_mode(False)
    return copied


def states_equal(left: State, right: State) -> bool:
    """Up to rounding: a state may be small, and what is rounded are the gates' sums of 8 units and a bias, near 1."""
    return len(left) == len(right) and all(close(a, b, terms=8, scale=1.0) for a, b in zip(left, right, strict=True))


ALL_MEMORIES = list(MEMORIES)
ALL_CRITIC_MEMORIES = list(CRITIC_MEMORIES)
ALL_ACTIONS = list(ACTION_SPACES)
