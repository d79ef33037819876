"""Environments whose observations vary in size, and short trainings on them with every algorithm that may be used."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import PPO, SAC

from agents import RecurrentPPO

ALGORITHMS: dict[str, Any] = {"ppo": PPO, "sac": SAC, "qrdqn": QRDQN, "maskable ppo": MaskablePPO}


class Ragged(gymnasium.Env[Any, Any]):
    """A new random observation every step; the reward is 1 for action 0, the episodes last 3, 4, 5, ... steps."""

    def __init__(self, continuous: bool = False) -> None:
        self.action_space = spaces.Box(-1.0, 1.0, (2,)) if continuous else spaces.Discrete(3)
        self.episode = self.t = 0

    def observe(self) -> Any:
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        over = self.t == 2 + self.episode
        return self.observe(), float(np.all(action == 0)), over, False, {}

    def action_masks(self) -> list[bool]:
        return [True, self.t % 2 == 0, True]


class RaggedGraph(Ragged):
    """Graphs of 1 to 5 nodes and 0 to 6 edges."""

    def __init__(self, continuous: bool = False) -> None:
        super().__init__(continuous)
        self.observation_space = spaces.Graph(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3))

    def observe(self) -> spaces.GraphInstance:
        nodes, edges = int(self.np_random.integers(1, 6)), int(self.np_random.integers(0, 7))
        return spaces.GraphInstance(
            self.np_random.uniform(-1.0, 1.0, (nodes, 2)).astype(np.float32),
            self.np_random.integers(0, 3, edges),
            self.np_random.integers(0, nodes, (edges, 2)),
        )


class RaggedSequence(Ragged):
    """Sequences of 0 to 5 elements."""

    def __init__(self, continuous: bool = False) -> None:
        super().__init__(continuous)
        self.observation_space = spaces.Sequence(spaces.Box(-1.0, 1.0, (2,)))

    def observe(self) -> tuple[Any, ...]:
        return tuple(self.np_random.uniform(-1.0, 1.0, (self.np_random.integers(0, 6), 2)).astype(np.float32))


def trained(algorithm: str, env: gymnasium.Env[Any, Any], encoder: type, **kwargs: Any) -> Any:
    """One of the algorithms of other packages, after a few steps of training."""
    few: dict[str, dict[str, Any]] = {
        "sac": {"learning_starts": 4, "batch_size": 4, "buffer_size": 50},
        "qrdqn": {"learning_starts": 4, "batch_size": 4, "buffer_size": 50, "train_freq": 4},
    }
    model = ALGORITHMS[algorithm](
        "MultiInputPolicy",
        env,
        policy_kwargs={"features_extractor_class": encoder, "features_extractor_kwargs": kwargs, "net_arch": [8]},
        seed=0,
        device="cpu",
        **few.get(algorithm, {"n_steps": 8, "batch_size": 4, "n_epochs": 2}),
    )
    return model.learn(16)


def extractors(model: Any) -> list[torch.nn.Module]:
    return [part for name, part in model.policy.named_modules() if name.endswith("features_extractor")]


class Watched(RecurrentPPO):
    """Notes, before each update, how far what learning recomputes is from what acting stored."""

    deviation = 0.0
    updates = 0

    def train(self) -> None:
        buffer, policy = self.rollout_buffer, self.policy
        policy.set_training_mode(True)
        for batch in buffer.get(self.batch_size):
            values, log_probs, _ = policy.evaluate_actions(
                batch.observations, batch.actions, batch.state, batch.episode_starts
            )
            for new, old in ((values, batch.old_values), (log_probs, batch.old_log_probs)):
                self.deviation = max(self.deviation, float((new - old).detach().abs().max()))
        self.updates += 1
        super().train()


def deviation_of_first_ratio(
    env: Any, encoder: type, memory: str, policy: str = "RecurrentPolicy", critic_memory: str = "shared", **kwargs: Any
) -> float:
    """The largest one over a few updates, on a policy that moves: two sequences an environment."""
    model = Watched(
        policy,
        env,
        n_steps=8,
        sequence_length=4,
        batch_size=8,
        n_epochs=2,
        learning_rate=1e-2,
        seed=0,
        device="cpu",
        policy_kwargs={
            "memory": memory,
            "critic_memory": critic_memory,
            "memory_kwargs": {} if memory == "none" else {"hidden_size": 8, "num_layers": 2},
            "features_extractor_class": encoder,
            "features_extractor_kwargs": kwargs,
            "net_arch": [8],
        },
    )
    before = [parameter.detach().clone() for parameter in model.policy.features_extractor.parameters()]
    model.learn(3 * 8 * model.n_envs)
    assert model.updates == 3
    moved = [
        not torch.equal(old, new) for old, new in zip(before, model.policy.features_extractor.parameters(), strict=True)
    ]
    assert np.mean(moved) > 0.8
    return model.deviation
