"""Gated message passing over a graph: nodes send messages along edges, and a GRU decides what is kept.

With ``h_v`` the state of node v and ``e_uv`` the features of the edge from u to v, a round is

    ``m_v = sum over edges u -> v of relu(W h_u + U e_uv + b)``, and the like against the direction of the edges,
    ``h_v <- GRU(m_v, h_v)``,

with the same weights in every round: Li et al. 2016, "Gated graph sequence neural networks", with the messages of
nodes and edge features of Gilmer et al. 2017, "Neural message passing for quantum chemistry".

Graphs come padded, with masks; padding changes nothing. Sums over edges are matrix products with one-hot ends of
edges, so results are the same bit for bit on every run, on a GPU too.

Axes: B observations, N nodes (with padding), E edges (with padding), F features of a node, G of an edge, H hidden.
"""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.checks.arguments import check_choice, check_count, check_switch
from agents.encoders.attention import masked_softmax

POOLS = ("attention", "mean", "sum")
OUTPUTS = ("graph", "nodes", "both")
_AXES: dict[str, tuple[str | int, ...]] = {
    "nodes": ("nodes", "features"),
    "edge_index": ("edges", 2),
    "node_mask": ("nodes",),
    "edge_mask": ("edges",),
    "edges": ("edges", "edge features"),
}
"""The parts of an observation, of which "edges" may be missing; axes of one name have one size."""


class GraphEncoder(BaseFeaturesExtractor):
    """Dict(nodes (N, F), edge_index (E, 2), node_mask (N,), edge_mask (E,), edges (E, G) if any) -> features.

    The wrapper ``pad_graph`` makes such observations of ``gymnasium.spaces.Graph``. Masks are 1 for a node or an edge,
    0 for padding. An edge (u, v) leads from node u to node v; one with an end that is padding is padding. Other keys
    of the observation are flattened and join the pooled nodes before the last layer.

    Args:
        features_dim: size of the features of the graph.
        hidden_size: H, the size of a node's state.
        rounds: of messages: how many edges away a node's influence reaches.
        pool: ``"attention"`` (a weighted mean, the weights by a softmax over the nodes), ``"mean"`` or ``"sum"``, none
            of which depends on the order of the nodes.
        both_ways: messages also run against the direction of an edge, with weights of their own.
        output: ``"graph"``: the features of the graph, (B, features_dim). ``"nodes"``: those of the nodes,
            (B, N * node_features), in the order of the nodes, zero for padding: node i's are entries
            i * node_features to (i + 1) * node_features. ``"both"``: the graph's, then the nodes', as
            ``NodeActionPolicy`` reads them.
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
        counts = dict(features_dim=features_dim, hidden_size=hidden_size, rounds=rounds, node_features=node_features)
        for name, count in counts.items():
            check_count(name, count)
        check_choice("pool", pool, POOLS)
        check_choice("output", output, OUTPUTS)
        check_switch("both_ways", both_ways)
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
        self._context_keys = [key for key in space.spaces if key not in _AXES]
        if self.graph_features:
            self.score = nn.Linear(hidden_size, 1) if pool == "attention" else None
            context_size = sum(spaces.utils.flatdim(space[key]) for key in self._context_keys)
            self.leave = nn.Linear(hidden_size + context_size, features_dim)
        if self.node_features:
            self.leave_nodes = nn.Linear(2 * hidden_size, node_features)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of (B, ...) -> (B, features_dim)."""
        valid = observations["node_mask"].bool()
        _check_not_empty(valid)
        entered, states = self._node_states(observations, valid)
        features = []
        if self.graph_features:
            context = [observations[key].flatten(1).float() for key in self._context_keys]
            features.append(torch.tanh(self.leave(torch.cat((self._pooled(states, valid), *context), dim=1))))
        if self.node_features:
            nodes = torch.tanh(self.leave_nodes(torch.cat((entered, states), dim=2))) * valid[..., None]
            features.append(nodes.flatten(1))
        return torch.cat(features, dim=1)

    def _node_states(self, observations: dict[str, Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """The states of the nodes before the first round and after the last, (B, N, H) each."""
        sources, targets = self._ends(observations, valid)
        # Padding may hold anything, NaN too.
        nodes = observations["nodes"].float().masked_fill(~valid[..., None], 0.0)
        entered = states = torch.tanh(self.enter(nodes))
        directions = ((sources, targets), (targets, sources))[: len(self.sent)]
        carried: list[Any] = [0.0] * len(directions)
        if self.carried:
            edges = observations["edges"].float().masked_fill(~observations["edge_mask"].bool()[..., None], 0.0)
            carried = [layer(edges) for layer in self.carried]
        for _ in range(self.rounds):
            received = []
            for (start, end), sent, along in zip(directions, self.sent, carried, strict=True):
                messages = torch.relu(start @ sent(states) + along)
                received.append(end.transpose(1, 2) @ messages)
            states = self.update(torch.cat(received, dim=2).flatten(0, 1), states.flatten(0, 1)).view_as(states)
        return entered, states

    def _ends(self, observations: dict[str, Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """Where edges start and where they end, (B, E, N) each, one-hot; zero for padding."""
        numbers = torch.arange(self.max_nodes, device=valid.device)
        ends = (observations["edge_index"].long()[..., None] == numbers) & valid[:, None, None]
        valid_edges = ends.any(dim=3).all(dim=2) & observations["edge_mask"].bool()
        ends = (ends & valid_edges[:, :, None, None]).float()
        return ends[:, :, 0], ends[:, :, 1]

    def _pooled(self, states: Tensor, valid: Tensor) -> Tensor:
        """(B, N, H), (B, N) -> (B, H), over the valid nodes."""
        if self.score is not None:
            weights = masked_softmax(self.score(states).squeeze(2), valid)
        else:
            weights = valid.to(states.dtype)
            if self.pool == "mean":
                weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        return (weights[:, None] @ states).squeeze(1)


def _check_not_empty(valid: Tensor) -> None:
    """Raises ValueError for a graph without nodes; on a CPU only, since a GPU would have to wait for the answer."""
    if valid.device.type == "cpu" and not bool(valid.any(dim=1).all()):
        row = int((~valid.any(dim=1)).nonzero()[0, 0])
        raise ValueError(
            f"observation {row} of the batch is a graph without nodes (its node_mask is all 0); give every graph one "
            "node at least, and set node_mask to 1 for it"
        )


def _checked(space: spaces.Space[Any]) -> spaces.Dict:
    """The space, which has to be that of padded graphs."""
    if isinstance(space, spaces.Graph):
        raise ValueError(f"the graph encoder reads padded graphs, not {space}: put the wrapper 'pad_graph' around it")
    needed = [name for name in _AXES if name != "edges"]
    if not isinstance(space, spaces.Dict) or not set(needed) <= set(space.spaces):
        has = f"the keys {', '.join(space.spaces)}" if isinstance(space, spaces.Dict) else str(space)
        raise ValueError(
            f"the graph encoder reads a Dict observation with {', '.join(needed)} (and edges, if they have features), "
            f"got {has}; the wrapper 'pad_graph' makes one of a Graph observation"
        )
    sizes: dict[str | int, int] = {2: 2}
    for name, axes in _AXES.items():
        if name in space.spaces:
            _check_part(name, space[name], axes, sizes)
    index = space["edge_index"]
    assert isinstance(index, spaces.Box)
    if index.low.size and (index.low.min() < 0 or index.high.max() >= sizes["nodes"]):
        raise ValueError(
            f"'edge_index' may reach from {index.low.min()} to {index.high.max()}, but there are {sizes['nodes']} "
            f"nodes: its Box must have low 0 and high {sizes['nodes'] - 1}"
        )
    return space


def _check_part(name: str, part: spaces.Space[Any], axes: tuple[str | int, ...], sizes: dict[str | int, int]) -> None:
    """Raises ValueError unless a part has the axes that it should; sizes seen first are added to ``sizes``."""
    shape = _shape(part)
    kinds = (spaces.Box, spaces.MultiBinary) if name.endswith("mask") else (spaces.Box,)
    fits = isinstance(part, kinds) and len(shape) == len(axes)
    fits = fits and all(sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True))
    if not fits or sizes["nodes"] < 1:
        wanted = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name!r} must be a {names} of shape ({wanted}), with a node at least, got {part}")


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    return tuple(space.shape or ())
