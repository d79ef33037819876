"""Encoders serve Stable-Baselines3's algorithms and ours alike.

Axes: K tokens, F numbers of a token.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import envs
from agents import RecurrentPPO
from agents.encoders import ENCODERS
from tests.agents.probe_envs import policy_arguments
from tests.pairs import each
from tests.tolerance import close

from .observations import IMAGE, MASKED, SETS, WINDOWS, WITH_CONTEXT, Case

DISCRETE, BOX = spaces.Discrete(3), spaces.Box(-1, 1, (2,))
IMPALA = Case("impala", {"features_dim": 16})
SEEN = {
    "sequence": (Case("sequence", {"hidden_size": 8, "bidirectional": True}), MASKED),
    "attention": (Case("attention", {"hidden_size": 8, "heads": 2}), MASKED),
    "attention over a set": (Case("attention", {"hidden_size": 8, "over": "set"}), WITH_CONTEXT),
    "transformer": (Case("transformer", {"width": 8, "heads": 2}), MASKED["history"]),
    "impala": (IMPALA, IMAGE),
}
ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "PPO": (PPO, DISCRETE, dict(n_steps=8, batch_size=8, n_epochs=1)),
    "SAC": (SAC, BOX, dict(buffer_size=50, learning_starts=8, batch_size=4)),
    "QRDQN": (QRDQN, DISCRETE, dict(buffer_size=50, learning_starts=8, batch_size=4)),
    "MaskablePPO": (MaskablePPO, DISCRETE, dict(n_steps=8, batch_size=8, n_epochs=1)),
}

HISTORY = {"history": {"length": 5, "mask": True}}


class Noise(gym.Env[Any, Any]):
    """Observations drawn from their space, episodes of five steps, action 0 always allowed."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space, self.steps = observation_space, action_space, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 5, False, {}

    def action_masks(self) -> Any:
        return np.array([True, self.steps % 2 == 0, True])


def noise(observation_space: Any, action_space: Any, n_envs: int = 2) -> VecEnv:
    return DummyVecEnv([lambda: Noise(observation_space, action_space) for _ in range(n_envs)])


@pytest.mark.parametrize(("algorithm", "seen"), each(ALGORITHMS, SEEN))
def test_an_encoder_serves_the_algorithms_of_stable_baselines3(algorithm: str, seen: str) -> None:
    cls, action_space, kwargs = ALGORITHMS[algorithm]
    case, space = SEEN[seen]
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy" if seen == "impala" else "MlpPolicy"
    extractor = dict(features_extractor_class=ENCODERS[case.name], features_extractor_kwargs=case.kwargs)
    model = cls(
        policy,
        noise(space, action_space),
        policy_kwargs=dict(net_arch=[8], **extractor),
        seed=0,
        device="cpu",
        **kwargs,
    )
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(24)
    after = list(model.policy.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(new, old) for new, old in zip(after, before, strict=True))
    observation = space.sample()
    action, _ = model.predict(observation, deterministic=True)
    assert action_space.contains(action if action.shape else int(action))


class Watched(RecurrentPPO):
    """Compares, before each update, what learning computes with what acting stored."""

    n_checked = 0

    def train(self) -> None:
        self.policy.set_training_mode(True)
        for batch in self.rollout_buffer.get(self.batch_size):
            values, log_probs, _ = self.policy.evaluate_actions(
                batch.observations, batch.actions, batch.state, batch.episode_starts
            )
            assert (log_probs - batch.old_log_probs).abs().max() <= 1e-5
            assert (values - batch.old_values).abs().max() <= 1e-5
            self.n_checked += values.numel()
        super().train()


def watched(case: Case, env: VecEnv, memory: str) -> Watched:
    extractor = dict(features_extractor_class=ENCODERS[case.name], features_extractor_kwargs=case.kwargs)
    return Watched(
        "RecurrentPolicy",
        env,
        n_steps=16,
        batch_size=16,
        sequence_length=8,
        n_epochs=1,
        learning_rate=1e-2,
        seed=0,
        device="cpu",
        policy_kwargs=policy_arguments(memory, **extractor),
    )


@pytest.mark.parametrize(("case", "memory"), each([*WINDOWS, *SETS, IMPALA], ["none", "lstm"]), ids=str)
def test_the_first_ratio_is_one_over_an_encoder(case: Case, memory: str) -> None:
    if case.name == "impala":
        env: VecEnv = noise(IMAGE, DISCRETE)
    else:
        env = envs.make("CartPoleNoVel-v1", 2, seed=0, wrappers=[HISTORY])
    model = watched(case, env, memory)
    model.learn(96)
    assert model.n_checked == 96


@pytest.mark.parametrize(("side", "name"), [(36, "nature_cnn"), (35, "impala"), (8, "impala"), (7, "flatten")])
def test_images_of_every_size_have_an_encoder_by_default(side: int, name: str) -> None:
    env = noise(spaces.Box(0, 255, (40, side, 3), np.uint8), DISCRETE)
    model = RecurrentPPO("RecurrentPolicy", env, n_steps=4, batch_size=4, n_epochs=1, device="cpu")
    assert type(model.policy.features_extractor) is ENCODERS[name]
    model.learn(8)


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_dict_has_an_encoder_for_images_of_every_size(memory: str) -> None:
    sides = {"large": 36, "small": 35, "tiny": 7}
    images = {name: spaces.Box(0, 255, (side, 40, 3), np.uint8) for name, side in sides.items()}
    env = noise(spaces.Dict(**images, speed=spaces.Box(-1, 1, (2, 2))), DISCRETE)
    model = watched(Case("combined", {"cnn_output_dim": 5}), env, memory)
    of = model.policy.features_extractor.extractors
    assert [type(of[name]).__name__ for name in ("large", "small", "tiny")] == ["NatureCNN", "ImpalaCNN", "Flatten"]
    assert model.policy.features_extractor.features_dim == 5 + 5 + 7 * 40 * 3 + 4
    model.learn(32)
    assert model.n_checked == 32


def test_a_dict_of_large_images_is_encoded_as_stable_baselines3_does() -> None:
    space = spaces.Dict(seen=spaces.Box(0, 255, (3, 36, 40), np.uint8), speed=spaces.Box(-1, 1, (2,)))
    given = {"seen": torch.rand(4, 3, 36, 40), "speed": torch.randn(4, 2)}
    ours, theirs = (cls(space).requires_grad_(False) for cls in seeded(ENCODERS["combined"], CombinedExtractor))
    assert torch.equal(ours(given), theirs(given))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def seeded(*classes: Any) -> Iterator[Any]:
    """Each class, with the source of chance as it was for the first."""
    for cls in classes:
        torch.manual_seed(0)
        yield cls


@pytest.mark.parametrize("backend", ["vector", "serial"])
def test_a_young_episode_is_read_like_a_short_window(backend: str) -> None:
    """What lies before an episode's start does not reach its features: they are those of the real part alone."""
    env = envs.make("CartPoleNoVel-v1", 2, seed=0, wrappers=[HISTORY], backend=backend)
    torch.manual_seed(0)
    encoder: Any = ENCODERS["sequence"](env.observation_space)
    observations = env.reset()
    for n_real in (1, 2, 3):
        assert observations["mask"].sum(axis=1).tolist() == [n_real] * 2
        given = {key: torch.as_tensor(part).float() for key, part in observations.items()}
        short = {"history": given["history"][:, -n_real:], "mask": given["mask"][:, -n_real:]}
        states = encoder.recurrence(short["history"], None)
        expected = encoder.projection(encoder.recurrence.final(states, None))
        assert close(encoder(given), expected)
        observations, *_ = env.step(np.zeros(2, dtype=np.int64))
    env.close()
