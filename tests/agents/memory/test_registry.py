"""Memories by name, by path and by class, and what is said when that fails."""

from typing import Any

import numpy as np
import pytest
import torch

from agents.memory import GRU, LSTM, MEMORIES, RNN, Memory, NoMemory, make_memory, memory_class


class OwnMemory(NoMemory):
    """A memory of a user's own."""

    def __init__(self, input_size: int, size: int = 3) -> None:
        super().__init__(input_size)
        self.size = size


NOT_A_MEMORY = 3


@pytest.mark.parametrize("name", MEMORIES)
def test_every_memory_is_built_from_its_name_with_defaults(name: str) -> None:
    memory = make_memory(name, 5)
    assert type(memory) is MEMORIES[name]
    assert memory.input_size == 5
    output, _ = memory.step(torch.zeros(2, 5), memory.initial_state(2), torch.zeros(2, dtype=torch.bool))
    assert output.shape == (2, memory.output_size)


def test_a_memory_is_given_by_name_path_or_class() -> None:
    assert memory_class("gru") is GRU
    assert memory_class(LSTM) is LSTM
    assert memory_class("agents.memory.recurrent:RNN") is RNN
    own: Any = make_memory(f"{__name__}:OwnMemory", 4, {"size": 7})
    assert (type(own).__name__, own.input_size, own.size) == ("OwnMemory", 4, 7)
    assert make_memory(OwnMemory, 4).input_size == 4


@pytest.mark.parametrize(
    ("memory", "error", "message"),
    [
        ("lsmt", ValueError, r"no memory is called 'lsmt'; did you mean 'lstm'\? there are rnn, lstm, gru, "),
        ("LSTM", ValueError, "did you mean 'lstm'"),
        ("perceiver", ValueError, "no memory is called 'perceiver'; there are rnn"),
        ("no.such.module:Memory", ValueError, "the module 'no.such.module' cannot be imported"),
        (":Memory", ValueError, "the module '' cannot be imported"),
        ("agents.memory:LSMT", ValueError, "the module 'agents.memory' has no 'LSMT'"),
        (f"{__name__}:NOT_A_MEMORY", TypeError, "a subclass of agents.memory.Memory"),
        (torch.nn.LSTM, TypeError, "a subclass of agents.memory.Memory"),
        (None, TypeError, "a subclass of agents.memory.Memory"),
    ],
)
def test_a_memory_that_is_not_there_is_a_clear_error(memory: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_memory(memory, 4)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        (
            "lstm",
            {"hiden_size": 8},
            TypeError,
            r"LSTM takes no 'hiden_size'; did you mean 'hidden_size'\? .*num_layers",
        ),
        ("gru", {"proj": 8}, TypeError, r"GRU takes no 'proj' \(it takes hidden_size, num_layers, bias, dropout"),
        ("none", {"hidden_size": 8}, TypeError, r"NoMemory takes no 'hidden_size' \(it takes nothing more\)"),
        ("lstm", {"input_size": 8}, TypeError, "LSTM takes no 'input_size'"),
        ("lstm", {"hidden_size": 0}, ValueError, "hidden_size must be a whole number of at least 1, got 0"),
        ("lstm", {"hidden_size": 8.0}, ValueError, "hidden_size must be a whole number of at least 1, got 8.0"),
        ("lstm", {"hidden_size": True}, ValueError, "hidden_size must be a whole number of at least 1, got True"),
        ("gru", {"num_layers": 0}, ValueError, "num_layers must be a whole number of at least 1, got 0"),
        ("rnn", {"num_layers": 2, "dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\); got 1.0"),
        ("rnn", {"num_layers": 2, "dropout": -0.1}, ValueError, r"dropout must be in \[0, 1\); got -0.1"),
        ("rnn", {"nonlinearity": "elu"}, ValueError, "nonlinearity must be 'tanh' or 'relu'; got 'elu'"),
        (
            "gru",
            {"initialisation": "torch"},
            TypeError,
            "GRU takes no 'initialisation'; did you mean 'initialization'?",
        ),
        ("gru", {"initialization": "zeros"}, ValueError, "initialization must be 'orthogonal' or 'torch'; got 'zeros'"),
        ("lstm", {"chrono_horizon": 1}, ValueError, "chrono_horizon must be a number of steps of at least 2; got 1"),
        ("gru", {"chrono_horizon": 1.5}, ValueError, "chrono_horizon must be a number of steps of at least 2; got 1.5"),
        ("lstm", {"forget_bias": float("nan")}, ValueError, "forget_bias must be a finite number or None; got nan"),
    ],
)
def test_a_wrong_argument_is_a_clear_error(
    name: str, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_memory(name, 4, kwargs)


def test_numpy_numbers_are_numbers() -> None:
    assert make_memory("lstm", np.int64(4), {"hidden_size": np.int32(8)}).output_size == 8  # type: ignore[arg-type]


def test_dropout_with_one_layer_warns_as_torch_does() -> None:
    with pytest.warns(UserWarning, match="nothing is dropped"):
        make_memory("lstm", 4, {"dropout": 0.5})


def test_a_memory_that_takes_any_argument_is_not_second_guessed() -> None:
    class Any_(NoMemory):
        def __init__(self, input_size: int, **settings: int) -> None:
            super().__init__(input_size)
            self.settings = settings

    memory: Memory = make_memory(Any_, 4, {"anything": 1})
    assert memory.settings == {"anything": 1}
