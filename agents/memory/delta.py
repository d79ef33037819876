"""Gated DeltaNet: a matrix a head as memory, written to by the delta rule (Yang et al. 2024, arXiv 2412.06464).

Axes: T time, B sequences (or environments), F features in, H units of the stream, D layers, K heads, E = H / K units a
head, C steps of a chunk.

A head carries a matrix S that maps keys to values, and a step writes one pair into it: what S had for that key is taken
out first, so that a new value replaces the old one and other keys keep theirs::

    S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}' k_t)'        o_t = S_t' q_t

with a decay a and a writing strength b in (0, 1), keys and queries of length 1. Within a chunk of C steps the values
written, u_j = b_j (v_j - a_j S_{j-1}' k_j), solve one triangular system (the WY form of Yang et al. 2024, arXiv
2406.06484), so that a block of T steps is T / C small products in turn. An episode that starts in a chunk is a mask.
"""

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import glu, linear, logsigmoid, normalize, pad, silu

from agents.memory.core import Array, Memory, NumpyState, NumpyStep, State, in_own_precision
from agents.memory.layers import check_heads, check_sizes, normalized, numpy_linear, numpy_normalized, numpy_sigmoid
from agents.memory.recurrent import HORIZON, check_horizon

CHUNK = 32

NumpyLayer = Callable[[Array, Array, Array], Array]
"""One layer of one step: stream (B, H), S before (B, K, E, E), room for S after -> stream."""


class GatedDeltaNet(Memory):
    """An embedding, then D residual layers ``x' = x + GLU(W [o, n])`` with n = normalized(x) and o read from S by n.

    State: one part, the matrices, (B, D, K, E, E).

    Args:
        input_size: F.
        hidden_size: H, also the size of the output.
        num_layers: D.
        heads: K, a divisor of H; a head tells at most E keys apart.
        chrono_horizon: the longest dependency expected, in steps: the heads' first decays forget over 2 to this many
            steps, evenly in their logarithm; None: over two steps.
        learned_initial_state: whether an episode starts from matrices that are learned, 0 at first, instead of from 0.

    Raises:
        ValueError: a size is not a whole number of at least 1, heads do not divide hidden_size, or chrono_horizon is
            not above 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        *,
        heads: int = 2,
        chrono_horizon: float | None = HORIZON,
        learned_initial_state: bool = False,
    ) -> None:
        check_sizes(input_size=input_size, num_layers=num_layers)
        check_heads(hidden_size, heads)
        check_horizon(chrono_horizon)
        super().__init__(input_size, output_size=hidden_size)
        self.embedding = nn.Linear(input_size, hidden_size)
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.embedding.bias)
        self.layers = nn.ModuleList(_Layer(hidden_size, heads, chrono_horizon) for _ in range(num_layers))
        shape = (num_layers, heads, hidden_size // heads, hidden_size // heads)
        self._shape = shape
        self.initial = nn.Parameter(torch.zeros(shape)) if learned_initial_state else None

    def initial_state(self, batch_size: int) -> State:
        if self.initial is not None:
            return (self.initial.detach().repeat(batch_size, 1, 1, 1, 1),)
        return (self.embedding.weight.new_zeros(batch_size, *self._shape),)

    @in_own_precision
    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        matrices = torch.where(episode_starts.view(-1, 1, 1, 1, 1), self._initial(), state[0])
        stream, after = self.embedding(features), []
        for layer, before in zip(self._layers(), matrices.unbind(1), strict=True):
            stream, written = layer.step(stream, before)
            after.append(written)
        return stream, (torch.stack(after, dim=1),)

    @in_own_precision
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        """A product with 0 keeps what is not finite: such numbers are taken out, and their episodes made NaN again."""
        initial = self._initial()
        matrices = torch.where(episode_starts[0].view(-1, 1, 1, 1, 1), initial, state[0])
        bad_state, bad = ~torch.isfinite(matrices.flatten(1)).all(-1), ~torch.isfinite(features).all(-1)
        matrices = torch.where(bad_state.view(-1, 1, 1, 1, 1), 0.0, matrices)
        stream: Tensor = self.embedding(torch.where(bad.unsqueeze(-1), 0.0, features))
        for layer, before, fresh in zip(self._layers(), matrices.unbind(1), initial, strict=True):
            stream = layer.unroll(stream, before, fresh, episode_starts)
        steps = torch.arange(1, len(bad) + 1, device=bad.device).unsqueeze(-1)
        last_bad = torch.maximum(torch.where(bad, steps, -1).cummax(0).values, bad_state.long() - 1)
        last_start = torch.where(episode_starts, steps, 0).cummax(0).values
        return torch.where((last_bad >= last_start).unsqueeze(-1), torch.nan, stream)

    def numpy_step(self) -> NumpyStep | None:
        """For float32 on a CPU."""
        weight = self.embedding.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return None
        embed = numpy_linear(weight, self.embedding.bias)
        layers = [layer.numpy_layer() for layer in self._layers()]
        initial = self.initial_state(1)[0].numpy()

        def step(features: Array, state: NumpyState, episode_starts: NDArray[np.bool_]) -> tuple[Array, NumpyState]:
            before = state[0]
            if np.count_nonzero(episode_starts):
                before = np.where(episode_starts.reshape(-1, 1, 1, 1, 1), initial, before)
            after = np.empty_like(before)
            stream = embed(features)
            for i, layer in enumerate(layers):
                stream = layer(stream, before[:, i], after[:, i])
            return stream, (after,)

        return step

    def _initial(self) -> Tensor:
        """(D, K, E, E)."""
        return self.embedding.weight.new_zeros(self._shape) if self.initial is None else self.initial

    def _layers(self) -> "list[_Layer]":
        return cast("list[_Layer]", list(self.layers))


class _Layer(nn.Module):
    def __init__(self, hidden_size: int, heads: int, chrono_horizon: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(hidden_size, 3 * hidden_size, bias=False)  # q, k, v
        self.rates = nn.Linear(hidden_size, 2 * heads)  # b, a
        self.output = nn.Linear(2 * hidden_size, 2 * hidden_size)
        for weight, parts in ((self.projections.weight, 3), (self.output.weight, 2)):
            for part in weight.data.chunk(parts):
                nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.output.bias)
        nn.init.zeros_(self.rates.bias)
        if chrono_horizon is not None:
            spans = torch.linspace(math.log(2.0), math.log(max(chrono_horizon, 2.0)), heads + 1)[1:].exp()
            self.rates.bias.data[heads:] = (spans - 1).log()

    def step(self, stream: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H), S before (B, K, E, E) -> (B, H), S after."""
        x = normalized(stream)
        q, k, v, b, log_a = self._terms(x)
        kept = log_a.exp()[..., None, None] * before
        u = b.unsqueeze(-1) * (v - (k.unsqueeze(-2) @ kept).squeeze(-2))
        after = kept + k.unsqueeze(-1) * u.unsqueeze(-2)
        o = (q.unsqueeze(-2) @ after).squeeze(-2)
        return self._joined(stream, x, o), after

    def unroll(self, stream: Tensor, before: Tensor, fresh: Tensor, episode_starts: Tensor) -> Tensor:
        """(T, B, H), S before the first step (B, K, E, E), S of an episode's start (K, E, E), (T, B) -> (T, B, H)."""
        n_steps = len(stream)
        chunk = min(CHUNK, n_steps)
        x = normalized(stream)
        q, k, v, b, log_a = (_in_chunks(part, chunk) for part in self._terms(x))  # (T / C, B, K, C, ...)
        starts = _in_chunks(episode_starts, chunk).unsqueeze(2)  # (T / C, B, 1, C)
        episode = starts.cumsum(-1)
        steps = torch.arange(chunk, device=stream.device)
        same = (steps.unsqueeze(-1) >= steps) & (episode.unsqueeze(-1) == episode.unsqueeze(-2))
        since_start = torch.where(same, log_a.unsqueeze(-2), 0.0).sum(-1)
        between = (since_start.unsqueeze(-1) - since_start.unsqueeze(-2)).masked_fill(~same, -torch.inf).exp()
        keys = since_start.exp().unsqueeze(-1) * k  # against what S was before
        queries = since_start.exp().unsqueeze(-1) * q
        system = b.unsqueeze(-1) * between * (k @ k.mT)
        right = b.unsqueeze(-1) * torch.cat((v, keys), dim=-1)
        solved = torch.linalg.solve_triangular(system.tril(-1), right, upper=False, unitriangular=True)
        values, of_keys = solved.chunk(2, dim=-1)
        attended = between * (q @ k.mT)
        first = (episode == 0).unsqueeze(-1)
        kept, written = (
            since_start[..., -1:].unsqueeze(-1).exp(),
            between[..., -1:, :].mT * k,
        )  # by the end of the chunk
        outputs, matrix = [], before
        parts = (first, queries, of_keys, values, attended, kept, written)
        for is_first, query, key, value, attend, keep, write in zip(*(part.unbind(0) for part in parts), strict=True):
            u = value - torch.where(is_first, key @ matrix, key @ fresh)
            outputs.append(torch.where(is_first, query @ matrix, query @ fresh) + attend @ u)
            matrix = keep * torch.where(is_first[..., -1:, :], matrix, fresh) + write.mT @ u
        o = torch.stack(outputs).permute(0, 3, 1, 2, 4).flatten(0, 1)[:n_steps]
        return self._joined(stream, x, o)

    def numpy_layer(self) -> NumpyLayer:
        project, rate, output_of = (
            numpy_linear(each.weight, each.bias) for each in (self.projections, self.rates, self.output)
        )
        heads = self.heads

        def layer(stream: Array, before: Array, after: Array) -> Array:
            x = numpy_normalized(stream)
            projected = project(x)
            q, k, v = np.moveaxis((projected * numpy_sigmoid(projected)).reshape(len(x), 3, heads, 1, -1), 1, 0)
            q, k = _normalized(q), _normalized(k)
            b, a = np.split(numpy_sigmoid(rate(x))[:, :, None, None], 2, axis=1)
            kept = a * before
            np.add(kept, k.swapaxes(-1, -2) * (b * (v - k @ kept)), out=after)
            read = output_of(np.concatenate(((q @ after).reshape(stream.shape), x), axis=1))
            gated, gate = np.split(read, 2, axis=1)
            joined: Array = stream + gated * numpy_sigmoid(gate)
            return joined

        return layer

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(..., H) -> q, k and v (..., K, E), b and log a (..., K)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.projections(x).chunk(3, dim=-1))
        b, a = self.rates(x).chunk(2, dim=-1)
        return normalize(silu(q), dim=-1), normalize(silu(k), dim=-1), silu(v), b.sigmoid(), logsigmoid(a)

    def _joined(self, stream: Tensor, x: Tensor, o: Tensor) -> Tensor:
        read = linear(torch.cat((o.flatten(-2), x), dim=-1), self.output.weight, self.output.bias)
        return stream + glu(read, dim=-1)


def _normalized(x: Array) -> Array:
    """To length 1 along the last axis, as ``torch.nn.functional.normalize``."""
    result: Array = x / np.maximum(np.sqrt(np.square(x).sum(-1, keepdims=True)), np.float32(1e-12))
    return result


def _in_chunks(part: Tensor, chunk: int) -> Tensor:
    """(T, B), (T, B, K) or (T, B, K, E) -> (T / C, B, (K,) C, (E)): steps added at the end write nothing."""
    padded = pad(part, (*[0, 0] * (part.dim() - 1), 0, -len(part) % chunk))
    chunks = padded.reshape(-1, chunk, *part.shape[1:])  # (T / C, C, B, K, E)
    return chunks.transpose(1, 2) if part.dim() == 2 else chunks.movedim(1, 3)
