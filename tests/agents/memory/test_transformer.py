"""The gated transformer: how far it sees, its scores by hand, its gates, the learned slot, memory, what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import envs
from agents import RecurrentPPO
from agents.memory import GTrXL, make_memory
from agents.memory.layers import GRUGate, sinusoidal_positions
from tests.tolerance import assert_close, near

F = 3


def build(**kwargs: Any) -> GTrXL:
    torch.manual_seed(0)
    memory = GTrXL(F, 16, **{"heads": 2, "gate_bias": 0.0, **kwargs})
    if memory.initial is not None:
        torch.nn.init.normal_(memory.initial)
    return memory


def no_starts(n_steps: int, n_sequences: int = 1) -> Tensor:
    return torch.zeros(n_steps, n_sequences, dtype=torch.bool)


@pytest.mark.parametrize(("layers", "window"), [(1, 1), (1, 5), (2, 5), (3, 4)])
def test_each_layer_sees_exactly_the_window_and_itself(layers: int, window: int) -> None:
    memory, n_steps = build(num_layers=layers, window=window), 50
    features = torch.randn(n_steps, 1, F, requires_grad=True)
    outputs = memory.unroll(features, memory.initial_state(1), no_starts(n_steps))
    (gradient,) = torch.autograd.grad(outputs[-1].square().sum(), features)
    seen = (gradient[:, 0] != 0).any(dim=-1)
    assert seen[-1 - layers * window :].all()
    assert not seen[: -1 - layers * window].any()


def test_steps_of_an_episode_longer_than_any_number_of_windows_agree_with_the_block() -> None:
    memory = build(window=4)
    features = torch.randn(200, 2, F)
    state, outputs = memory.initial_state(2), []
    with torch.no_grad():
        for x in features:
            output, state = memory.step(x, state, no_starts(1, 2)[0])
            outputs.append(output)
        block = memory.unroll(features, memory.initial_state(2), no_starts(200, 2))
    assert_close(block, torch.stack(outputs))


@pytest.mark.parametrize("count", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("learned", [False, True])
def test_a_window_partly_filled_is_seen_as_far_as_it_is_filled(count: int, learned: bool) -> None:
    memory = build(window=20, learned_initial_state=learned)
    torch.manual_seed(count)
    window, features, starts = torch.randn(2, 2, 20, 16), torch.randn(45, 2, F), no_starts(45, 2)
    starts[9, 0] = starts[30, 1] = True
    full = window, torch.full((2, 1), float(count))
    spoilt = window.clone()
    spoilt[:, :, : 20 - count] = torch.nan
    with torch.no_grad():
        outputs = memory.unroll(features, (spoilt, full[1]), starts)
        state, expected = full, []
        for x, start in zip(features, starts, strict=True):
            output, state = memory.step(x, state, start)
            expected.append(output)
    assert_close(outputs, torch.stack(expected))


@pytest.mark.parametrize("name", ["gtrxl", "attention"])
def test_a_count_of_any_size_is_read_as_the_nearest_possible_one(name: str) -> None:
    torch.manual_seed(0)
    memory = make_memory(name, F, {"hidden_size": 8, "window": 4})
    features, starts = torch.randn(6, 4, F), no_starts(6, 4)
    others = memory.initial_state(4)[:-1]
    others = tuple(torch.randn_like(part) for part in others)
    odd, nearest = (torch.tensor(values).view(4, 1) for values in ([-3.0, 0.4, 2.7, 99.0], [0.0, 0.0, 3.0, 4.0]))
    step: Any = memory.numpy_step()
    with torch.no_grad():
        expected = memory.unroll(features, (*others, nearest), starts)
        assert_close(memory.unroll(features, (*others, odd), starts), expected)
        state = tuple(part.numpy() for part in (*others, odd))
        torch_state = (*others, odd)
        for x, start, y in zip(features, starts, expected, strict=True):
            output, state = step(x.numpy(), state, start.numpy())
            torch_output, torch_state = memory.step(x, torch_state, start)
            assert_close(torch.from_numpy(output), y)
            assert_close(torch_output, y)


def test_what_came_with_the_sequence_has_the_gradient_of_the_weights_but_hands_none_on() -> None:
    memory = build(num_layers=1, window=3)
    features, no_start = torch.randn(4, 1, F, requires_grad=True), no_starts(1)[0]
    state = memory.initial_state(1)
    for x in features[:3]:
        _, state = memory.step(x, state, no_start)
    stored = tuple(part.detach() for part in state)
    layer: Any = memory.layers[0]
    layer.query.weight.data.zero_()  # equal scores by content: only what is in the window differs
    outputs = memory.unroll(features[3:], stored, no_starts(1))
    of_features, of_values = torch.autograd.grad(outputs.sum(), [features, layer.value.weight])
    assert (of_features[:3] == 0).all()
    without = torch.autograd.grad(
        memory.unroll(features[3:], memory.initial_state(1), no_starts(1)).sum(), layer.value.weight
    )[0]
    assert not torch.allclose(of_values, without)


def test_scores_are_those_of_content_and_of_distance_by_hand() -> None:
    """One head of two units, one slot and the step itself: softmax of ((q + u) k + (q + v) r) / sqrt(2)."""
    memory = GTrXL(2, 2, 1, heads=1, window=1)
    layer: Any = memory.layers[0]
    with torch.no_grad():
        layer.content_bias.copy_(torch.tensor([0.3, -0.2]))
        layer.position_bias.copy_(torch.tensor([-0.5, 0.4]))
    x, slot = torch.tensor([1.0, -1.0]) / math.sqrt(1 + 1e-5), torch.tensor([0.6, 0.9])
    scores = []
    for distance, content in ((1.0, slot), (0.0, x)):
        position = torch.tensor([math.sin(distance), math.cos(distance)])  # one wave, of wavelength 2 pi
        q, k, r = layer.query.weight @ x, layer.key.weight @ content, layer.position.weight @ position
        scores.append((((q + layer.content_bias) @ k + (q + layer.position_bias) @ r) / math.sqrt(2)).item())
    weight = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
    attended = layer.value.weight @ (weight * slot + (1 - weight) * x)
    embedded = memory.embedding(torch.tensor([[3.0, 1.0]]))
    memory.embedding.weight.data, memory.embedding.bias.data = torch.eye(2), torch.zeros(2)
    embedded = torch.tensor([[3.0, 1.0]])
    expected = layer._gated(embedded, attended[None])
    output, _ = memory.step(embedded, (slot.view(1, 1, 1, 2), torch.ones(1, 1)), no_starts(1)[0])
    assert_close(output, expected)


def test_positions_are_sines_and_cosines_of_the_distance() -> None:
    found = sinusoidal_positions(torch.tensor([0, 1, 7]), 4)
    expected = [[math.sin(d), math.sin(d / 100), math.cos(d), math.cos(d / 100)] for d in (0, 1, 7)]
    assert_close(found, torch.tensor(expected))
    assert sinusoidal_positions(torch.tensor([3]), 5).shape == (1, 5)


def test_a_gate_by_hand() -> None:
    gate = GRUGate(1, bias=2.0)
    gate.of_block.weight.data = torch.tensor([[0.5], [-1.0], [2.0]])
    gate.of_stream.weight.data = torch.tensor([[0.7], [0.2]])
    gate.of_reset.weight.data = torch.tensor([[-0.4]])
    x, y = 0.25, 1.5
    r = 1 / (1 + math.exp(-(0.5 * y + 0.7 * x)))
    z = 1 / (1 + math.exp(-(-1.0 * y + 0.2 * x - 2.0)))
    expected = (1 - z) * x + z * math.tanh(2.0 * y - 0.4 * r * x)
    assert gate(torch.tensor([[x]]), torch.tensor([[y]])).item() == near(expected)


def test_gates_with_a_large_bias_let_the_embedding_through() -> None:
    memory = build(gate_bias=30.0)
    features = torch.randn(8, 3, F)
    outputs = memory.unroll(features, memory.initial_state(3), no_starts(8, 3))
    assert_close(outputs, memory.embedding(features))


def test_the_learned_slot_is_gone_after_a_window() -> None:
    memory = build(num_layers=1, window=4, learned_initial_state=True)
    features, starts = torch.randn(9, 1, F), no_starts(9)
    starts[2] = True
    outputs = memory.unroll(features, memory.initial_state(1), starts)
    assert memory.initial is not None
    for t in range(9):
        (gradient,) = torch.autograd.grad(outputs[t].square().sum(), memory.initial, retain_graph=True)
        assert (gradient != 0).any() == (2 <= t < 6), t


def test_room_for_a_block_grows_with_the_steps_and_not_with_their_square() -> None:
    memory = build(window=32)

    def kept(n_steps: int) -> int:
        sizes: list[int] = []
        features = torch.randn(n_steps, 1, F)

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            memory.unroll(features, memory.initial_state(1), no_starts(n_steps))
        return sum(sizes)

    short, middle, long = (kept(n_steps) for n_steps in (256, 512, 1024))
    # Weights are kept once whatever the length; the rest doubles.
    assert (long - middle) == pytest.approx(2 * (middle - short), rel=0.05)


def test_the_state_is_the_window_and_a_count() -> None:
    window, count = GTrXL(F, 64, 2, window=64).initial_state(5)
    assert window.shape == (5, 2, 64, 64)
    assert count.shape == (5, 1)
    assert not count.any()
    window, count = GTrXL(F, 64, 2, window=64, learned_initial_state=True).initial_state(5)
    assert (count == 1).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hidden_size": 6, "heads": 4}, r"heads \(4\) must divide hidden_size \(6\); use one of 1, 2, 3, 6"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"num_layers": True}, "num_layers must be a whole number of at least 1, got True"),
        ({"feedforward_size": -3}, "feedforward_size must be a whole number of at least 1, got -3"),
        ({"gate_bias": math.inf}, "gate_bias must be a finite number; got inf"),
    ],
)
def test_settings_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("gtrxl", F, kwargs)


@pytest.mark.parametrize(("sequence_length", "n_sequences"), [(None, 1), (32, 4)])
def test_a_rollout_keeps_windows_where_sequences_start_and_not_at_every_step(
    sequence_length: int | None, n_sequences: int
) -> None:
    memory = dict(hidden_size=64, num_layers=2, window=64)
    agent = RecurrentPPO(
        "RecurrentPolicy",
        envs.make("TMaze-v0", 32, seed=0),
        n_steps=128,
        batch_size=4096,
        sequence_length=sequence_length,
        policy_kwargs={"memory": "gtrxl", "memory_kwargs": memory},
        device="cpu",
    )
    window = 2 * 64 * 64 * 4  # bytes: layers, slots, numbers of a slot, float32
    kept = sum(part.nbytes for part in agent.rollout_buffer.states)
    count = 4  # of the slots that are filled
    assert kept == n_sequences * 32 * (window + count)
    assert window * 32 == 2**20
