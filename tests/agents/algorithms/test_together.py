"""Two processes that train together, for real: they hold one agent, and learn what one process would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from stable_baselines3.common.running_mean_std import RunningMeanStd

import envs
from agents import RecurrentPPO
from agents.algorithms.together import since
from agents.distributed import group
from tests.agents.algorithms import in_processes
from tests.processes import ended, started

WAYS = ("ppo", "by minibatch", "stopped early", "a2c")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("together")
    results = ended(started([str(Path(in_processes.__file__)), str(folder)]))
    assert [code for code, _, _ in results] == [0, -9], results
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor | np.ndarray):
        assert np.array_equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for parts in zip(one, other, strict=True):
            assert_same(*parts)
    elif isinstance(one, dict):
        assert_same(list(one.items()), list(other.items()))
    else:
        assert one == other


@pytest.mark.parametrize("way", WAYS)
def test_the_agent_is_the_same_everywhere_after_every_update(found: list[dict[str, Any]], way: str) -> None:
    first, second = (each[way] for each in found)
    assert [seen["steps"] for seen in first] == [0, 64, 128, 192]
    assert_same(first, second)
    assert not torch.equal(first[0]["weights"][0], first[-1]["weights"][0])


@pytest.mark.parametrize("normalization", ["batch", "rollout"])
def test_shared_gradients_are_those_of_one_process_on_the_same_minibatch(
    found: list[dict[str, Any]], normalization: str
) -> None:
    (shared, alone), (again, _) = (each["gradients"][normalization] for each in found)
    assert_same(shared, again)
    norm = torch.stack([part.norm() for part in alone if part is not None]).norm()
    for ours, theirs in zip(shared, alone, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours - theirs).abs().max() < 1e-6 * max(1.0, float(norm))


def test_environments_are_seeded_by_their_number_among_all(found: list[dict[str, Any]]) -> None:
    of_one_process = envs.make(in_processes.ID, 4, seed=3).reset()
    assert np.array_equal(np.concatenate([each["beginning"]["observations"] for each in found]), of_one_process)


def test_every_process_draws_numbers_of_its_own(found: list[dict[str, Any]]) -> None:
    first, second = (each["beginning"]["noise"] for each in found)
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_what_cannot_be_divided_is_refused(found: list[dict[str, Any]]) -> None:
    odd, short, environments, different = found[0]["refused"]
    assert "batch_size (33) must be a multiple of the 2 processes that share it; use 32 or 34" in odd
    assert "batch_size (16) is shared by 2 processes, 8 steps each, and a sequence has 16: use batch_size 32" in short
    assert "n_envs (5) must be a multiple of the 2 processes" in environments
    assert "need the same settings" in different
    assert found[1]["refused"] == found[0]["refused"]


def test_what_fails_in_one_process_ends_the_others_and_says_why(found: list[dict[str, Any]]) -> None:
    assert found[0]["failed"].startswith("PeerFailed: process 1 of 2: EnvError: environment 0")
    assert "the simulator is gone" in found[0]["failed"]
    assert found[1]["failed"].startswith("EnvError")


def test_a_killed_process_ends_the_others(found: list[dict[str, Any]]) -> None:
    assert found[0]["died"].startswith("PeerLost: another of the 2 processes that train together is gone")
    assert "died" not in found[1]


def test_what_was_seen_since_combines_with_what_was_before() -> None:
    rng = np.random.default_rng(0)
    before, now = RunningMeanStd(shape=(3,)), RunningMeanStd(shape=(3,))
    for each in (before, now):
        each.update(np.arange(30.0).reshape(10, 3))
    assert since(now, before).count == 0
    now.update(rng.normal(5.0, 2.0, (20, 3)))
    before.combine(since(now, before))
    assert np.allclose(before.mean, now.mean, rtol=1e-12)
    assert np.allclose(before.var, now.var, rtol=1e-12)
    assert before.count == now.count


@pytest.mark.parametrize("resumable", [False, True])
def test_episodes_of_a_share_are_those_of_the_same_environments_among_all(resumable: bool) -> None:
    everyones = envs.make("CartPole-v1", 4, seed=7, backend="serial", resumable=resumable)
    share = envs.make("CartPole-v1", 2, seed=7, backend="serial", resumable=resumable, first=2)
    assert np.array_equal(everyones.reset()[2:], share.reset())
    for step in range(60):  # a few episodes of falling to one side
        actions = np.full(4, step // 10 % 2)
        assert np.array_equal(everyones.step(actions)[0][2:], share.step(actions[2:])[0])


def test_without_torchrun_nothing_is_exchanged() -> None:
    model = RecurrentPPO("RecurrentPolicy", envs.make("CartPole-v1", 2), n_steps=8, batch_size=8).learn(32)
    assert group.size() == 1
    assert group.is_first()
    assert model._together is None
    assert not dist.is_initialized()
