"""Gated message passing over a graph: nodes tell their neighbours what they hold, and a GRU decides what is kept.

With ``h_v`` the state of node v and ``e_uv`` the features of the edge from u to v, a round is

    ``m_v = sum over edges u -> v of relu(W h_u + U e_uv + b)``, and the like against the direction of the edges,
    ``h_v <- GRU(m_v, h_v)``,

with the same weights in every round. GRU updates of node states are Li et al., Gated Graph Sequence Neural Networks
(2016); messages of nodes and edge features together Gilmer et al., Neural Message Passing for Quantum Chemistry (2017).

Graphs come padded, with masks that say what is real; padding changes nothing. Sums over edges are matrix products with
the edges' ends one-hot, so results are the same bit for bit on every run, on a GPU too, and nothing waits for it.

Axes: B observations, N nodes (with padding), E edges (with padding), F features of a node, G of an edge, H hidden.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

POOLS = ("attention", "mean", "sum")
OUTPUTS = ("graph", "nodes", "both")
_PARTS = ("nodes", "edges", "edge_index", "node_mask", "edge_mask")


class GraphEncoder(BaseFeaturesExtractor):
    """Dict(nodes (N, F), edge_index (E, 2), node_mask (N,), edge_mask (E,), edges (E, G) if any) -> features.

    The wrapper ``pad_graph`` makes such observations of ``gymnasium.spaces.Graph``. Masks are 1 where there is a node
    or an edge. An edge (u, v) leads from node u to node v; one with an end that is not there counts as not there.
    Other keys of the observation are flattened and stand beside the pooled nodes before the last layer.

    Args:
        features_dim: size of the features of the graph.
        hidden_size: H, the size of a node's state.
        rounds: of messages, so how many edges away a node hears from.
        pool: ``"attention"`` (a weighted mean, the weights by a softmax over the nodes), ``"mean"`` or ``"sum"``. All
            are the same whatever the order of the nodes.
        both_ways: messages also run against the direction of an edge, with weights of their own.
        output: ``"graph"``: the features of the graph, (B, features_dim). ``"nodes"``: those of the nodes,
            (B, N * node_features), in the order of the nodes, zero where there is none, for actions that are about
            nodes: node i's are entries i * node_features to (i + 1) * node_features. ``"both"``: the graph's, then the
            nodes', as ``NodeActionPolicy`` reads them.
        node_features: size of a node's features in the output.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 64,
        hidden_size: int = 64,
        rounds: int = 2,
        pool: str = "attention",
        both_ways: bool = True,
        output: str = "graph",
        node_features: int = 16,
    ) -> None:
        sizes = {"features_dim": features_dim, "hidden_size": hidden_size, "rounds": rounds}
        for name, value in (sizes | {"node_features": node_features}).items():
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, chosen, known in (("pool", pool, POOLS), ("output", output, OUTPUTS)):
            if chosen not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {chosen!r}")
        space = _checked(observation_space)
        self.max_nodes, size = _shape(space["nodes"])
        self.graph_features = 0 if output == "nodes" else features_dim
        self.node_features = 0 if output == "graph" else node_features
        super().__init__(space, self.graph_features + self.max_nodes * self.node_features)
        self.rounds, self.pool = rounds, pool
        self.enter = nn.Linear(size, hidden_size)
        edge_size = _shape(space["edges"])[1] if "edges" in space.spaces else 0
        # Of the messages along the edges, and of those against them.
        self.sent = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(1 + both_ways))
        self.carried = nn.ModuleList(nn.Linear(edge_size, hidden_size, bias=False) for _ in self.sent if edge_size)
        self.update = nn.GRUCell(hidden_size * len(self.sent), hidden_size)
        self._beside = [key for key in space.spaces if key not in _PARTS]
        if self.graph_features:
            self.score = nn.Linear(hidden_size, 1) if pool == "attention" else None
            beside = sum(spaces.utils.flatdim(space[key]) for key in self._beside)
            self.leave = nn.Linear(hidden_size + beside, features_dim)
        if self.node_features:
            self.leave_nodes = nn.Linear(2 * hidden_size, node_features)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (B, ...) -> (B, features_dim)."""
        real = observations["node_mask"].bool()
        _check_not_empty(real)
        entered, states = self._node_states(observations, real)
        features = []
        if self.graph_features:
            beside = [observations[key].flatten(1).float() for key in self._beside]
            features.append(torch.tanh(self.leave(torch.cat((self._pooled(states, real), *beside), dim=1))))
        if self.node_features:
            # What a node is itself stands beside what it has heard.
            nodes = torch.tanh(self.leave_nodes(torch.cat((entered, states), dim=2))) * real[..., None]
            features.append(nodes.flatten(1))
        return torch.cat(features, dim=1)

    def _node_states(self, observations: dict[str, Tensor], real: Tensor) -> tuple[Tensor, Tensor]:
        """The states of the nodes before the first round and after the last, (B, N, H) each."""
        sources, targets = self._ends(observations, real)
        # What is not there may hold anything, NaN too.
        nodes = observations["nodes"].float().masked_fill(~real[..., None], 0.0)
        entered = states = torch.tanh(self.enter(nodes))
        ways = ((sources, targets), (targets, sources))[: len(self.sent)]
        carried: list[Any] = [0.0] * len(ways)
        if self.carried:
            edges = observations["edges"].float().masked_fill(~observations["edge_mask"].bool()[..., None], 0.0)
            carried = [layer(edges) for layer in self.carried]
        for _ in range(self.rounds):
            heard = []
            for (start, end), sent, along in zip(ways, self.sent, carried, strict=True):
                messages = torch.relu(start @ sent(states) + along)
                heard.append(end.transpose(1, 2) @ messages)
            states = self.update(torch.cat(heard, dim=2).flatten(0, 1), states.flatten(0, 1)).view_as(states)
        return entered, states

    def _ends(self, observations: dict[str, Tensor], real: Tensor) -> tuple[Tensor, Tensor]:
        """Where edges start and where they end, (B, E, N) each, one-hot; zero for edges that are not there."""
        numbers = torch.arange(self.max_nodes, device=real.device)
        ends = (observations["edge_index"].long()[..., None] == numbers) & real[:, None, None]
        there = ends.any(dim=3).all(dim=2) & observations["edge_mask"].bool()
        ends = (ends & there[:, :, None, None]).float()
        return ends[:, :, 0], ends[:, :, 1]

    def _pooled(self, states: Tensor, real: Tensor) -> Tensor:
        """(B, N, H), (B, N) -> (B, H), over the nodes that are there."""
        if self.score is not None:
            scores = self.score(states).squeeze(2).masked_fill(~real, torch.finfo(states.dtype).min)
            weights = torch.softmax(scores, dim=1) * real
        else:
            weights = real.to(states.dtype)
            if self.pool == "mean":
                weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        return (weights[:, None] @ states).squeeze(1)


def _check_not_empty(real: Tensor) -> None:
    """Raises ValueError for a graph without nodes, where looking costs nothing: on a GPU it would have to wait."""
    if real.device.type == "cpu" and not bool(real.any(dim=1).all()):
        row = int((~real.any(dim=1)).nonzero()[0, 0])
        raise ValueError(
            f"observation {row} of the batch is a graph without nodes (its node_mask is all 0); give every graph one "
            "node at least, and set node_mask to 1 where there is one"
        )


def _checked(space: spaces.Space[Any]) -> spaces.Dict:
    """The space, which has to be that of padded graphs."""
    if isinstance(space, spaces.Graph):
        raise ValueError(f"the graph encoder takes padded graphs, not {space}: put the wrapper 'pad_graph' around it")
    needed = [name for name in _PARTS if name != "edges"]
    if not isinstance(space, spaces.Dict) or not set(needed) <= set(space.spaces):
        has = f"the keys {', '.join(space.spaces)}" if isinstance(space, spaces.Dict) else str(space)
        raise ValueError(
            f"the graph encoder takes a Dict observation with {', '.join(needed)} (and edges, if they have features), "
            f"got {has}; the wrapper 'pad_graph' makes one of a Graph observation"
        )
    axes = {"nodes": 2, "edge_index": 2} | ({"edges": 2} if "edges" in space.spaces else {})
    for name, count in axes.items():
        if not isinstance(space[name], spaces.Box) or len(_shape(space[name])) != count:
            shape = {"nodes": "(nodes, features)", "edges": "(edges, features)", "edge_index": "(edges, 2)"}[name]
            raise ValueError(f"{name!r} must be a Box of shape {shape}, got {space[name]}")
    nodes, edges = _shape(space["nodes"])[0], _shape(space["edge_index"])[0]
    expected = {"node_mask": (nodes,), "edge_mask": (edges,), "edge_index": (edges, 2)}
    if "edges" in space.spaces:
        expected["edges"] = (edges, _shape(space["edges"])[1])
    for name, wanted in expected.items():
        if _shape(space[name]) != wanted or isinstance(space[name], spaces.Discrete | spaces.MultiDiscrete):
            raise ValueError(
                f"with nodes {_shape(space['nodes'])} and edge_index {_shape(space['edge_index'])}, {name!r} must be a "
                f"Box{' or MultiBinary' if 'mask' in name else ''} of shape {wanted}, got {space[name]}"
            )
    if nodes < 1:
        raise ValueError("the graph has no room for a node: 'nodes' must be a Box of shape (nodes, features)")
    index = space["edge_index"]
    assert isinstance(index, spaces.Box)
    if index.low.size and (index.low.min() < 0 or index.high.max() >= nodes):
        raise ValueError(
            f"'edge_index' may reach from {index.low.min()} to {index.high.max()}, but there are {nodes} nodes: its "
            f"Box must have low 0 and high {nodes - 1}"
        )
    return space


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    return tuple(space.shape or ())
