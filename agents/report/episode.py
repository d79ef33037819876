"""One episode of an agent, step by step: what it saw, did, expected and got, and what it then remembered.

Axes: T steps, U numbers of a memory's state.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecEnv

from agents.checkpoint.agent import undisturbed
from agents.memory import Memory, State
from agents.player import Player

LONGEST = 1000  # steps; an episode need not end, and a page must stay small


@dataclass
class Steps:
    """T steps of an episode, as they come in.

    Observations are those before the step, as the environment gives them; the state is the one after the step, so that
    it holds what was seen in it. Values are of returns as the agent learned them: of scaled rewards where rewards were
    normalised.
    """

    observations: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    actions: list[NDArray[Any]] = field(default_factory=list)
    probabilities: list[NDArray[Any]] = field(default_factory=list)
    """Of every choice; none where actions are not one of n."""
    log_probabilities: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    states: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    ended: bool = False

    def __len__(self) -> int:
        return len(self.rewards)


def record(player: Player, env: VecEnv, *, seed: int | None = None, longest: int = LONGEST) -> Steps:
    """Lets a player act for one episode and keeps everything; nothing of the player or the process moves.

    Args:
        env: a single environment, before normalisation.
        longest: steps after which the episode is cut.

    Raises:
        ValueError: the agent does not fit the environment.
    """
    if player.policy.action_space != env.action_space:
        raise ValueError(f"the agent's actions are {player.policy.action_space}, those here {env.action_space}")
    with undisturbed(), torch.no_grad():
        if seed is not None:
            env.seed(seed)
            torch.manual_seed(seed)
        return _recorded(player, env, longest)


def _recorded(player: Player, env: VecEnv, longest: int) -> Steps:
    policy, steps = player.policy, Steps()
    state, names = policy.initial_state(1), part_names(policy)
    starts = torch.ones(1, dtype=torch.bool, device=policy.device)
    observations = env.reset()
    while len(steps) < longest and not steps.ended:
        tensors, _ = policy.obs_to_tensor(player.normalized(observations))
        for name, part in _parts(observations):
            steps.observations.setdefault(name, []).append(np.array(part[0]))
        if isinstance(policy.action_space, spaces.Discrete):
            distribution: Any = policy.get_distribution(tensors, state, starts)[0]
            steps.probabilities.append(distribution.distribution.probs[0].cpu().numpy())
        actions, values, log_probabilities, state = policy(tensors, state, starts, player.deterministic)
        taken = policy.head.to_environment(actions.cpu().numpy())
        observations, rewards, dones, _ = env.step(taken)
        _keep(steps.states, names, state)
        steps.actions.append(np.array(taken[0]))
        steps.values.append(float(values[0]))
        steps.log_probabilities.append(float(log_probabilities[0]))
        steps.rewards.append(float(rewards[0]))
        steps.ended = bool(dones[0])
        starts = torch.zeros_like(starts)
    return steps


def _parts(observation: Any, name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """(key, array) of every part of a (nested) Dict observation; of a plain one, with no key."""
    if isinstance(observation, Mapping):
        for key, part in observation.items():
            yield from _parts(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, np.asarray(observation)


def part_names(policy: Any) -> list[str | None]:
    """What every part of a policy's state is called; None for what holds no memory (a dropout mask)."""
    names = _names_of(policy.memory_actor)
    if policy.memory_critic is not None:
        names += [name and f"critic's {name}" for name in _names_of(policy.memory_critic)]
    return names


def _names_of(memory: Memory) -> list[str | None]:
    parts = memory.initial_state(1)
    carried = getattr(memory, "carried_parts", None)
    if carried is not None:
        return [*("hidden state", "cell state")[:carried], *[None] * (len(parts) - carried)]
    if len(parts) == 1:
        return ["state"]
    return [f"state, part {i + 1}" for i in range(len(parts))]


def _keep(states: dict[str, list[NDArray[Any]]], names: list[str | None], state: State) -> None:
    for name, part in zip(names, state, strict=True):
        if name is not None and part.is_floating_point() and part[0].numel() > 1:
            states.setdefault(name, []).append(part[0].float().cpu().numpy())


def is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and is_image_space(space)


def channels_last(picture: NDArray[Any], space: spaces.Box) -> NDArray[Any]:
    """(T, ...) pictures -> (T, height, width, channels)"""
    return np.moveaxis(picture, 1, -1) if is_image_space_channels_first(space) else picture


def smaller(pictures: NDArray[Any], numbers: int) -> NDArray[Any]:
    """(T, height, width, channels) pictures -> the same with pixels left out until they hold at most ``numbers``."""
    skip = max(1, math.ceil(math.sqrt(pictures.size / numbers)))
    return pictures[:, ::skip, ::skip]
