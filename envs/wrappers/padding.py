"""Observations of varying size made into arrays of one size with masks: graphs and sequences.

    pad_graph        a Graph -> nodes, edges, edge_index, node_mask, edge_mask
    pad_sequence     a Sequence -> window, mask

Stable-Baselines3 and rollout buffers hold arrays of one shape; what comes out here fits both, and the encoders read it.
These wrap one environment at a time, before anything that wraps many. An observation that does not fit, with more nodes
than there is room for, say, is an error that reports it.

Axes: N nodes at most, E edges at most, K elements of a sequence at most, F numbers of a node, an edge or an element.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from envs.tasks.observations import is_array_space
from envs.wrappers.encoding import Encoder, repeated

Arrays = dict[str, NDArray[Any]]


class Padded(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """An environment whose observation, or one key of whose Dict observation, is made into several arrays.

    In a Dict the new keys join the other ones. A subclass names the `kind` of space it takes and what converts it.
    """

    name: ClassVar[str]
    kind: ClassVar[type[spaces.Space[Any]]]

    def __init__(self, env: gymnasium.Env[Any, Any], key: str | None, settings: dict[str, Any]) -> None:
        """`key`: which key of a Dict observation is meant; None: the one of the right kind."""
        RecordConstructorArgs.__init__(self, **settings, key=key)
        super().__init__(env)
        space = env.observation_space
        others: dict[str, spaces.Space[Any]] = {}
        self._key: str | None = None
        if isinstance(space, spaces.Dict):
            self._key = self._chosen(space, key)
            others = {name: part for name, part in space.items() if name != self._key}
            space = space[self._key]
        elif key is not None:
            raise ValueError(f"{self.name}: key={key!r}, but the observation has no keys: {space}")
        if not isinstance(space, self.kind):
            where = "" if self._key is None else f" under {self._key!r}"
            raise ValueError(f"{self.name} takes {self.kind.__name__} observations, not {space}{where}")
        self._arrays = self._converter(space)
        made = self._arrays.spaces
        if set(made) & set(others):
            raise ValueError(f"{self.name}: the observation has keys of these names already: {sorted(others)}")
        self.observation_space = spaces.Dict({**others, **made})

    def observation(self, observation: Any) -> Arrays:
        if self._key is None:
            arrays: Arrays = self._arrays(observation)
            return arrays
        others = {name: part for name, part in observation.items() if name != self._key}
        return {**others, **self._arrays(observation[self._key])}

    def _converter(self, space: Any) -> Any:
        """What makes arrays of an observation of the space."""
        raise NotImplementedError

    def _chosen(self, space: spaces.Dict, key: str | None) -> str:
        fitting = [name for name, part in space.items() if isinstance(part, self.kind)] if key is None else [key]
        if len(fitting) != 1 or fitting[0] not in space.spaces:
            has = ", ".join(f"{name}: {part}" for name, part in space.items())
            sought = f"key={key!r}" if key is not None else f"one key with a {self.kind.__name__}"
            raise ValueError(f"{self.name} looks for {sought}, but the observation has {has}; name one with key=...")
        return fitting[0]


class PadGraph(Padded):
    """A Graph becomes a Dict of arrays: nodes and edges from the first place on, zeros after them.

    nodes (N, F) float32, edges (E, F) float32 where edges have features: Box values as they are, flattened;
        categories one-hot
    edge_index (E, 2) int64: the nodes that each edge leads from and to
    node_mask (N,), edge_mask (E,) int8: 1 where there is a node or an edge
    """

    name = "pad_graph"
    kind = spaces.Graph

    def __init__(self, env: gymnasium.Env[Any, Any], *, max_nodes: int, max_edges: int, key: str | None = None) -> None:
        """`max_nodes`, `max_edges`: for how many there is room, N and E."""
        self.max_nodes, self.max_edges = checked_count("max_nodes", max_nodes), checked_count("max_edges", max_edges)
        super().__init__(env, key, {"max_nodes": max_nodes, "max_edges": max_edges})

    def _converter(self, space: spaces.Graph) -> GraphArrays:
        return GraphArrays(space, self.max_nodes, self.max_edges)


class PadSequence(Padded):
    """A Sequence becomes a Dict: window (K, F) float32, the newest last, zeros before it, and mask (K,) int8, 1 where
    there is an element.

    That is how the wrapper `history` lays out its observations. Box elements are flattened, categories one-hot.
    """

    name = "pad_sequence"
    kind = spaces.Sequence

    def __init__(
        self, env: gymnasium.Env[Any, Any], *, max_length: int, truncate: bool = False, key: str | None = None
    ) -> None:
        """`max_length`: for how many elements there is room, K. `truncate`: of a longer sequence the newest K are
        kept; else one is an error."""
        self.max_length, self.truncate = checked_count("max_length", max_length), truncate
        super().__init__(env, key, {"max_length": max_length, "truncate": truncate})

    def _converter(self, space: spaces.Sequence) -> SequenceArrays:
        return SequenceArrays(space, self.max_length, self.truncate)


class GraphArrays:
    """The arrays of a Graph's observations, by name, with their `spaces`; see `PadGraph`."""

    def __init__(self, space: spaces.Graph, max_nodes: int, max_edges: int) -> None:
        self.max_nodes, self.max_edges = max_nodes, max_edges
        self._nodes = _Elements(space.node_space)
        self._edges = None if space.edge_space is None else _Elements(space.edge_space)
        self.spaces: dict[str, spaces.Space[Any]] = {"nodes": repeated(self._nodes.space, max_nodes)}
        if self._edges is not None:
            self.spaces["edges"] = repeated(self._edges.space, max_edges)
        self.spaces["edge_index"] = spaces.Box(0, max_nodes - 1, (max_edges, 2), np.int64)
        self.spaces["node_mask"] = spaces.MultiBinary(max_nodes)
        self.spaces["edge_mask"] = spaces.MultiBinary(max_edges)

    def __call__(self, graph: spaces.GraphInstance) -> Arrays:
        nodes = self._nodes(graph.nodes)
        links = np.zeros((0, 2), np.int64) if graph.edge_links is None else np.asarray(graph.edge_links)
        self._check(len(nodes), links)
        arrays: Arrays = {"nodes": _padded(nodes, self.max_nodes)}
        if self._edges is not None:
            edges = self._edges(() if graph.edges is None else graph.edges)
            if len(edges) != len(links):
                raise ValueError(f"a graph has {len(edges)} edges but {len(links)} edge_links: give as many of both")
            arrays["edges"] = _padded(edges, self.max_edges)
        arrays["edge_index"] = _padded(links.astype(np.int64), self.max_edges)
        arrays["node_mask"] = _padded(np.ones(len(nodes), np.int8), self.max_nodes)
        arrays["edge_mask"] = _padded(np.ones(len(links), np.int8), self.max_edges)
        return arrays

    def _check(self, nodes: int, links: NDArray[Any]) -> None:
        """Raises ValueError for a graph that does not fit."""
        if nodes == 0:
            raise ValueError("a graph without nodes was observed: every graph needs one node at least")
        if links.ndim != 2 or links.shape[1] != 2:
            raise ValueError(f"edge_links must have the shape (edges, 2), not {links.shape}")
        for kind, count, most in (("nodes", nodes, self.max_nodes), ("edges", len(links), self.max_edges)):
            if count > most:
                raise ValueError(f"a graph of {count} {kind} was observed, max_{kind} is {most}: give more")
        wrong = np.flatnonzero(((links < 0) | (links >= nodes)).any(axis=1))
        if wrong.size:
            edge = int(wrong[0])
            raise ValueError(
                f"edge {edge} of a graph joins nodes {links[edge].tolist()}, but it has {nodes} nodes, 0 to {nodes - 1}"
            )


class SequenceArrays:
    """The arrays of a Sequence's observations, by name, with their `spaces`; see `PadSequence`."""

    def __init__(self, space: spaces.Sequence, max_length: int, truncate: bool) -> None:
        self.max_length, self.truncate = max_length, truncate
        self._elements = _Elements(space.feature_space)
        window = repeated(self._elements.space, max_length)
        self.spaces: dict[str, spaces.Space[Any]] = {"window": window, "mask": spaces.MultiBinary(max_length)}

    def __call__(self, sequence: Any) -> Arrays:
        elements = self._elements(sequence)
        if len(elements) > self.max_length and not self.truncate:
            raise ValueError(
                f"a sequence of {len(elements)} elements was observed, max_length is {self.max_length}: give more, or "
                "truncate=True to keep the newest"
            )
        newest = elements[-self.max_length :]
        mask = np.ones(len(newest), np.int8)
        return {
            "window": _padded(newest, self.max_length, last=True),
            "mask": _padded(mask, self.max_length, last=True),
        }


class _Elements:
    """Elements of a space as rows of numbers, float32: a Box flattened, categories one-hot."""

    def __init__(self, space: Any) -> None:
        if not is_array_space(space):
            raise ValueError(
                "what a graph or a sequence is made of must be a Box, Discrete, MultiDiscrete or MultiBinary, not "
                f"{space}: make it one in a gymnasium.ObservationWrapper"
            )
        self._of, self._encode = space, Encoder(space)
        low, high = (
            bound.reshape(-1).astype(np.float32) for bound in (self._encode.space.low, self._encode.space.high)
        )
        self.space = spaces.Box(low, high)

    def __call__(self, elements: Any) -> NDArray[np.float32]:
        """(n, ...), or a tuple of n elements -> (n, F)."""
        values = np.asarray(elements)
        if not len(values):
            return np.zeros((0, *self.space.shape), np.float32)
        if values.shape[1:] != self._of.shape:
            raise ValueError(f"expected elements of {self._of}, got an array of shape {values.shape}")
        if isinstance(self._of, spaces.Discrete | spaces.MultiDiscrete):
            places, count = values - self._of.start, getattr(self._of, "n", getattr(self._of, "nvec", 0))
            if (places < 0).any() or (places >= count).any():
                raise ValueError(f"expected elements of {self._of}, got {values.tolist()}")
        return self._encode(values).reshape(len(values), math.prod(self.space.shape)).astype(np.float32)


def _padded(values: NDArray[Any], length: int, last: bool = False) -> NDArray[Any]:
    """(n, ...) -> (length, ...), zeros after the values, or before them with `last`."""
    result = np.zeros((length, *values.shape[1:]), values.dtype)
    start = length - len(values) if last else 0
    result[start : start + len(values)] = values
    return result


def checked_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)
