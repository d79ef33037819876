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

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import glu, logsigmoid, normalize, pad, silu

from agents.checks.arguments import check_counts, check_heads
from agents.memory.core import Array, State, in_own_precision
from agents.memory.layers import (
    normalized,
    numpy_glu,
    numpy_linear,
    numpy_normalized,
    numpy_sigmoid,
    xavier_linear,
)
from agents.memory.recurrent import HORIZON, check_horizon
from agents.memory.stack import Layer, NumpyLayer, Stack

CHUNK = 32


class GatedDeltaNet(Stack):
    """Gated DeltaNet (Yang et al. 2024): a matrix a head, written to by the delta rule and read by a query.

    An embedding, then D residual layers ``x' = x + GLU(W [o, n])`` with n = normalized(x) and o read from S by n.

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
        check_counts(input_size=input_size, num_layers=num_layers)
        check_heads("hidden_size", hidden_size, heads)
        check_horizon(chrono_horizon)
        layers = [_Layer(hidden_size, heads, chrono_horizon) for _ in range(num_layers)]
        size = hidden_size // heads
        super().__init__(input_size, hidden_size, layers, (heads, size, size), learned_initial_state)

    @in_own_precision
    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        """A product with 0 keeps what is not finite: such numbers are taken out, and their episodes made NaN again."""
        bad, bad_state = ~features.isfinite().all(-1), ~state[0].flatten(1).isfinite().all(-1)
        matrices = torch.where(bad_state.view(-1, 1, 1, 1, 1), 0.0, state[0])
        stream = super().unroll(torch.where(bad.unsqueeze(-1), 0.0, features), (matrices,), episode_starts)
        steps = torch.arange(1, len(bad) + 1, device=bad.device).unsqueeze(-1)
        last_bad = torch.maximum(torch.where(bad, steps, -1).cummax(0).values, bad_state.long() - 1)
        last_start = torch.where(episode_starts, steps, 0).cummax(0).values
        return torch.where((last_bad >= last_start).unsqueeze(-1), torch.nan, stream)


class _Layer(Layer):
    def __init__(self, hidden_size: int, heads: int, chrono_horizon: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.projections = xavier_linear(hidden_size, 3 * hidden_size, parts=3, bias=False)  # q, k, v
        self.rates = nn.Linear(hidden_size, 2 * heads)  # b, a
        self.output = xavier_linear(2 * hidden_size, 2 * hidden_size, parts=2)
        nn.init.zeros_(self.rates.bias)
        if chrono_horizon is not None:
            spans = torch.linspace(math.log(2.0), math.log(max(chrono_horizon, 2.0)), heads + 1)[1:].exp()
            self.rates.bias.data[heads:] = (spans - 1).log()

    def step(self, stream: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        x = normalized(stream)
        q, k, v, b, log_a = self._terms(x)
        kept = log_a.exp()[..., None, None] * before
        u = b.unsqueeze(-1) * (v - (k.unsqueeze(-2) @ kept).squeeze(-2))
        after = kept + k.unsqueeze(-1) * u.unsqueeze(-2)
        o = (q.unsqueeze(-2) @ after).squeeze(-2)
        return self._joined(stream, x, o), after

    def unroll(self, stream: Tensor, before: Tensor, initial: Tensor | None, episode_starts: Tensor) -> Tensor:
        fresh = before.new_zeros(before.shape[1:]) if initial is None else initial
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
        kept, written = since_start[..., -1:, None].exp(), between[..., -1:, :].mT * k  # by the end of the chunk
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
            joined: Array = stream + numpy_glu(read)
            return joined

        return layer

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(..., H) -> q, k and v (..., K, E), b and log a (..., K)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.projections(x).chunk(3, dim=-1))
        b, a = self.rates(x).chunk(2, dim=-1)
        return normalize(silu(q), dim=-1), normalize(silu(k), dim=-1), silu(v), b.sigmoid(), logsigmoid(a)

    def _joined(self, stream: Tensor, x: Tensor, o: Tensor) -> Tensor:
        return stream + glu(self.output(torch.cat((o.flatten(-2), x), dim=-1)), dim=-1)


def _normalized(x: Array) -> Array:
    """To length 1 along the last axis, as ``torch.nn.functional.normalize``."""
    result: Array = x / np.maximum(np.sqrt(np.square(x).sum(-1, keepdims=True)), np.float32(1e-12))
    return result


def _in_chunks(part: Tensor, chunk: int) -> Tensor:
    """(T, B), (T, B, K) or (T, B, K, E) -> (T / C, B, (K,) C, (E)): steps added at the end write nothing."""
    padded = pad(part, (*[0, 0] * (part.dim() - 1), 0, -len(part) % chunk))
    chunks = padded.reshape(-1, chunk, *part.shape[1:])  # (T / C, C, B, K, E)
    return chunks.transpose(1, 2) if part.dim() == 2 else chunks.movedim(1, 3)
