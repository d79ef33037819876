"""One episode of an agent, with all that it saw, did, earned and carried.

Axes: T steps, F features, H outputs of the memory, U units; ``...`` the shape of one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from agents.buffer import map_observations
from agents.checkpoint.agent import undisturbed
from agents.memory import AttentionMemory, GTrXL, Memory, State
from agents.memory.recurrent import LSTM, Recurrent
from agents.node_policy import Passing
from agents.player import Player
from agents.policy import RecurrentActorCriticPolicy

Array = NDArray[Any]

LONGEST = 10_000  # steps; an episode need not end


@dataclass(frozen=True)
class Recording:
    """An episode, step by step.

    Args:
        observations: (T, ...) as the environment gave them, or a dict of such.
        seen: the same as the policy reads them, normalised.
        actions: (T, ...) as the environment took them.
        rewards: (T,) true ones.
        infos: the numbers that every step's info held, by key, (T,) each.
        values: (T,) what the critic expected before the step, of normalised rewards where training normalised them.
        probabilities: (T, n) of each action for a Discrete space; None for others.
        features: (T, F) what went into the actor's memory.
        outputs: (T, H) what came out of it.
        states: what it carried, the parts (T + 1, ...) each: before the first step, and after every step.
        ended: whether the episode ended, and was not cut.
        seed: of environment and samples.
    """

    observations: Any
    seen: Any
    actions: Array
    rewards: Array
    infos: dict[str, Array]
    values: Array
    probabilities: Array | None
    features: Array
    outputs: Array
    states: tuple[Array, ...]
    ended: bool
    seed: int

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
        known: dict[str, Array] = {"time": np.arange(len(self)), "reward": self.rewards, "value": self.values}
        if self.actions.ndim == 1:
            known["action"] = self.actions
        known = {**self.infos, **known}
        if name not in known:
            raise ValueError(f"no step of the episode has {name!r}; there are {', '.join(known)}")
        return known[name]

    def arrays(self) -> dict[str, Array]:
        """Everything by name, as ``numpy.savez`` takes it."""
        named: dict[str, Array] = {
            **_named("observations", self.observations),
            "actions": self.actions,
            "rewards": self.rewards,
            **{f"infos.{key}": values for key, values in self.infos.items()},
            "values": self.values,
            "features": self.features,
            "outputs": self.outputs,
            **{f"states.{i}": part for i, part in enumerate(self.states)},
        }
        if self.probabilities is not None:
            named["probabilities"] = self.probabilities
        return named


def record(player: Player, env: VecEnv, *, seed: int = 0, max_steps: int | None = None) -> Recording:
    """Lets a player act for one episode and keeps everything.

    Args:
        player: nothing of it moves.
        env: before normalisation; of several environments the first is recorded.
        seed: of environment and samples.
        max_steps: the episode is cut there; never later than after 10,000 steps.
    """
    env = env.venv if isinstance(env, VecNormalize) else env
    actor = Player(player.policy, player._normalizer, deterministic=player.deterministic)
    policy, limit = actor.policy, min(max_steps or LONGEST, LONGEST)
    observations: list[Any] = []
    actions: list[Array] = []
    rewards: list[float] = []
    infos: list[dict[str, Any]] = []
    done = False
    states = [_first(policy.memory_actor.initial_state(1))]
    with undisturbed():
        env.seed(seed)
        torch.manual_seed(seed)
        observation = env.reset()
        while not done and len(rewards) < limit:
            observations.append(map_observations(lambda part: np.array(part[0]), observation))
            chosen = actor.act(observation)
            states.append(_first(policy._import_state(actor._state, env.num_envs)))
            observation, reward, dones, step_infos = env.step(chosen)
            actions.append(np.array(chosen[0]))
            rewards.append(float(reward[0]))
            infos.append(step_infos[0])
            done = bool(dones[0])
    stacked = _stacked(observations)
    seen = stacked if actor._normalizer is None else actor._normalizer.normalize(stacked)
    return Recording(
        stacked,
        seen,
        np.stack(actions),
        np.array(rewards),
        _numbers(infos),
        **_thought(policy, seen, len(rewards)),
        states=tuple(np.stack(parts) for parts in zip(*states, strict=True)),
        ended=done,
        seed=seed,
    )


def through_policy(
    policy: RecurrentActorCriticPolicy, seen: Any, n_steps: int
) -> tuple[Any, Tensor, Tensor, State, Tensor]:
    """Observations of one episode (T, ...) as tensors, features for actor and critic (T, 1, F), the state before it,
    and (T, 1) true at its first step."""
    policy.set_training_mode(False)
    tensors, _ = policy.obs_to_tensor(seen)
    starts = torch.zeros(n_steps, 1, dtype=torch.bool)
    starts[0] = True
    features, critic_features = policy._encode(tensors, starts.shape)
    return tensors, features, critic_features, policy.initial_state(1), starts


def plain(memory: Memory) -> Memory:
    """The memory itself, where it lets features by."""
    return memory.memory if isinstance(memory, Passing) else memory


def units(memory: Memory, recording: Recording) -> dict[str, Array]:
    """What the memory carried after every step, by name, (T, U) each; of a window its newest slot alone.

    Layer by layer. Counts are left out. What the heads read, "output", comes last where it is no part of that.
    """
    memory, states = plain(memory), recording.states
    if isinstance(memory, GTrXL):
        kept = {"newest slot": states[0][1:, :, -1]}
    elif isinstance(memory, Recurrent | AttentionMemory):
        recurrent = memory if isinstance(memory, Recurrent) else memory.recurrent
        names = ("hidden", "cell") if isinstance(recurrent, LSTM) else ("hidden",)
        kept = {name: part[1:] for name, part in zip(names, states, strict=False)}
    else:
        several = len(states) > 1
        kept = {f"state {i}" if several else "state": part[1:] for i, part in enumerate(states)}
        kept = {name: part for name, part in kept.items() if not (several and part.shape[1:] == (1,))}
    flat = {name: part.reshape(len(recording), -1) for name, part in kept.items()}
    if states and not isinstance(memory, Recurrent):
        flat["output"] = recording.outputs
    return flat


def _thought(policy: RecurrentActorCriticPolicy, seen: Any, n_steps: int) -> dict[str, Any]:
    """What networks gave over the episode, in one pass."""
    with torch.no_grad():
        tensors, features, critic_features, state, starts = through_policy(policy, seen, n_steps)
        hidden = policy._unroll(features, critic_features, state, starts)
        parameters = policy._distribution_parameters(hidden.actor, tensors)
        values = policy._value(hidden.critic)
        is_discrete = hasattr(policy.action_space, "n") and parameters[0].shape[-1] == policy.action_space.n
        probabilities = parameters[0].softmax(-1) if is_discrete and policy.action_space.shape == () else None
    return {
        "values": values.float().cpu().numpy(),
        "probabilities": None if probabilities is None else probabilities.cpu().numpy(),
        "features": features[:, 0].float().cpu().numpy(),
        "outputs": hidden.actor.float().cpu().numpy(),
    }


def _first(state: State) -> tuple[Array, ...]:
    return tuple(part[0].detach().cpu().numpy().copy() for part in state)


def _stacked(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: _stacked([each[key] for each in observations]) for key in observations[0]}
    return np.stack(observations)


def _named(name: str, observations: Any) -> dict[str, Array]:
    if not isinstance(observations, dict):
        return {name: observations}
    parts = [_named(f"{name}.{key}", part) for key, part in observations.items()]
    return {key: part for each in parts for key, part in each.items()}


def _numbers(infos: list[dict[str, Any]]) -> dict[str, Array]:
    """Keys that hold one number at every step; one that is there at the last step alone says nothing over time."""
    keys = set.intersection(*(set(info) for info in infos))
    found = {}
    for key in sorted(map(str, keys)):
        values = [info.get(key) for info in infos]
        if all(isinstance(value, bool | int | float | np.generic) or _is_number(value) for value in values):
            found[key] = np.array([float(np.asarray(value).item()) for value in values])
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "biuf"
