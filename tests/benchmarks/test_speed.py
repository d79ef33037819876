"""The speed benchmark compares like with like, and its arithmetic is right."""

import json
import pathlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import report
import sb3_contrib
import speed
import torch
from cases import EPISODE, SB3, Case, Network, all_cases, already_taken, fast_env, usual_env
from contenders import CONTENDERS, FusedContribPolicy
from measuring import Stopwatch, ratio
from peers import CleanrlLoop, puffer_advantage

from tests.tolerance import assert_close

TINY = Case("tiny", "early", Network(8, "separate", (8,)), SB3, n_envs=2, n_steps=16, batch_size=16, n_epochs=1)


def test_every_case_has_minibatches_of_one_size_and_known_contenders() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.rollout % case.batch_size == 0
        assert set(case.contenders) <= CONTENDERS.keys()


@pytest.mark.parametrize("task", ["early", "pendulum"])
def test_the_two_environments_of_a_case_give_the_same(task: str) -> None:
    case = replace(TINY, task=task, n_envs=3)
    usual, fast = usual_env(case, seed=5), fast_env(case, seed=5)
    usual.action_space.seed(0)
    assert_close(usual.reset(), fast.reset())
    for _ in range(10):
        actions = np.stack([usual.action_space.sample() for _ in range(3)])
        theirs, ours = usual.step(actions), fast.step(actions)
        assert_close(theirs[0], ours[0])
        assert_close(theirs[1], ours[1])


@pytest.mark.parametrize("make", [usual_env, fast_env])
def test_late_episodes_end_at_the_time_limit_only_and_one_after_the_other(make: Any) -> None:
    env = make(replace(TINY, task="late", n_envs=4))
    env.reset()
    ends = []
    for step in range(1, 2 * EPISODE + 1):
        _, _, dones, infos = env.step(np.ones(4, dtype=np.int64))
        ends += [(step, int(i)) for i in np.flatnonzero(dones)]
        assert all(infos[int(i)]["TimeLimit.truncated"] for i in np.flatnonzero(dones))
    first = [(EPISODE - int(taken), i) for i, taken in enumerate(already_taken(4))]
    assert sorted(ends) == sorted(first + [(step + EPISODE, i) for step, i in first])


@pytest.mark.parametrize("critic", ["separate", "detached"])
def test_contrib_without_its_loop_learns_the_same(critic: Any) -> None:
    kwargs = dict(lstm_hidden_size=8, shared_lstm=critic == "detached", enable_critic_lstm=critic == "separate")
    learned = []
    for policy in ("MlpLstmPolicy", FusedContribPolicy):
        settings: dict[str, Any] = dict(n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu", learning_rate=1e-2)
        env = usual_env(replace(TINY, network=Network(8, critic)), seed=0)
        model: Any = sb3_contrib.RecurrentPPO(policy, env, policy_kwargs=kwargs, **settings).learn(256)
        learned.append(model.policy.state_dict())
    for name, value in learned[0].items():
        assert_close(learned[1][name], value)


def test_the_cleanrl_loop_starts_an_update_with_ratios_of_one() -> None:
    case = replace(TINY, network=Network(8, "shared", ()), n_envs=4, n_steps=40, batch_size=40)
    loop = CleanrlLoop(case)
    for _ in range(2):
        before = loop._state
        returns = loop.collect()
        assert loop.starts.any()
        loop.loss(before, np.arange(4), returns)
        assert loop.largest_log_ratio < 1e-5


def test_the_cleanrl_loops_advantages_stop_at_an_episodes_end() -> None:
    loop = CleanrlLoop(replace(TINY, network=Network(8, "shared", ()), n_envs=4, n_steps=3, batch_size=12))
    loop.rewards[:], loop.values[:], loop.starts[:] = 1.0, 0.0, 0.0
    loop.starts[2, 0] = 1.0  # the first environment's episode ends with step 1
    loop._start[:] = 0.0
    advantages = loop._advantages(torch.zeros(4))
    rate = 0.99 * 0.95
    assert advantages[:, 0].tolist() == pytest.approx([1 + rate, 1.0, 1.0])
    assert advantages[:, 1].tolist() == pytest.approx([1 + rate + rate**2, 1 + rate, 1.0])


def test_puffers_advantages_are_generalized_advantages_of_shifted_rewards() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    rewards = torch.tensor([[9.0, 10.0, 20.0, 30.0]])  # of the step before
    terminals = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    ratio = torch.ones(1, 4)
    got = puffer_advantage(values, rewards, terminals, ratio, torch.zeros(1, 4), 0.5, 0.5, 1.0, 1.0)
    last = 30 + 0.5 * 4 - 3
    middle = 20 - 2  # its episode ends
    first = 10 + 0.5 * 2 - 1 + 0.25 * middle
    assert got.tolist() == [[first, middle, last, 0.0]]


def test_a_contender_is_timed_in_parts_that_make_up_the_whole() -> None:
    for name in ("sb3-contrib", "RecuRL"):
        seconds = CONTENDERS[name](TINY).iterate(2)
        assert 0 < seconds.collecting + seconds.training <= seconds.whole


def test_a_stopwatch_adds_up_its_calls() -> None:
    watch = Stopwatch()
    assert watch.timed(lambda x: x + 1)(1) == 2
    once = watch.seconds
    assert watch.timed(lambda x: x + 1)(2) == 3
    assert watch.seconds > once > 0


def test_a_case_is_measured_and_a_missing_peer_is_named() -> None:
    case = replace(TINY, contenders=(*SB3, "CleanRL loop"))
    result = speed.measure(case, 2, 0.01, case.contenders)
    assert [row.contender for row in result.rows] == list(case.contenders)
    assert result.rows[-1].error == "Unavailable: its critic's LSTM is shared"
    for row in result.rows[:-1]:
        assert len(row.turns) == 2
        assert row.whole_range[0] <= row.whole <= row.whole_range[1]
        assert row.collecting > row.whole
        assert row.training > row.whole
    assert all(seconds > 0 for seconds in result.limits.values())


RESULT: dict[str, Any] = {
    "rows": [
        dict(
            contender="sb3-contrib", error="", whole=100.0, collecting=400.0, training=150.0, whole_range=(50.0, 100.0)
        ),
        dict(contender="skrl", error="ImportError: none", whole=0.0, collecting=0.0, training=0.0, whole_range=(0, 0)),
        dict(contender="RecuRL", error="", whole=600.0, collecting=2000.0, training=900.0, whole_range=(400.0, 800.0)),
    ],
    "limits": dict(environment=0.1, usual_environment=0.2, acting=0.1, training=0.5),
    "rollout": 1000,
    "measured": dict(day="2026-11-21", processor="2 x test", threads="1", torch="2.13.0"),
}
for _row, _turns in zip(RESULT["rows"], ([100.0, 50.0, 100.0], [], [800.0, 400.0, 600.0]), strict=True):
    _row["turns"] = _turns


def test_ratios_are_taken_within_a_turn() -> None:
    assert ratio(RESULT, "RecuRL", "sb3-contrib") == (8.0, 6.0, 8.0)
    assert ratio(RESULT, "RecuRL", "skrl") is None
    assert report.training_ratio(RESULT, "RecuRL", "sb3-contrib") == 6.0


def test_the_page_has_ratios_limits_and_missing_peers(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    kept = tmp_path / "docs" / "results" / "speed.json"
    report.write_docs({"b": RESULT, "a": RESULT}, ["a", "b"], kept)
    assert list(json.loads(kept.read_text())) == ["a", "b"]
    page = (tmp_path / "docs" / "speed.md").read_text()
    assert "| skrl | not measured: ImportError: none |" in page
    assert "8.00x (6.00 - 8.00) | 6.00x" in page
    assert "collecting 500.0 ms, 2.5 times environment + acting arithmetic (200.0 ms)" in page
    assert "training 1111.1 ms, 2.2 times" in page
    assert (tmp_path / "docs" / "speed.png").stat().st_size > 1000
