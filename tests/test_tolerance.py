"""Tolerances accept rounding and reject errors."""

import numpy as np
import pytest
import torch

from agents.memory import make_memory
from tests.tolerance import N_TERMS, assert_close, close, near


@pytest.mark.parametrize("n", [1, 16, N_TERMS, 256])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
def test_another_order_of_a_sum_is_accepted(n: int, magnitude: float) -> None:
    generator = torch.Generator().manual_seed(n)
    terms = magnitude * torch.randn(1000, n, generator=generator)
    forward, backward = torch.zeros(1000), torch.zeros(1000)
    for i in range(n):
        forward, backward = forward + terms[:, i], backward + terms[:, n - 1 - i]
    assert_close(forward, backward, terms=n)
    assert_close(forward.double(), terms.double().sum(1), terms=n)


@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
def test_an_error_of_a_thousandth_is_rejected(magnitude: float) -> None:
    right = magnitude * torch.linspace(-1, 1, 50)
    assert not close(right * 1.001, right)
    assert not close(right * 1.001, right, terms=600)
    assert magnitude * 1.001 != near(magnitude)
    with pytest.raises(AssertionError):
        assert_close(right.double() * (1 + 1e-12), right.double(), dtype=np.float64)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "mingru", "lru", "gtrxl", "attention"])
def test_a_weight_error_of_a_thousandth_is_rejected_in_outputs_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    memory = make_memory(name, 3, {"hidden_size": 16})
    features, starts = torch.randn(13, 5, 3), torch.rand(13, 5) < 0.2

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        x = features.clone().requires_grad_()
        outputs = memory.unroll(x, memory.initial_state(5), starts)
        return outputs.detach(), torch.autograd.grad(outputs.square().sum(), x)[0]

    outputs, gradient = results()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter *= 1.001
    off, off_gradient = results()
    assert not close(off, outputs)
    assert not close(off_gradient, gradient, terms=13 * 5)


def test_a_wrong_shape_and_a_nan_are_rejected() -> None:
    assert not close(torch.ones(3, 1), torch.ones(3))
    assert not close(torch.tensor([1.0, torch.nan]), torch.ones(2))
