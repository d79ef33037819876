"""The attention memory: its weights, its output by hand, and what is refused."""

import math
from typing import Any

import pytest
import torch

from agents.memory import AttentionMemory, make_memory
from tests.tolerance import assert_close

T, B, F = 40, 3, 4

EVERY_SCORE = pytest.mark.parametrize("score", ["dot", "additive"])
EVERY_CELL = pytest.mark.parametrize("cell", ["lstm", "gru"])


def build(**kwargs: Any) -> AttentionMemory:
    torch.manual_seed(0)
    return AttentionMemory(F, 8, **{"window": 5, **kwargs})


@EVERY_CELL
@EVERY_SCORE
def test_weights_sum_to_one_and_never_reach_across_an_episodes_start(score: str, cell: str) -> None:
    memory = build(score=score, cell=cell)
    starts = torch.rand(T, B) < 0.15
    weights = memory.attention_weights(torch.randn(T, B, F), memory.initial_state(B), starts)
    assert weights.shape == (T, B, 6)
    assert_close(weights.sum(dim=-1), torch.ones(T, B))
    for b in range(B):
        age = 0  # steps of the episode before this one; the block goes on from an empty window
        for t in range(T):
            age = 0 if starts[t, b] else age
            seen = min(age, 5)
            assert (weights[t, b, 5 - seen :] > 0).all()
            assert (weights[t, b, : 5 - seen] == 0).all()
            age += 1


@EVERY_SCORE
def test_the_output_by_hand_from_the_recurrences_own(score: str) -> None:
    memory = build(score=score, num_layers=2)
    features, starts = torch.randn(T, B, F), torch.zeros(T, B, dtype=torch.bool)
    state = memory.initial_state(B)
    outputs = memory.recurrent.unroll(features, state[:-2], starts)
    found = memory.unroll(features, state, starts)
    weights = memory.attention_weights(features, state, starts)
    t, b = 20, 1
    now, past = outputs[t, b], outputs[t - 5 : t + 1, b]
    if score == "dot":
        scores = torch.stack([now @ memory.query.weight.T @ h / math.sqrt(8) for h in past])
    else:
        sums = [memory.query.weight @ now + memory.key.weight @ h + memory.key.bias for h in past]
        scores = torch.stack([memory.alignment.weight[0] @ torch.tanh(each) for each in sums])
    expected = scores.exp() / scores.exp().sum()
    assert_close(weights[t, b], expected)
    context = sum(w * h for w, h in zip(expected, past, strict=True))
    combined = torch.tanh(memory.combine.weight @ torch.cat((context, now)) + memory.combine.bias)
    assert_close(found[t, b], combined)


def test_the_first_step_of_all_attends_to_itself() -> None:
    memory = build()
    starts = torch.ones(1, B, dtype=torch.bool)
    weights = memory.attention_weights(torch.randn(1, B, F), memory.initial_state(B), starts)
    assert (weights[..., -1] == 1).all()


def test_a_window_that_came_with_the_sequence_is_attended_to() -> None:
    memory = build()
    state, no_start = memory.initial_state(B), torch.zeros(B, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(2):
            _, state = memory.step(torch.randn(B, F), state, no_start)
    weights = memory.attention_weights(torch.randn(4, B, F), state, torch.zeros(4, B, dtype=torch.bool))
    assert [(weights[t] > 0).sum(dim=-1).tolist() for t in range(4)] == [[n] * B for n in (3, 4, 5, 6)]


@EVERY_CELL
def test_the_recurrence_is_the_plain_one(cell: str) -> None:
    plain = make_memory(cell, F, {"hidden_size": 8})
    names = {name for name, _ in build(cell=cell).recurrent.named_parameters()}
    assert names == {name for name, _ in plain.named_parameters()}
    parts = build(cell=cell).initial_state(B)
    assert [part.shape for part in parts[:-2]] == [part.shape for part in plain.initial_state(B)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cell": "rnn"}, "cell must be 'lstm' or 'gru'; got 'rnn'"),
        ({"score": "cosine"}, "score must be 'dot' or 'additive'; got 'cosine'"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_memory("attention", F, kwargs)
