"""Returns and advantages against hand-computed cases and a slow reference."""

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.rollout.returns import FLOOR, Moments, advantage_scale, generalized_advantages
from tests.tolerance import close


def advantages_of(
    rewards: list[float],
    values: list[float],
    starts: list[int],
    last_value: float,
    last_start: bool,
    gamma: float,
    gae_lambda: float,
) -> list[float]:
    """One environment's advantages."""
    result = generalized_advantages(
        torch.tensor(rewards)[:, None],
        torch.tensor(values)[:, None],
        torch.tensor([bool(start) for start in starts])[:, None],
        torch.tensor([last_value]),
        torch.tensor([last_start]),
        gamma,
        gae_lambda,
    )
    assert result.shape == (len(rewards), 1)
    return [float(advantage) for advantage in result[:, 0]]


def slow_advantages(
    rewards: Tensor, values: Tensor, starts: Tensor, last_values: Tensor, last_starts: Tensor, gamma: float, lam: float
) -> Tensor:
    """The defining sum, episode by episode: A_t = sum_k (gamma lambda)^k delta_{t + k} up to the episode's end."""
    n_steps, n_envs = rewards.shape
    result = torch.zeros(n_steps, n_envs, dtype=torch.float64)
    for b in range(n_envs):
        for t in range(n_steps):
            weight = 1.0
            for k in range(t, n_steps):
                next_starts = starts[k + 1, b] if k + 1 < n_steps else last_starts[b]
                next_value = values[k + 1, b] if k + 1 < n_steps else last_values[b]
                delta = rewards[k, b].double() - values[k, b].double()
                if not next_starts:
                    delta += gamma * next_value.double()
                result[t, b] += weight * delta
                if next_starts:
                    break
                weight *= gamma * lam
    return result


def test_the_advantages_of_an_unfinished_episode_are_those_computed_by_hand() -> None:
    # delta_1 = 2 + 0.5 * 8 - 6 = 0; delta_0 = 1 + 0.5 * 6 - 2 = 2; A_0 = 2 + 0.25 * 0
    assert advantages_of([1, 2], [2, 6], [1, 0], 8, False, 0.5, 0.5) == [2.0, 0.0]
    # With last value 12: delta_1 = 2, A_0 = 2 + 0.25 * 2
    assert advantages_of([1, 2], [2, 6], [1, 0], 12, False, 0.5, 0.5) == [2.5, 2.0]


def test_the_advantages_of_an_episode_that_ends_are_those_computed_by_hand() -> None:
    # The first episode is one step: A_0 = 1 - 2. The second: A_2 = 4 - 3, A_1 = 3 + 0.5 * 3 - 6 + 0.25 * 1.
    assert advantages_of([1, 3, 4], [2, 6, 3], [1, 1, 0], 99, True, 0.5, 0.5) == [-1.0, -1.25, 1.0]


def test_a_single_step_is_a_rollout() -> None:
    assert advantages_of([1], [2], [0], 4, False, 0.5, 0.9) == [1.0]
    assert advantages_of([1], [2], [1], 4, True, 0.5, 0.9) == [-1.0]


def test_lambda_one_gives_discounted_returns_and_lambda_zero_gives_one_step_errors() -> None:
    rewards, values, starts = [1.0, 1.0, 1.0], [5.0, 7.0, 9.0], [1, 0, 0]
    monte_carlo = advantages_of(rewards, values, starts, 16, False, 0.5, 1.0)
    assert close(np.add(monte_carlo, values), [1 + 0.5 + 0.25 + 2, 1 + 0.5 + 4, 1 + 8])
    one_step = advantages_of(rewards, values, starts, 16, False, 0.5, 0.0)
    assert close(np.add(one_step, values), [1 + 3.5, 1 + 4.5, 1 + 8])


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_a_reward_of_100_in_the_next_episode_leaves_earlier_advantages_unchanged(gae_lambda: float) -> None:
    rewards, values, starts = [1.0, 2.0, 0.0, 0.0], [3.0, 1.0, 2.0, 5.0], [1, 0, 1, 0]
    before = advantages_of(rewards, values, starts, 1.0, False, 0.99, gae_lambda)
    after = advantages_of([1.0, 2.0, 100.0, 100.0], [3.0, 1.0, 70.0, 5.0], starts, 1.0, False, 0.99, gae_lambda)
    assert after[:2] == before[:2]
    assert after[2:] != before[2:]


def test_what_follows_the_rollout_counts_only_where_the_episode_goes_on() -> None:
    args = ([1.0, 1.0], [0.0, 0.0], [1, 0])
    assert advantages_of(*args, 100.0, True, 0.9, 0.9) == advantages_of(*args, -5.0, True, 0.9, 0.9)
    assert advantages_of(*args, 100.0, False, 0.9, 0.9) != advantages_of(*args, -5.0, False, 0.9, 0.9)


@pytest.mark.parametrize("n_steps", [1, 2, 17])
@pytest.mark.parametrize("share_of_starts", [0.0, 0.3, 1.0])
def test_the_advantages_equal_the_defining_sum(n_steps: int, share_of_starts: float) -> None:
    generator = torch.Generator().manual_seed(n_steps)
    rewards, values = torch.randn(2, n_steps, 5, generator=generator)
    starts = torch.rand(n_steps, 5, generator=generator) < share_of_starts
    last_values = torch.randn(5, generator=generator)
    last_starts = torch.rand(5, generator=generator) < share_of_starts
    arguments = (rewards, values, starts, last_values, last_starts, 0.97, 0.9)
    expected = slow_advantages(*arguments)
    assert close(generalized_advantages(*arguments).double(), expected)


def test_environments_do_not_mix() -> None:
    rewards, values = torch.randn(2, 6, 4)
    starts, last_starts = torch.rand(6, 4) < 0.3, torch.tensor([True, False, True, False])
    last_values = torch.randn(4)
    together = generalized_advantages(rewards, values, starts, last_values, last_starts, 0.9, 0.8)
    for b in range(4):
        one = slice(b, b + 1)
        alone = generalized_advantages(
            rewards[:, one], values[:, one], starts[:, one], last_values[one], last_starts[one], 0.9, 0.8
        )
        assert close(alone, together[:, one])


def test_nothing_that_came_in_is_changed() -> None:
    rewards, values = torch.randn(2, 6, 4)
    starts, last_values = torch.rand(6, 4) < 0.3, torch.randn(4)
    arguments = (rewards, values, starts, last_values, torch.zeros(4, dtype=torch.bool))
    copies = [argument.clone() for argument in arguments]
    generalized_advantages(*arguments, 0.9, 0.8)
    assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, copies, strict=True))


def test_moments_gathered_in_parts_are_those_of_the_whole() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(3).add(100)
    gathered = Moments()
    for part in values.split([1, 0, 499, 500]):
        gathered = gathered.and_also(Moments.of(part))
    assert gathered.seen == 1000
    assert gathered.mean == pytest.approx(float(values.double().mean()), rel=1e-12)
    assert gathered.std == pytest.approx(float(values.double().std(correction=0)), rel=1e-9)


def test_advantages_are_divided_by_their_deviation_or_by_a_share_of_that_of_returns() -> None:
    returns = Moments.of(torch.tensor([-30.0, 30.0]))  # a deviation of 30
    wide, narrow = torch.tensor([1.0, 9.0]), torch.tensor([0.99, 1.01])
    assert advantage_scale(wide, returns) == pytest.approx((5.0, 4 * 2**0.5))
    assert advantage_scale(narrow, returns) == pytest.approx((1.0, 30 * FLOOR))
    assert advantage_scale(torch.tensor([7.0]), returns) == (0.0, 1.0)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_what_is_learned_from_does_not_depend_on_the_unit_of_rewards(spread: float) -> None:
    advantages, returns = spread * torch.linspace(-2, 2, 9), torch.linspace(-1, 1, 9)
    normalized = []
    for unit in (1.0, 1024.0):
        shift, scale = advantage_scale(unit * advantages, Moments.of(unit * returns))
        normalized.append((unit * advantages - shift) / scale)
    assert torch.allclose(*normalized, rtol=1e-5)
