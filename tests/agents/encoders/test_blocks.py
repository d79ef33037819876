"""The layers of encoders against torch's own, and against cases worked out by hand.

Axes: N observations, K tokens, F numbers of a token, A heads.
"""

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from agents.encoders.attention import SCORES, Attention, AttentionPooling, masked_softmax
from agents.encoders.recurrence import CELLS, Recurrence
from agents.encoders.tokens import TokenReader, last, mean
from agents.encoders.transformer import Block, TransformerEncoder, rotated
from tests.tolerance import close

from .observations import MASKED, TOKENS, VALID, Case, F, K, make, masked, some_tokens

TORCH: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("hidden_size", [8, 5])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrence_equals_torchs_over_packed_windows(cell: str, bidirectional: bool, hidden_size: int) -> None:
    torch.manual_seed(0)
    ours = Recurrence(F, cell, hidden_size, num_layers=2, bidirectional=bidirectional)
    theirs = TORCH[cell](F, hidden_size, num_layers=2, bidirectional=bidirectional, batch_first=True)
    for layer in range(2):
        for part, suffix in ((ours.forwards, ""), (ours.backwards, "_reverse")):
            for name, weight in part[layer].named_parameters() if len(part) else ():
                getattr(theirs, name.replace("_l0", f"_l{layer}{suffix}")).data.copy_(weight)
    values, lengths = some_tokens(4), torch.tensor([K, 4, 2, 1])
    packed, final = theirs(pack_padded_sequence(values, lengths, batch_first=True))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    states = ours(values, lengths)
    for row, length in enumerate(lengths):
        assert close(states[row, :length], expected[row, :length])
    final = final[0] if isinstance(final, tuple) else final
    top = torch.cat([*final[-2:]], dim=1) if bidirectional else final[-1]
    assert close(ours.final(states, lengths), top)


def test_additive_attention_is_that_of_bahdanau() -> None:
    attention = Attention(query_size=2, key_size=3, size=4)
    query, keys = torch.randn(1, 2), torch.randn(5, 3)
    v, w, u = attention.direction[0], attention.of_query, attention.of_key
    scores = torch.stack([v @ torch.tanh(w(query[0]) + u(key)) for key in keys])
    weights = scores.exp() / scores.exp().sum()
    expected = sum(weight * attention.of_value(key) for weight, key in zip(weights, keys, strict=True))
    output, weights_found = attention(query[None], keys[None])
    assert close(output[0, 0], expected)
    assert close(weights_found[0, 0, 0], weights)


@pytest.mark.parametrize("heads", [1, 4])
def test_dot_product_attention_equals_torchs(heads: int) -> None:
    torch.manual_seed(0)
    ours = Attention(query_size=8, key_size=8, size=8, heads=heads, score="dot")
    theirs = nn.MultiheadAttention(8, heads, batch_first=True)
    assert theirs.in_proj_weight is not None
    weights = (ours.of_query.weight, ours.of_key.weight, ours.of_value.weight)
    theirs.in_proj_weight.data.copy_(torch.cat([weight.data for weight in weights]))
    theirs.in_proj_bias.data.copy_(torch.cat((ours.of_query.bias.data, torch.zeros(8), ours.of_value.bias.data)))
    theirs.out_proj.weight.data.copy_(torch.eye(8))
    queries, keys = torch.randn(3, 2, 8), torch.randn(3, 5, 8)
    valid = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]) == 1
    output, weights_found = ours(queries, keys, valid)
    expected, expected_weights = theirs(queries, keys, keys, key_padding_mask=~valid, average_attn_weights=False)
    assert close(output, expected)
    assert close(weights_found, expected_weights)


@pytest.mark.parametrize("score", SCORES)
def test_without_a_valid_key_weights_and_output_are_zero_and_gradients_finite(score: str) -> None:
    pooling = AttentionPooling(key_size=3, size=8, heads=2, score=score)
    keys = torch.randn(2, 5, 3, requires_grad=True)
    output, weights = pooling(keys, torch.tensor([[0] * 5, [1] * 5]) == 1)
    assert (output[0] == 0).all()
    assert (weights[0] == 0).all()
    assert close(weights[1].sum(dim=1), torch.ones(2))
    output.sum().backward()
    assert keys.grad is not None
    assert keys.grad.isfinite().all()
    assert (keys.grad[0] == 0).all()


def test_weights_stay_finite_for_scores_of_any_size() -> None:
    weights = masked_softmax(torch.tensor([[1e30, -1e30, 5.0, -math.inf]]), torch.tensor([[False, True, True, True]]))
    assert torch.equal(weights, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("case", [Case("attention", {"over": over, "heads": 2}) for over in ("window", "set")], ids=str)
def test_weights_are_returned_at_the_places_of_the_tokens(case: Case) -> None:
    encoder: Any = make(case)
    weights = encoder.attention_weights(masked(some_tokens()))
    assert weights.shape == (len(VALID), 2, K)
    assert (weights.transpose(1, 2)[VALID == 0] == 0).all()
    assert (weights.transpose(1, 2)[VALID == 1] > 0).all()
    assert close(weights.sum(dim=2), (VALID.sum(dim=1, keepdim=True) > 0).float().expand(-1, 2))
    assert torch.equal(weights[5, 0], torch.eye(K)[2])  # the only valid token
    plain: Any = make(case, TOKENS)
    ones = plain.attention_weights(some_tokens())
    assert close(encoder.attention_weights(masked(some_tokens(), torch.ones_like(VALID))), ones)


@pytest.mark.parametrize("masks", ["none", "padding", "causal"])
def test_a_block_equals_torchs_transformer_layer(masks: str) -> None:
    torch.manual_seed(0)
    ours = Block(width=8, heads=2, expansion=3)
    theirs = nn.TransformerEncoderLayer(8, 2, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    attention = theirs.self_attn
    ours_qkv = (ours.of_query, ours.of_key, ours.of_value)
    attention.in_proj_weight.data.copy_(torch.cat([layer.weight.data for layer in ours_qkv]))
    attention.in_proj_bias.data.copy_(torch.cat((ours.of_query.bias.data, torch.zeros(8), ours.of_value.bias.data)))
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (attention.out_proj, ours.of_heads),
        (theirs.norm1, ours.norm),
        (theirs.norm2, ours.feed_forward[0]),
        (theirs.linear1, ours.feed_forward[1]),
        (theirs.linear2, ours.feed_forward[3]),
    ]
    for their_part, our_part in pairs:
        their_part.load_state_dict(our_part.state_dict())
    values = torch.randn(3, 5, 8)
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]) == 1
    later = torch.ones(5, 5).triu(1) == 1
    visible = {"none": None, "padding": valid[:, None], "causal": ~later[None]}[masks]
    expected = theirs(
        values,
        src_mask=later if masks == "causal" else None,
        src_key_padding_mask=~valid if masks == "padding" else None,
    )
    assert close(ours(values, values, visible, None, None), expected)


def test_rotary_scores_depend_on_distances_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8).unbind(0)
    frequencies = torch.tensor([1.0, 0.3, 0.1, 0.03])

    def turned(row: Tensor, position: int) -> Tensor:
        angles = position * frequencies
        return rotated(row, torch.stack((angles.cos(), angles.sin()))[None, None])

    def score(at: int, of: int) -> Tensor:
        return (turned(query, at) * turned(key, of)).sum()

    assert close(score(7, 4), score(3, 0))
    assert not torch.allclose(score(7, 4), score(4, 4), atol=1e-3)
    assert close(score(4, 4), (query * key).sum())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pool", ["last", "mean", "cls"])
def test_a_causal_token_sees_none_after_it(pool: str, causal: bool) -> None:
    torch.manual_seed(0)
    encoder = TransformerEncoder(TOKENS, causal=causal, pool=pool, num_layers=2)
    inside: list[Tensor] = []
    encoder.blocks[0].register_forward_hook(lambda module, given, output: inside.append(output))
    values = some_tokens()
    encoder(values)
    values[:, 3] += 1.0
    encoder(values)
    before, after = (states[:, :3] for states in inside)
    assert torch.equal(before, after) == causal
    assert not torch.equal(inside[0][:, 4:], inside[1][:, 4:])


@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
@pytest.mark.parametrize("pool", ["last", "cls"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_top_block_gives_for_one_query_what_it_gives_for_all(positions: str, pool: str, causal: bool) -> None:
    torch.manual_seed(0)
    encoder = TransformerEncoder(MASKED, causal=causal, pool=pool, positions=positions)
    inside: list[tuple[Any, ...]] = []
    encoder.blocks[0].register_forward_hook(lambda module, given, output: inside.append((output, *given[2:])))
    features = encoder(masked(some_tokens()))
    values, *others = inside[0]
    states = encoder.norm(encoder.blocks[1](values, values, *others))
    lengths = VALID.sum(dim=1)
    pooled = last(states, lengths if pool == "last" else torch.where(lengths > 0, K + 1, 0))
    assert close(features, encoder.projection(pooled))


def test_valid_tokens_are_moved_to_the_front() -> None:
    reader = TokenReader("sequence", MASKED, "mask")
    values = torch.arange(K * F, dtype=torch.float32).view(1, K, F)
    tokens = reader({"history": values, "mask": torch.tensor([[0, 1, 0, 1, 0, 0]])})
    assert tokens.values.tolist() == [[[3, 4, 5], [9, 10, 11]]]
    assert (tokens.lengths.tolist(), tokens.slots.tolist()) == ([2], [[1, 3]])
    assert last(tokens.values, tokens.lengths).tolist() == [[9, 10, 11]]
    assert mean(tokens.values, tokens.lengths).tolist() == [[6, 7, 8]]


def test_words_are_one_hot_tokens() -> None:
    space = spaces.MultiDiscrete([4, 4, 4])
    reader = TokenReader("transformer", space, "mask", words=True)
    words = torch.tensor([[1, 0, 3], [2, 2, 0]])
    assert torch.equal(reader(preprocess_obs(words, space)).values, functional.one_hot(words, 4).float())
