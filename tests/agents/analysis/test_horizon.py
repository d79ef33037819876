"""The horizon of memories whose reach is known, and the gradient against the acting steps."""

from typing import Any

import numpy as np
import pytest
import torch

from agents.analysis import Horizon, Recording, memory_horizon, record
from agents.deploy.player import Player
from agents.memory import MEMORIES
from tests.agents.analysis.echo import delaying, echo
from tests.agents.probe_envs import ACTION_SPACES, clocks, small_ppo
from tests.pairs import each
from tests.tolerance import assert_close

LENGTH = 9


def episodes(player: Player, env: Any, n: int = 2) -> list[Recording]:
    return [record(player, env, seed=seed) for seed in range(n)]


@pytest.mark.parametrize("lag", [1, 2, 5, 8])
def test_a_delay_line_of_k_steps_has_horizon_k(lag: int) -> None:
    player = delaying(lag)
    found = memory_horizon(player, episodes(player, echo(1, lag, LENGTH)))
    assert found.horizon == lag
    # Logits -3 x and 3 x: their mean is 0, and the norm of their slopes sqrt(9 + 9).
    expected = np.zeros(LENGTH)
    expected[lag] = np.sqrt(18)
    assert_close(found.sensitivity, expected)
    assert found.steps.tolist() == [2 * (LENGTH - at) for at in range(LENGTH)]


def test_without_memory_the_horizon_is_0() -> None:
    player = Player(small_ppo(clocks(), "none").policy)
    found = memory_horizon(player, episodes(player, clocks()))
    assert found.horizon == 0
    assert not found.sensitivity[1:].any()


@pytest.mark.parametrize("weight", [0.0, 5.0])  # a number added to all logits does not count
def test_where_no_input_moves_the_action_there_is_no_horizon(weight: float) -> None:
    player = delaying(2)
    with torch.no_grad():
        player.policy.action_net.weight.fill_(weight)
    found = memory_horizon(player, episodes(player, echo(1)))
    assert (found.horizon, "no input moves the action" in found.sentence) == (None, True)


def test_lags_and_steps_may_be_limited() -> None:
    player = delaying(2)
    recorded = episodes(player, echo(1, 2, LENGTH))
    assert len(memory_horizon(player, recorded, 3).sensitivity) == 4
    assert memory_horizon(player, recorded, 1).horizon is None  # it reaches further back than was looked
    assert memory_horizon(player, recorded, steps=5, seed=1).steps.max() <= 5
    for wrong in (dict(recordings=[]), dict(lags=-1), dict(steps=0)):
        with pytest.raises(ValueError, match="at least"):
            memory_horizon(**{**dict(player=player, recordings=recorded), **wrong})


@pytest.mark.parametrize(("curve", "horizon"), [([1.0], 0), ([0.95, 0.05], 0), ([0.5, 0.4, 0.1], 2), ([0, 0, 1.0], 2)])
def test_the_horizon_holds_95_percent_of_the_curve(curve: list[float], horizon: int) -> None:
    assert Horizon(np.array(curve), np.ones(len(curve), dtype=np.int64)).horizon == horizon


def by_steps(player: Player, recording: Recording) -> Any:
    """The curve by its definition: step after step through the memory's acting form, one gradient for every parameter
    of the distribution, every axis of choices less its mean."""
    policy, n_steps = player.policy, len(recording)
    inputs = [torch.tensor(row[None], requires_grad=True) for row in recording.features]
    state, sums, counts = policy.memory_actor.initial_state(1), np.zeros(n_steps), np.zeros(n_steps)
    for t, features in enumerate(inputs):
        output, state = policy.memory_actor.step(features, state, torch.tensor([t == 0]))
        parameters = policy.distribution_parameters(output, None)[0][0]
        nvec = {3: [3], 5: [2, 3]}.get(len(parameters)) if policy.action_space.__class__.__name__ != "Box" else None
        if nvec is not None and "Binary" not in policy.action_space.__class__.__name__:
            parameters = torch.cat([part - part.mean() for part in parameters.split(nvec)])
        rows = [torch.autograd.grad(p, inputs[: t + 1], retain_graph=True, allow_unused=True) for p in parameters]
        for s in range(t + 1):
            parts = [row[s] for row in rows if row[s] is not None]
            sums[t - s] += float(sum(part.square().sum() for part in parts) ** 0.5) if parts else 0.0
            counts[t - s] += 1
    return sums / counts


@pytest.mark.parametrize(("memory", "space"), each(MEMORIES, ACTION_SPACES))
def test_the_curve_is_what_single_steps_give(memory: str, space: str) -> None:
    env = clocks(space)
    player = Player(small_ppo(env, memory, actions=space).policy)
    (recorded,) = episodes(player, env, 1)
    assert_close(memory_horizon(player, [recorded]).sensitivity, by_steps(player, recorded))
