"""What a report shows of an episode is what happened in it."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import envs
from agents import RecurrentPPO
from agents.evaluation import evaluate
from agents.memory import MEMORIES
from agents.player import Player
from agents.report import data
from agents.report.episode import Steps, record

CRITICS = ("shared", "separate", "none")


def player(memory: str, critic: str = "shared", env_id: str = "RepeatPrevious-v0") -> tuple[Player, Any]:
    env = envs.make(env_id, 1, seed=0)
    agent = RecurrentPPO(
        "RecurrentPolicy",
        env,
        seed=1,
        n_steps=8,
        batch_size=8,
        policy_kwargs={"memory": memory, "critic_memory": critic},
    )
    return Player(agent.policy), env


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_the_values_are_those_of_the_whole_sequence_at_once(memory: str, critic: str) -> None:
    actor, env = player(memory, critic)
    steps = record(actor, env, seed=3, longest=12)
    observations: Any
    observations, _ = actor.policy.obs_to_tensor(np.array(steps.observations[""]))
    starts = torch.zeros(12, 1, dtype=torch.bool)
    starts[0] = True
    with torch.no_grad():
        values, log_probabilities, _ = actor.policy.evaluate_actions(
            observations[:, None],
            torch.as_tensor(np.array(steps.actions))[:, None],
            actor.policy.initial_state(1),
            starts,
        )
    assert steps.values == pytest.approx(values[:, 0].tolist(), abs=1e-4)
    assert steps.log_probabilities == pytest.approx(log_probabilities[:, 0].tolist(), abs=1e-4)
    chances = [float(np.log(chance[action])) for chance, action in zip(steps.probabilities, steps.actions, strict=True)]
    assert chances == pytest.approx(steps.log_probabilities, abs=1e-4)
    assert all(len(states) == 12 for states in steps.states.values())
    assert bool(steps.states) == (memory != "none")


@pytest.mark.parametrize("deterministic", [True, False])
def test_it_is_the_episode_that_an_evaluation_with_the_seed_plays(deterministic: bool) -> None:
    actor, env = player("lstm")
    actor.deterministic = deterministic
    steps = record(actor, env, seed=5)
    result = evaluate(actor, env, 1, seed=5)
    assert steps.ended
    assert sum(steps.rewards) == pytest.approx(result.mean)
    assert len(steps) == result.mean_length


def test_recording_moves_nothing() -> None:
    actor, env = player("gru")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    record(actor, env, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert actor.act(env.reset()).shape == (1,)  # as if nothing had been acted before


def test_an_episode_that_does_not_end_is_cut() -> None:
    actor, env = player("lstm", env_id="CartPoleNoVel-v1")
    steps = record(actor, env, seed=0, longest=3)
    assert (len(steps), steps.ended) == (3, False)


def test_an_agent_for_other_actions_is_refused() -> None:
    actor, _ = player("lstm")
    with pytest.raises(ValueError, match="the agent's actions are"):
        record(actor, envs.make("PendulumNoVel-v1", 1))


def test_states_come_back_from_their_bytes() -> None:
    states = np.array([[[1.0, -2.0]], [[0.5, 0.0]]])  # two steps, one layer, two units
    steps = Steps(rewards=[0.0, 1.0], actions=[np.array(0), np.array(1)], states={"hidden state": list(states)})
    (part,) = data.episode(steps, spaces.Box(-1, 1, (2,)), spaces.Discrete(2))["memory"]
    assert (part["name"], part["total"], part["shown"], part["shape"]) == ("hidden state", 2, 2, [1, 2])
    quantised = np.frombuffer(base64.b64decode(part["data"]), np.int8).reshape(2, 2)
    assert quantised / 127 * part["largest"] == pytest.approx(states.reshape(2, 2), abs=2 / 127)


def test_of_a_large_state_units_evenly_apart_are_shown() -> None:
    state = np.arange(1025.0)
    steps = Steps(rewards=[0.0], actions=[np.array(0)], states={"state": [state]})
    (part,) = data.episode(steps, spaces.Box(-1, 1, (2,)), spaces.Discrete(2))["memory"]
    quantised = np.frombuffer(base64.b64decode(part["data"]), np.int8)
    assert (part["total"], part["shown"], len(quantised), quantised[0], quantised[-1]) == (1025, 256, 256, 0, 127)


def test_every_kind_of_observation_and_action_has_a_form() -> None:
    picture = np.zeros((3, 36, 40), np.uint8)
    picture[1, 2, 5] = 77  # channel 1, row 2, column 5
    space = spaces.Dict(
        seen=spaces.Box(0, 255, (3, 36, 40), np.uint8),
        inner=spaces.Dict(card=spaces.Discrete(4), bits=spaces.MultiBinary(3)),
        many=spaces.Box(-1, 1, (10, 10)),
    )
    seen = {
        "seen": [picture],
        "inner.card": [np.array(3)],
        "inner.bits": [np.array([1, 0, 1], np.int8)],
        "many": [np.arange(100.0)],
    }
    shown = data.episode(
        Steps(observations=seen, actions=[np.array([0.5, -2.0])], rewards=[1.0]), space, spaces.Box(-2, 2, (2,))
    )
    parts = {part["name"]: part for part in shown["observations"]}
    assert {name: part["kind"] for name, part in parts.items()} == {
        "seen": "picture",
        "inner.card": "choice",
        "inner.bits": "numbers",
        "many": "numbers",
    }
    assert (parts["inner.card"]["values"], parts["inner.card"]["n"]) == ([3], 4)
    assert (parts["many"]["total"], len(parts["many"]["values"][0])) == (100, data.MOST_NUMBERS)
    assert shown["action"]["values"] == [[0.5, -2.0]]
    drawn = np.frombuffer(base64.b64decode(parts["seen"]["data"]), np.uint8).reshape(36, 40, 3)
    assert drawn[2, 5].tolist() == [0, 77, 0]
    data.as_script(shown)


def test_long_episodes_of_pictures_stay_small() -> None:
    pictures = [np.zeros((84, 84, 3), np.uint8)] * 1000
    steps = Steps(observations={"": pictures}, actions=[np.array(0)] * 1000, rewards=[0.0] * 1000)
    (part,) = data.episode(steps, spaces.Box(0, 255, (84, 84, 3), np.uint8), spaces.Discrete(2))["observations"]
    assert 1000 * part["width"] * part["height"] * 3 <= data.MOST_PIXELS
    assert part["width"] >= 20


def test_numbers_that_json_cannot_say_are_left_out() -> None:
    assert data.numbers([1.23456789, float("nan"), float("-inf")]) == [1.2346, None, None]
    assert (
        data.as_script({"name": "</script><!-- & \u2028"})
        == '{"name":"\\u003c/script\\u003e\\u003c!-- \\u0026 \\u2028"}'
    )
