"""One step of a saved agent as a module of torch: observation and state in, action and state out, all of it inside.

What a player does in NumPy around the policy is done here on tensors: the last action and reward among the inputs, the
normalizer, the axes of images, clipping and squashing of actions. Exports are made of this module alone, so that they
cannot differ in what they leave out.

Axes: B agents, K parameters of the distribution, A numbers of an action as an input.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import Tensor, nn

from agents.checkpoint import NormalizerState, PreviousInputs
from agents.deploy.player import Player
from agents.policy.heads import BernoulliHead, GaussianHead, Parameters, StateDependentHead

PREVIOUS_ACTION = "previous_action"
_MODULUS = 2**31 - 1  # a prime whose products fit 64 bits


class ExportError(ValueError):
    """An agent, or a file's name, that cannot be exported, and why."""


class AgentStep(nn.Module):
    """The step of a player's agent on tensors, named in order by ``input_names`` and ``output_names``.

    Inputs: ``observation``, or ``observation.KEY`` for each key, (B, ...) as the environment gives them and in the type
    of their space; ``reward`` (B,) of the last action, if the agent sees it; ``state_in_0``, ... (B, ...);
    ``episode_start`` (B,) bool, where the state is not read and reward and last action do not count; ``seed`` int64, ()
    with ``sample``: another for every step.

    Outputs: ``action`` (B, ...) as the environment takes it; ``distribution_0``, ...: logits, or mean and logarithm of
    the standard deviation; ``state_out_0``, ...; ``value`` (B,) with ``value``.

    Args:
        sample: actions are sampled, from numbers made of ``seed``, in place of deterministic ones.
        value: the critic's estimate too, in the units that the agent learned in.

    Raises:
        ExportError: actions are to be drawn from a distribution that depends on more than its parameters.
    """

    def __init__(self, player: Player, *, sample: bool = False, value: bool = False) -> None:
        super().__init__()
        self.policy, self.sample, self.value = player.policy, sample, value
        self.observation_space = player.observation_space
        self.action_space: Any = player.policy.action_space
        if sample and isinstance(self.policy.head, StateDependentHead):
            raise ExportError("state-dependent exploration draws matrices, not actions: export it without sampling")
        self._previous = None if player.previous is None else _Previous(player.previous, player.seen_space)
        self._normalizer = None if player.normalizer is None else _Normalizer(player.normalizer)
        space = self.observation_space
        self.keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
        if not value:  # only the critic reads these
            self.keys = [key for key in self.keys if key not in self.policy.privileged]
        states = self.initial_state(1)
        self.input_names = [f"observation.{key}" for key in self.keys] or ["observation"]
        self.input_names += ["reward"] if self._previous else []
        self.input_names += [f"state_in_{i}" for i in range(len(states))] + ["episode_start"]
        self.input_names += ["seed"] if sample else []
        self.output_names = ["action", *[f"distribution_{i}" for i in range(self._n_parameters)]]
        self.output_names += [f"state_out_{i}" for i in range(len(states))] + (["value"] if value else [])

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The state before the first step, (B, ...) each; the last action is its last part if the agent sees it."""
        parts = self.policy.initial_state(batch_size)
        parts = parts if self.value else parts[: len(self.policy.memory_actor.initial_state(1))]
        return (*parts, torch.zeros(batch_size, self._previous.size)) if self._previous else parts

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Inputs for this many agents, at an episode's start."""
        observations = [
            torch.as_tensor(np.stack([part.sample() for _ in range(batch_size)])) for part in self.observed_spaces
        ]
        reward = [torch.zeros(batch_size)] if self._previous else []
        seed = [torch.zeros((), dtype=torch.int64)] if self.sample else []
        starts = torch.ones(batch_size, dtype=torch.bool)
        return (*observations, *reward, *self.initial_state(batch_size), starts, *seed)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        n = len(self.keys) or 1
        observation: Any = dict(zip(self.keys, given[:n], strict=True)) if self.keys else given[0]
        seed = given.pop() if self.sample else None
        starts = given.pop()
        state, seen = tuple(given[n + bool(self._previous) :]), observation
        if self._previous:
            *rest, last_action = state
            state, seen = tuple(rest), self._previous(observation, last_action, given[n], starts)
        if self._normalizer is not None:
            seen = self._normalizer(seen)
        seen = _channels_as_in(seen, self.policy.observation_space)
        actor, critic, after = self._hidden(seen, state, starts)
        parameters = self.policy.distribution_parameters(actor, seen)
        action = self._to_environment(self._chosen(parameters, seed))
        if self._previous:
            after = (*after, self._previous.encoded_action(action))
        values = (self.policy.values(critic),) if critic is not None else ()
        shown = tuple(part.expand_as(parameters[0]) for part in parameters[: self._n_parameters])
        return (action, *shown, *after, *values)

    @property
    def observed_spaces(self) -> list[spaces.Space[Any]]:
        """Of the first inputs, in their order."""
        space = self.observation_space
        return [space[key] for key in self.keys] if isinstance(space, spaces.Dict) else [space]

    @property
    def sees_reward(self) -> bool:
        return self._previous is not None

    @property
    def sees_start(self) -> bool:
        return self._previous is not None and self._previous.start

    def moments(self, key: str) -> tuple[Tensor, Tensor, float] | None:
        """Mean, deviation and limit by which an observation's part is normalized."""
        if self._normalizer is None or key not in self._normalizer.moments:
            return None
        return (*self._normalizer.moments[key], self._normalizer.limit)

    @property
    def _n_parameters(self) -> int:
        return 2 if isinstance(self.action_space, spaces.Box) else 1

    def _hidden(self, seen: Any, state: tuple[Tensor, ...], starts: Tensor) -> tuple[Tensor, Tensor | None, Any]:
        if self.value:
            actor, critic, after = self.policy.step_hidden(seen, state, starts)
            return actor, critic, after
        hidden, after = self.policy.actor_hidden(seen, state, starts)
        return hidden, None, after

    def _chosen(self, parameters: Parameters, seed: Tensor | None) -> Tensor:
        """(B, K) -> (B, A) as the policy stores actions."""
        first = parameters[0]
        if seed is None:
            return self.policy.head.mode(parameters)
        noise = _uniform(seed, first)
        if isinstance(self.policy.head, GaussianHead):
            angle = 2 * torch.pi * _uniform(seed + 7919, first)
            return first + parameters[1].exp() * torch.sqrt(-2.0 * noise.log()) * torch.cos(angle)
        if isinstance(self.policy.head, BernoulliHead):
            return (noise < torch.sigmoid(first)).to(first.dtype)
        return self.policy.head.mode((first - torch.log(-noise.log()),))  # Gumbel-max

    def _to_environment(self, actions: Tensor) -> Tensor:
        """``ActionHead.to_environment`` on tensors."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return actions + int(space.start)
        if isinstance(space, spaces.MultiDiscrete):
            return actions + torch.as_tensor(space.start)
        shaped = actions.reshape(-1, *space.shape)
        if isinstance(space, spaces.MultiBinary):
            return shaped.to(torch.int8)
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        if self.policy.squash_output:
            shaped = low + 0.5 * (shaped + 1.0) * (high - low)
        return torch.minimum(torch.maximum(shaped, low), high).to(low.dtype)


class _Previous(nn.Module):
    """The last action and reward beside the observation, as the wrapper ``previous_action_reward`` puts them."""

    def __init__(self, previous: PreviousInputs, seen: spaces.Space[Any]) -> None:
        super().__init__()
        self._space, self._action_space = previous.observation_space, previous.action_space
        self.start = previous.start
        self._joined = not isinstance(seen, spaces.Dict)
        self.size = width(previous.action_space)

    def forward(self, observation: Any, last_action: Tensor, reward: Tensor, starts: Tensor) -> Any:
        begins = starts[:, None]
        added = {
            PREVIOUS_ACTION: last_action.masked_fill(begins, 0.0),
            "previous_reward": reward[:, None].masked_fill(begins, 0.0),
        }
        if self.start:
            added["episode_start"] = begins.to(reward.dtype)
        if self._joined:
            return torch.cat((_encoded(observation, self._space), *added.values()), dim=1)
        return {**(observation if isinstance(observation, dict) else {"observation": observation}), **added}

    def encoded_action(self, action: Tensor) -> Tensor:
        return _encoded(action, self._action_space)


class _Normalizer(nn.Module):
    """``VecNormalize.normalize_obs`` with statistics that stand still."""

    def __init__(self, state: NormalizerState) -> None:
        super().__init__()
        self.limit, epsilon = float(state.settings["clip_obs"]), state.settings["epsilon"]
        self.moments = {
            key: (torch.as_tensor(seen.mean), torch.as_tensor(np.sqrt(seen.var + epsilon)))
            for key, seen in state.observations.items()
        }

    def forward(self, observation: Any) -> Any:
        if not isinstance(observation, dict):
            return self._normalized(observation, "")
        return {key: self._normalized(part, key) for key, part in observation.items()}

    def _normalized(self, part: Tensor, key: str) -> Tensor:
        if key not in self.moments:
            return part
        mean, deviation = self.moments[key]
        return ((part.double() - mean) / deviation).clamp(-self.limit, self.limit).float()


def channels_first(space: spaces.Space[Any]) -> bool:
    """Whether these are images with their channels first."""
    return isinstance(space, spaces.Box) and is_image_space(space) and is_image_space_channels_first(space)


def width(space: Any) -> int:
    """Numbers of an action as an input."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(np.sum(space.nvec)) if isinstance(space, spaces.MultiDiscrete) else int(np.prod(space.shape))


def _encoded(values: Tensor, space: Any) -> Tensor:
    """(B, ...) -> (B, A) float32: choices one-hot, the rest flattened."""
    if isinstance(space, spaces.Discrete):
        return torch.nn.functional.one_hot(values.reshape(-1).long() - int(space.start), int(space.n)).float()
    if isinstance(space, spaces.MultiDiscrete):
        choices = values.flatten(1).long() - torch.as_tensor(np.ravel(space.start))
        sizes: Sequence[int] = np.ravel(space.nvec).tolist()
        parts = [torch.nn.functional.one_hot(each, n) for each, n in zip(choices.unbind(1), sizes, strict=True)]
        return torch.cat(parts, dim=1).float()
    return values.flatten(1).float()


def _channels_as_in(observation: Any, space: spaces.Space[Any]) -> Any:
    """Images channels first where the policy sees them so."""
    if isinstance(observation, dict):
        return {key: _channels_as_in(part, space[key]) for key, part in observation.items()}  # type: ignore[index]
    shape = tuple(space.shape or ())
    if observation.dim() == 4 and tuple(observation.shape[1:]) != shape:
        return observation.permute(0, 3, 1, 2)
    return observation


def _uniform(seed: Tensor, like: Tensor) -> Tensor:
    """Numbers in (0, 1) of the shape (B, K), made of a seed and their places."""
    places = torch.arange(like.shape[0])[:, None] * like.shape[1] + torch.arange(like.shape[1])
    number = (seed % _MODULUS + 1) * 16807 % _MODULUS
    number = (number + (places + 1) * 48271) % _MODULUS
    for factor in (69621, 16807, 48271, 39373):  # squares: what is linear would leave places correlated
        number = (number * number % _MODULUS + number * factor + 12345) % _MODULUS
    return ((number.double() + 0.5) / _MODULUS).clamp(1e-7, 1 - 1e-7).to(like.dtype)
