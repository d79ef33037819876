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

from agents.checks.arguments import check_choice, check_counts, check_range, check_switch
from agents.encoders.attention import masked_softmax

POOLS = ("attention", "mean", "sum")
OUTPUTS = ("graph", "nodes", "both", "links", "graph and links")
_AXES: dict[str, tuple[str | int, ...]] = {
    "nodes": ("nodes", "features"),
    "edge_index": ("edges", 2),
    "node_mask": ("nodes",),
    "edge_mask": ("edges",),
    "edges": ("edges", "edge features"),
    "node_labels": ("nodes",),
    "pair_index": ("pairs", 2),
    "pair_labels": ("pairs",),
}
"""The parts of an observation, of which the first four must be there; axes of one name have one size."""
_NEEDED = ("nodes", "edge_index", "node_mask", "edge_mask")


class GraphEncoder(BaseFeaturesExtractor):
    """Gated message passing (Li et al. 2016, Gilmer et al. 2017) over a graph.

    Dict(nodes (N, F), edge_index (E, 2), node_mask (N,), edge_mask (E,), edges (E, G) if any) -> features.

    The wrapper ``pad_graph`` makes such observations of ``gymnasium.spaces.Graph``. Masks are 1 for a node or an edge,
    0 for padding. An edge (u, v) leads from node u to node v; one with an end that is padding is padding. Other keys
    of the observation are flattened and join the pooled nodes before the last layer.

    Auxiliary losses (Kipf & Welling 2017 and 2016 have them as tasks) are of what the observation tells for this alone,
    and no feature is made of it; -1 stands for what is not known, and is left out:

    - ``node_classification``: of node_labels (N,), the class of each node, cross-entropy.
    - ``link_prediction``: of pair_labels (P,), 1 or 0 for the pairs of nodes pair_index (P, 2): whether there is a
      link, or whatever else joins the first to the second; binary cross-entropy.

    Args:
        features_dim: size of the features of the graph.
        hidden_size: H, the size of a node's state.
        rounds: of messages: how many edges away a node's influence reaches.
        pool: ``"attention"`` (a weighted mean, the weights by a softmax over the nodes), ``"mean"`` or ``"sum"``, none
            of which depends on the order of the nodes.
        both_ways: messages also run against the direction of an edge, with weights of their own.
        output: ``"graph"``: the features of the graph, (B, features_dim). ``"nodes"``: those of the nodes,
            (B, N * node_features), in the order of the nodes, zero for padding: node i's are entries
            i * node_features to (i + 1) * node_features. ``"links"``: those of the edges, (B, E * node_features), in
            the same manner, made of both ends and the edge. ``"both"``, ``"graph and links"``: the graph's, then
            those, as ``NodeActionPolicy`` and ``LinkActionPolicy`` read them.
        node_features: size of a node's, or an edge's, features in the output.
        auxiliary_weight: of each auxiliary loss whose labels the observation has; 0 for none.
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
        auxiliary_weight: float = 0.0,
    ) -> None:
        check_counts(features_dim=features_dim, hidden_size=hidden_size, rounds=rounds, node_features=node_features)
        check_choice("pool", pool, POOLS)
        check_choice("output", output, OUTPUTS)
        check_switch("both_ways", both_ways)
        check_range("auxiliary_weight", auxiliary_weight, 0.0)
        space = _checked(observation_space)
        self.max_nodes, size = _shape(space["nodes"])
        self.graph_features = 0 if output in ("nodes", "links") else features_dim
        self.node_features = 0 if output == "graph" else node_features
        self.of_links = output in ("links", "graph and links")
        self.max_items = _shape(space["edge_index"])[0] if self.of_links else self.max_nodes
        super().__init__(space, self.graph_features + self.max_items * self.node_features)
        self.rounds, self.pool = rounds, pool
        self.enter = nn.Linear(size, hidden_size)
        edge_size = _shape(space["edges"])[1] if "edges" in space.spaces else 0
        # Of the messages along the edges, and of those against them.
        self.sent = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(1 + both_ways))
        self.carried = nn.ModuleList(nn.Linear(edge_size, hidden_size, bias=False) for _ in self.sent if edge_size)
        self.update = nn.GRUCell(hidden_size * len(self.sent), hidden_size)
        self._context_keys = [key for key in space.spaces if key not in _AXES]
        is_weighted = self.graph_features and pool == "attention"
        self.score = nn.Linear(hidden_size, 1) if is_weighted else None
        if self.graph_features:
            context_size = sum(spaces.utils.flatdim(space[key]) for key in self._context_keys)
            self.leave = nn.Linear(hidden_size + context_size, features_dim)
        if self.node_features:
            item_size = 4 * hidden_size + edge_size if self.of_links else 2 * hidden_size
            self.leave_nodes = nn.Linear(item_size, node_features)
        self.auxiliary_weight = float(auxiliary_weight)
        self._losses: dict[str, Tensor] = {}
        if self.auxiliary_weight:
            self._make_predictors(space, hidden_size)

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
            nodes = torch.cat((entered, states), dim=2)
            items, there = self._link_inputs(observations, nodes, valid) if self.of_links else (nodes, valid)
            features.append((torch.tanh(self.leave_nodes(items)) * there[..., None]).flatten(1))
        if self.training and self.auxiliary_weight:
            self._losses = self._predicted(observations, states, valid)
        return torch.cat(features, dim=1)

    def weights(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What carried weight: nodes (B, N), in the pooled features; edges (B, E), in the messages. Each sum to 1.

        A node's is what attention gives it, or where there is none the norm of its state; an edge's is the norm of its
        messages of all rounds and directions. Padding has 0, and so have all edges of a graph without any message.
        """
        valid = observations["node_mask"].bool()
        sent: list[Tensor] = []
        _, states = self._node_states(observations, valid, sent)
        there = self._ends(observations, valid)[0].any(dim=2)
        edges = torch.stack([each.norm(dim=2) for each in sent]).sum(dim=0) * there
        nodes = states.norm(dim=2) * valid if self.score is None else self._pooling(states, valid)
        nodes, edges = (each / each.sum(dim=1, keepdim=True).clamp(min=1e-12) for each in (nodes, edges))
        return nodes, edges

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Of the last forward pass in training mode."""
        losses, self._losses = self._losses, {}
        return {name: self.auxiliary_weight * loss for name, loss in losses.items()}

    def _make_predictors(self, space: spaces.Dict, hidden_size: int) -> None:
        if "node_labels" in space.spaces:
            self.classify = nn.Linear(hidden_size, _largest(space["node_labels"]) + 1)
        if "pair_labels" in space.spaces:
            self.join = nn.Bilinear(hidden_size, hidden_size, 1)
        if not {"node_labels", "pair_labels"} & space.spaces.keys():
            raise ValueError(
                "auxiliary_weight needs labels in the observation, node_labels (nodes,) or pair_index (pairs, 2) with "
                f"pair_labels (pairs,); it has {', '.join(space.spaces)}: add them, or set auxiliary_weight to 0"
            )

    def _predicted(self, observations: dict[str, Tensor], states: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The losses, by name, over what is known."""
        losses = {}
        if hasattr(self, "classify"):
            labels = observations["node_labels"].long()
            known = (labels >= 0) & valid
            losses["node_classification"] = _mean(
                nn.functional.cross_entropy(
                    self.classify(states).transpose(1, 2), labels.clamp(min=0), reduction="none"
                ),
                known,
            )
        if hasattr(self, "join"):
            labels, pairs = observations["pair_labels"], observations["pair_index"].long()
            one, other = (states.gather(1, end[..., None].expand(-1, -1, states.shape[2])) for end in pairs.unbind(2))
            known = (labels >= 0) & valid.gather(1, pairs[..., 0]) & valid.gather(1, pairs[..., 1])
            logits = self.join(one, other).squeeze(2)
            loss = nn.functional.binary_cross_entropy_with_logits
            losses["link_prediction"] = _mean(loss(logits, labels.clamp(min=0).float(), reduction="none"), known)
        return losses

    def _link_inputs(self, observations: dict[str, Tensor], nodes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """What an edge's features are made of, (B, E, ...), from its nodes (B, N, ...), and which edges there are."""
        sources, targets = self._ends(observations, valid)
        there = sources.any(dim=2)
        parts = [sources @ nodes, targets @ nodes]
        if self.carried:
            parts.append(observations["edges"].float().masked_fill(~there[..., None], 0.0))
        return torch.cat(parts, dim=2), there

    def _node_states(
        self, observations: dict[str, Tensor], valid: Tensor, along_edges: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states of the nodes before the first round and after the last, (B, N, H) each.

        ``along_edges`` gets every message, (B, E, H), round by round.
        """
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
                if along_edges is not None:
                    along_edges.append(messages)
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
        return (self._pooling(states, valid)[:, None] @ states).squeeze(1)

    def _pooling(self, states: Tensor, valid: Tensor) -> Tensor:
        """(B, N, H), (B, N) -> (B, N): how much of each node there is in the pooled state."""
        if self.score is not None:
            return masked_softmax(self.score(states).squeeze(2), valid)
        weights = valid.to(states.dtype)
        return weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0) if self.pool == "mean" else weights


def _mean(values: Tensor, of: Tensor) -> Tensor:
    """Over the entries that are meant; 0 if there are none."""
    return values.masked_fill(~of, 0.0).sum() / of.sum().clamp(min=1)


def _largest(space: spaces.Space[Any]) -> int:
    """The largest label there can be."""
    return int(space.high.max()) if isinstance(space, spaces.Box) else 1


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
    if not isinstance(space, spaces.Dict) or not set(_NEEDED) <= set(space.spaces):
        has = f"the keys {', '.join(space.spaces)}" if isinstance(space, spaces.Dict) else str(space)
        raise ValueError(
            f"the graph encoder reads a Dict observation with {', '.join(_NEEDED)} (and edges, if they have features), "
            f"got {has}; the wrapper 'pad_graph' makes one of a Graph observation"
        )
    sizes: dict[str | int, int] = {2: 2}
    for name, axes in _AXES.items():
        if name in space.spaces:
            _check_part(name, space[name], axes, sizes)
    if ("pair_index" in space.spaces) != ("pair_labels" in space.spaces):
        raise ValueError("pair_index and pair_labels go together: give both in the observation, or neither")
    for name in {"edge_index", "pair_index"} & space.spaces.keys():
        index = space[name]
        assert isinstance(index, spaces.Box)
        if index.low.size and (index.low.min() < 0 or index.high.max() >= sizes["nodes"]):
            raise ValueError(
                f"{name!r} may reach from {index.low.min()} to {index.high.max()}, but there are {sizes['nodes']} "
                f"nodes: its Box must have low 0 and high {sizes['nodes'] - 1}"
            )
    return space


def _check_part(name: str, part: spaces.Space[Any], axes: tuple[str | int, ...], sizes: dict[str | int, int]) -> None:
    """Raises ValueError unless a part has the axes that it should; sizes seen first are added to ``sizes``."""
    shape = _shape(part)
    kinds = (spaces.Box, spaces.MultiBinary) if name.endswith(("mask", "labels")) else (spaces.Box,)
    fits = isinstance(part, kinds) and len(shape) == len(axes)
    fits = fits and all(sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True))
    if not fits or sizes["nodes"] < 1:
        wanted = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name!r} must be a {names} of shape ({wanted}), with a node at least, got {part}")


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    return tuple(space.shape or ())
