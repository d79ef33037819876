"""The gated transformer (GTrXL), whose state is a window of what its layers saw in the last steps.

Axes: T time, B sequences (or environments), F features in, H units, D layers, A heads of E = H / A units, M slots of
the window, K = M + T positions of a block and the window before it, C steps of a chunk; ``agents.memory.window`` says
what a step attends to.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.checks.arguments import check_counts, check_heads
from agents.kernels.aside import all_modules_hooked, touched
from agents.memory.core import Array, Memory, NumpyState, NumpyStep, State, in_own_precision
from agents.memory.layers import (
    GRUGate,
    normalized,
    numpy_linear,
    numpy_normalized,
    numpy_sigmoid,
    sinusoidal_positions,
    xavier_linear,
)
from agents.memory.window import (
    Chunk,
    SlidingWindow,
    by_position,
    by_slot,
    chunks,
    finite,
    numpy_softmax,
    push,
    visible,
)


class GTrXL(Memory):
    """The gated transformer (Parisotto et al. 2020, "Stabilizing Transformers for Reinforcement Learning").

    Each of D layers is ``x' = gate(x, relu(attention(normalized(x))))``, ``x'' = gate(x', relu(mlp(normalized(x'))))``,
    with gates as of a GRU that start near the identity, so that the memory begins as a feed-forward network. Attention
    is Transformer-XL's (Dai et al. 2019): scores of content and of distance, over the M steps before and the step
    itself. Layers on top of each other reach D * M steps back. The normalizations have no scale of their own: the
    linear maps after them have one.

    State: the normalized input of each layer at the last M steps, (B, D, M, H), and how many of them are of the
    episode, (B, 1). A sequence attends to the window that came with it as to constants: its gradient ends there.

    Args:
        input_size: F.
        hidden_size: H, also the size of the output.
        num_layers: D.
        heads: A, a divisor of H.
        window: M, steps that a layer sees before its own.
        feedforward_size: hidden units of each layer's mlp; None: twice H.
        gate_bias: how near the identity the gates start: sigmoid(-gate_bias) of a new content comes through.
        learned_initial_state: whether an episode starts with one slot taken, the same learned vector for every episode,
            0 at first; like any slot it is gone after M steps.
    """

    distances: Tensor
    """(M + 1, H): of distances M, M - 1, ..., 0, as the slots lie."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        *,
        heads: int = 4,
        window: int = 64,
        feedforward_size: int | None = None,
        gate_bias: float = 2.0,
        learned_initial_state: bool = False,
    ) -> None:
        feedforward_size = 2 * hidden_size if feedforward_size is None else feedforward_size
        check_counts(input_size=input_size, num_layers=num_layers, window=window, feedforward_size=feedforward_size)
        check_heads("hidden_size", hidden_size, heads)
        if not math.isfinite(gate_bias):
            raise ValueError(f"gate_bias must be a finite number; got {gate_bias!r}")
        super().__init__(input_size, output_size=hidden_size)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.window = window
        self.learned_initial_state = learned_initial_state
        self.embedding = xavier_linear(input_size, hidden_size)
        self.layers: Any = nn.ModuleList(
            _Layer(hidden_size, heads, feedforward_size, gate_bias) for _ in range(num_layers)
        )
        distances = torch.arange(window, -1, -1)
        self.register_buffer("distances", sinusoidal_positions(distances, hidden_size), persistent=False)
        self.initial = nn.Parameter(torch.zeros(num_layers, hidden_size)) if learned_initial_state else None

    def initial_state(self, batch_size: int) -> State:
        return tuple(part.detach() for part in self._initial_state(batch_size))

    @in_own_precision
    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        window, count = self._restarted(state, episode_starts)
        seen = visible(count, self.window)
        stream, newest = self.embedding(features), []
        for layer, module in enumerate(self.layers):
            x = normalized(stream)
            newest.append(x)
            stream = module(stream, x, window[:, layer], seen, self.distances)
        return stream, push(window, count, torch.stack(newest, dim=1))

    @in_own_precision
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        return self._attend(features, state, episode_starts)[0]

    @in_own_precision
    def attention_weights(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        """What each step attends to: (T, B, F), state, (T, B) -> (T, B, D, A, M + 1), summing to 1.

        The last is the step itself, the one before it the step before, and so on; 0 where that was in another episode,
        or never. A learned first slot is where a step before the episode's first would be.
        """
        _, weights = self._attend(features, state, episode_starts, with_weights=True)
        return torch.stack(weights, dim=1).permute(3, 0, 1, 2, 4)

    def _attend(
        self, features: Tensor, state: State, episode_starts: Tensor, with_weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs (T, B, H), and with ``with_weights`` each layer's weights (B, A, T, M + 1)."""
        window, count = state
        to_see = chunks(count, episode_starts, self.window)
        since_start = _steps_since_start(episode_starts)
        stream, found = self.embedding(features).transpose(0, 1), []  # (B, T, H)
        for layer, module in enumerate(self.layers):
            first_slot = None if self.initial is None else self.initial[layer]
            block = _Block(window[:, layer], to_see, self.distances, first_slot, since_start)
            if with_weights:
                found.append(module.attention_weights(stream, block))
            stream = module(stream, block)
        return stream.transpose(0, 1), found

    def numpy_step(self) -> NumpyStep | None:
        """One thread at a time."""
        embed = numpy_linear(self.embedding.weight, self.embedding.bias)
        layers: list[NumpyLayer] = [layer.numpy_layer(self.distances) for layer in self.layers]
        sliding = SlidingWindow(*self.initial_state(1))

        def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
            window, count = state
            slots, mask = sliding.open(window, count, episode_starts)
            for_heads = None if mask is None else mask[:, None]
            stream = embed(features)
            for layer, through in enumerate(layers):
                stream = through(stream, slots[:, layer], for_heads)
            return stream, sliding.state_after()

        return step

    def _initial_state(self, batch_size: int) -> State:
        weight = self.embedding.weight
        window = weight.new_zeros(batch_size, self.num_layers, self.window, self.hidden_size)
        if self.initial is None:
            return window, weight.new_zeros(batch_size, 1)
        taken = self.initial.expand(batch_size, 1, -1, -1).transpose(1, 2)
        return torch.cat((window[:, :, 1:], taken), dim=2), weight.new_ones(batch_size, 1)

    def _restarted(self, state: State, episode_starts: Tensor) -> State:
        """As ``reset``, with the gradient of the learned slot."""
        (window, count), (fresh_window, fresh_count) = state, self._initial_state(1)
        starts = episode_starts.view(-1, 1)
        return torch.where(starts[..., None, None], fresh_window, window), torch.where(starts, fresh_count, count)


class _Block(NamedTuple):
    """What a layer attends to in a block."""

    window: Tensor
    """(B, M, H) before the block."""
    to_see: list[Chunk]
    distances: Tensor
    """(M + 1, H)"""
    first_slot: Tensor | None
    """The learned slot (H,)."""
    since_start: Tensor
    """(B, T) how many steps before each step the learned slot lies, 0 where it does not."""


NumpyLayer = Callable[[Array, Array, Array | None], Array]
"""Stream (B, H), slots (B, M + 1, H) with the last to be written, mask (B, 1, M + 1) -> stream."""


def _steps_since_start(episode_starts: Tensor) -> Tensor:
    """(T, B) -> (B, T): 1 at an episode's first step, 2 at the next; 0 in an episode from before the block."""
    time = torch.arange(1, len(episode_starts) + 1, device=episode_starts.device).unsqueeze(-1)
    start = torch.where(episode_starts, time, 0).cummax(0).values
    return torch.where(start > 0, time - start + 1, 0).t()


class _Layer(nn.Module):
    """Attention and mlp, each behind its gate.

    A score is ``((q + u) . k + (q + v) . r) / sqrt(E)``: q and k of the contents of the step and of the slot, r of
    their distance, u and v learned (Dai et al. 2019, section 3.3).
    """

    def __init__(self, hidden_size: int, heads: int, feedforward_size: int, gate_bias: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.position = (
            xavier_linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )
        self.content_bias = nn.Parameter(torch.zeros(hidden_size))
        self.position_bias = nn.Parameter(torch.zeros(hidden_size))
        self.output = xavier_linear(hidden_size, hidden_size)
        self.attention_gate = GRUGate(hidden_size, gate_bias)
        self.widen = xavier_linear(hidden_size, feedforward_size)
        self.narrow = xavier_linear(feedforward_size, hidden_size)
        self.mlp_gate = GRUGate(hidden_size, gate_bias)

    def forward(self, stream: Tensor, *arguments: Any) -> Tensor:
        """``step`` of a stream (B, H), ``unroll`` of a stream (B, T, H)."""
        output: Tensor = (self.step if stream.dim() == 2 else self.unroll)(stream, *arguments)
        return output

    def step(self, stream: Tensor, x: Tensor, window: Tensor, seen: Tensor, distances: Tensor) -> Tensor:
        """(B, H), normalized (B, H), (B, M, H), (B, M) slots that count, (M + 1, H) -> (B, H).

        Queries are taken to the slots, not the M slots to keys: that is M times less work.
        """
        slots = torch.cat((window, x.unsqueeze(1)), dim=1)
        by_content, by_distance = self._queries(x)
        of_key = torch.einsum("bae,aeh->bah", by_content, self._by_head(self.key))
        scores = of_key @ slots.transpose(1, 2) + torch.einsum("bae,ame->bam", by_distance, self._positions(distances))
        hidden = torch.cat((~seen, torch.zeros_like(seen[:, :1])), dim=1)
        weights = scores.masked_fill(hidden.unsqueeze(1), -math.inf).softmax(dim=-1)
        attended = torch.einsum("bah,aeh->bae", weights @ finite(slots), self._by_head(self.value))
        return self._gated(stream, attended.flatten(1))

    def unroll(self, stream: Tensor, block: _Block) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        x = normalized(stream)
        slots = torch.cat((block.window, x), dim=1)  # (B, K, H)
        values = finite(self._heads_first(self.value(slots)))
        attended = []
        for chunk, weights, of_first in self._weights(x, slots, block):
            attended.append(weights @ values[:, :, chunk.positions])
            if of_first is not None:
                attended[-1] = attended[-1] + of_first * self.value(block.first_slot).view(self.heads, 1, -1)
        return self._gated(stream, torch.cat(attended, dim=2).transpose(1, 2).flatten(2))

    def attention_weights(self, stream: Tensor, block: _Block) -> Tensor:
        """(B, T, H) -> (B, A, T, M + 1)."""
        n_slots, found = block.window.shape[1], []
        x = normalized(stream)
        for chunk, weights, of_first in self._weights(x, torch.cat((block.window, x), dim=1), block):
            found.append(by_slot(weights, n_slots))
            if of_first is not None:
                before = block.since_start[:, None, chunk.steps, None]
                at = torch.arange(n_slots, -1, -1, device=before.device) == torch.where(before > 0, before, -1)
                found[-1] = found[-1] + of_first * at
        return torch.cat(found, dim=2)

    def numpy_layer(self, distances: Tensor) -> NumpyLayer:
        """One step, with products of weights that follow each other taken beforehand.

        Scores: ``q . k = x (W_q^T W_k) slot``, so one product of x gives, for every head, what the slots are multiplied
        with and the scores of all distances. The slots are weighed first, and then taken through W_v and the output.
        """
        n_heads, n_units = self.heads, self.query.in_features
        with torch.no_grad():
            scale = 1 / math.sqrt(n_units // n_heads)
            of_query = self._by_head(self.query) * scale
            of_key, positions = self._by_head(self.key), self._positions(distances)
            to_slots = torch.einsum("aeh,aei->aih", of_query, of_key).flatten(0, 1)
            to_distances = torch.einsum("aeh,ame->amh", of_query, positions).flatten(0, 1)
            u, v = ((bias * scale).view(n_heads, -1) for bias in (self.content_bias, self.position_bias))
            of_u = torch.einsum("ae,aei->ai", u, of_key).flatten()
            of_v = torch.einsum("ae,ame->am", v, positions).flatten()
            out = self.output.weight.view(n_units, n_heads, -1)
            of_slots = torch.einsum("oae,aeh->oah", out, self._by_head(self.value)).flatten(1)
        to_scores = numpy_linear(torch.cat((to_slots, to_distances)), torch.cat((of_u, of_v)))
        to_stream = numpy_linear(of_slots, self.output.bias)
        widen, narrow = (numpy_linear(linear.weight, linear.bias) for linear in (self.widen, self.narrow))
        attention_gate, mlp_gate = _numpy_gate(self.attention_gate), _numpy_gate(self.mlp_gate)
        n_slot_columns = n_heads * n_units

        def layer(stream: Array, slots: Array, mask: Array | None) -> Array:
            x = numpy_normalized(stream)
            slots[:, -1] = x
            of_x = to_scores(x)
            scores = of_x[:, :n_slot_columns].reshape(len(x), n_heads, n_units) @ slots.transpose(0, 2, 1)
            scores += of_x[:, n_slot_columns:].reshape(scores.shape)
            if mask is not None:
                scores += mask
            attended = to_stream((numpy_softmax(scores) @ slots).reshape(len(x), -1))
            stream = attention_gate(stream, np.maximum(attended, 0, out=attended))
            wide = widen(numpy_normalized(stream))
            narrowed = narrow(np.maximum(wide, 0, out=wide))
            return mlp_gate(stream, np.maximum(narrowed, 0, out=narrowed))

        return layer

    def _weights(self, x: Tensor, slots: Tensor, block: _Block) -> Iterator[tuple[Chunk, Tensor, Tensor | None]]:
        """For each chunk those of its positions (B, A, C, M + C) and of the learned slot, if there is one."""
        by_content, by_distance = (part.transpose(1, 2) for part in self._queries(x))  # (B, A, T, E)
        keys = self._heads_first(self.key(slots))
        of_distance = self._positions(block.distances).transpose(1, 2)  # (A, E, M + 1)
        for chunk in block.to_see:
            position_scores = by_distance[:, :, chunk.steps] @ of_distance  # (B, A, C, M + 1)
            scores = by_content[:, :, chunk.steps] @ keys[:, :, chunk.positions].transpose(2, 3)
            scores = (scores + by_position(position_scores)).masked_fill(chunk.hidden.unsqueeze(1), -math.inf)
            if block.first_slot is None:
                yield chunk, scores.softmax(dim=-1), None
                continue
            key, before = self.key(block.first_slot), block.since_start[:, chunk.steps]
            of_first = self._scores_of_first(by_content[:, :, chunk.steps], position_scores, key, before)
            weights = torch.cat((scores, of_first), dim=-1).softmax(dim=-1)
            yield chunk, weights[..., :-1], weights[..., -1:]

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) -> for contents and for distances, (..., A, E) each."""
        query, scale = self.query(x), 1 / math.sqrt(x.shape[-1] // self.heads)
        by_content, by_distance = (
            ((query + bias) * scale).view(*x.shape[:-1], self.heads, -1)
            for bias in (self.content_bias, self.position_bias)
        )
        return by_content, by_distance

    def _positions(self, distances: Tensor) -> Tensor:
        """(M + 1, H) -> (A, M + 1, E)."""
        positions: Tensor = self.position(distances)
        return positions.view(len(distances), self.heads, -1).transpose(0, 1)

    def _by_head(self, linear: nn.Linear) -> Tensor:
        """The weights (H, H) as (A, E, H); where something hooks into the layer, found by calling it."""
        weight = linear.weight
        if all_modules_hooked() or touched(linear, ""):
            weight = linear(torch.eye(linear.in_features, device=weight.device)).t()
        return weight.reshape(self.heads, -1, linear.in_features)

    def _heads_first(self, x: Tensor) -> Tensor:
        """(B, K, H) -> (B, A, K, E)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _scores_of_first(self, by_content: Tensor, position_scores: Tensor, key: Tensor, before: Tensor) -> Tensor:
        """Scores of the learned slot (B, A, C, 1), minus infinity where it is out of the window or before the block."""
        n_slots = position_scores.shape[-1] - 1
        seen = (before > 0) & (before <= n_slots)
        at = (n_slots - before).clamp(min=0)[:, None, :, None].expand(-1, self.heads, -1, -1)
        scores: Tensor = by_content @ key.view(self.heads, -1, 1) + position_scores.gather(-1, at)
        return scores.masked_fill(~seen[:, None, :, None], -math.inf)

    def _gated(self, stream: Tensor, attended: Tensor) -> Tensor:
        stream = self.attention_gate(stream, self.output(attended).relu())
        widened = self.widen(normalized(stream)).relu()
        gated: Tensor = self.mlp_gate(stream, self.narrow(widened).relu())
        return gated


def _numpy_gate(gate: GRUGate) -> Callable[[Array, Array], Array]:
    of_block = numpy_linear(gate.of_block.weight, gate.of_block.bias)
    of_stream, of_reset = numpy_linear(gate.of_stream.weight), numpy_linear(gate.of_reset.weight)
    size = gate.of_reset.in_features

    def join(stream: Array, block: Array) -> Array:
        from_block = of_block(block)
        gates = of_stream(stream)
        gates += from_block[:, : 2 * size]
        gates = numpy_sigmoid(gates)
        new = of_reset(gates[:, :size] * stream)
        new += from_block[:, 2 * size :]
        np.tanh(new, out=new)
        new -= stream
        new *= gates[:, size:]
        new += stream
        return new

    return join
