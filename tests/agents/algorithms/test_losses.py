"""Losses against hand-computed cases."""

import math

import pytest
import torch

from agents.algorithms.losses import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    normalized,
    policy_gradient,
    value_error,
)
from tests.tolerance import close, near


def test_normalized_advantages_have_mean_zero_and_deviation_one() -> None:
    result = normalized(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert result.mean().item() == near(0.0, scale=1.0)
    assert result.std().item() == near(1.0)
    assert result.argsort().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("advantages", "expected"), [([2.5], [2.5]), ([], []), ([7.0] * 4, [0.0] * 4)])
def test_advantages_without_a_deviation_are_normalized_without_nan(
    advantages: list[float], expected: list[float]
) -> None:
    assert normalized(torch.tensor(advantages)).tolist() == expected


def test_the_clipped_surrogate_is_the_one_computed_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0])
    # min(rA, clip(r)A) with eps = 0.2: 2, 1.2 (clipped), 0.5, -1.5, -0.8 (clipped)
    expected = -(2.0 + 1.2 + 0.5 - 1.5 - 0.8) / 5
    assert clipped_surrogate(ratios.log(), advantages, 0.2).item() == near(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.5, 1.0, False), (0.5, -1.0, False), (0.5, 1.0, True), (1.5, -1.0, True)]
)
def test_a_clipped_step_has_no_gradient_and_one_that_went_the_wrong_way_has(
    ratio: float, advantage: float, moves: bool
) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    clipped_surrogate(log_ratio, torch.tensor([advantage]), 0.2).backward()
    assert log_ratio.grad is not None
    assert (log_ratio.grad.item() != 0) is moves


def test_at_ratio_one_the_surrogate_has_the_gradient_of_the_policy_gradient() -> None:
    advantages = torch.tensor([2.0, -1.0, 0.5])
    log_probs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    clipped_surrogate(log_probs - log_probs.detach(), advantages, 0.2).backward()
    surrogate = log_probs.grad
    log_probs.grad = None
    policy_gradient(log_probs, advantages).backward()
    assert surrogate is not None
    assert log_probs.grad is not None
    assert close(surrogate, log_probs.grad)


def test_the_policy_gradient_is_the_one_computed_by_hand() -> None:
    assert policy_gradient(torch.tensor([-1.0, -2.0]), torch.tensor([3.0, -1.0])).item() == near(0.5)


def test_the_value_error_is_the_mean_square_of_values_that_move_only_so_far_from_the_old_ones() -> None:
    values, returns, old = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0]), torch.tensor([0.0, 1.9])
    assert value_error(values, returns, old, None).item() == near((1 + 9) / 2)
    # 0 + clip(1, +-0.5) = 0.5 -> 1.5^2; 1.9 + 0.1 = 2 -> 3^2
    assert value_error(values, returns, old, 0.5).item() == near((2.25 + 9) / 2)


def test_the_divergence_and_clip_fraction_are_those_computed_by_hand() -> None:
    log_ratio = torch.tensor([1.0, 1.5, 0.5, 1.1]).log()
    # (r - 1) - log r
    expected = sum(r - 1 - math.log(r) for r in (1.0, 1.5, 0.5, 1.1)) / 4
    assert approximate_kl(log_ratio).item() == near(expected)
    assert clip_fraction(log_ratio, 0.2).item() == 0.5
    assert approximate_kl(torch.zeros(3)).item() == 0.0
    assert clip_fraction(torch.zeros(3), 0.2).item() == 0.0
