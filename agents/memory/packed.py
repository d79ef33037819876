"""RNN, LSTM and GRU over a block of episodes by torch's own kernels: cuDNN on a GPU, any type of number anywhere.

The segments of the block go in as torch's ``PackedSequence`` would lay them out, so nothing is padded. But on a CPU
torch's fast kernel for an LSTM in float32 (oneDNN's) takes no packed sequence: padded, this is two to five times as
fast, unless most of it would be padding.

Axes: T time, B sequences, N = T * B steps, P segments, L steps of the longest, F features in, H hidden units.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from agents.kernels.contract import Kind, Parameters, State
from agents.memory.episodes import Segments, at_segments, split, take_rows

MOST_PADDING = 4  # times as many steps as there are


def unroll(kind: Kind, features: Tensor, state: State, episode_starts: Tensor, parameters: Parameters) -> Tensor:
    """As ``agents.kernels.contract`` says."""
    layer: Any = getattr(torch, kind)
    segments = split(episode_starts)
    weights = [parameter for parameter in parameters if parameter is not None]
    parts = tuple(at_segments(part, segments).unsqueeze(0) for part in state)
    before = parts if kind == "lstm" else parts[0]
    settings = (len(weights) == 4, 1, 0.0, True, False)  # biases, layers, dropout, training, bidirectional
    with _without_tf32():
        if segments.packed is None:
            outputs: Tensor = layer(features, before, weights, *settings, False)[0]
            return outputs
        rows = take_rows(features.flatten(0, 1), segments)
        if kind == "lstm" and _is_padded(rows, segments):
            outputs = layer(_padded(rows, segments), before, weights, *settings, False)[0]
            outputs = outputs.flatten(0, 1).index_select(0, segments.on(rows.device, "padded"))
        else:
            outputs = layer(rows, torch.from_numpy(segments.batch_sizes), before, weights, *settings)[0]
    return take_rows(outputs, segments, back=True).view(*episode_starts.shape, -1)


def _is_padded(rows: Tensor, segments: Segments) -> bool:
    n_places = len(segments.sequence) * len(segments.batch_sizes)
    return rows.is_cpu and rows.dtype == torch.float32 and n_places <= MOST_PADDING * len(rows)


def _padded(rows: Tensor, segments: Segments) -> Tensor:
    """(N, F) -> (L, P, F)."""
    shape = (len(segments.batch_sizes), len(segments.sequence), rows.shape[1])
    places = rows.new_zeros(shape[0] * shape[1], shape[2])
    return places.index_copy(0, segments.on(rows.device, "padded"), rows).view(shape)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Without the shortened products that cuDNN's recurrent kernels take by default: ``step`` has none, and both must
    agree to 1e-5."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
