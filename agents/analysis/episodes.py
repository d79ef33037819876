"""The one loop over episodes: evaluation, ablation, horizon, recordings and videos are played here.

Axes: N environments.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.algorithms.experience import reset_steps
from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import normalizer_state, previous_inputs, undisturbed
from agents.deploy.player import Player

Agent = Player | RecurrentOnPolicyAlgorithm


class Step(NamedTuple):
    """One step of all environments."""

    observations: Any  # (N, ...) before it, as the environments give them
    actions: NDArray[Any]  # (N, ...) as the environments took them
    rewards: NDArray[Any]  # (N,) true ones; 0 where an environment only reset itself
    dones: NDArray[np.bool_]  # (N,) whose episode ended
    infos: Any  # of every environment
    only_reset: NDArray[np.bool_]  # (N,) no transition: the next step starts the episode


class Game(NamedTuple):
    """A player of its own, the environments as it sees them, reset, and the steps, which never end."""

    player: Player
    env: VecEnv
    steps: Iterator[Step]


@contextmanager
def playing(agent: Agent, env: VecEnv, *, seed: int | None = None, deterministic: bool | None = None) -> Iterator[Game]:
    """Lets an agent act, its memory carried and reset, without moving anything of the agent or the process.

    Args:
        env: environments as they are before normalization; a ``VecNormalize`` around them is taken off.
        seed: of environments and samples; None goes on with their random numbers as they are.
        deterministic: deterministic actions in place of sampled ones; None: as the player is set.

    Raises:
        ValueError: the agent does not fit the environments.
    """
    if not isinstance(agent, Player):
        agent = Player(agent.policy, normalizer_state(agent), previous=previous_inputs(agent))
    player = copy.copy(agent)
    if deterministic is not None:
        player.deterministic = deterministic
    env = player.around(env.venv if isinstance(env, VecNormalize) else env)
    if player.policy.action_space != env.action_space:
        raise ValueError(f"the agent's actions are {player.policy.action_space}, those here {env.action_space}")
    with undisturbed():
        if seed is not None:
            env.seed(seed)
            torch.manual_seed(seed)
        player.freeze()
        yield Game(player, env, _steps(player, env, env.reset()))


def _steps(player: Player, env: VecEnv, observations: Any) -> Iterator[Step]:
    starts = np.ones(env.num_envs, dtype=bool)
    while True:
        actions = player.act(observations)
        following, rewards, dones, infos = env.step(actions)
        only_reset = np.zeros(env.num_envs, dtype=bool)
        only_reset[reset_steps(starts, infos) if infos else []] = True
        yield Step(observations, actions, np.where(only_reset, 0.0, rewards), dones, infos, only_reset)
        starts = dones | only_reset
        player.reset(starts)
        observations = following


def with_policy_attributes(player: Player, **attributes: Any) -> Player:
    """The player with other attributes of its policy; what it was made of is shared and stays as it is."""
    player, policy = copy.copy(player), copy.copy(player.policy)
    vars(policy).update(attributes)  # found before the modules of the same names
    player.policy = policy
    return player
