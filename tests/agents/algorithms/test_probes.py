"""Probes: environments so small that the right values are known, each for one link of the chain.

If a later one fails and an earlier one passes, the fault lies in what the later one adds.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import RecurrentA2C, RecurrentPPO
from agents.memory import MEMORIES
from tests.agents.probe_envs import vectorized

N_ENVS = 8
REMEMBERING = [memory for memory in MEMORIES if memory != "none"]


class Probe(gym.Env[Any, Any]):
    """Episodes of a fixed length in which a number is seen and a reward comes of time, sight and action."""

    observation_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,))
    action_space: spaces.Space[Any] = spaces.Discrete(2)
    length = 1
    truncates = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.cue = 0, float(self.np_random.choice([-1.0, 1.0]))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.reward(action)
        self.t += 1
        over = self.t == self.length
        return self._seen(), reward, over and not self.truncates, over and self.truncates, {}

    def _seen(self) -> Any:
        return np.array([self.see()], dtype=np.float32)

    def see(self) -> float:
        return 0.0

    def reward(self, action: Any) -> float:
        return 1.0


def trained(
    probe: type[Probe], cls: Any = RecurrentPPO, memory: str = "none", total: int | None = None, **kwargs: Any
) -> Any:
    settings: dict[str, Any] = dict(n_steps=16, learning_rate=1e-2, gamma=0.5, gae_lambda=0.95, seed=0, device="cpu")
    if cls is RecurrentPPO:
        settings.update(batch_size=64, n_epochs=4)
    policy_kwargs: dict[str, Any] = dict(memory=memory, net_arch=[16], **kwargs.pop("policy_kwargs", {}))
    if memory != "none":
        policy_kwargs.setdefault("memory_kwargs", dict(hidden_size=16))
    env = vectorized(lambda i: probe(), N_ENVS)
    model = cls("RecurrentPolicy", env, policy_kwargs=policy_kwargs, **{**settings, **kwargs})
    return model.learn(total or (2048 if cls is RecurrentPPO else 4096))


def values(model: Any, seen: list[float]) -> list[float]:
    """V at each step of an episode in which these numbers are seen."""
    policy, found = model.policy, []
    state = policy.initial_state(1)
    with torch.no_grad():
        for t, number in enumerate(seen):
            observation, starts = torch.tensor([[number]]), torch.tensor([t == 0])
            found.append(float(policy.predict_values(observation, state, starts)))
            *_, state = policy(observation, state, starts)
    return found


def mean_reward(model: Any, probe: type[Probe], n_episodes: int = 50) -> float:
    """Of deterministic episodes, a step."""
    env, rewards = probe(), []
    env.reset(seed=123)
    for _ in range(n_episodes):
        (observation, _), state, over = env.reset(), None, False
        start = np.ones(1, dtype=bool)
        while not over:
            action, state = model.predict(observation, state, start, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            over, start = terminated or truncated, np.zeros(1, dtype=bool)
            rewards.append(reward)
    return float(np.mean(rewards))


BOTH = pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])


@BOTH
@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_constant_reward_is_valued_as_what_it_is(cls: Any, memory: str) -> None:
    assert values(trained(Probe, cls, memory), [0.0]) == pytest.approx([1.0], abs=0.1)


@BOTH
def test_a_reward_that_depends_on_what_is_seen_is_foreseen(cls: Any) -> None:
    class Sight(Probe):
        def see(self) -> float:
            return self.cue

        def reward(self, action: Any) -> float:
            return self.cue

    model = trained(Sight, cls)
    assert [values(model, [seen])[0] for seen in (-1.0, 1.0)] == pytest.approx([-1.0, 1.0], abs=0.15)


class TwoSteps(Probe):
    """Sees -1, then 1, and is rewarded at the second step."""

    length = 2

    def see(self) -> float:
        return (-1.0, 1.0, 0.0)[self.t]

    def reward(self, action: Any) -> float:
        return float(self.t)


@BOTH
def test_a_later_reward_is_discounted(cls: Any) -> None:
    assert values(trained(TwoSteps, cls), [-1.0, 1.0]) == pytest.approx([0.5, 1.0], abs=0.1)


@pytest.mark.parametrize(("truncates", "value"), [(True, 2.0), (False, 1.0)])
def test_an_episode_truncated_by_a_time_limit_is_worth_what_would_have_followed(truncates: bool, value: float) -> None:
    # A reward of 1 a step, discounted by half: 2 forever, but 1 if the episode terminates.
    probe = type("Truncating", (Probe,), dict(truncates=truncates))
    assert values(trained(probe), [0.0]) == pytest.approx([value], abs=0.2)


@BOTH
def test_the_rewarded_action_is_found(cls: Any) -> None:
    class Action(Probe):
        def reward(self, action: Any) -> float:
            return float(action)

    assert mean_reward(trained(Action, cls), Action) == 1.0


@BOTH
def test_the_action_that_the_observation_calls_for_is_found(cls: Any) -> None:
    class Match(Probe):
        def see(self) -> float:
            return self.cue

        def reward(self, action: Any) -> float:
            return float((self.cue > 0) == bool(action))

    assert mean_reward(trained(Match, cls), Match) == 1.0


@pytest.mark.parametrize("use_sde", [False, True])
def test_a_continuous_action_is_driven_to_its_target(use_sde: bool) -> None:
    class Aim(Probe):
        action_space = spaces.Box(-1.0, 1.0, (1,))

        def see(self) -> float:
            return self.cue

        def reward(self, action: Any) -> float:
            return -abs(float(action[0]) - 0.5 * self.cue)

    model = trained(Aim, total=8192 if use_sde else 4096, use_sde=use_sde)
    assert mean_reward(model, Aim) > -0.2


class Recall(Probe):
    """A cue is seen at the first step and needed at the last; what lies between says nothing."""

    length = 4

    def see(self) -> float:
        return self.cue if self.t == 0 else 0.0

    def reward(self, action: Any) -> float:
        return float((self.cue > 0) == bool(action)) if self.t == self.length - 1 else 0.5


def recalled(memory: str, most: int = 12_288, **kwargs: Any) -> float:
    """The share of cues recalled, as soon as it is all or after so many steps."""
    if memory == "gtrxl":
        kwargs["policy_kwargs"] = dict(memory_kwargs=dict(hidden_size=16, num_layers=1, window=8))
    model = trained(Recall, memory=memory, n_steps=32, batch_size=128, gamma=0.9, total=2048, **kwargs)
    while (share := mean_reward(model, Recall, 60) * 4 - 1.5) < 1.0 and model.num_timesteps < most:
        model.learn(1024, reset_num_timesteps=False)
    return share


@pytest.mark.parametrize("memory", REMEMBERING)
def test_a_memory_recalls_what_was_seen_steps_ago(memory: str) -> None:
    assert recalled(memory) == 1.0


@pytest.mark.parametrize("sequence_length", [4, 8])
def test_a_memory_recalls_through_sequences_that_span_its_episodes(sequence_length: int) -> None:
    assert recalled("gru", sequence_length=sequence_length) == 1.0


@pytest.mark.parametrize("critic_memory", ["detached", "separate", "none"])
def test_a_memory_recalls_under_a_critic_of_every_kind(critic_memory: str) -> None:
    assert recalled("gru", policy_kwargs=dict(critic_memory=critic_memory)) == 1.0


def test_without_a_memory_the_cue_is_guessed() -> None:
    assert 0.3 < recalled("none", most=4096) < 0.7
