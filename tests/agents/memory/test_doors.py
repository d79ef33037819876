"""What comes in at a memory's methods: correct numbers or an error, for every registered memory.

Axes: T time, B sequences, F features in.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.memory import MEMORIES, Memory, NumpyState, State, make_memory

T, B, F = 5, 3, 4

SETTINGS: dict[str, list[dict[str, Any]]] = {  # sizes that take compiled kernels, and sizes that do not
    **{name: [{"hidden_size": 8, "num_layers": 2}, {"hidden_size": 6}] for name in ("rnn", "lstm", "gru")},
    "gtrxl": [{"hidden_size": 8, "heads": 2, "window": 3}],
    "attention": [{"hidden_size": 8, "window": 3}, {"hidden_size": 6, "window": 3, "cell": "gru"}],
}
CASES = [(name, kwargs) for name in MEMORIES for kwargs in SETTINGS.get(name, [{}])]
WITH_STATE = [case for case in CASES if case[0] != "none"]

every_memory = pytest.mark.parametrize(("name", "kwargs"), CASES)
every_memory_with_state = pytest.mark.parametrize(("name", "kwargs"), WITH_STATE)


def build(name: str, kwargs: dict[str, Any]) -> Memory:
    torch.manual_seed(0)
    return make_memory(name, F, kwargs)


def given(memory: Memory, batch_size: int = B, n_steps: int = T) -> tuple[Tensor, State, Tensor]:
    features, starts = torch.randn(n_steps, batch_size, F), torch.zeros(n_steps, batch_size, dtype=torch.bool)
    starts[n_steps // 2 :: 3] = True
    state = memory.initial_state(batch_size)
    with torch.no_grad():
        for _ in range(2):
            _, state = memory.step(torch.randn(batch_size, F), state, torch.zeros(batch_size, dtype=torch.bool))
    return features, state, starts


def doors(memory: Memory) -> list[Callable[[Tensor, State, Tensor], Any]]:
    """All ways in, each called with a block."""

    def step(features: Tensor, state: State, starts: Tensor) -> Tensor:
        return memory.step(features[0], state, starts[0])[0]

    def in_numpy(features: Tensor, state: State, starts: Tensor) -> Tensor:
        numpy_step = memory.numpy_step()
        assert numpy_step is not None
        arrays: NumpyState = tuple(part.detach().numpy() for part in state)
        return torch.from_numpy(np.array(numpy_step(features[0].detach().numpy(), arrays, starts[0].numpy())[0]))

    def along(features: Tensor, state: State, starts: Tensor) -> State:
        return memory.states_along(features, state, starts, [0, T])

    weights = [memory.attention_weights] if hasattr(memory, "attention_weights") else []
    return [memory.unroll, step, in_numpy, along, *weights]


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@every_memory_with_state
def test_a_state_of_another_batch_is_never_broadcast(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, _, starts = given(memory)
    for other in (1, 2, B + 1):
        for door in doors(memory):
            with pytest.raises(ValueError, match="expects"):
                door(features, memory.initial_state(other), starts)
    with pytest.raises(ValueError, match="initial_state"):
        memory.reset(memory.initial_state(1), starts[0])


@every_memory
def test_a_state_of_another_number_of_parts_is_refused(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, state, starts = given(memory)
    for other in ((*state, torch.zeros(B, 1)), state[:-1] if state else (torch.zeros(B),)):
        for door in doors(memory):
            with pytest.raises(ValueError, match="expects"):
                door(features, other, starts)


@every_memory_with_state
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_a_state_of_another_type_is_refused(name: str, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    memory = build(name, kwargs)
    features, state, starts = given(memory)
    for at in range(len(state)):
        other = (*state[:at], state[at].to(dtype), *state[at + 1 :])
        for door in doors(memory):
            with pytest.raises(TypeError, match=r"must be float32|BFloat16"):
                door(features, other, starts)


@every_memory
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_episode_starts_that_are_not_boolean_are_refused(name: str, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    memory = build(name, kwargs)
    features, state, starts = given(memory)
    for door in doors(memory):
        with pytest.raises(TypeError, match=r"use episode_starts.bool\(\)"):
            door(features, state, starts.to(dtype))


@every_memory
def test_features_and_episode_starts_of_other_shapes_are_refused(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, state, starts = given(memory)
    wrong = [(features[..., :-1], starts), (features, starts[:, :1]), (features[:, :1], starts)]
    for door in doors(memory):
        for other, other_starts in wrong:
            with pytest.raises(ValueError, match="expects"):
                door(other, state, other_starts)
    with pytest.raises(ValueError, match="expects"):
        memory.unroll(features, state, starts[:-1])


@every_memory
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_features_of_another_type_give_correct_numbers_or_an_error(
    name: str, kwargs: dict[str, Any], dtype: torch.dtype
) -> None:
    memory = build(name, kwargs)
    features, state, starts = given(memory)
    rounded = features.to(dtype)
    for door in doors(memory)[:3]:
        try:
            found = door(rounded, state, starts)
        except (RuntimeError, TypeError, ValueError):
            continue
        torch.testing.assert_close(found.float(), door(rounded.float(), state, starts), rtol=1e-2, atol=1e-2)


@every_memory_with_state
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_of_another_type_give_correct_numbers_or_an_error(
    name: str, kwargs: dict[str, Any], dtype: torch.dtype
) -> None:
    """Each in its turn, and a memory all of that type."""
    for changed in ([part] for part in [name for name, _ in build(name, kwargs).named_parameters()]):
        memory = build(name, kwargs)
        features, state, starts = given(memory)
        expected = memory.unroll(features, state, starts)
        for part in changed:
            parameter = memory.get_parameter(part)
            parameter.data = parameter.data.to(dtype)
        try:
            found = memory.unroll(features, state, starts)
        except (RuntimeError, TypeError, ValueError):
            continue
        torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


@every_memory
def test_arrays_laid_out_otherwise_give_the_same(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, state, starts = given(memory)

    def spread(part: Tensor) -> Tensor:
        return torch.stack((part, part), dim=-1)[..., 0]

    for door in doors(memory):
        same(door(spread(features), tuple(map(spread, state)), spread(starts)), door(features, state, starts))
        turned = tuple(part.transpose(0, -1).contiguous().transpose(0, -1) for part in state)
        same(door(features, turned, starts), door(features, state, starts))


@every_memory
def test_no_sequences_and_no_steps_are_refused(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, _, starts = given(memory)
    for door in doors(memory):
        with pytest.raises(ValueError, match="at least one"):
            door(features[:, :0], memory.initial_state(0), starts[:, :0])
    with pytest.raises(ValueError, match="at least one"):
        memory.unroll(features[:0], memory.initial_state(B), starts[:0])


def test_a_memory_of_ones_own_is_checked_without_a_word() -> None:
    class Sum(Memory):
        def __init__(self, input_size: int) -> None:
            super().__init__(input_size, output_size=input_size)

        def initial_state(self, batch_size: int) -> State:
            return (torch.zeros(batch_size, self.input_size),)

        def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
            total = state[0].masked_fill(episode_starts[:, None], 0.0) + features
            return total, (total,)

        def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
            outputs = []
            for x, starts in zip(features, episode_starts, strict=True):
                output, state = self.step(x, state, starts)
                outputs.append(output)
            return torch.stack(outputs)

    memory = Sum(F)
    features, starts = torch.ones(T, B, F), torch.zeros(T, B, dtype=torch.bool)
    assert memory.unroll(features, memory.initial_state(B), starts)[-1, 0, 0] == T
    with pytest.raises(ValueError, match="Sum expects"):
        memory.unroll(features, memory.initial_state(1), starts)
    with pytest.raises(ValueError, match="Sum expects"):
        memory.step(features[0], memory.initial_state(1), starts[0])
    with pytest.raises(TypeError, match="boolean"):
        memory.step(features[0], memory.initial_state(B), starts[0].float())
