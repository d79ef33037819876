"""What goes on in an agent over an episode: the main directions of its state, its gates, what it attends to, graphs.

Axes: T steps, U units, D layers, H units of a layer, A heads, M slots of a window, K tokens of an observation,
N nodes, E edges.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agents.analysis.recording import Recording, first_step_of, without_passing
from agents.deploy.player import Player
from agents.encoders.graph import GraphEncoder
from agents.memory import GRU, LSTM, AttentionMemory, GTrXL, Memory
from agents.policy.actor_critic import RecurrentActorCriticPolicy

Array = NDArray[np.float64]

SHUT, OPEN = 0.1, 0.9  # a gate below or above is saturated


class Components(NamedTuple):
    """The principal components of a stream (T, U)."""

    scores: Array  # (T, n) the stream along each
    explained: Array  # (n,) the share of its variance that each holds; 0 where the stream never changes


def principal_components(units: NDArray[Any], n: int = 2) -> Components:
    """(T, U) -> the n directions along which the stream varies most, of largest variance first (Pearson 1901).

    Signs are chosen so that the largest weight of each direction is positive.
    """
    centered = np.asarray(units, dtype=np.float64) - np.mean(units, axis=0, dtype=np.float64)
    left, sizes, directions = np.linalg.svd(centered, full_matrices=False)
    found = min(n, len(sizes))
    signs = np.sign(directions[np.arange(found), np.abs(directions[:found]).argmax(axis=1)])
    scores, explained = np.zeros((len(centered), n)), np.zeros(n)
    scores[:, :found] = left[:, :found] * (sizes[:found] * signs)
    total = (sizes**2).sum()
    if total > 0:
        explained[:found] = sizes[:found] ** 2 / total
    return Components(scores, explained)


@dataclass(frozen=True)
class Gates:
    """How far the gates of an LSTM or GRU stand open, 0 shut and 1 open; GRU keeps the old state by "update"."""

    openness: dict[str, NDArray[np.float32]]  # (T, D, H) of "input", "forget", "output", or of "reset", "update"

    def mean_over_time(self) -> dict[str, Array]:
        """(T, D) mean over units at every step."""
        return {name: gate.mean(axis=2, dtype=np.float64) for name, gate in self.openness.items()}

    def saturation_over_time(self) -> dict[str, Array]:
        """(T, D) share of units below 0.1 or above 0.9 at every step."""
        return {name: ((gate < SHUT) | (gate > OPEN)).mean(axis=2) for name, gate in self.openness.items()}

    def to_json(self) -> dict[str, Any]:
        """Openness and saturation of each gate, layer by layer."""
        opened, saturated = self.mean_over_time(), self.saturation_over_time()
        return {
            name: {"openness": opened[name].mean(axis=0).tolist(), "saturation": saturated[name].mean(axis=0).tolist()}
            for name in self.openness
        }


def gates(player: Player, recording: Recording) -> Gates | None:
    """The gates over an episode, by the equations of the cells; None unless the memory is an LSTM or GRU."""
    memory = without_passing(player.policy.memory_actor)
    recurrent: Memory = memory.recurrent if isinstance(memory, AttentionMemory) else memory
    if not isinstance(recurrent, LSTM | GRU):
        return None
    hidden, masks = recording.states[0], recording.states[recurrent.carried_parts :]
    below, layers = recording.features[:, : recurrent.input_size], []
    for layer in range(recurrent.num_layers):
        layers.append(_openness(recurrent, layer, below, hidden[:-1, layer]))
        below = hidden[1:, layer]
        if masks and recurrent.dropout > 0 and layer + 1 < recurrent.num_layers:
            below = below * masks[0][1:, layer]
    # By their place among the blocks of an LSTM's or GRU's weights.
    places = {"input": 0, "forget": 1, "output": 3} if isinstance(recurrent, LSTM) else {"reset": 0, "update": 1}
    return Gates({name: np.stack([layer[place] for layer in layers], axis=1) for name, place in places.items()})


def _openness(
    recurrent: LSTM | GRU, layer: int, below: NDArray[Any], before: NDArray[Any]
) -> list[NDArray[np.float32]]:
    """What comes from below (T, F), the hidden state before (T, H) -> the sigmoid of each block (T, H)."""
    sums = 0.0
    for part, inputs in (("ih", below), ("hh", before)):
        weight, bias = (getattr(recurrent, f"{kind}_{part}_l{layer}") for kind in ("weight", "bias"))
        sums = sums + torch.as_tensor(inputs).double() @ weight.detach().cpu().double().T
        sums = sums if bias is None else sums + bias.detach().cpu().double()
    return np.split(torch.sigmoid(torch.as_tensor(sums)).float().numpy(), recurrent.gates, axis=1)


class Attention(NamedTuple):
    """What each step attended to."""

    weights: Array  # (T, M + 1) by lag, 0 being the step itself, or (T, K) by token; they sum to 1
    by_lag: bool


def attention(player: Player, recording: Recording) -> dict[str, Attention]:
    """Attention over an episode, by whose it is: of the memory by lag, of the encoder by token; empty where none is.

    Several heads are given each, and so are the layers of a gated transformer. An encoder has attention where it offers
    ``attention_weights(observations)``, (T, A, K).
    """
    with torch.no_grad():
        return {**_of_memory(player.policy, recording), **_of_encoder(player.policy, recording)}


def _of_memory(policy: RecurrentActorCriticPolicy, recording: Recording) -> dict[str, Attention]:
    memory = without_passing(policy.memory_actor)
    if not isinstance(memory, AttentionMemory | GTrXL):
        return {}
    features = torch.as_tensor(recording.features[:, None, : memory.input_size], device=policy.device).contiguous()
    starts = first_step_of(len(recording)).to(policy.device)
    weights = memory.attention_weights(features, memory.initial_state(1), starts)[:, 0]
    reach = min(len(recording), weights.shape[-1])  # no further back than the episode goes
    by_lag = weights.flip(-1)[..., :reach].double().cpu().numpy()
    if by_lag.ndim == 2:
        return {"memory": Attention(by_lag, True)}
    heads = np.ndindex(*by_lag.shape[1:3])
    return {f"memory, layer {i + 1}, head {j + 1}": Attention(by_lag[:, i, j], True) for i, j in heads}


class GraphWeights(NamedTuple):
    """What of an observed graph carried weight in its encoder, at every step."""

    edge_index: NDArray[np.int64]  # (T, E, 2) from which node to which
    nodes: Array  # (T, N) in the pooled features; they sum to 1, and padding has 0
    edges: Array  # (T, E) in the messages; likewise


def graph_weights(player: Player, recording: Recording) -> list[GraphWeights]:
    """Of each graph encoder of the actor; empty where it has none."""
    encoder, found = player.policy.pi_features_extractor, []
    for each in (module for module in encoder.modules() if isinstance(module, GraphEncoder)):
        observed = _read_by(each, player.policy, recording)
        with torch.no_grad():
            nodes, edges = (part.double().cpu().numpy() for part in each.weights(observed))
        found.append(GraphWeights(observed["edge_index"].long().cpu().numpy(), nodes, edges))
    return found


def _of_encoder(policy: RecurrentActorCriticPolicy, recording: Recording) -> dict[str, Attention]:
    encoder: Any = policy.pi_features_extractor
    if not callable(getattr(encoder, "attention_weights", None)):
        return {}
    weights = encoder.attention_weights(_read_by(encoder, policy, recording)).double().cpu().numpy()
    heads = [Attention(weights[:, head], False) for head in range(weights.shape[1])]
    return {"encoder": heads[0]} if len(heads) == 1 else {f"encoder, head {i}": each for i, each in enumerate(heads, 1)}


def _read_by(module: nn.Module, policy: RecurrentActorCriticPolicy, recording: Recording) -> Any:
    """What an encoder, or a part of one, reads over an episode, (T, ...)."""
    read: list[Any] = []
    observations, _ = policy.obs_to_tensor(recording.seen)
    with torch.no_grad(), module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])):
        policy.encode(observations, first_step_of(len(recording)).shape)
    return read[0]
