"""What must hold for every registered memory. Axes: T time, B sequences, F features in."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.memory import MEMORIES, Memory, State, make_memory
from tests.pairs import each
from tests.tolerance import N_TERMS, assert_close

T, B, F = 13, 5, 3

# More than one layer, so that a swap of axes cannot pass. Sizes that are not multiples of 8 are padded
# by the kernels. A memory without such settings runs with its defaults.
RECURRENT: list[dict[str, Any]] = [
    {"hidden_size": 16, "num_layers": 2},
    {"hidden_size": 8, "num_layers": 3, "dropout": 0.4},
    {"hidden_size": 6, "num_layers": 2},
    {"hidden_size": 6, "num_layers": 3, "dropout": 0.4, "bias": False},
    {"hidden_size": 24, "bias": False},
    {"hidden_size": 8, "num_layers": 2, "learned_initial_state": True},
    {"hidden_size": 6, "num_layers": 3, "dropout": 0.4, "learned_initial_state": True},
]
# Of three layers whose gates are biased to keep, the last gives some 1e-4: less than a tolerance of its size can tell
# from the rounding of gates, which are of the order of 1.
GATED = [{**kwargs, "chrono_horizon": None} if kwargs.get("num_layers") == 3 else kwargs for kwargs in RECURRENT]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "rnn": [
        *RECURRENT,
        {"hidden_size": 16, "num_layers": 2, "nonlinearity": "relu"},
        {"hidden_size": 6, "nonlinearity": "relu"},
    ],
    "lstm": GATED,
    "gru": GATED,
    "mingru": [
        {"hidden_size": 16},
        {"hidden_size": 6, "num_layers": 3, "chrono_horizon": None, "learned_initial_state": True},
    ],
    "lru": [
        {"hidden_size": 16},
        {"hidden_size": 6, "num_layers": 3, "state_size": 5, "learned_initial_state": True},
    ],
    "deltanet": [
        {"hidden_size": 16},
        {"hidden_size": 6, "num_layers": 3, "heads": 2, "learned_initial_state": True},
    ],
    "ffm": [
        {"hidden_size": 16},
        {"hidden_size": 6, "num_layers": 3, "trace_size": 5, "context_size": 2, "learned_initial_state": True},
    ],
    "hybrid": [
        {"hidden_size": 16},
        {"hidden_size": 6, "num_layers": 2, "trace_size": 5, "context_size": 2, "learned_initial_state": True},
    ],
    "gtrxl": [
        {"hidden_size": 16, "heads": 2, "window": 6},
        {"hidden_size": 14, "heads": 1, "num_layers": 3, "window": 4, "learned_initial_state": True},
    ],
    "attention": [
        {"hidden_size": 16, "num_layers": 2, "window": 6},
        {"hidden_size": 6, "cell": "gru", "window": 1, "score": "additive"},
        {"hidden_size": 8, "window": 3, "learned_initial_state": True},
    ],
}
COUNTS = {"gtrxl", "attention"}  # the last part of their state is a number of slots: nothing to differentiate by
EVERY_MEMORY = [
    pytest.param(name, kwargs, id="-".join([name, *(f"{key}={value}" for key, value in kwargs.items())]))
    for name in MEMORIES
    for kwargs in SETTINGS.get(name, [{}])
]

every_memory = pytest.mark.parametrize(("name", "kwargs"), EVERY_MEMORY)


def starts_of(kind: str, n_steps: int = T, n_sequences: int = B) -> Tensor:
    starts = torch.zeros(n_steps, n_sequences, dtype=torch.bool)
    if kind == "random":
        starts = torch.rand(n_steps, n_sequences) < 0.2
        starts[0, 0], starts[0, 1] = True, False
    elif kind == "consecutive":
        starts[3:6, 1] = True
        starts[-2:, 2] = True
        starts[0:2, 0] = True
    elif kind == "all":
        starts[:] = True
    elif kind == "first":
        starts[0] = True
    elif kind == "last":
        starts[-1] = True
    elif kind == "together":
        starts[n_steps // 2] = True
    return starts


KINDS = ["none", "random", "consecutive", "all", "first", "last", "together"]
# Of a memory, every setting over random starts, and every kind of starts over some setting.
with_starts = pytest.mark.parametrize(
    ("name", "kwargs", "kind"),
    [
        pytest.param(
            name, kwargs, kind, id="-".join([name, *(f"{key}={value}" for key, value in kwargs.items()), kind])
        )
        for name in MEMORIES
        for kwargs, kind in [
            *((kwargs, "random") for kwargs in SETTINGS.get(name, [{}])),
            *each(SETTINGS.get(name, [{}]), [kind for kind in KINDS if kind != "random"]),
        ]
    ],
)


def build(name: str, kwargs: dict[str, Any]) -> Memory:
    torch.manual_seed(0)
    memory = make_memory(name, F, kwargs)
    if kwargs.get("learned_initial_state"):
        for parameter_name, parameter in memory.named_parameters():
            if parameter_name.split(".")[-1] == "initial":
                torch.nn.init.normal_(parameter)
    return memory


def random_state(memory: Memory, batch_size: int = B) -> State:
    """A state as met in training: some steps from the initial one, with what a rollout draws drawn."""
    dtype = next((parameter.dtype for parameter in memory.parameters()), torch.float32)
    state = memory.renew(memory.initial_state(batch_size))
    with torch.no_grad():
        for _ in range(6):
            features, no_start = torch.randn(batch_size, F, dtype=dtype), torch.zeros(batch_size, dtype=torch.bool)
            _, state = memory.step(features, state, no_start)
    return tuple(part.detach() for part in state)


def spoilt(memory: Memory, state: State, sequence: int) -> State:
    """The state with all that an episode's start should wipe out made useless for one sequence."""
    marked = tuple(torch.full_like(part, 7) for part in state)
    wiped = memory.reset(marked, torch.ones(len(state[0]) if state else B, dtype=torch.bool))
    result = tuple(part.clone() for part in state)
    for part, mark, after in zip(result, marked, wiped, strict=True):
        if not torch.equal(mark, after):
            part[sequence] = torch.nan if part.is_floating_point() else 7
    return result


def carried_numbers(name: str, memory: Memory, state: State) -> list[Tensor]:
    """The parts of a state that an episode's start wipes out, and that have a gradient."""
    kept = state[: len(state) - (name in COUNTS)]
    wiped = spoilt(memory, state, sequence=2)
    return [part for part, bad in zip(kept, wiped, strict=False) if not equal(part, bad)]


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def step_by_step(memory: Memory, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
    outputs = []
    for x, starts in zip(features, episode_starts, strict=True):
        output, state = memory.step(x, state, starts)
        outputs.append(output)
    return torch.stack(outputs), state


@pytest.mark.parametrize("in_numpy", [True, False])
@pytest.mark.parametrize("kind", ["random", "consecutive"])
@every_memory
def test_the_states_along_a_block_are_those_that_steps_pass_through(
    name: str, kwargs: dict[str, Any], kind: str, in_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = build(name, kwargs)
    if not in_numpy:
        monkeypatch.setattr(memory, "numpy_step", lambda: None)
    features, state, starts = torch.randn(T, B, F), random_state(memory), starts_of(kind)
    before = [state]
    for x, of_step in zip(features, starts, strict=True):
        before.append(memory.step(x, before[-1], of_step)[1])
    at = [0, 0, 4, 5, T - 1, T]
    found = memory.states_along(features, state, starts, at)
    expected = [memory.reset(before[t], starts[t]) if t < T else before[t] for t in at]
    for part, *steps in zip(found, *expected, strict=True):
        assert not part.requires_grad
        assert_close(part, torch.stack(steps))
    (at_the_start,) = zip(*memory.states_along(features, state, starts, [0]), strict=True) if state else [()]
    for part, whole in zip(at_the_start, memory.reset(state, starts[0]), strict=True):
        assert torch.equal(part, whole)


@every_memory
@settings(max_examples=8, deadline=None)
@given(n_steps=st.integers(1, 20), n_sequences=st.integers(1, 6), rate=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_unroll_gives_what_steps_give_for_any_block(
    name: str, kwargs: dict[str, Any], n_steps: int, n_sequences: int, rate: float, seed: int
) -> None:
    memory = build(name, kwargs)
    torch.manual_seed(seed)
    features, state = torch.randn(n_steps, n_sequences, F), random_state(memory, n_sequences)
    starts = torch.rand(n_steps, n_sequences) < rate
    expected, _ = step_by_step(memory, features, state, starts)
    assert_close(memory.unroll(features, state, starts), expected)


@with_starts
def test_unroll_and_its_gradients_are_those_of_the_steps(name: str, kwargs: dict[str, Any], kind: str) -> None:
    memory = build(name, kwargs)
    features, state, starts = torch.randn(T, B, F), random_state(memory), starts_of(kind)
    weights = torch.randn(T, B, memory.output_size)

    def gradients(forward: Any) -> list[Tensor]:
        x = features.clone().requires_grad_()
        before = tuple(part.clone().requires_grad_() for part in state)
        outputs = forward(x, before)
        inputs = [x, *before, *memory.parameters()]
        found = torch.autograd.grad((outputs * weights).sum(), inputs, allow_unused=True)
        zeros = map(torch.zeros_like, inputs)
        return [outputs, *(zero if g is None else g for zero, g in zip(zeros, found, strict=True))]

    ours = gradients(lambda x, before: memory.unroll(x, before, starts))
    expected = gradients(lambda x, before: step_by_step(memory, x, before, starts)[0])
    for one, other in zip(ours, expected, strict=True):
        assert_close(one, other, terms=T * B + N_TERMS)


@every_memory
def test_nothing_before_an_episode_starts_changes_what_comes_after(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, state, starts = torch.randn(T, B, F), random_state(memory), starts_of("none")
    starts[4, 2] = True
    output = memory.unroll(features, state, starts)
    other_features = features.clone()
    other_features[:4, 2] = torch.nan
    other = memory.unroll(other_features, spoilt(memory, state, sequence=2), starts)
    assert torch.equal(other[4:, 2], output[4:, 2])
    assert torch.equal(other[:, [0, 1, 3, 4]], output[:, [0, 1, 3, 4]])


@pytest.mark.parametrize("at", [0, 4])
@every_memory
def test_the_gradient_across_an_episode_start_is_exactly_zero(name: str, kwargs: dict[str, Any], at: int) -> None:
    memory = build(name, kwargs)
    features, starts = torch.randn(T, B, F, requires_grad=True), starts_of("none")
    starts[at, 2] = True
    state = random_state(memory)
    carried = carried_numbers(name, memory, state)
    for part in carried:
        part.requires_grad_()
    after_the_start = memory.unroll(features, state, starts)[at:, 2].square().sum()
    x_gradient, *state_gradients = torch.autograd.grad(after_the_start, [features, *carried], allow_unused=True)
    assert (x_gradient[at:, 2] != 0).any(dim=1).all()
    assert (x_gradient[:at] == 0).all()
    assert (x_gradient[:, [0, 1, 3, 4]] == 0).all()
    for gradient in state_gradients:
        assert gradient is None or (gradient == 0).all()


@every_memory
def test_the_output_of_a_sequence_does_not_depend_on_the_others(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, state, starts = torch.randn(T, B, F), random_state(memory), starts_of("random")
    together = memory.unroll(features, state, starts)
    for b in range(B):
        alone = memory.unroll(features[:, [b]], tuple(part[[b]] for part in state), starts[:, [b]])
        assert_close(alone[:, 0], together[:, b])


@with_starts
def test_the_numpy_step_gives_what_the_step_gives(name: str, kwargs: dict[str, Any], kind: str) -> None:
    memory = build(name, kwargs)
    numpy_step = memory.numpy_step()
    if numpy_step is None:
        pytest.skip(f"{name} acts in torch only")
    features, state, starts = torch.randn(T, B, F), random_state(memory), starts_of(kind)
    numpy_state = tuple(part.numpy() for part in state)
    with torch.no_grad():
        for x, start in zip(features, starts, strict=True):
            output, state = memory.step(x, state, start)
            numpy_output, numpy_state = numpy_step(x.numpy(), numpy_state, start.numpy())
            assert_close(numpy_output, output.numpy())
            assert len(numpy_state) == len(state)
            for numpy_part, part in zip(numpy_state, state, strict=True):
                assert numpy_part.dtype == np.float32
                assert_close(numpy_part, part.numpy())


@every_memory
def test_states_and_outputs_of_earlier_numpy_steps_stay_as_they_were(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    numpy_step = memory.numpy_step()
    if numpy_step is None:
        pytest.skip(f"{name} acts in torch only")
    state = tuple(part.numpy() for part in random_state(memory))
    no_start = np.zeros(B, dtype=np.bool_)
    kept: list[Any] = []
    copies: list[Any] = []
    for x in torch.randn(50, B, F).numpy():
        output, state = numpy_step(x, state, no_start)
        kept.extend([output, *state])
        copies.extend(array.copy() for array in (output, *state))
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@every_memory
def test_arguments_are_not_written_into(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, state, starts = torch.randn(T, B, F), random_state(memory), starts_of("random")
    arguments = (features, *state, starts)
    copies = [argument.clone() for argument in arguments]
    with torch.no_grad():
        memory.unroll(features, state, starts)
        memory.step(features[0], state, starts[0])
        memory.renew(state)
    numpy_step = memory.numpy_step()
    if numpy_step is not None:
        numpy_step(features[0].numpy(), tuple(part.numpy() for part in state), starts[0].numpy())
    for argument, copy in zip(arguments, copies, strict=True):
        assert torch.equal(argument, copy)


@every_memory
def test_every_part_of_the_state_is_batch_first_and_keeps_its_shape(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    state = memory.initial_state(B)
    output, after = memory.step(torch.randn(B, F), state, starts_of("first")[0])
    assert output.shape == (B, memory.output_size)
    assert [part.shape[0] for part in state] == [B] * len(state)
    assert [part.shape for part in after] == [part.shape for part in state]
    assert [part.shape for part in memory.renew(state)] == [part.shape for part in state]


@every_memory
def test_a_start_resets_the_state_whatever_came_in(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    x, state, starts = torch.randn(B, F), random_state(memory), starts_of("random")[0]
    output, after = memory.step(x, spoilt(memory, state, sequence=0), starts)  # sequence 0 starts an episode
    expected, expected_after = memory.step(x, memory.reset(state, starts), torch.zeros_like(starts))
    assert_close(output, expected)
    for part, expected_part in zip(after, expected_after, strict=True):
        assert_close(part, expected_part)


@every_memory
def test_the_state_of_a_reset_is_the_initial_one(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    initial, starts = memory.initial_state(B), torch.tensor([True, False, False, True, False])
    with torch.no_grad():
        _, state = memory.step(torch.randn(B, F), initial, torch.zeros(B, dtype=torch.bool))
    for part, before, fresh in zip(memory.reset(state, starts), state, initial, strict=True):
        assert torch.equal(part[starts], fresh[starts])
        assert torch.equal(part[~starts], before[~starts])


@every_memory
def test_a_learned_initial_state_is_what_episodes_start_from_and_gets_a_gradient(
    name: str, kwargs: dict[str, Any]
) -> None:
    if not kwargs.get("learned_initial_state"):
        pytest.skip("starts from a fixed state")
    memory = build(name, kwargs)
    initial = [p for n, p in memory.named_parameters() if n.split(".")[-1] == "initial"]
    assert initial
    assert not any(part.requires_grad for part in memory.initial_state(B))
    features, starts = torch.randn(T, B, F), starts_of("none")
    state = random_state(memory)
    carried_on = memory.unroll(features, state, starts)
    for nothing in torch.autograd.grad(carried_on.square().sum(), initial, allow_unused=True):
        assert nothing is None or (nothing == 0).all()
    for where in ((0, 1), (5, 2), (T - 1, 3)):
        starts = starts_of("none")
        starts[where] = True
        for gradient in torch.autograd.grad(memory.unroll(features, state, starts).square().sum(), initial):
            assert (gradient != 0).any(dim=-1).all()
    # After an optimizer step it is the new one that counts, whatever was stored at the sequence's start.
    stored, starts = memory.initial_state(B), starts_of("first")
    with torch.no_grad():
        for part in initial:
            part += 1
        moved, fresh = (memory.unroll(features, before, starts) for before in (stored, memory.initial_state(B)))
    assert torch.equal(moved, fresh)


@every_memory
def test_under_autocast_a_memory_computes_in_the_precision_of_its_weights(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs)
    features, state, starts = torch.randn(T, B, F).bfloat16(), random_state(memory), starts_of("random")
    with torch.no_grad():
        expected, expected_state = step_by_step(memory, features.float(), state, starts)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, after = step_by_step(memory, features, state, starts)
            unrolled = memory.unroll(features, state, starts)
    assert_close(outputs.float(), expected)
    assert_close(unrolled.float(), expected)
    for part, expected_part in zip(after, expected_state, strict=True):
        assert_close(part, expected_part)


@every_memory
def test_float64_agrees_to_float64_precision(name: str, kwargs: dict[str, Any]) -> None:
    memory = build(name, kwargs).double()
    features, starts = torch.randn(T, B, F, dtype=torch.float64), starts_of("random")
    state = random_state(memory)
    expected, _ = step_by_step(memory, features, state, starts)
    assert_close(memory.unroll(features, state, starts), expected, dtype=np.float64)


@every_memory
def test_analytic_gradients_are_the_numerical_ones(name: str, kwargs: dict[str, Any]) -> None:
    if kwargs.get("nonlinearity") == "relu":
        pytest.skip("relu has no gradient at its kink")
    memory = build(name, {**kwargs, "hidden_size": 2, "num_layers": 2} if "hidden_size" in kwargs else kwargs).double()
    features = torch.randn(5, 3, F, dtype=torch.float64, requires_grad=True)
    starts = starts_of("random", 5, 3)
    state = random_state(memory, 3)
    for part in state[: len(state) - (name in COUNTS)]:
        part.requires_grad_()
    names = [f"memory.{parameter_name}" for parameter_name, _ in memory.named_parameters()]

    def unroll(x: Tensor, *rest: Tensor) -> Tensor:
        before, parameters = rest[: len(state)], dict(zip(names, rest[len(state) :], strict=True))
        output: Tensor = torch.func.functional_call(Unroll(memory), parameters, (x, before, starts))
        return output

    # The fast mode compares projections of the Jacobian on random directions, where the other compares its every entry.
    assert torch.autograd.gradcheck(unroll, (features, *state, *memory.parameters()), fast_mode=True)


class Unroll(torch.nn.Module):
    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        return self.memory.unroll(features, state, episode_starts)
