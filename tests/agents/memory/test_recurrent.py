"""RNN, LSTM and GRU: hand-computed steps, initialization, dropout, torch's state dicts, errors of shape."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.memory import GRU, LSTM, RNN, make_memory
from agents.memory.recurrent import HORIZON, Recurrent
from tests.tolerance import assert_close, near

EVERY_CELL = pytest.mark.parametrize(("ours", "theirs"), [(RNN, nn.RNN), (LSTM, nn.LSTM), (GRU, nn.GRU)])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def with_parameters(memory: Recurrent, **values: list[float]) -> Recurrent:
    for name, value in values.items():
        memory.get_parameter(f"{name}_l0").data.copy_(torch.tensor(value).view_as(memory.get_parameter(f"{name}_l0")))
    return memory


def one_unit_case(memory: Recurrent, state: tuple[float, ...], x: float) -> tuple[list[float], list[float]]:
    """The state after one step of one unit: by step, and the output of unroll, by numpy_step."""
    before = tuple(torch.tensor([[[part]]]) for part in state)
    no_start = torch.zeros(1, dtype=torch.bool)
    output, after = memory.step(torch.tensor([[x]]), before, no_start)
    unrolled = memory.unroll(torch.tensor([[[x]]]), before, no_start.view(1, 1))
    assert unrolled.item() == near(output.item())
    step: Any = memory.numpy_step()
    numpy_output, numpy_after = step(
        np.array([[x]], np.float32), tuple(part.numpy() for part in before), no_start.numpy()
    )
    assert numpy_output.item() == near(output.item())
    assert output.item() == after[0].item()
    return [part.item() for part in after], [part.item() for part in numpy_after]


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_one_unit_of_an_rnn_by_hand(nonlinearity: Any) -> None:
    memory = with_parameters(
        RNN(1, 1, nonlinearity=nonlinearity), weight_ih=[0.5], weight_hh=[-2.0], bias_ih=[0.1], bias_hh=[0.2]
    )
    for x in (3.0, -3.0):
        total = 0.5 * x + 0.1 - 2.0 * 0.25 + 0.2
        expected = math.tanh(total) if nonlinearity == "tanh" else max(total, 0.0)
        for after in one_unit_case(memory, (0.25,), x):
            assert after == near([expected])


def test_one_unit_of_an_lstm_by_hand() -> None:
    memory = with_parameters(
        LSTM(1, 1),
        weight_ih=[0.5, -1.0, 2.0, 0.3],
        weight_hh=[0.7, 0.2, -0.4, 1.5],
        bias_ih=[0.1, 0.2, 0.3, 0.4],
        bias_hh=[-0.3, 0.6, 0.05, -0.2],
    )
    h, c, x = 0.25, -0.8, 1.5
    i = sigmoid(0.5 * x + 0.7 * h - 0.2)
    f = sigmoid(-1.0 * x + 0.2 * h + 0.8)
    g = math.tanh(2.0 * x - 0.4 * h + 0.35)
    o = sigmoid(0.3 * x + 1.5 * h + 0.2)
    cell = f * c + i * g
    for after in one_unit_case(memory, (h, c), x):
        assert after == near([o * math.tanh(cell), cell])


def test_one_unit_of_a_gru_by_hand() -> None:
    memory = with_parameters(
        GRU(1, 1),
        weight_ih=[0.5, -1.0, 2.0],
        weight_hh=[0.7, 0.2, -0.4],
        bias_ih=[0.1, 0.2, 0.3],
        bias_hh=[-0.3, 0.6, 0.05],
    )
    h, x = 0.25, 1.5
    r = sigmoid(0.5 * x + 0.7 * h - 0.2)
    z = sigmoid(-1.0 * x + 0.2 * h + 0.8)
    n = math.tanh(2.0 * x + 0.3 + r * (-0.4 * h + 0.05))
    for after in one_unit_case(memory, (h,), x):
        assert after == near([(1 - z) * n + z * h])


@EVERY_CELL
@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_is_torchs_and_so_are_the_outputs(ours: Any, theirs: Any, bias: bool) -> None:
    torch.manual_seed(0)
    layer, memory = theirs(5, 16, 3, bias=bias), ours(5, 16, 3, bias=bias)
    assert list(memory.state_dict()) == list(layer.state_dict())
    memory.load_state_dict(layer.state_dict())
    features = torch.randn(9, 4, 5)
    outputs = memory.unroll(features, memory.initial_state(4), torch.zeros(9, 4, dtype=torch.bool))
    assert_close(outputs, layer(features)[0])


@EVERY_CELL
def test_torchs_initialization_draws_what_torch_draws(ours: Any, theirs: Any) -> None:
    kwargs = {} if ours is RNN else {"chrono_horizon": None}
    torch.manual_seed(3)
    layer = theirs(5, 8, 2)
    torch.manual_seed(3)
    memory = ours(5, 8, 2, initialization="torch", **kwargs)
    for name, value in layer.state_dict().items():
        assert torch.equal(memory.state_dict()[name], value), name


@EVERY_CELL
def test_recurrent_weights_start_orthogonal_gate_by_gate(ours: Any, theirs: Any) -> None:
    memory = ours(5, 8, 2)
    for layer in range(2):
        for gate in memory.get_parameter(f"weight_hh_l{layer}").chunk(memory.gates):
            assert_close(gate @ gate.T, torch.eye(8))
        bound = math.sqrt(6 / (8 + (5 if layer == 0 else 8)))
        for gate in memory.get_parameter(f"weight_ih_l{layer}").chunk(memory.gates):
            assert 0.5 * bound < gate.abs().max() <= bound


def total_bias(memory: Recurrent, layer: int, gate: int) -> Tensor:
    size = memory.hidden_size
    biases = memory.get_parameter(f"bias_ih_l{layer}") + memory.get_parameter(f"bias_hh_l{layer}")
    return biases.detach()[gate * size : (gate + 1) * size]


def test_an_lstm_starts_with_the_given_forget_bias_and_no_other() -> None:
    memory = LSTM(5, 8, 2, forget_bias=3.0)
    for layer in range(2):
        assert (total_bias(memory, layer, 1) == 3.0).all()
        assert all((total_bias(memory, layer, gate) == 0).all() for gate in (0, 2, 3))
    assert (total_bias(LSTM(5, 8, chrono_horizon=None), 0, 1) == 0.0).all()
    torch_like = LSTM(5, 8, initialization="torch", forget_bias=2.0)
    assert (total_bias(torch_like, 0, 1) == 2.0).all()
    assert (total_bias(torch_like, 0, 0) != 0.0).all()


@pytest.mark.parametrize("horizon", [2, 10.0, None])
def test_chrono_initialization_spreads_time_scales_up_to_the_horizon(horizon: Any) -> None:
    torch.manual_seed(0)
    kwargs = {} if horizon is None else {"chrono_horizon": horizon}
    lstm, gru, horizon = LSTM(5, 512, 2, **kwargs), GRU(5, 512, 2, **kwargs), horizon or HORIZON
    for layer in range(2):
        # A gate with bias log(t) keeps t / (1 + t) of its content a step: it forgets over about 1 + t steps.
        for times in (total_bias(lstm, layer, 1).exp(), total_bias(gru, layer, 1).exp()):
            assert times.min() >= 1 - 1e-4
            assert times.max() <= horizon - 1 + 1e-3 * horizon
            middle = (times.log() <= 0.5 * math.log(horizon - 1) + 1e-4).float().mean().item()
            assert middle == 1.0 if horizon == 2 else middle == pytest.approx(0.5, abs=0.1)
        assert torch.equal(total_bias(lstm, layer, 0), -total_bias(lstm, layer, 1))
        assert (total_bias(gru, layer, 0) == 0).all()


def test_memories_without_biases_have_none() -> None:
    for memory in (RNN(5, 8, bias=False), LSTM(5, 8, bias=False), GRU(5, 8, bias=False)):
        assert list(memory.state_dict()) == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_dropout_acts_in_training_rollouts_only_and_keeps_its_masks(name: str) -> None:
    torch.manual_seed(0)
    memory: Any = make_memory(name, 5, {"hidden_size": 64, "num_layers": 3, "dropout": 0.25})
    initial = memory.initial_state(7)
    assert (initial[-1] == 1).all()
    assert initial[-1].shape == (7, 2, 64)
    renewed = memory.renew(initial)
    assert renewed[-1].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (renewed[-1] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert not torch.equal(renewed[-1], memory.renew(renewed)[-1])
    assert all(torch.equal(one, other) for one, other in zip(renewed[:-1], initial[:-1], strict=True))
    everywhere = torch.ones(7, dtype=torch.bool)
    _, after = memory.step(torch.randn(7, 5), renewed, everywhere)
    assert torch.equal(after[-1], renewed[-1])
    assert torch.equal(memory.reset(renewed, everywhere)[-1], renewed[-1])


def test_without_dropout_there_is_no_mask_to_renew() -> None:
    memory = LSTM(5, 8, 2)
    state = memory.initial_state(3)
    assert len(state) == 2
    assert memory.renew(state) is state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(LSTM(5, 8, 1, dropout=0.5).initial_state(3)) == 2


def test_a_numpy_step_is_there_for_single_precision_only() -> None:
    assert LSTM(5, 8).double().numpy_step() is None


def test_a_numpy_step_keeps_the_parameters_it_was_built_with() -> None:
    memory = LSTM(5, 8)
    step: Any = memory.numpy_step()
    arguments = np.ones((2, 5), np.float32), tuple(p.numpy() for p in memory.initial_state(2)), np.zeros(2, np.bool_)
    before = step(*arguments)[0].copy()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(step(*arguments)[0], before)
