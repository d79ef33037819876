"""A network whose loads are seen one node at a time, vectorized in NumPy.

    PacketRouting-v0      survey the relays, then send a packet along the route that is free

`best_return` is what a perfect memory earns, `memoryless_return` what no policy without memory exceeds.

Axes: N environments, R some of them ("rows"), K routes, L hops of each, V nodes, E = K L links, S = K (L - 1) relays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.batch import BatchEnv, Outcome, Rows, Uniforms, check_at_least, single
from envs.tasks.pictures import BACKGROUND, BLUE, GRAY, GREEN, RED


class PacketRouting(BatchEnv):
    """PacketRouting-v0: first every relay's load is shown, one at a time; then a packet has to get through.

    `routes` routes lead from a source to a target, each over `hops` - 1 relays of its own. One route is free; on each
    of the others one relay is congested. Which node is which, the order of the links, the order in which relays are
    shown and what is congested are drawn for every episode.

    Observation, Dict, as the graph encoder takes it: the whole network at every step, its nodes by label.
        nodes (V, 4 + V) float32: whether the packet is here; whether this is the target; whether its load is shown now,
            and whether it is congested if so; its label, one-hot
        edge_index (E, 2) int64: the two ends of each link
        node_mask (V,), edge_mask (E,) int8: 1
        action_mask (E,) int8: which links lead on from the packet's node; all of them before the packet is there
        with `labels`, for auxiliary losses: node_labels (V,) int64, hops to the target; pair_index (K S, 2) int64 and
            pair_labels (K S,) int8, whether the first relay of a route and another relay are on one route
    Actions, Discrete(E): send the packet along a link. In the first S steps, in which relays are shown, they do
    nothing; a link that does not start at the packet's node leaves it there.
    Reward: reaching the target 1, all else 0.
    End: terminated at the target or in a congested relay, or after S + L steps. The last info says "is_success".
    Return: best 1; without memory at most 1 / routes, since nothing that is seen with the packet depends on the loads.
    Worst 0.
    """

    best_return = 1.0

    def __init__(self, num_envs: int = 1, *, routes: int = 3, hops: int = 2, labels: bool = False, **base: Any) -> None:
        check_at_least(2, routes=routes, hops=hops)
        self.routes, self.hops, self._labels = routes, hops, labels
        self.memoryless_return = 1.0 / routes
        self._relays = routes * (hops - 1)
        self._n_nodes, self._n_links = 2 + self._relays, routes * hops
        self._numbers = (self._n_nodes, self._n_links, self._relays, 1, routes)
        super().__init__(num_envs, self._space(), spaces.Discrete(self._n_links), uniforms=sum(self._numbers), **base)
        # By place: the source, the target, then relay after relay of route after route.
        relays = 2 + np.arange(self._relays).reshape(routes, hops - 1)
        ends = np.zeros((routes, 1), np.int64)
        stations = np.concatenate((ends, relays, ends + 1), axis=1)
        self._links = np.stack((stations[:, :-1], stations[:, 1:]), axis=2).reshape(-1, 2)
        self._hops_left = np.concatenate(([hops, 0], np.tile(np.arange(hops - 1, 0, -1), routes)))
        firsts, others = np.meshgrid(relays[:, 0], relays.ravel(), indexing="ij")
        self._pairs = np.stack((firsts.ravel(), others.ravel()), axis=1)
        self._on_one_route = ((firsts - 2) // (hops - 1) == (others - 2) // (hops - 1)).ravel().astype(np.int8)
        self._label = np.zeros((num_envs, self._n_nodes), np.int64)  # of each place
        self._ends = np.zeros((num_envs, self._n_links, 2), np.int64)  # labels
        self._congested = np.zeros((num_envs, self._n_nodes), dtype=np.bool_)  # by label
        self._shown = np.zeros((num_envs, self._relays), np.int64)  # labels in the order of their steps
        self._place, self._target, self._time = np.zeros((3, num_envs), np.int64)

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        labels, links, shown, free, relay = np.split(uniforms, np.cumsum(self._numbers)[:-1], axis=1)
        label = np.argsort(labels, axis=1)
        every = np.arange(len(rows))[:, None]
        self._label[rows] = label
        self._ends[rows] = label[every[..., None], self._links[np.argsort(links, axis=1)]]
        self._shown[rows] = label[every, 2 + np.argsort(shown, axis=1)]
        route = np.arange(self.routes)
        jammed = label[every, 2 + route * (self.hops - 1) + (relay * (self.hops - 1)).astype(np.int64)]
        congested = np.zeros((len(rows), self._n_nodes), dtype=np.bool_)
        congested[every, jammed] = route != (free * self.routes).astype(np.int64)
        self._congested[rows] = congested
        self._place[rows], self._target[rows] = label[:, 0], label[:, 1]
        self._time[rows] = 0

    def _advance(self, actions: Any) -> Outcome:
        start, end = self._ends[self._every_row, actions].T
        moves = (self._time >= self._relays) & (start == self._place)
        self._place[moves] = end[moves]
        self._time += 1
        arrived = self._place == self._target
        lost = self._congested[self._every_row, self._place]
        return arrived.astype(np.float32), arrived | lost | (self._time >= self._relays + self.hops)

    def _observe(self) -> dict[str, NDArray[Any]]:
        every, n = self._every_row, self._n_nodes
        sending = self._time >= self._relays
        shown = self._shown[every, np.minimum(self._time, self._relays - 1)]
        nodes = np.zeros((self.num_envs, n, 4 + n), np.float32)
        nodes[every, self._place, 0] = sending
        nodes[every, self._target, 1] = 1.0
        nodes[every, shown, 2] = ~sending
        nodes[every, shown, 3] = ~sending & self._congested[every, shown]
        nodes[:, :, 4:] = np.eye(n, dtype=np.float32)
        leads_on = self._ends[..., 0] == self._place[:, None]
        observation = {
            "action_mask": (leads_on | ~sending[:, None]).astype(np.int8),
            "edge_index": self._ends.copy(),
            "edge_mask": np.ones((self.num_envs, self._n_links), np.int8),
            "node_mask": np.ones((self.num_envs, n), np.int8),
            "nodes": nodes,
        }
        if self._labels:
            observation["node_labels"] = np.zeros((self.num_envs, n), np.int64)
            np.put_along_axis(observation["node_labels"], self._label, self._hops_left[None], axis=1)
            observation["pair_index"] = self._label[:, self._pairs]
            observation["pair_labels"] = np.tile(self._on_one_route, (self.num_envs, 1))
        return observation

    def _outcome(self, rows: Rows) -> dict[str, NDArray[Any]]:
        return {"is_success": self._place[rows] == self._target[rows]}

    def _text(self, row: int) -> str:
        lines = [f"packet at {self._place[row]}, step {self._time[row]}"]
        for relays in self._label[row, 2:].reshape(self.routes, -1).tolist():
            stations = [f"{label}{'!' if self._congested[row, label] else ''}" for label in relays]
            lines.append(" -> ".join([str(self._label[row, 0]), *stations, str(self._target[row])]))
        return "\n".join(lines) + "\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """Routes as rows from the source to the target: congested relays red, the target green, the packet blue."""
        picture = np.full((40 + 80 * self.routes, 80 + 80 * self.hops, 3), BACKGROUND, dtype=np.uint8)
        x = 40 + 80 * np.arange(self.hops + 1)
        middle = picture.shape[0] // 2
        for route in range(self.routes):
            y = 60 + 80 * route
            heights = np.array([middle, *[y] * (self.hops - 1), middle])
            for one in range(self.hops):
                at = np.linspace((heights[one], x[one]), (heights[one + 1], x[one + 1]), 200).astype(np.intp)
                picture[at[:, 0], at[:, 1]] = GRAY
            for hop, label in enumerate(self._label[row, 2:].reshape(self.routes, -1)[route].tolist(), start=1):
                self._draw(picture, row, label, y, int(x[hop]))
        for place, column in ((0, 0), (1, self.hops)):
            self._draw(picture, row, int(self._label[row, place]), middle, int(x[column]))
        return picture

    def _draw(self, picture: NDArray[np.uint8], row: int, label: int, y: int, x: int) -> None:
        color = GREEN if label == self._target[row] else RED if self._congested[row, label] else GRAY
        picture[y - 14 : y + 14, x - 14 : x + 14] = color
        if label == self._place[row] and self._time[row] >= self._relays:
            picture[y - 7 : y + 7, x - 7 : x + 7] = BLUE

    def _space(self) -> spaces.Dict:
        nodes, links = self._n_nodes, self._n_links
        parts: dict[str, spaces.Space[Any]] = {
            "nodes": spaces.Box(0.0, 1.0, (nodes, 4 + nodes)),
            "edge_index": spaces.Box(0, nodes - 1, (links, 2), np.int64),
            "node_mask": spaces.MultiBinary(nodes),
            "edge_mask": spaces.MultiBinary(links),
            "action_mask": spaces.MultiBinary(links),
        }
        if self._labels:
            pairs = self.routes * self._relays
            parts["node_labels"] = spaces.Box(0, self.hops, (nodes,), np.int64)
            parts["pair_index"] = spaces.Box(0, nodes - 1, (pairs, 2), np.int64)
            parts["pair_labels"] = spaces.MultiBinary(pairs)
        return spaces.Dict(parts)


# Single environments, for gymnasium.make.
PacketRoutingEnv = single(PacketRouting)
