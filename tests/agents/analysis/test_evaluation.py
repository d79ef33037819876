"""Evaluation counts every episode once, rightly, and moves nothing."""

import json
import math
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents import RecurrentPPO
from agents.analysis import evaluation
from agents.analysis.evaluation import Evaluation, evaluate, evaluate_both_ways
from agents.deploy.player import Player
from envs import make
from envs.vector.vectorize import SerialVecEnv, VectorEnvAdapter


class Line(gymnasium.Env[Any, Any]):
    """Episodes of ``length`` steps; the reward of a step is the length, so returns tell episodes apart."""

    def __init__(self, length: int, successful: bool | None = None, reward: float | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(2)
        self._length, self._successful = length, successful
        self._reward = float(length) if reward is None else reward
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._step += 1
        over = self._step == self._length
        info = {"is_success": self._successful} if over and self._successful is not None else {}
        return self._observation(), self._reward, over, False, info

    def _observation(self) -> NDArray[np.float32]:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def lines(*lengths: int, **settings: Any) -> VecEnv:
    """One environment for each length."""
    return SerialVecEnv([partial(Line, length, **settings) for length in lengths])


@pytest.fixture(scope="module")
def agent() -> RecurrentPPO:
    env = VecNormalize(lines(3, 5))
    policy = dict(memory="gru", memory_kwargs=dict(hidden_size=8))
    agent = RecurrentPPO("RecurrentPolicy", env, n_steps=32, batch_size=32, policy_kwargs=policy, seed=0, device="cpu")
    return agent.learn(128)


@pytest.mark.parametrize(("episodes", "shares"), [(1, [0, 0, 1]), (2, [0, 1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3])])
def test_episodes_are_shared_out_evenly(agent: RecurrentPPO, episodes: int, shares: list[int]) -> None:
    result = evaluate(agent, lines(1, 3, 50), episodes)
    assert [result.lengths.count(length) for length in (1, 3, 50)] == shares
    assert result.returns == tuple(length**2 for length in result.lengths)


def test_what_stable_baselines3_measures_is_measured() -> None:
    env = VecNormalize(make("CartPoleNoVel-v1", 3))
    agent = RecurrentPPO("MlpLstmPolicy", env, n_steps=32, seed=1, device="cpu").learn(200)
    other = VecNormalize(make("CartPoleNoVel-v1", 4, seed=7), training=False, norm_reward=False)
    other.obs_rms = env.obs_rms
    returns, lengths = cast(
        tuple[list[float], list[int]], evaluate_policy(agent, other, 10, return_episode_rewards=True)
    )
    ours = evaluate(agent, make("CartPoleNoVel-v1", 4), 10, seed=7)
    assert (sorted(ours.returns), sorted(ours.lengths)) == (sorted(returns), sorted(lengths))


def test_true_rewards_are_reported_and_a_normalizer_around_the_environments_is_taken_off(agent: RecurrentPPO) -> None:
    assert evaluate(agent, VecNormalize(lines(4, 4)), 2).returns == (16.0, 16.0)


def test_nothing_of_a_training_agent_moves(agent: RecurrentPPO) -> None:
    normalizer: Any = agent.get_vec_normalize_env()
    memory = [part.clone() for part in agent._last_state or ()]
    seen, torch_state, numpy_state = normalizer.obs_rms.count, torch.get_rng_state(), numpy_random_state()
    evaluate(agent, lines(3, 3), 5, deterministic=False, seed=3)
    assert normalizer.obs_rms.count == seen
    assert normalizer.training
    assert all(torch.equal(before, after) for before, after in zip(memory, agent._last_state or (), strict=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert numpy_random_state() == numpy_state


def numpy_random_state() -> str:
    return repr(np.random.get_state())  # noqa: NPY002


def test_a_seed_decides_environments_and_samples(agent: RecurrentPPO) -> None:
    env = make("CartPoleNoVel-v1", 2)
    pole = RecurrentPPO("RecurrentPolicy", env, n_steps=16, device="cpu")
    first, again, other = (
        evaluate(pole, make("CartPoleNoVel-v1", 2), 6, deterministic=False, seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.returns != other.returns


class Watched(Player):
    """Notes for which environments an episode started."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.starts: list[list[bool]] = []  # shared with the copy that plays

    def reset(self, mask: Any = None) -> None:
        super().reset(mask)
        if mask is not None:
            self.starts.append(np.asarray(mask).tolist())


def test_the_memory_is_reset_where_an_episode_ends_and_nowhere_else(agent: RecurrentPPO) -> None:
    player = Watched(agent.policy)
    evaluate(player, lines(2, 3), 4)
    assert player.starts == [[False, False], [True, False], [False, True], [True, False], [False, False]]


def test_the_step_in_which_an_environment_resets_itself_is_no_step_and_its_observation_starts_the_episode() -> None:
    vector = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    assert vector.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP
    env = VectorEnvAdapter(vector)
    agent = RecurrentPPO("RecurrentPolicy", env, n_steps=16, device="cpu", seed=0)
    player = Watched(agent.policy)
    result = evaluate(player, env, 6, seed=0)
    assert list(result.returns) == list(result.lengths)  # a reward of 1 a step
    for column in np.array(player.starts).T:
        ends = np.flatnonzero(column)
        ends = ends[ends < len(column) - 1]
        # The memory restarts after the last step and again after the step that reset.
        assert all(column[end + 1] or column[end - 1] for end in ends)


def test_the_players_own_choice_of_actions_holds_unless_another_is_asked_for(agent: RecurrentPPO) -> None:
    player = Player(agent.policy, deterministic=False)
    assert not evaluate(player, lines(2), 1).deterministic
    assert evaluate(player, lines(2), 1, deterministic=True).deterministic
    assert not player.deterministic


@pytest.mark.parametrize(("said", "rate"), [(True, 1.0), (False, 0.0), (None, None)])
def test_success_is_what_the_environment_says(agent: RecurrentPPO, said: bool | None, rate: float | None) -> None:
    assert evaluate(agent, lines(2, successful=said), 3).success_rate == rate


def test_an_episode_without_an_end_is_truncated_and_counted(agent: RecurrentPPO) -> None:
    result = evaluate(agent, lines(3, 10**9, reward=2.0), 6, max_steps=20)
    assert sorted(zip(result.lengths, result.returns, strict=True)) == [(3, 6.0)] * 3 + [(20, 40.0)]
    assert result.truncated == 1
    written = result.to_json()
    older = {**{name: value for name, value in written.items() if name != "truncated"}, "cut": 1}
    assert [Evaluation.from_json(each).truncated for each in (written, older)] == [1, 1]


@pytest.mark.parametrize(
    ("env", "episodes", "error", "message"),
    [
        (partial(lines, 2, reward=math.nan), 1, FloatingPointError, "environment 0 is nan"),
        (partial(make, "PendulumNoVel-v1", 1), 1, ValueError, "the agent's actions are Discrete"),
        (partial(lines, 2), 0, ValueError, "at least 1 episode, got 0"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error(
    agent: RecurrentPPO, env: Any, episodes: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(agent, env(), episodes)


def test_statistics_match_hand_computed_ones() -> None:
    result = Evaluation(
        returns=(1.0, 2.0, 3.0, 4.0, 100.0), lengths=(1, 2, 3, 4, 5), successes=(True, True, False, False, True)
    )
    assert (result.mean, result.median, result.interquartile_mean, result.mean_length) == (22.0, 3.0, 3.0, 3.0)
    assert result.std == pytest.approx(math.sqrt((21**2 + 20**2 + 19**2 + 18**2 + 78**2) / 5))
    assert result.success_rate == pytest.approx(0.6)


def test_json_holds_every_episode_and_no_number_that_json_has_not() -> None:
    result = Evaluation(returns=(1.0, 2.0), lengths=(3, 4), successes=(True, False), seed=5)
    read = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (read["returns"], read["lengths"], read["successes"]) == ([1.0, 2.0], [3, 4], [True, False])
    assert (read["return"]["mean"], read["success_rate"], read["seed"], read["episodes"]) == (1.5, 0.5, 5, 2)


def test_both_ways_to_act_play_half_of_the_episodes_each(agent: RecurrentPPO) -> None:
    both = evaluate_both_ways(agent, lines(3, 5), 5, deterministic=False, seed=1, max_steps=None)
    assert {way: each.episodes for way, each in both.items()} == {"sampled": 3, "deterministic": 2}
    assert all(each.manner == way for way, each in both.items())
    assert both["sampled"] == evaluate(agent, lines(3, 5), 3, deterministic=False, seed=1)


@pytest.mark.parametrize(("other", "differ"), [([1.0, 2.0, 3.0], False), ([9.0, 10.0, 11.0], True)])
def test_two_ways_to_act_differ_where_the_intervals_of_their_means_are_apart(other: list[float], differ: bool) -> None:
    chosen, another = Evaluation((1.0, 2.0, 3.0), (1, 1, 1)), Evaluation(tuple(other), (1, 1, 1))
    assert evaluation.differ(chosen, another) is evaluation.differ(another, chosen) is differ
