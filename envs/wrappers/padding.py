"""Observations of varying size made into arrays of one size with masks: graphs and sequences.

    pad_graph        a Graph -> nodes, edges, edge_index, node_mask, edge_mask
    pad_sequence     a Sequence -> window, mask

Stable-Baselines3 and rollout buffers hold arrays of one shape; what comes out here fits both, and the encoders read it.
These wrap one environment at a time, before anything that wraps many. An observation that does not fit, with more nodes
than there is room for, say, is an error that tells what came.

Axes: N nodes at most, E edges at most, K elements of a sequence at most, F numbers of a node, an edge or an element.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Padded(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """An environment whose observation, or one key of whose Dict observation, is made into several arrays.

    In a Dict the new keys stand beside the other ones. A subclass names the `kind` of space it takes and gives
    `_spaces` and `_arrays`.
    """

    kind: type[spaces.Space[Any]]

    def __init__(self, env: gymnasium.Env[Any, Any], key: str | None) -> None:
        """`key`: which key of a Dict observation is meant; None: the one of the right kind."""
        super().__init__(env)
        space = env.observation_space
        self._beside: dict[str, spaces.Space[Any]] = {}
        self._key: str | None = None
        if isinstance(space, spaces.Dict):
            self._key = self._chosen(space, key)
            self._beside = {name: part for name, part in space.items() if name != self._key}
            space = space[self._key]
        elif key is not None:
            raise ValueError(f"{self._name}: key={key!r}, but the observation has no keys: {space}")
        if not isinstance(space, self.kind):
            raise ValueError(f"{self._name} takes {self.kind.__name__} observations, not {space}{self._where()}")
        made = self._spaces(space)
        if set(made) & set(self._beside):
            raise ValueError(f"{self._name}: the observation has keys of these names already: {sorted(self._beside)}")
        self.observation_space = spaces.Dict({**self._beside, **made})

    def observation(self, observation: Any) -> Arrays:
        if self._key is None:
            return self._arrays(observation)
        beside = {name: observation[name] for name in self._beside}
        return {**beside, **self._arrays(observation[self._key])}

    def _spaces(self, space: Any) -> dict[str, spaces.Space[Any]]:
        """The spaces of what comes out, for the space of what comes in."""
        raise NotImplementedError

    def _arrays(self, observation: Any) -> Arrays:
        raise NotImplementedError

    @property
    def _name(self) -> str:
        return "pad_graph" if self.kind is spaces.Graph else "pad_sequence"

    def _where(self) -> str:
        return "" if self._key is None else f" under {self._key!r}"

    def _chosen(self, space: spaces.Dict, key: str | None) -> str:
        fitting = [name for name, part in space.items() if isinstance(part, self.kind)] if key is None else [key]
        if len(fitting) != 1 or fitting[0] not in space.spaces:
            has = ", ".join(f"{name}: {part}" for name, part in space.items())
            asked = f"key={key!r}" if key is not None else f"one key with a {self.kind.__name__}"
            raise ValueError(f"{self._name} looks for {asked}, but the observation has {has}; name one with key=...")
        return fitting[0]


class PadGraph(Padded):
    """A Graph becomes a Dict of arrays: nodes and edges from the first place on, zeros after them.

    nodes (N, F) float32, edges (E, F) float32 where edges have features: Box values as they are, flattened;
        categories one-hot
    edge_index (E, 2) int64: the nodes that each edge leads from and to
    node_mask (N,), edge_mask (E,) int8: 1 where there is a node or an edge
    """

    kind = spaces.Graph

    def __init__(self, env: gymnasium.Env[Any, Any], *, max_nodes: int, max_edges: int, key: str | None = None) -> None:
        """`max_nodes`, `max_edges`: for how many there is room, N and E."""
        RecordConstructorArgs.__init__(self, max_nodes=max_nodes, max_edges=max_edges, key=key)
        _check_count("max_nodes", max_nodes)
        _check_count("max_edges", max_edges)
        self.max_nodes, self.max_edges = int(max_nodes), int(max_edges)
        super().__init__(env, key)

    def _spaces(self, space: spaces.Graph) -> dict[str, spaces.Space[Any]]:
        self._node_numbers = Numbers(space.node_space)
        made: dict[str, spaces.Space[Any]] = {"nodes": self._node_numbers.repeated(self.max_nodes)}
        self._edge_numbers = None if space.edge_space is None else Numbers(space.edge_space)
        if self._edge_numbers is not None:
            made["edges"] = self._edge_numbers.repeated(self.max_edges)
        made["edge_index"] = spaces.Box(0, self.max_nodes - 1, (self.max_edges, 2), np.int64)
        made["node_mask"] = spaces.MultiBinary(self.max_nodes)
        made["edge_mask"] = spaces.MultiBinary(self.max_edges)
        return made

    def _arrays(self, graph: spaces.GraphInstance) -> Arrays:
        nodes = self._node_numbers(graph.nodes)
        links = np.zeros((0, 2), np.int64) if graph.edge_links is None else np.asarray(graph.edge_links)
        self._check(len(nodes), links)
        arrays: Arrays = {"nodes": _padded(nodes, self.max_nodes)}
        if self._edge_numbers is not None:
            edges = self._edge_numbers(() if graph.edges is None else graph.edges)
            if len(edges) != len(links):
                raise ValueError(f"a graph has {len(edges)} edges but {len(links)} edge_links: give as many of both")
            arrays["edges"] = _padded(edges, self.max_edges)
        arrays["edge_index"] = _padded(links.astype(np.int64), self.max_edges)
        arrays["node_mask"] = _padded(np.ones(len(nodes), np.int8), self.max_nodes)
        arrays["edge_mask"] = _padded(np.ones(len(links), np.int8), self.max_edges)
        return arrays

    def _check(self, nodes: int, links: NDArray[Any]) -> None:
        """Raises ValueError for a graph that has no place here."""
        if nodes == 0:
            raise ValueError("a graph without nodes was observed: every graph needs one node at least")
        if nodes > self.max_nodes:
            raise ValueError(f"a graph of {nodes} nodes was observed, max_nodes is {self.max_nodes}: give more")
        if links.ndim != 2 or links.shape[1] != 2:
            raise ValueError(f"edge_links must have the shape (edges, 2), not {links.shape}")
        if len(links) > self.max_edges:
            raise ValueError(f"a graph of {len(links)} edges was observed, max_edges is {self.max_edges}: give more")
        wrong = np.flatnonzero(((links < 0) | (links >= nodes)).any(axis=1))
        if wrong.size:
            edge = int(wrong[0])
            raise ValueError(
                f"edge {edge} of a graph joins nodes {links[edge].tolist()}, but it has {nodes} nodes, 0 to {nodes - 1}"
            )


class PadSequence(Padded):
    """A Sequence becomes a Dict: window (K, F) float32, the newest last, zeros before it, and mask (K,) int8, 1 where
    there is an element.

    That is how the wrapper `history` lays out its observations. Box elements are flattened, categories one-hot.
    """

    kind = spaces.Sequence

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        max_length: int,
        truncate: bool = False,
        key: str | None = None,
    ) -> None:
        """`max_length`: for how many elements there is room, K. `truncate`: of a longer sequence the newest K are
        kept; else one is an error."""
        RecordConstructorArgs.__init__(self, max_length=max_length, truncate=truncate, key=key)
        _check_count("max_length", max_length)
        self.max_length, self.truncate = int(max_length), truncate
        super().__init__(env, key)

    def _spaces(self, space: spaces.Sequence) -> dict[str, spaces.Space[Any]]:
        self._numbers = Numbers(space.feature_space)
        return {"window": self._numbers.repeated(self.max_length), "mask": spaces.MultiBinary(self.max_length)}

    def _arrays(self, sequence: Any) -> Arrays:
        elements = self._numbers(sequence)
        if len(elements) > self.max_length and not self.truncate:
            raise ValueError(
                f"a sequence of {len(elements)} elements was observed, max_length is {self.max_length}: give more, or "
                "truncate=True to keep the newest"
            )
        newest = elements[max(0, len(elements) - self.max_length) :]
        mask = np.ones(len(newest), np.int8)
        return {
            name: _padded(part[::-1], self.max_length)[::-1].copy()
            for name, part in (("window", newest), ("mask", mask))
        }


class Numbers:
    """Elements of a space as rows of numbers, float32: a Box flattened, categories one-hot."""

    def __init__(self, space: Any) -> None:
        self._space = space
        if isinstance(space, spaces.Discrete):
            self.low, self.high = np.zeros(int(space.n), np.float32), np.ones(int(space.n), np.float32)
        elif isinstance(space, spaces.Box):
            # Zero stands for what is not there.
            self.low = np.minimum(space.low, 0).reshape(-1).astype(np.float32)
            self.high = np.maximum(space.high, 0).reshape(-1).astype(np.float32)
        else:
            raise ValueError(f"what a graph or a sequence is made of must be a Box or Discrete, not {space}")

    def repeated(self, count: int) -> spaces.Box:
        """The space of `count` rows, (count, F)."""
        return spaces.Box(np.repeat(self.low[None], count, axis=0), np.repeat(self.high[None], count, axis=0))

    def __call__(self, elements: Any) -> NDArray[np.float32]:
        """(n, ...), or a tuple of n elements -> (n, F)."""
        values = np.asarray(elements)
        if isinstance(self._space, spaces.Box):
            shape = self._space.shape
            if len(values) and values.shape[1:] != shape:
                raise ValueError(f"expected elements of {self._space}, got an array of shape {values.shape}")
            return values.reshape(len(values), len(self.low)).astype(np.float32)
        categories = values.reshape(len(values)).astype(np.int64) - int(self._space.start)
        if len(values) and not (categories.min() >= 0 and categories.max() < len(self.low)):
            raise ValueError(f"expected elements of {self._space}, got {values.tolist()}")
        return np.eye(len(self.low), dtype=np.float32)[categories]


def _padded(values: NDArray[Any], length: int) -> NDArray[Any]:
    """(n, ...) -> (length, ...), zeros after the values."""
    result = np.zeros((length, *values.shape[1:]), values.dtype)
    result[: len(values)] = values
    return result


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
