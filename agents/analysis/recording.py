"""One episode of an agent, with all that it saw, did, expected, earned and carried.

Axes: T steps, F features, H outputs of the memory, U units; ``...`` the shape of one.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents.analysis.episodes import playing, with_policy_attributes
from agents.checks.observations import map_observations
from agents.deploy.player import Player
from agents.memory import AttentionMemory, GTrXL, Memory
from agents.memory.recurrent import LSTM, Recurrent
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.policy.nodes import Passing

Array = NDArray[Any]

LONGEST = 10_000  # steps; an episode need not end


@dataclass(frozen=True)
class Recording:
    """An episode, step by step."""

    observations: Any  # (T, ...) as the environment gave them, or a dict of such
    seen: Any  # the same as the policy reads them, normalized
    actions: Array  # (T, ...) as the environment took them
    rewards: Array  # (T,) true ones
    infos: dict[str, Array]  # the numbers of every step's info, by key, (T,) each
    values: Array  # (T,) discounted return expected before the step, in the units of the rewards
    log_probabilities: Array  # (T,) of the actions
    probabilities: Array | None  # (T, n) of each action for a Discrete space
    features: Array  # (T, F) what went into the actor's memory
    outputs: Array  # (T, H) what came out of it
    states: tuple[Array, ...]  # what it carried, (T + 1, ...) each: before the first step, and after every step
    critic_states: tuple[Array, ...]  # the same of a critic's memory of its own
    ended: bool  # and was not left off at max_steps
    seed: int  # of environment and samples
    truncated: bool = False  # ended by a time limit

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total(self) -> float:
        """The return."""
        return float(self.rewards.sum())

    def signal(self, name: str) -> Array:
        """(T,) "time", "reward", "value", "action", or what the infos hold under a key.

        Raises:
            ValueError: there is none of that name; the message lists what there is.
        """
        known = {**self.infos, "time": np.arange(len(self)), "reward": self.rewards, "value": self.values}
        if self.actions.ndim == 1:
            known["action"] = self.actions
        if name not in known:
            raise ValueError(f"no step of the episode has {name!r}; there are {', '.join(known)}")
        return known[name]

    def arrays(self) -> dict[str, Array]:
        """Everything by name, as ``numpy.savez`` takes it."""
        names = ("actions", "rewards", "values", "log_probabilities", "probabilities", "features", "outputs")
        return {
            **{f"observations.{key}" if key else "observations": part for key, part in parts(self.observations)},
            **{name: getattr(self, name) for name in names if getattr(self, name) is not None},
            **{f"infos.{key}": values for key, values in self.infos.items()},
            **{f"states.{i}": part for i, part in enumerate(self.states)},
        }


def record(player: Player, env: VecEnv, *, seed: int = 0, max_steps: int | None = None) -> Recording:
    """Lets a player act for one episode, truncated after ``max_steps`` or 10,000; nothing of player or process moves.

    Args:
        env: before normalization; of several environments the first is recorded.
        seed: of environment and samples.

    Raises:
        ValueError: the agent does not fit the environment.
    """
    player, chosen = _noting_actions(player)
    limit = min(max_steps or LONGEST, LONGEST)
    observations, actions, rewards, infos = [], [], [], []
    with playing(player, env, seed=seed) as game:
        for step in game.steps:
            observations.append(map_observations(lambda part: np.array(part[0]), step.observations))
            actions.append(np.array(step.actions[0]))
            rewards.append(float(step.rewards[0]))
            infos.append(step.infos[0])
            ended = bool(step.dones[0])
            if ended or len(rewards) >= limit:
                break
    stacked = _stacked(observations)
    seen = player.normalized(stacked)
    computed = _computed(player.policy, seen, np.stack(chosen))
    taken, earned = np.stack(actions), np.array(rewards)
    if player.normalizer is not None:
        computed["values"] = computed["values"] * player.normalizer.reward_scale
    limited = ended and bool(infos[-1].get("TimeLimit.truncated", False))
    numbers = _numbers(infos)
    return Recording(stacked, seen, taken, earned, numbers, **computed, ended=ended, seed=seed, truncated=limited)


def _noting_actions(player: Player) -> tuple[Player, list[Array]]:
    """The same player, and a list that grows by what its policy chooses: an environment may get that clipped."""
    chosen: list[Array] = []
    head, noting = player.policy.head, copy.copy(player.policy.head)

    def to_environment(actions: Array) -> Array:
        chosen.append(actions[0])
        return head.to_environment(actions)

    vars(noting)["to_environment"] = to_environment
    return with_policy_attributes(player, head=noting), chosen


def _computed(policy: RecurrentActorCriticPolicy, seen: Any, actions: Array) -> dict[str, Any]:
    """What the networks give over the episode, in one pass."""
    policy.set_training_mode(False)
    with torch.no_grad():
        observations, _ = policy.obs_to_tensor(seen)
        state, starts = policy.initial_state(1), first_step_of(len(actions))
        features, critic_features = policy.encode(observations, starts.shape)
        hidden = policy.unroll(features, critic_features, state, starts)
        taken = torch.as_tensor(actions, device=policy.device)
        values, log_probabilities, _ = policy.evaluate_heads(hidden, observations, taken)
        parameters = policy.distribution_parameters(hidden[0], observations)
        sequence = map_observations(lambda part: part[:, None], observations)
        states = policy.states_along(sequence, state, starts, range(len(actions) + 1))
    is_discrete = policy.action_space.shape == () and parameters[0].shape[-1] == getattr(policy.action_space, "n", 0)
    carried = tuple(part[:, 0].cpu().numpy() for part in states)
    n_actor = len(policy.memory_actor.initial_state(1))
    return {
        "values": values.cpu().numpy(),
        "log_probabilities": log_probabilities.cpu().numpy(),
        "probabilities": parameters[0].softmax(-1).cpu().numpy() if is_discrete else None,
        "features": features[:, 0].float().cpu().numpy(),
        "outputs": hidden[0].float().cpu().numpy(),
        "states": carried[:n_actor],
        "critic_states": carried[n_actor:],
    }


def first_step_of(n_steps: int) -> torch.Tensor:
    """(T, 1) episode starts of a single episode."""
    return (torch.arange(n_steps) == 0)[:, None]


def without_passing(memory: Memory) -> Memory:
    """The memory itself, if it is one that passes features by."""
    return memory.memory if isinstance(memory, Passing) else memory


def parts(observation: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every part of a (nested) Dict observation or space, "outer.inner"; "" for a plain one."""
    if isinstance(observation, Mapping):
        for key, part in observation.items():
            yield from parts(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, observation


def units(policy: RecurrentActorCriticPolicy, recording: Recording) -> dict[str, Array]:
    """What memories carried after every step, by name, (T, U) each; of a window its newest slot alone.

    Layer by layer; a critic's own memory after the actor's. Counts are left out. What the actor's head reads, "output",
    is there too unless it is part of the state.
    """
    found = _carried(policy.memory_actor, recording.states)
    if recording.states and not isinstance(without_passing(policy.memory_actor), Recurrent):
        found["output"] = recording.outputs
    if policy.memory_critic is not None:
        own = _carried(policy.memory_critic, recording.critic_states)
        found |= {f"critic's {name}": part for name, part in own.items()}
    return {name: part.reshape(len(recording), -1) for name, part in found.items()}


def _carried(memory: Memory, states: Sequence[Array]) -> dict[str, Array]:
    memory = without_passing(memory)
    if isinstance(memory, GTrXL):
        return {"newest slot": states[0][1:, :, -1]}
    if isinstance(memory, Recurrent | AttentionMemory):
        recurrent = memory if isinstance(memory, Recurrent) else memory.recurrent
        names = ("hidden state", "cell state") if isinstance(recurrent, LSTM) else ("hidden state",)
        return {name: part[1:] for name, part in zip(names, states, strict=False)}
    if len(states) == 1:
        return {"state": states[0][1:]}
    return {f"state, part {i}": part[1:] for i, part in enumerate(states, 1) if part.shape[1:] != (1,)}


def _stacked(observations: list[Any]) -> Any:
    return map_observations(lambda *parts: np.stack(parts), *observations)


def _numbers(infos: list[dict[str, Any]]) -> dict[str, Array]:
    """Keys that hold one number at every step; one that the last step alone has says nothing over time."""
    found = {}
    for key in sorted(map(str, set.intersection(*map(set, infos)))):
        values = [np.asarray(info.get(key)) for info in infos]
        if all(value.size == 1 and value.dtype.kind in "biuf" for value in values):
            found[key] = np.array([float(value.item()) for value in values])
    return found
