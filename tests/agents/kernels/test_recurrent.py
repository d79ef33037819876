"""Every set of kernels gives what torch's cells give step by step, forward and backward."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.kernels import binding, reference
from agents.kernels import recurrent as compiled
from agents.memory import LSTM, Memory, make_memory, numpy_step, packed
from agents.memory.recurrent import Recurrent, unroll_together
from tests.tolerance import assert_close

T, B, F, H = 11, 4, 5, 16

KERNELS = [
    pytest.param(compiled, marks=pytest.mark.skipif(not compiled.available, reason="built without a C compiler")),
    packed,
    reference,
]
CELLS: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {}),
    ("gru", {}),
    ("rnn", {}),
    ("rnn", {"nonlinearity": "relu"}),
    ("lstm", {"bias": False}),
    ("gru", {"bias": False}),
    ("rnn", {"bias": False}),
    ("lstm", {"learned_initial_state": True}),
    ("gru", {"learned_initial_state": True}),
    ("rnn", {"learned_initial_state": True}),
    ("lstm", {"hidden_size": 6}),
    ("gru", {"hidden_size": 6, "learned_initial_state": True}),
]

every_cell = pytest.mark.parametrize(("name", "kwargs"), CELLS)


def build(name: str, kwargs: dict[str, Any]) -> Memory:
    torch.manual_seed(0)
    memory = make_memory(name, F, {"hidden_size": H, "initialization": "torch", **kwargs})
    for parameter in memory.parameters():
        parameter.data.mul_(2.0)  # far enough from linear for every derivative to matter
    if isinstance(memory, Recurrent) and memory.initial is not None:
        torch.nn.init.normal_(memory.initial)
    return memory


def gradients(memory: Memory, output: Any, features: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    features = features.clone().requires_grad_()
    before = tuple(part.clone().requires_grad_() for part in state)
    outputs = output(features, before)
    weights = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
    return outputs, list(torch.autograd.grad((outputs * weights).sum(), [features, *before, *memory.parameters()]))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kernels", KERNELS)
@every_cell
def test_a_block_through_the_kernels_is_torchs_cell_step_by_step(
    name: str, kwargs: dict[str, Any], kernels: ModuleType, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: Any = build(name, kwargs)
    monkeypatch.setattr(memory, "_kernels", lambda features: kernels)
    features, starts = torch.randn(T, B, F), torch.rand(T, B) < rate
    state = tuple(torch.randn_like(part) for part in memory.initial_state(B))

    def by_steps(x: Tensor, before: tuple[Tensor, ...]) -> Tensor:
        outputs = []
        for x_t, starts_t in zip(x, starts, strict=True):
            output, before = memory.step(x_t, before, starts_t)
            outputs.append(output)
        return torch.stack(outputs)

    outputs, ours = gradients(memory, lambda x, before: memory.unroll(x, before, starts), features, state)
    expected_outputs, expected = gradients(memory, by_steps, features, state)
    assert_close(outputs, expected_outputs)
    for one, other in zip(ours, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("kernels", [packed, reference])
@every_cell
def test_float64_kernels_agree_to_float64_precision(
    name: str, kwargs: dict[str, Any], kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: Any = build(name, kwargs).double()
    monkeypatch.setattr(memory, "_kernels", lambda features: kernels)
    features, starts = torch.randn(T, B, F, dtype=torch.float64), torch.rand(T, B) < 0.2
    state = before = tuple(torch.randn_like(part) for part in memory.initial_state(B))
    outputs = memory.unroll(features, state, starts)
    for t in range(T):
        expected, before = memory.step(features[t], before, starts[t])
        assert_close(outputs[t], expected, dtype=np.float64)


@pytest.mark.parametrize("steps", [KERNELS[0], numpy_step])
@every_cell
def test_a_step_without_torch_is_torchs_cell(
    name: str, kwargs: dict[str, Any], steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: Any = build(name, kwargs)
    monkeypatch.setattr(compiled, "available", steps is compiled)
    step = memory.numpy_step()
    for batch_size in (1, 2, 3, 4, 5, 6, 7, 9, 13):  # every path through blocks of rows
        features, starts = torch.randn(batch_size, F), torch.arange(batch_size) % 3 == 1
        state = tuple(torch.randn_like(part) for part in memory.initial_state(batch_size))
        with torch.no_grad():
            expected, expected_state = memory.step(features, state, starts)
        output, after = step(features.numpy(), tuple(part.numpy() for part in state), starts.numpy())
        assert_close(output, expected.numpy())
        for part, expected_part in zip(after, expected_state, strict=True):
            assert_close(part, expected_part.numpy())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_numbers_far_out_saturate_and_stay_finite(
    name: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: Any = build(name, {})
    monkeypatch.setattr(memory, "_kernels", lambda features: kernels)
    features = torch.randn(T, B, F) * 1e6
    features.requires_grad_()
    outputs = memory.unroll(features, memory.initial_state(B), torch.zeros(T, B, dtype=torch.bool))
    outputs.sum().backward()
    assert outputs.abs().max() <= 1.0
    assert all(torch.isfinite(parameter.grad).all() for parameter in memory.parameters())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_nan_stays_one_and_stays_where_it_is(name: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    memory: Any = build(name, {})
    monkeypatch.setattr(memory, "_kernels", lambda features: kernels)
    features, starts = torch.randn(T, B, F), torch.zeros(T, B, dtype=torch.bool)
    features[3, 1, 2] = torch.nan
    starts[6, 1] = True
    outputs = memory.unroll(features, memory.initial_state(B), starts)
    poisoned = outputs.isnan().any(dim=-1)
    assert poisoned[3:6, 1].all()
    assert poisoned.sum() == 3


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_block_goes_through_without_gradients_too(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    memory: Any = LSTM(F, H)
    monkeypatch.setattr(memory, "_kernels", lambda features: kernels)
    features, starts = torch.randn(T, B, F), torch.rand(T, B) < 0.2
    with_gradients = memory.unroll(features, memory.initial_state(B), starts)
    with torch.no_grad():
        without = memory.unroll(features, memory.initial_state(B), starts)
    assert not without.requires_grad
    assert_close(without, with_gradients.detach())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_strided_inputs_and_gradients_are_read_correctly(
    name: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices and transposes, as a minibatch of the buffer or a caller's own code may hand them in."""
    memory: Any = build(name, {"num_layers": 2})
    monkeypatch.setattr(memory, "_kernels", lambda features: kernels)
    features, starts = torch.randn(T, B, F), torch.rand(T, B) < 0.2
    state = tuple(torch.randn_like(part) for part in memory.initial_state(B))
    expected = memory.unroll(features, state, starts)
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), list(memory.parameters()))
    outputs = memory.unroll(
        features.transpose(0, 1).contiguous().transpose(0, 1),
        tuple(part.transpose(0, 2).contiguous().transpose(0, 2) for part in state),
        torch.stack((starts, ~starts), dim=-1)[..., 0],
    )
    assert_close(outputs, expected)
    strided = weights.transpose(0, 2).contiguous().transpose(0, 2)
    for one, other in zip(
        torch.autograd.grad(outputs, list(memory.parameters()), strided), expected_gradients, strict=True
    ):
        assert_close(one, other)


@pytest.mark.skipif(not compiled.available, reason="built without a C compiler")
@pytest.mark.parametrize("n_sequences", [3, 8])
@every_cell
def test_threads_change_no_bit(
    name: str, kwargs: dict[str, Any], n_sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = build(name, kwargs)
    features, starts = torch.randn(T, n_sequences, F), torch.rand(T, n_sequences) < 0.15
    state = tuple(torch.randn_like(part) for part in memory.initial_state(n_sequences))
    results = []
    for threads in (1, 2, 3, 100):  # more than there are pieces, too
        monkeypatch.setattr(compiled, "_tasks_and_threads", lambda *_, threads=threads: (threads, 2))
        outputs, found = gradients(memory, lambda x, before: memory.unroll(x, before, starts), features, state)
        results.append([outputs, *found])
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.skipif(not compiled.available, reason="built without a C compiler")
@pytest.mark.parametrize("needs_features", [True, False])
@every_cell
def test_two_memories_in_one_call_give_what_each_gives_alone(
    name: str, kwargs: dict[str, Any], needs_features: bool
) -> None:
    one, other = (build(name, {**kwargs, "num_layers": 2, "hidden_size": H}) for _ in range(2))
    starts = torch.rand(T, B) < 0.2
    blocks = [torch.randn(T, B, F, requires_grad=needs_features) for _ in range(2)]
    states = [tuple(torch.randn_like(p).requires_grad_() for p in m.initial_state(B)) for m in (one, other)]
    asked = [*blocks * needs_features, *states[0], *states[1], *one.parameters(), *other.parameters()]

    def results(outputs: Any) -> list[Tensor]:
        total = sum((i + 1) * torch.linspace(-1, 1, part.numel()) @ part.flatten() for i, part in enumerate(outputs))
        return [*outputs, *torch.autograd.grad(total, asked)]  # type: ignore[arg-type]

    alone = results([m.unroll(x, s, starts) for m, x, s in zip((one, other), blocks, states, strict=True)])
    together = results(unroll_together((one, other), tuple(blocks), tuple(states), starts))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_library_of_another_version_is_recognized() -> None:
    class Older:
        pass

    class Ours:
        def recurrent_version(self) -> int:
            return binding.VERSIONS["recurrent"]

    assert binding.version_of(Older(), "recurrent") != binding.VERSIONS["recurrent"]  # type: ignore[arg-type]
    assert binding.version_of(Ours(), "recurrent") == binding.VERSIONS["recurrent"]  # type: ignore[arg-type]


def test_which_libraries_are_tried_is_one_of_three_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert [binding._kinds(which) for which in ("auto", "generic", "off")] == [["_avx2", ""], [""], []]
    with pytest.raises(ValueError, match="RECURL_KERNELS is 'none'; set it to auto, generic or off"):
        binding._kinds("none")


def test_a_library_that_cannot_be_loaded_is_left_alone_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binding.WHICH, "auto")
    for kind in ("", "_avx2"):
        (tmp_path / f"_recurrent{kind}{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    with pytest.warns(UserWarning, match="cannot be loaded"):
        assert binding.load(tmp_path, "recurrent", binding.VERSIONS["recurrent"]) is None
