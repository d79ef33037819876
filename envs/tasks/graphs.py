"""Tasks on graphs of which the agent sees a part, vectorized in NumPy.

    GraphSearch-v0        find, in rooms never seen whole, the door whose mark was shown at the start

`best_return` is what a perfect memory earns, `memoryless_return` what no policy without memory exceeds.

Axes: N environments, R some of them ("rows"), D ports of a room, V rooms and doors, F features of a node, E edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.batch import BatchEnv, Outcome, Rows, Uniforms, check_at_least, single
from envs.tasks.pictures import BACKGROUND, BLUE, GRAY, GREEN, RED


class GraphSearch(BatchEnv):
    """GraphSearch-v0: doors hang on a maze of rooms; find the one with the mark that was shown at the start.

    Every episode has a maze of its own: a random connected graph of `rooms` rooms, with `loops` edges more than a tree,
    and `doors` doors, each on a random room. A room has D = `max_degree` ports; an edge leads from a random port of one
    room to one of another. Rooms have labels, doors have marks, both in random order.

    Observation, Dict: what is seen from where the agent stands, as the graph encoder takes it. Node 0 is its own place,
    node 1 + p what lies behind port p; edges lead from node 0 to each of these, and join those that are neighbours.
        nodes (1 + D, F) float32: whether the agent is here; the mark, one-hot, of a door; the label, one-hot, of a room
        edges (E, D) float32: the port, one-hot, of an edge from node 0; zero of one between neighbours
        edge_index (E, 2) int64: the two ends of each edge
        node_mask (1 + D,), edge_mask (E,) int8: which nodes and edges there are
        action_mask (D,) int8: which ports lead somewhere
    Entries that are not there are zero.
    Actions, Discrete(D): go through a port; one that leads nowhere stays where it is.
    First step: the agent sees one node, which bears the mark of the goal, and nothing of the maze; whatever it does, it
    then stands in room 0. The mark is never shown again.
    Reward: stepping through the right door 1, all else 0.
    Start: a new maze, its rooms' labels, and the goal, one of the doors with equal chance.
    End: terminated on stepping through any door, or after T = 2 * rooms - 1 steps (2 for one room), the most that a
    depth-first search needs: it walks every edge of its tree at most twice, the last only once. The last info says
    "is_success".
    Return: best 1, by a depth-first search that remembers the mark and where it has been. Without memory at most
    1 / doors: after the first step nothing that is seen depends on the goal. Worst 0.
    """

    best_return = 1.0

    def __init__(
        self, num_envs: int = 1, *, rooms: int = 6, doors: int = 4, loops: int = 1, max_degree: int = 4, **base: Any
    ) -> None:
        """`loops`: edges between rooms in addition to those of a tree; fewer where there is no room for them."""
        _check_sizes(rooms, doors, loops, max_degree)
        self.rooms, self.doors, self.loops, self.max_degree = rooms, doors, loops, max_degree
        self.horizon = max(2, 2 * rooms - 1)
        self.memoryless_return = 1.0 / doors
        uniforms = sum(self._random_numbers())
        super().__init__(num_envs, self._space(), spaces.Discrete(max_degree), uniforms=uniforms, **base)
        places, size = rooms + doors, 1 + doors + rooms
        # What lies behind each port of each place, -1 for nothing; doors have one port, back to their room.
        self._behind = np.full((num_envs, places, max_degree), -1)
        self._adjacent = np.zeros((num_envs, places, places), dtype=np.bool_)
        # What each place looks like when the agent is not there.
        self._looks = np.zeros((num_envs, places, size), np.float32)
        self._looks[:, rooms:, 1 : 1 + doors] = np.eye(doors)
        self._place, self._time, self._goal = np.zeros((3, num_envs), dtype=np.int64)
        # The edges that may be seen: from node 0 through each port, and between what lies behind two ports.
        self._one, self._other = np.triu_indices(max_degree, 1)
        ports = np.arange(max_degree)
        self._ends = np.concatenate((_pairs(0 * ports, ports + 1), _pairs(self._one + 1, self._other + 1)))

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        rooms, doors, degree = self.rooms, self.doors, self.max_degree
        parts = np.split(uniforms, np.cumsum(self._random_numbers())[:-1], axis=1)
        behind = self._maze(*parts[:3])
        # Ports in a random order.
        order = np.argsort(parts[3].reshape(len(rows), rooms, degree), axis=2)
        behind[:, :rooms] = np.take_along_axis(behind[:, :rooms], order, axis=2)
        self._behind[rows] = behind
        adjacent = (behind[..., None] == np.arange(rooms + doors)).any(axis=2)
        self._adjacent[rows] = adjacent | adjacent.transpose(0, 2, 1)
        self._looks[rows[:, None], np.arange(rooms), 1 + doors :] = np.eye(rooms)[np.argsort(parts[4], axis=1)]
        self._goal[rows] = (parts[5][:, 0] * doors).astype(np.int64)
        self._place[rows] = self._time[rows] = 0

    def _advance(self, actions: Any) -> Outcome:
        behind = self._behind[self._every_row, self._place, actions]
        walks = (self._time > 0) & (behind >= 0)
        self._place[walks] = behind[walks]
        self._time += 1
        through = self._place >= self.rooms
        rewards = (self._place == self.rooms + self._goal).astype(np.float32)
        return rewards, through | (self._time >= self.horizon)

    def _observe(self) -> dict[str, NDArray[Any]]:
        degree, every = self.max_degree, self._every_row
        first = self._time == 0
        behind = self._behind[every, self._place]
        there = (behind >= 0) & ~first[:, None]
        nodes = np.zeros((self.num_envs, 1 + degree, self._looks.shape[2]), np.float32)
        nodes[:, 0] = self._looks[every, self._place]
        nodes[first, 0] = 0.0
        nodes[first, 0, 1 + self._goal[first]] = 1.0
        nodes[:, 0, 0] = 1.0
        np.multiply(self._looks[every[:, None], behind], there[..., None], out=nodes[:, 1:])
        node_mask = np.ones((self.num_envs, 1 + degree), np.int8)
        node_mask[:, 1:] = there
        edge_mask = np.empty((self.num_envs, len(self._ends)), np.int8)
        edge_mask[:, :degree] = there
        one, other = behind[:, self._one], behind[:, self._other]
        edge_mask[:, degree:] = self._adjacent[every[:, None], one, other] & there[:, self._one] & there[:, self._other]
        edges = np.zeros((self.num_envs, len(self._ends), degree), np.float32)
        np.multiply(np.eye(degree, dtype=np.float32), there[..., None], out=edges[:, :degree])
        return {
            "action_mask": (there | first[:, None]).astype(np.int8),
            "edge_index": self._ends * edge_mask[..., None],
            "edge_mask": edge_mask,
            "edges": edges,
            "node_mask": node_mask,
            "nodes": nodes,
        }

    def _outcome(self, rows: Rows) -> dict[str, NDArray[Any]]:
        return {"is_success": self._place[rows] == self.rooms + self._goal[rows]}

    def _text(self, row: int) -> str:
        lines = [f"goal: door {self._goal[row]}, step {self._time[row]}"]
        for room in range(self.rooms):
            ways = [self._called(row, place) for place in self._behind[row, room].tolist()]
            lines.append(f"{'A' if self._place[row] == room else ' '} {self._called(row, room)}: {', '.join(ways)}")
        return "\n".join(lines) + "\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """Places on a circle, rooms gray, doors red, the goal green, the agent's a blue square; edges as lines."""
        places = self.rooms + self.doors
        angles = 2 * np.pi * np.arange(places) / places
        at = np.stack((200 + 160 * np.sin(angles), 200 - 160 * np.cos(angles)), axis=1)
        picture = np.full((400, 400, 3), BACKGROUND, dtype=np.uint8)
        for one, other in np.argwhere(np.triu(self._adjacent[row])).tolist():
            points = np.linspace(at[one], at[other], 400).astype(np.intp)
            picture[points[:, 1], points[:, 0]] = GRAY
        for place in range(places):
            color = GRAY if place < self.rooms else GREEN if place == self.rooms + self._goal[row] else RED
            _square(picture, at[place], 12, color)
        _square(picture, at[self._place[row]], 7, BLUE)
        return picture

    def _maze(self, tree: Uniforms, extra: Uniforms, hung: Uniforms) -> NDArray[np.int64]:
        """Mazes drawn from uniform random numbers, (R, numbers each): what lies behind each port, (R, V, D)."""
        rooms, doors, degree = self.rooms, self.doors, self.max_degree
        behind = np.full((len(tree), rooms + doors, degree), -1)
        used = np.zeros((len(tree), rooms), dtype=np.int64)
        every = np.arange(len(tree))

        def join(chosen: Rows, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
            behind[chosen, one, used[chosen, one]] = other
            used[chosen, one] += 1
            behind[chosen, other, used[chosen, other]] = one
            used[chosen, other] += 1

        # A room joins one of those before it that has a port to spare; there always is one.
        for room in range(1, rooms):
            numbers = tree[:, room * (room - 1) // 2 :][:, :room]
            chosen = np.where(used[:, :room] < degree, numbers, -1.0).argmax(axis=1)
            join(every, np.full(len(tree), room), chosen)
        one, other = np.triu_indices(rooms, 1)
        for numbers in np.split(extra, self.loops, axis=1) if self.loops else ():
            joined = (behind[:, one] == other[:, None]).any(axis=2)
            fits = ~joined & (used[:, one] < degree) & (used[:, other] < degree)
            pair, possible = np.where(fits, numbers, -1.0).argmax(axis=1), fits.any(axis=1)
            join(every[possible], one[pair[possible]], other[pair[possible]])
        for door, numbers in enumerate(np.split(hung, doors, axis=1)):
            room = np.where(used < degree, numbers, -1.0).argmax(axis=1)
            behind[every, room, used[every, room]] = rooms + door
            used[every, room] += 1
            behind[:, rooms + door, 0] = room
        return behind

    def _random_numbers(self) -> tuple[int, ...]:
        """Of an episode: for the tree, the loops, the doors, the order of ports, the labels, the goal."""
        pairs = self.rooms * (self.rooms - 1) // 2
        return (pairs, self.loops * pairs, self.doors * self.rooms, self.rooms * self.max_degree, self.rooms, 1)

    def _space(self) -> spaces.Dict:
        degree = self.max_degree
        nodes, edges = 1 + degree, degree + degree * (degree - 1) // 2
        return spaces.Dict(
            {
                "nodes": spaces.Box(0.0, 1.0, (nodes, 1 + self.doors + self.rooms)),
                "edges": spaces.Box(0.0, 1.0, (edges, degree)),
                "edge_index": spaces.Box(0, nodes - 1, (edges, 2), np.int64),
                "node_mask": spaces.MultiBinary(nodes),
                "edge_mask": spaces.MultiBinary(edges),
                "action_mask": spaces.MultiBinary(degree),
            }
        )

    def _called(self, row: int, place: int) -> str:
        if place < 0:
            return "-"
        if place >= self.rooms:
            return f"door {place - self.rooms}"
        return f"room {int(self._looks[row, place, 1 + self.doors :].argmax())}"


def _check_sizes(rooms: int, doors: int, loops: int, max_degree: int) -> None:
    check_at_least(1, rooms=rooms, doors=doors)
    check_at_least(0, loops=loops)
    if max_degree < 2:
        raise ValueError(f"max_degree must be at least 2, not {max_degree}: rooms of one port make no maze")
    # An edge between rooms takes a port at both its ends, a door one.
    free = rooms * max_degree - 2 * (rooms - 1 + loops)
    if free < doors:
        raise ValueError(
            f"{rooms} rooms of max_degree {max_degree} joined with {loops} loops have {max(free, 0)} ports left for "
            f"{doors} doors; give more rooms or a larger max_degree, or ask for fewer loops or doors"
        )


def _pairs(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int64]:
    return np.stack((one, other), axis=1).astype(np.int64)


def _square(picture: NDArray[np.uint8], center: NDArray[np.float64], half: int, color: tuple[int, int, int]) -> None:
    x, y = center.astype(int).tolist()
    picture[y - half : y + half, x - half : x + half] = color


# Single environments, for gymnasium.make.
GraphSearchEnv = single(GraphSearch)
