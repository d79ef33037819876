"""A recorded episode is the one that was played, step for step, and recording it moves nothing."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import envs
from agents import RecurrentPPO
from agents.analysis.evaluation import evaluate
from agents.analysis.recording import record, units
from agents.checkpoint import NormalizerState
from agents.deploy.player import Player
from agents.memory import MEMORIES
from tests.agents.analysis.echo import bits, delaying, echo
from tests.agents.probe_envs import small_ppo
from tests.tolerance import assert_close, near

LENGTH = 9


def player_of(memory: str, critic_memory: str = "shared") -> Player:
    return Player(small_ppo(echo(1, 2, LENGTH), memory, critic_memory).policy)


def test_a_recording_holds_what_was_shown_done_and_earned() -> None:
    recorded, shown = record(delaying(2), echo(1, 2, LENGTH), seed=5), bits(5, LENGTH)[:LENGTH]
    assert recorded.observations[:, 0].tolist() == (2 * shown - 1).tolist()
    assert recorded.actions[2:].tolist() == shown[:-2].tolist()
    assert recorded.rewards.tolist() == [0.0] * 2 + [1.0] * (LENGTH - 2)
    assert recorded.infos["bit"].tolist() == shown.tolist()
    assert recorded.states[0].shape == (LENGTH + 1, 2, 1)
    assert recorded.states[0][3, :, 0].tolist() == (2 * shown[1:3] - 1).tolist()
    assert (recorded.ended, recorded.total, len(recorded)) == (True, LENGTH - 2, LENGTH)
    cut = record(delaying(2), echo(1, 2, LENGTH), seed=5, max_steps=4)
    assert (len(cut), cut.ended) == (4, False)
    assert recorded.probabilities is not None
    assert np.array_equal(recorded.probabilities.argmax(axis=1), recorded.actions)


def test_values_are_in_the_units_of_the_rewards_though_training_divided_them() -> None:
    player, env = player_of("gru"), echo(1, 2, LENGTH)
    wrapper = VecNormalize(env, norm_obs=False, epsilon=0.0)
    wrapper.ret_rms.var = np.float64(4.0)
    scaled = Player(player.policy, NormalizerState.of(wrapper))
    assert_close(record(scaled, env, seed=3).values, 2 * record(player, env, seed=3).values)
    wrapper.norm_reward = False
    plain = Player(player.policy, NormalizerState.of(wrapper))
    assert_close(record(plain, env, seed=3).values, record(player, env, seed=3).values)


def test_an_end_by_a_time_limit_is_told_from_one_of_the_task() -> None:
    def made() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1", max_episode_steps=3)

    env = DummyVecEnv([made])
    limited = record(Player(small_ppo(env, "gru").policy), env)
    assert (len(limited), limited.ended, limited.truncated) == (3, True, True)
    assert not record(delaying(2), echo(1, 2, LENGTH), seed=5).truncated


@pytest.mark.parametrize("critic_memory", ["shared", "separate", "none"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_recording_is_the_episode_that_stepping_gives(memory: str, critic_memory: str) -> None:
    player = player_of(memory, critic_memory)
    recorded = record(player, echo(1, 2, LENGTH), seed=3)
    assert recorded.total == evaluate(player, echo(1, 2, LENGTH), 1, seed=3).mean
    state = player.policy.initial_state(1)
    for t in range(LENGTH):
        with torch.no_grad():
            seen = torch.as_tensor(recorded.seen[t : t + 1])
            _, value, log_probability, state = player.policy(seen, state, torch.tensor([t == 0]), deterministic=True)
        assert recorded.values[t] == near(float(value), scale=1.0)
        assert recorded.log_probabilities[t] == near(float(log_probability))
        for part, kept in zip(state, [*recorded.states, *recorded.critic_states], strict=True):
            assert_close(kept[t + 1], part[0].numpy())
    assert recorded.probabilities is not None
    chances = recorded.probabilities[np.arange(LENGTH), recorded.actions]
    assert np.log(chances) == near(recorded.log_probabilities)


def test_signals_are_found_by_name_and_others_are_refused() -> None:
    recorded = record(delaying(2), echo(1, 2, LENGTH), seed=5)
    assert recorded.signal("time").tolist() == list(range(LENGTH))
    assert recorded.signal("reward") is recorded.rewards
    assert recorded.signal("bit") is recorded.infos["bit"]
    with pytest.raises(ValueError, match=r"has 'bits'; there are .*bit, time, reward, value, action"):
        recorded.signal("bits")


def test_samples_are_those_of_an_evaluation_with_the_seed() -> None:
    env = envs.make("RepeatPrevious-v0", 1, seed=0)
    player = Player(RecurrentPPO("MlpLstmPolicy", env, seed=1).policy, deterministic=False)
    recorded, result = record(player, env, seed=5), evaluate(player, env, 1, seed=5)
    assert (recorded.total, len(recorded)) == (pytest.approx(result.mean), result.mean_length)


def test_recording_moves_nothing() -> None:
    player, env = player_of("gru"), echo(1, 2, LENGTH)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    record(player, env, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert player.act(env.reset()).shape == (1,)  # as if nothing had been acted before


@pytest.mark.parametrize(
    ("memory", "names"),
    [
        ("rnn", {"hidden state": 16}),
        ("lstm", {"hidden state": 16, "cell state": 16}),
        ("gru", {"hidden state": 16}),
        ("gtrxl", {"newest slot": 16, "output": 8}),
        ("attention", {"hidden state": 16, "cell state": 16, "output": 8}),
        ("none", {}),
        ("gru and critic's", {"hidden state": 16, "critic's hidden state": 16}),
    ],
)
def test_units_are_what_each_layer_carried(memory: str, names: dict[str, int]) -> None:
    memory, _, critic = memory.partition(" and ")
    player = player_of(memory, "separate" if critic else "shared")
    recorded = record(player, echo(1, 2, LENGTH))
    found = units(player.policy, recorded)
    assert {name: part.shape for name, part in found.items()} == {name: (LENGTH, n) for name, n in names.items()}
    if memory == "lstm":
        assert_close(found["hidden state"][:, 8:], recorded.outputs)
