"""minGRU and LRU: the scan, hand-computed steps, first time scales, and what is refused."""

import cmath
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.kernels import in_torch
from agents.kernels import scan as compiled
from agents.memory import LRU, MinGRU, make_memory
from agents.memory.linear import ScanInParallel, scan, scan_in_parallel
from tests.tolerance import assert_close, near

T, B, N = 37, 3, 6
DTYPES = [torch.float64, torch.complex128]

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def in_turn(decay: Tensor, inputs: Tensor, state: Tensor, starts: Tensor) -> Tensor:
    states = []
    for a, x, start in zip(decay.expand_as(inputs), inputs, starts, strict=True):
        state = torch.where(start[:, None], x, a * state + x)
        states.append(state)
    return torch.stack(states)


def terms(n_steps: int, dtype: torch.dtype, constant: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(n_steps)
    decay = torch.randn(*([N] if constant else [n_steps, B, N]), dtype=dtype)
    inputs, before = (torch.randn(*shape, B, N, dtype=dtype) for shape in ((n_steps,), ()))
    return decay / decay.abs().clamp(min=1.0), inputs, before, torch.rand(n_steps, B) < 0.2


@every_dtype
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 5, 31, 32, 33, 100])
def test_a_scan_is_the_recurrence_step_by_step(n_steps: int, constant: bool, dtype: torch.dtype) -> None:
    decay, inputs, before, starts = terms(n_steps, dtype, constant)
    expected = in_turn(decay, inputs, before, starts)
    assert_close(scan(decay, inputs, before, starts), expected, dtype=np.float64)
    with in_torch():
        assert_close(scan(decay, inputs, before, starts), expected, dtype=np.float64)
    decay = torch.where(starts[..., None], 0, decay)
    assert_close(ScanInParallel.apply(decay, inputs, before), expected, dtype=np.float64)
    from_zero = in_turn(decay, inputs, torch.zeros_like(before), starts)
    assert_close(scan_in_parallel(decay, inputs), from_zero, dtype=np.float64)


@every_dtype
def test_the_gradient_of_a_scan_is_the_numerical_one(dtype: torch.dtype) -> None:
    for constant in (False, True):
        *arguments, starts = terms(7, dtype, constant)
        arguments = [part.requires_grad_() for part in arguments]
        assert torch.autograd.gradcheck(scan, (*arguments, starts))
        with in_torch():
            assert torch.autograd.gradcheck(scan, (*arguments, starts))
    decay, *others = (part.detach() for part in terms(7, dtype)[:3])
    decay[torch.rand(7) < 0.3] = 0
    assert torch.autograd.gradcheck(
        ScanInParallel.apply, (decay.requires_grad_(), *(it.requires_grad_() for it in others))
    )


SERVED = [(torch.float32, False), (torch.complex64, True)]


@pytest.mark.skipif(not compiled.available, reason="built without a C compiler")
@pytest.mark.parametrize(("dtype", "constant"), SERVED)
@pytest.mark.parametrize("n_steps", [1, 2, 50])
def test_a_compiled_scan_and_its_gradient_are_torchs(n_steps: int, dtype: torch.dtype, constant: bool) -> None:
    *arguments, starts = terms(n_steps, dtype, constant)
    asked = [part.requires_grad_() for part in arguments]
    weights = torch.randn_like(arguments[1])
    assert compiled.takes(*asked[:2])
    states = scan(*arguments, starts)
    gradients = torch.autograd.grad(states, asked, weights)
    with in_torch():
        wanted = scan(*arguments, starts)
        torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-6)
        expected = torch.autograd.grad(wanted, asked, weights)
    for found, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not compiled.available, reason="built without a C compiler")
@pytest.mark.parametrize(("n_traces", "n_decays"), [(1, 1), (3, 4), (5, 3), (2, 9), (8, 2)])
def test_traces_are_the_scan_of_each_input_at_each_of_its_decays(n_traces: int, n_decays: int) -> None:
    """Nor does anything pass the start of an episode."""
    torch.manual_seed(n_decays)
    decay = torch.randn(n_traces, n_decays, 2)
    decay /= decay.norm(dim=-1, keepdim=True).clamp(min=1.0)
    inputs, before = torch.randn(T, B, n_traces), torch.randn(B, n_traces, n_decays, 2)
    starts = torch.rand(T, B) < 0.1
    starts[20] = True

    def scanned(decay: Tensor, inputs: Tensor, before: Tensor) -> Tensor:
        at_each = torch.complex(inputs, torch.zeros_like(inputs)).repeat_interleave(n_decays, dim=-1)
        decay, before = (torch.view_as_complex(part.flatten(-3, -2)) for part in (decay, before))
        return torch.view_as_real(scan(decay, at_each, before, starts)).view(T, B, n_traces, n_decays, 2)

    asked = [part.requires_grad_() for part in (decay, inputs, before)]
    weights = torch.randn(T, B, n_traces, n_decays, 2)
    assert compiled.takes_traces(decay, inputs)
    states = compiled.traces(*asked, starts)
    gradients = torch.autograd.grad(states, asked, weights)
    with in_torch():
        wanted = scanned(*asked)
        expected = torch.autograd.grad(wanted, asked, weights)
        assert not compiled.takes_traces(decay, inputs)
    torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-6)
    for found, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        inputs[5], before[:] = torch.nan, torch.inf
    after = compiled.traces(*asked, starts)
    assert after[5].isnan()[..., 0].all()
    assert torch.equal(after[20:], states[20:])
    (gradient,) = torch.autograd.grad(after[20:].abs().sum(), inputs)
    assert gradient[20:].isfinite().all()
    assert not gradient[:20].any()


@pytest.mark.parametrize("name", ["mingru", "lru", "ffm"])
def test_a_second_derivative_is_torchs_or_an_error_that_says_what_to_do(name: str) -> None:
    torch.manual_seed(0)
    memory = make_memory(name, 3, {"hidden_size": 8})
    x, starts = torch.randn(5, 2, 3, requires_grad=True), torch.zeros(5, 2, dtype=torch.bool)

    def first() -> Tensor:
        output = memory.unroll(x, memory.initial_state(2), starts)
        return torch.autograd.grad(output.square().sum(), x, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="in_torch"):
        first()
    with in_torch():
        assert torch.autograd.grad(first().square().sum(), x)[0].any()


def test_what_no_compiled_scan_is_for_is_refused() -> None:
    for dtype, constant in [*((dtype, not constant) for dtype, constant in SERVED), *((each, True) for each in DTYPES)]:
        assert not compiled.takes(*terms(3, dtype, constant)[:2])


@pytest.mark.parametrize(("dtype", "constant"), [*SERVED, *((dtype, False) for dtype in DTYPES)])
def test_not_even_a_nan_passes_the_start_of_an_episode(dtype: torch.dtype, constant: bool) -> None:
    """Nor do its gradients."""
    decay, inputs, before, starts = terms(T, dtype, constant)
    starts[:] = False
    starts[20] = True
    expected = in_turn(decay, inputs, before, starts)[20:]
    inputs[5], before = torch.nan, before * torch.inf
    inputs.requires_grad_()
    states = scan(decay, inputs, before, starts)
    assert states[5].isnan().all()
    assert_close(states[20:], expected, dtype=np.float64 if dtype in DTYPES else np.float32)
    (gradient,) = torch.autograd.grad(states[20:].abs().sum(), inputs)
    assert gradient[20:].isfinite().all()
    if compiled.takes(decay, inputs):
        assert not gradient[:20].any()
    starts[0] = True
    assert torch.equal(scan(decay, inputs, before, starts)[0], inputs[0])


@every_dtype
def test_not_even_a_nan_passes_a_decay_of_zero_in_a_parallel_scan(dtype: torch.dtype) -> None:
    decay, inputs, before, starts = terms(T, dtype)
    decay[20] = 0
    expected = in_turn(decay[20:], inputs[20:], before, torch.zeros_like(starts[20:]))
    inputs[5] = torch.nan
    states = scan_in_parallel(decay, inputs)
    assert states[5].isnan().all()
    assert_close(states[20:], expected, dtype=np.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def g(x: float) -> float:
    return x + 0.5 if x >= 0 else sigmoid(x)


@pytest.mark.parametrize("b_n", [1.5, -1.5])
def test_one_unit_of_a_mingru_by_hand(b_n: float) -> None:
    """One unit is normalized to 0, so that the biases alone decide."""
    memory = MinGRU(1, 1, 1)
    layer: Any = memory.layers[0]
    b_z, embedded, before = 0.4, 0.7, 2.0
    layer.gates.bias.data = torch.tensor([b_z, b_n])
    layer.output.weight.data = torch.tensor([[0.3], [-0.8]])
    layer.output.bias.data = torch.tensor([0.1, 0.2])
    memory.embedding.weight.data.fill_(0.0)
    memory.embedding.bias.data.fill_(embedded)
    h = (1 - sigmoid(b_z)) * before + sigmoid(b_z) * g(b_n)
    expected = embedded + (0.3 * h + 0.1) * sigmoid(-0.8 * h + 0.2)
    output, (after,) = memory.step(torch.ones(1, 1), (torch.tensor([[[before]]]),), torch.tensor([False]))
    assert after.item() == near(h)
    assert output.item() == near(expected)


def test_a_mingru_of_two_units_sees_the_normalized_features() -> None:
    memory = MinGRU(2, 2, 1)
    layer: Any = memory.layers[0]
    memory.embedding.weight.data = torch.eye(2)
    weights = torch.tensor([[0.5, -1.0], [2.0, 0.3], [0.7, 0.1], [-0.4, 1.2]])
    layer.gates.weight.data, layer.gates.bias.data = weights, torch.zeros(4)
    x = [3.0, 1.0]  # mean 2, variance 1
    normal = [1 / math.sqrt(1 + 1e-5), -1 / math.sqrt(1 + 1e-5)]
    z_1, z_2, n_1, n_2 = (row[0] * normal[0] + row[1] * normal[1] for row in weights.tolist())
    expected = [sigmoid(z_1) * g(n_1), sigmoid(z_2) * g(n_2)]
    _, (after,) = memory.step(torch.tensor([x]), memory.initial_state(1), torch.tensor([False]))
    assert after.flatten().tolist() == near(expected)


def test_one_unit_of_an_lru_by_hand() -> None:
    memory = LRU(2, 2, 1, state_size=1)
    layer: Any = memory.layers[0]
    memory.embedding.weight.data, memory.embedding.bias.data = torch.eye(2), torch.zeros(2)
    layer.nu.data, layer.theta.data, layer.gamma.data = (torch.tensor([value]) for value in (-1.5, 0.3, -0.7))
    layer.input.data = torch.tensor([[0.5, -1.0], [2.0, 0.3]])  # Re B, Im B
    before = complex(0.6, -1.1)
    eigenvalue = cmath.exp(complex(-math.exp(-1.5), math.exp(0.3)))
    x = 1 / math.sqrt(1 + 1e-5)  # of (3, 1): 1 and -1
    h = eigenvalue * before + math.exp(-0.7) * complex(0.5 * x + 1.0 * x, 2.0 * x - 0.3 * x)
    state = (torch.tensor([before.real, before.imag]).view(1, 1, 1, 2),)
    output, (after,) = memory.step(torch.tensor([[3.0, 1.0]]), state, torch.tensor([False]))
    assert after.flatten().tolist() == near([h.real, h.imag])

    y = torch.tensor([h.real, h.imag]) @ layer.readout.T + layer.skip * torch.tensor([x, -x])
    left, right = layer.output(torch.nn.functional.gelu(y, approximate="tanh")).chunk(2)
    assert_close(output[0], torch.tensor([3.0, 1.0]) + left * right.sigmoid())


def test_eigenvalues_start_in_the_ring_and_stay_below_one() -> None:
    torch.manual_seed(0)
    memory = LRU(3, 4, 1, state_size=2000, r_min=0.6, r_max=0.9, max_phase=1.0)
    layer: Any = memory.layers[0]
    found = torch.view_as_complex(layer.eigenvalues().detach())
    assert 0.6 - 1e-5 <= found.abs().min() < 0.61
    assert 0.89 < found.abs().max() <= 0.9 + 1e-5
    # Of the steps that it takes to forget, 1 / (1 - r), as many lie below 5 = sqrt(2.5 * 10) as above.
    assert (1 / (1 - found.abs()) < 5).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert found.angle().min() >= 0
    assert 0.99 < found.angle().max() <= 1.0 + 1e-5
    assert_close(layer.gamma.exp(), (1 - found.abs().square()).sqrt())
    layer.nu.data.fill_(-50.0)
    assert torch.view_as_complex(layer.eigenvalues().detach()).abs().max() <= 1


def test_a_mingru_forgets_over_up_to_its_horizon_at_first() -> None:
    torch.manual_seed(0)
    layer: Any = MinGRU(3, 512, chrono_horizon=100).layers[1]
    steps = 1 / torch.sigmoid(layer.gates.bias[:512])
    assert 2 - 1e-4 <= steps.min() < 4
    assert 90 < steps.max() <= 100 + 1e-3
    assert (steps < 11).float().mean().item() == pytest.approx(0.5, abs=0.1)
    flat: Any = MinGRU(3, 512, chrono_horizon=None).layers[1]
    assert (flat.gates.bias == 0).all()


@pytest.mark.parametrize("name", ["mingru", "lru"])
def test_a_signal_is_kept_over_a_thousand_steps_and_gradients_with_it(name: str) -> None:
    """Where the gates keep, no more is lost than the decay says: here 1 part in e over 1000 steps."""
    kwargs = {"chrono_horizon": None} if name == "mingru" else {"max_phase": 1e-6}
    memory: Any = make_memory(name, 2, {"hidden_size": 4, "num_layers": 1, **kwargs})
    with torch.no_grad():
        if name == "mingru":
            memory.layers[0].gates.weight[:4] = 0
            memory.layers[0].gates.bias[:4] = -math.log(999)
        else:
            memory.layers[0].nu.fill_(math.log(-math.log(0.999)))
    features = torch.randn(1000, 1, 2, requires_grad=True)
    outputs = memory.unroll(features, memory.initial_state(1), torch.zeros(1000, 1, dtype=torch.bool))
    first, last = (torch.autograd.grad(outputs[-1].sum(), features, retain_graph=True)[0][t].norm() for t in (0, 998))
    assert first > 0
    assert 1e-3 < first / last < 1e3


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mingru", {"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ("mingru", {"num_layers": 1.5}, "num_layers must be a whole number of at least 1, got 1.5"),
        ("mingru", {"chrono_horizon": 1}, "chrono_horizon must be a number of steps of at least 2; got 1"),
        ("lru", {"state_size": 0}, "state_size must be a whole number of at least 1, got 0"),
        ("lru", {"r_min": 0.9, "r_max": 0.5}, "0 <= r_min < r_max < 1; got 0.9 and 0.5"),
        ("lru", {"r_max": 1.0}, "0 <= r_min < r_max < 1; got 0.5 and 1.0"),
        ("lru", {"max_phase": 7.0}, r"max_phase must be in \(0, 2 pi\]; got 7.0"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory(name, 3, kwargs)
