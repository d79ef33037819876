"""One episode of an agent, with all that it saw, did, expected, earned and carried.

Axes: T steps, F features, H outputs of the memory, U units; ``...`` the shape of one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from agents.checkpoint import undisturbed
from agents.deploy.player import Player
from agents.memory import AttentionMemory, GTrXL, Memory, State
from agents.memory.recurrent import LSTM, Recurrent
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.policy.nodes import Passing
from agents.rollout.buffer import map_observations

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
        log_probabilities: (T,) of the actions.
        probabilities: (T, n) of each action for a Discrete space; None for others.
        features: (T, F) what went into the actor's memory.
        outputs: (T, H) what came out of it.
        states: what it carried, the parts (T + 1, ...) each: before the first step, and after every step.
        critic_states: the same of a critic's memory of its own; empty where there is none.
        ended: whether the episode ended, and was not cut.
        seed: of environment and samples.
    """

    observations: Any
    seen: Any
    actions: Array
    rewards: Array
    infos: dict[str, Array]
    values: Array
    log_probabilities: Array
    probabilities: Array | None
    features: Array
    outputs: Array
    states: tuple[Array, ...]
    critic_states: tuple[Array, ...]
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
            **{f"observations.{key}" if key else "observations": part for key, part in parts(self.observations)},
            "actions": self.actions,
            "rewards": self.rewards,
            **{f"infos.{key}": values for key, values in self.infos.items()},
            "values": self.values,
            "log_probabilities": self.log_probabilities,
            "features": self.features,
            "outputs": self.outputs,
            **{f"states.{i}": part for i, part in enumerate(self.states)},
        }
        if self.probabilities is not None:
            named["probabilities"] = self.probabilities
        return named


def record(player: Player, env: VecEnv, *, seed: int = 0, max_steps: int | None = None) -> Recording:
    """Lets a player act for one episode and keeps everything; nothing of the player or the process moves.

    Args:
        env: before normalisation; of several environments the first is recorded.
        seed: of environment and samples.
        max_steps: the episode is cut there; never later than after 10,000 steps.

    Raises:
        ValueError: the agent does not fit the environment.
    """
    env = player.around(env.venv if isinstance(env, VecNormalize) else env)
    if player.policy.action_space != env.action_space:
        raise ValueError(f"the agent's actions are {player.policy.action_space}, those here {env.action_space}")
    with undisturbed(), torch.no_grad():
        env.seed(seed)
        torch.manual_seed(seed)
        return _recorded(player, env, seed, min(max_steps or LONGEST, LONGEST))


def _recorded(player: Player, env: VecEnv, seed: int, limit: int) -> Recording:
    policy = player.policy
    policy.set_training_mode(False)
    observations: list[Any] = []
    seen: list[Any] = []
    actions: list[Array] = []
    expected: list[tuple[float, float]] = []  # values and log-probabilities
    rewards: list[float] = []
    infos: list[dict[str, Any]] = []
    state = policy.initial_state(env.num_envs)
    states, done = [_first(state)], False
    starts = torch.ones(env.num_envs, dtype=torch.bool, device=policy.device)
    observation = env.reset()
    while not done and len(rewards) < limit:
        normalized = player.normalized(observation)
        for kept, batch in ((observations, observation), (seen, normalized)):
            kept.append(map_observations(lambda part: np.array(part[0]), batch))
        tensors, _ = policy.obs_to_tensor(normalized)
        action, value, log_probability, state = policy(tensors, state, starts, player.deterministic)
        taken = policy.head.to_environment(action.cpu().numpy())
        observation, reward, dones, step_infos = env.step(taken)
        actions.append(np.array(taken[0]))
        expected.append((float(value[0]), float(log_probability[0])))
        states.append(_first(state))
        rewards.append(float(reward[0]))
        infos.append(step_infos[0])
        done = bool(dones[0])
        starts = torch.zeros_like(starts)
    carried = tuple(np.stack(part) for part in zip(*states, strict=True))
    n_actor = len(policy.memory_actor.initial_state(1))
    values, log_probabilities = np.array(expected).T
    all_seen = _stacked(seen)
    return Recording(
        _stacked(observations),
        all_seen,
        np.stack(actions),
        np.array(rewards),
        _numbers(infos),
        values,
        log_probabilities,
        **_thought(policy, all_seen, len(rewards)),
        states=carried[:n_actor],
        critic_states=carried[n_actor:],
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
    features, critic_features = policy.encode(tensors, starts.shape)
    return tensors, features, critic_features, policy.initial_state(1), starts


def plain(memory: Memory) -> Memory:
    """The memory itself, where it lets features by."""
    return memory.memory if isinstance(memory, Passing) else memory


def parts(observation: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """(key, array) of every part of a (nested) Dict observation, "outer.inner"; of a plain one, with no key."""
    if isinstance(observation, Mapping):
        for key, part in observation.items():
            yield from parts(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, np.asarray(observation)


def units(policy: RecurrentActorCriticPolicy, recording: Recording) -> dict[str, Array]:
    """What memories carried after every step, by name, (T, U) each; of a window its newest slot alone.

    Layer by layer; a critic's own memory after the actor's. Counts are left out. What the actor's head reads, "output",
    is there too where it is no part of the state.
    """
    found = _carried(policy.memory_actor, recording.states)
    if recording.states and not isinstance(plain(policy.memory_actor), Recurrent):
        found["output"] = recording.outputs
    if policy.memory_critic is not None:
        own = _carried(policy.memory_critic, recording.critic_states)
        found |= {f"critic's {name}": part for name, part in own.items()}
    return {name: part.reshape(len(recording), -1) for name, part in found.items()}


def _carried(memory: Memory, states: Sequence[Array]) -> dict[str, Array]:
    memory = plain(memory)
    if isinstance(memory, GTrXL):
        return {"newest slot": states[0][1:, :, -1]}
    if isinstance(memory, Recurrent | AttentionMemory):
        recurrent = memory if isinstance(memory, Recurrent) else memory.recurrent
        names = ("hidden state", "cell state") if isinstance(recurrent, LSTM) else ("hidden state",)
        return {name: part[1:] for name, part in zip(names, states, strict=False)}
    if len(states) == 1:
        return {"state": states[0][1:]}
    return {f"state, part {i}": part[1:] for i, part in enumerate(states, 1) if part.shape[1:] != (1,)}


def _thought(policy: RecurrentActorCriticPolicy, seen: Any, n_steps: int) -> dict[str, Any]:
    """What networks gave over the episode, in one pass."""
    with torch.no_grad():
        tensors, features, critic_features, state, starts = through_policy(policy, seen, n_steps)
        hidden, _ = policy.unroll(features, critic_features, state, starts)
        parameters = policy.distribution_parameters(hidden, tensors)
        is_discrete = hasattr(policy.action_space, "n") and parameters[0].shape[-1] == policy.action_space.n
        probabilities = parameters[0].softmax(-1) if is_discrete and policy.action_space.shape == () else None
    return {
        "probabilities": None if probabilities is None else probabilities.cpu().numpy(),
        "features": features[:, 0].float().cpu().numpy(),
        "outputs": hidden.float().cpu().numpy(),
    }


def _first(state: State) -> tuple[Array, ...]:
    return tuple(part[0].cpu().numpy().copy() for part in state)


def _stacked(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: _stacked([each[key] for each in observations]) for key in observations[0]}
    return np.stack(observations)


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
