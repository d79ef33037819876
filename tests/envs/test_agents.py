"""Games of several agents: every agent a row, and no step of one who left the game is a transition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import envs
import evaluate
import train
from agents import RecurrentPPO
from envs.vector.agents import ParallelGames
from envs.vector.errors import EnvError
from envs.vector.group import is_game
from envs.vector.infos import RESET_STEP
from tests.runs import PPO, TINY, rows_of

LENGTHS = {"short": 2, "long": 3}


class Countdown:
    """Two agents that play 2 and 3 steps; observation (agent, game, step), reward 10 * agent + step.

    The interface is that of `pettingzoo.ParallelEnv`. With `masks` the infos allow only the action that is the step's
    parity, and any other is an error.
    """

    possible_agents = list(LENGTHS)  # noqa: RUF012
    render_mode = None

    def __init__(self, masks: bool = False) -> None:
        self.agents: list[str] = []
        self.masks, self.game, self.t, self.seeds = masks, 0, 0, []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def _observe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        seen = {agent: np.float32([self.possible_agents.index(agent), self.game, self.t]) for agent in self.agents}
        mask = np.arange(2) == self.t % 2
        return seen, {agent: {"action_mask": mask} if self.masks else {} for agent in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seeds.append(seed)
        self.agents, self.t, self.game = list(LENGTHS), 0, self.game + 1
        return self._observe()

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        assert set(actions) == set(self.agents)
        assert not self.masks or all(action == self.t % 2 for action in actions.values())
        self.t += 1
        seen, infos = self._observe()
        rewards = {agent: 10.0 * self.possible_agents.index(agent) + self.t for agent in self.agents}
        ends = {agent: self.t == LENGTHS[agent] for agent in self.agents}
        terminations = {agent: end and agent == "short" for agent, end in ends.items()}
        truncations = {agent: end and agent == "long" for agent, end in ends.items()}
        self.agents = [agent for agent in self.agents if not ends[agent]]
        return seen, rewards, terminations, truncations, infos

    def close(self) -> None: ...


def test_an_agent_that_left_waits_in_reset_steps_for_the_next_game() -> None:
    venv: Any = ParallelGames([Countdown, Countdown])
    assert is_game(venv.games[0])
    venv.seed(5)
    first = venv.reset()
    np.testing.assert_array_equal(first[:, [0, 2]], [[0, 0], [1, 0]] * 2)
    game = first[0, 1]
    assert [game.seeds[-1] for game in venv.games] == [5, 7]
    told = [venv.step(np.zeros(4, int)) for _ in range(4)]
    dones = np.stack([each[2] for each in told])[:, :2]
    np.testing.assert_array_equal(dones, [[False, False], [True, False], [False, True], [False, False]])
    np.testing.assert_array_equal(np.stack([each[1] for each in told])[:, 2:], [[1, 11], [2, 12], [0, 13], [1, 11]])
    assert [RESET_STEP in each[3][0] for each in told] == [False, False, True, False]
    np.testing.assert_array_equal(told[2][0][:2], [[0, game + 1, 0], [1, game + 1, 0]])
    short, long = told[1][3][0], told[2][3][1]
    assert (short["episode"]["r"], short["episode"]["l"], short["TimeLimit.truncated"]) == (3.0, 2, False)
    assert (long["episode"]["r"], long["episode"]["l"], long["TimeLimit.truncated"]) == (36.0, 3, True)
    np.testing.assert_array_equal(short["terminal_observation"], [0, game, 2])
    np.testing.assert_array_equal(long["terminal_observation"], [1, game, 3])


def test_a_shared_policy_learns_from_transitions_alone() -> None:
    agent = RecurrentPPO("RecurrentPolicy", ParallelGames([Countdown] * 3), n_steps=12, batch_size=36, seed=0)
    agent.learn(12 * 6)
    # Every game has 5 transitions and one reset step of the agent that left first.
    assert agent.rollout_buffer.valid.float().mean() == pytest.approx(5 / 6)
    assert not agent.rollout_buffer.valid[2, 0]


def test_masks_of_infos_become_part_of_the_observation_and_are_obeyed() -> None:
    venv: Any = ParallelGames([lambda: Countdown(masks=True)] * 2)
    np.testing.assert_array_equal(venv.reset()["action_mask"], [[1, 0]] * 4)
    agent = RecurrentPPO(
        "RecurrentPolicy", venv, n_steps=12, batch_size=48, policy_kwargs={"action_mask": "action_mask"}, seed=0
    )
    agent.learn(96)  # Countdown raises for a forbidden action


def test_agents_of_different_spaces_are_refused_with_what_to_do() -> None:
    class Unlike(Countdown):
        def action_space(self, agent: str) -> spaces.Space[Any]:
            return spaces.Discrete(2 if agent == "short" else 3)

    with pytest.raises(ValueError, match=r"need the same action_space: long has Discrete\(3\).*pad them"):
        ParallelGames([Unlike])


def test_a_game_that_fails_is_named_with_its_error() -> None:
    class Broken(Countdown):
        def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
            raise KeyError("lost")

    venv = ParallelGames([Countdown, Broken])
    venv.reset()
    with pytest.raises(Exception, match=r"game 1 .* failed in step: KeyError: 'lost'"):
        venv.step(np.zeros(4, int))


def test_a_function_that_makes_a_game_is_enough() -> None:
    made: list[Countdown] = []

    def game(masks: bool = False) -> Countdown:
        made.append(Countdown(masks))
        return made[-1]

    venv = envs.make(game, 3, env_kwargs={"masks": True})
    assert venv.num_envs == 6
    assert [each.masks for each in made] == [True] * 3  # and no game is made to look at
    named = envs.make("tests.envs.test_agents:Countdown", 2)
    assert named.num_envs == 4
    with pytest.raises(EnvError, match="step in this process, with backend 'auto'"):
        envs.make(Countdown, 2, backend="subprocess")
    with pytest.raises(ValueError, match="takes no render_mode"):
        envs.make(Countdown, 2, render_mode="rgb_array")


def test_the_next_game_begins_without_the_last_action_and_reward_of_the_one_before() -> None:
    venv = envs.make(Countdown, 1, wrappers=[("previous_action_reward", {"start": True})])
    venv.reset()
    seen: Any = [venv.step(np.ones(2, int))[0] for _ in range(4)]
    # (agent, game, step), action one-hot, reward, start: "short" waits a step for the game of "long" to end.
    np.testing.assert_array_equal(np.stack(seen)[:, 0, 3:], [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]])
    np.testing.assert_array_equal(np.stack(seen)[:, 1, 3:], [[0, 1, 11, 0], [0, 1, 12, 0], [0, 0, 0, 1], [0, 1, 11, 0]])


def test_a_game_is_trained_and_evaluated_from_the_command_line(tmp_path: Path) -> None:
    words = ["--env.id", "tests.envs.test_agents:Countdown", "--env.kwargs", "masks=true"]
    words += ["--policy.kwargs", "action_mask=action_mask", "--runs", str(tmp_path), "--name", "game"]
    brief = ["--evaluation.episodes", "4", "--evaluation.final-episodes", "4", "--evaluation.every", "64"]
    assert train.main([*TINY, *PPO, *brief, *words]) == 0
    # Rewards 1 + 2 of one agent, 11 + 12 + 13 of the other.
    assert {row["mean_reward"] for row in rows_of(tmp_path / "game" / "evaluations.csv")} == {"19.5"}
    assert evaluate.main([str(tmp_path / "game"), "--episodes", "4"]) == 0


def test_a_game_of_pettingzoo_is_played() -> None:
    pytest.importorskip("pettingzoo")
    venv = envs.make("pettingzoo.classic.rps_v2:parallel_env", 2, env_kwargs={"max_cycles": 4})
    assert is_game(venv.unwrapped.games[0])  # type: ignore[attr-defined]
    venv.reset()
    ended = [venv.step(np.array([0, 1, 2, 2]))[2] for _ in range(4)]
    assert np.stack(ended).sum() == 4
