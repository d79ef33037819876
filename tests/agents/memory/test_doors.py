"""What comes in at a memory's methods: correct numbers or an error, for every registered memory.

Axes: T time, B sequences, F features in.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.memory import MEMORIES, Memory, NoMemory, NumpyState, State, make_memory

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


Wrong = Callable[[Memory, Tensor, State, Tensor], tuple[Tensor, State, Tensor]]
OTHER_TYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64)
WRONG: dict[str, tuple[Wrong, type[Exception], str]] = {
    "a state of one sequence": (lambda m, x, state, e: (x, m.initial_state(1), e), ValueError, "expects"),
    "a state of one more": (lambda m, x, state, e: (x, m.initial_state(B + 1), e), ValueError, "expects"),
    "a part too many": (lambda m, x, state, e: (x, (*state, torch.zeros(B, 1)), e), ValueError, "expects"),
    "a part too few": (lambda m, x, state, e: (x, state[:-1], e), ValueError, "expects"),
    **{
        f"a state of {dtype}": (
            lambda m, x, state, e, dtype=dtype: (x, (*state[:-1], state[-1].to(dtype)), e),
            TypeError,
            r"must be float32|BFloat16",
        )
        for dtype in OTHER_TYPES
    },
    **{
        f"episode starts of {dtype}": (
            lambda m, x, state, e, dtype=dtype: (x, state, e.to(dtype)),
            TypeError,
            r"use episode_starts.bool\(\)",
        )
        for dtype in (torch.float32, torch.int64, torch.uint8)
    },
    "features too narrow": (lambda m, x, state, e: (x[..., :-1], state, e), ValueError, "expects"),
    "episode starts of one sequence": (lambda m, x, state, e: (x, state, e[:, :1]), ValueError, "expects"),
    "features of one sequence": (lambda m, x, state, e: (x[:, :1], state, e), ValueError, "expects"),
    "no sequences": (lambda m, x, state, e: (x[:, :0], m.initial_state(0), e[:, :0]), ValueError, "at least one"),
}


@every_memory
@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_and_never_broadcast(what: str, name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    given_right = given(memory)
    if not given_right[1] and what.startswith(("a state", "a part too few")):
        pytest.skip("it has no state")
    wrong, error, match = WRONG[what]
    for door in doors(memory):
        with pytest.raises(error, match=match):
            door(*wrong(memory, *given_right))


def test_blocks_of_other_lengths_and_resets_of_other_states_are_refused() -> None:
    memory = build("lstm", {})
    features, state, starts = given(memory)
    with pytest.raises(ValueError, match="expects"):
        memory.unroll(features, state, starts[:-1])
    with pytest.raises(ValueError, match="at least one"):
        memory.unroll(features[:0], state, starts[:0])
    with pytest.raises(ValueError, match="initial_state"):
        memory.reset(memory.initial_state(1), starts[0])


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
    for part, _ in build(name, kwargs).named_parameters():
        memory = build(name, kwargs)
        features, state, starts = given(memory)
        expected = memory.unroll(features, state, starts)
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


def test_a_memory_of_ones_own_is_checked_without_a_word() -> None:
    class Doubles(NoMemory):
        def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
            return 2 * features

    memory, features, starts = Doubles(F), torch.ones(T, B, F), torch.zeros(T, B, dtype=torch.bool)
    assert (memory.unroll(features, (), starts) == 2).all()
    with pytest.raises(ValueError, match="Doubles expects"):
        memory.unroll(features, (torch.zeros(B),), starts)
    with pytest.raises(TypeError, match="boolean"):
        memory.unroll(features, (), starts.float())
