"""The search on a graph seen in part is what its docstring says; graphs and sequences are padded without loss.

Axes: N environments, D ports, K doors.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import GraphInstance
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from agents import RecurrentPPO
from agents.encoders import ENCODERS
from envs.tasks.graphs import GraphSearch
from envs.vector.errors import EnvError
from envs.wrappers.transforms import wrap

ROW = {"rooms": 3, "doors": 2, "loops": 0, "max_degree": 2}
SIZES: list[dict[str, int]] = [
    {},
    {"rooms": 4, "doors": 2, "loops": 0, "max_degree": 3},
    {"rooms": 9, "doors": 3, "loops": 4, "max_degree": 4},
    {"rooms": 1, "doors": 3, "loops": 0, "max_degree": 3},
    {"rooms": 5, "doors": 2, "loops": 0, "max_degree": 2},
    ROW,
]


class DepthFirst:
    """One searcher, who knows of one environment what it has been shown, and remembers it.

    Rooms it knows by their labels; it goes through the door with the mark as soon as it sees it, else through the first
    port to a room it has not been in, else back the way it came.
    """

    def __init__(self, doors: int, begin: dict[str, NDArray[Any]]) -> None:
        self.doors = doors
        self.mark = begin["nodes"][0, 1 : 1 + doors]
        self.visited: set[int] = set()
        self.way: list[int] = []

    def act(self, seen: dict[str, NDArray[Any]]) -> int:
        labels = [int(node[1 + self.doors :].argmax()) for node in seen["nodes"]]
        is_door = seen["nodes"][:, 1 : 1 + self.doors].any(axis=1)
        ports = np.flatnonzero(seen["action_mask"]).tolist()
        if labels[0] not in self.visited:
            self.visited.add(labels[0])
            self.way.append(labels[0])
        for port in ports:
            if (seen["nodes"][1 + port, 1 : 1 + self.doors] == self.mark).all():
                return port
        for port in ports:
            if not is_door[1 + port] and labels[1 + port] not in self.visited:
                return port
        self.way.pop()
        return next(port for port in ports if not is_door[1 + port] and labels[1 + port] == self.way[-1])


def one(observations: Any, i: int) -> Any:
    return {name: part[i] for name, part in observations.items()}


@pytest.mark.parametrize("sizes", SIZES)
def test_a_depth_first_search_that_remembers_earns_the_best_return(sizes: dict[str, int]) -> None:
    env = GraphSearch(200, **sizes)
    seen, _ = env.reset(seed=0)
    searchers = [DepthFirst(env.doors, one(seen, i)) for i in range(200)]
    total, playing, steps = np.zeros(200), np.ones(200, bool), 1
    seen, *_ = env.step(np.zeros(200, int))
    while playing.any():
        actions = [searchers[i].act(one(seen, i)) if playing[i] else 0 for i in range(200)]
        seen, rewards, ended, _, infos = env.step(np.array(actions))
        steps += 1
        total += rewards * playing
        if ended.any():
            success = infos["final_info"]["is_success"]
            assert (success[ended & playing] == (rewards[ended & playing] == 1)).all()
        playing &= ~ended
    assert (total == env.best_return).all()
    # Rooms in a row, the start in their middle and doors at their ends, may take every step: the wrong end, then back.
    assert steps == env.horizon if sizes == ROW else steps <= env.horizon


def test_after_the_first_step_nothing_that_is_seen_depends_on_the_goal() -> None:
    rng = np.random.default_rng(0)
    worlds = [GraphSearch(50, doors=3) for _ in range(3)]
    for goal, env in enumerate(worlds):
        env.reset(seed=0)
        env._goal[:] = goal
        first = env._observe()
        assert (first["nodes"][:, 0, 1:4] == np.eye(3)[goal]).all()
        assert (first["node_mask"].sum(axis=1) == 1).all()
        assert not first["edge_mask"].any()
        assert first["action_mask"].all()
    playing = np.ones(50, bool)
    for _ in range(worlds[0].horizon - 1):
        actions = rng.integers(0, 4, 50)
        steps = [env.step(actions) for env in worlds]
        playing &= ~steps[0][2]
        for observations, _, ended, *_ in steps[1:]:
            assert (ended == steps[0][2]).all()
            for name, part in observations.items():
                np.testing.assert_array_equal(part[playing], steps[0][0][name][playing])
    # Exactly one of three goals lies behind a door, so without memory one time in three, whatever the policy.
    assert worlds[0].memoryless_return == pytest.approx(1 / 3)


def test_a_policy_without_memory_that_always_finds_a_door_earns_the_memoryless_return() -> None:
    env, n = GraphSearch(4000, rooms=1, doors=4, loops=0, max_degree=4), 4000
    env.reset(seed=3)
    env.step(np.zeros(n, int))
    _, rewards, ended, *_ = env.step(np.zeros(n, int))
    assert ended.all()
    assert rewards.mean() == pytest.approx(env.memoryless_return, abs=3 * 0.433 / n**0.5)


@pytest.mark.parametrize("sizes", SIZES)
def test_mazes_are_connected_and_their_edges_lead_both_ways(sizes: dict[str, int]) -> None:
    env = GraphSearch(100, **sizes)
    env.reset(seed=2)
    behind, adjacent, rooms = env._behind, env._adjacent, env.rooms
    assert (adjacent == adjacent.transpose(0, 2, 1)).all()
    degree = (behind >= 0).sum(axis=2)
    assert (degree[:, rooms:] == 1).all()
    assert (adjacent.sum(axis=2) == degree).all()  # no edge twice, none from a room to itself
    edges = degree[:, :rooms].sum(axis=1) - env.doors
    assert (edges <= 2 * (rooms - 1 + env.loops)).all()
    assert (edges >= 2 * (rooms - 1)).all()
    assert edges.max() == 2 * (rooms - 1 + min(env.loops, (rooms - 1) * (rooms - 2) // 2))
    reached = np.eye(rooms, dtype=bool)[None, 0].repeat(100, axis=0)
    for _ in range(rooms):
        reached |= (reached[:, None] & adjacent[:, :rooms, :rooms]).any(axis=2)
    assert reached.all()
    if rooms > 4:
        assert len({maze.tobytes() for maze in behind}) > 90


def test_what_is_seen_is_the_place_and_what_lies_behind_its_ports() -> None:
    env = GraphSearch(1, rooms=4, doors=2, loops=1, max_degree=3)
    env.reset(seed=0)
    env._behind[0] = [[1, -1, 2], [0, 2, 4], [0, 1, 3], [2, 5, -1], [1, -1, -1], [3, -1, -1]]
    env._adjacent[0] = [[other in row for other in range(6)] for row in env._behind[0].tolist()]
    env._looks[0, :4, 3:] = np.eye(4)[[2, 0, 3, 1]]
    seen, *_ = env.step(np.array([0]))  # the first step leads to room 0, and nowhere else
    expected = np.zeros((4, 7))
    expected[0, [0, 5]] = expected[1, 3] = expected[3, 6] = 1
    np.testing.assert_array_equal(seen["nodes"][0], expected)
    assert seen["action_mask"].tolist() == [[1, 0, 1]]
    assert seen["node_mask"].tolist() == [[1, 1, 0, 1]]
    # Ports 0, 1, 2, then the pairs of what lies behind 0 and 1, 0 and 2, 1 and 2: rooms 1 and 2 are neighbours.
    assert seen["edge_mask"].tolist() == [[1, 0, 1, 0, 1, 0]]
    assert seen["edge_index"][0].tolist() == [[0, 1], [0, 0], [0, 3], [0, 0], [1, 3], [0, 0]]
    np.testing.assert_array_equal(seen["edges"][0, :3], [[1, 0, 0], [0, 0, 0], [0, 0, 1]])
    assert not seen["edges"][0, 3:].any()
    seen, *_ = env.step(np.array([1]))  # leads nowhere
    np.testing.assert_array_equal(seen["nodes"][0], expected)
    seen, *_ = env.step(np.array([0]))
    assert seen["nodes"][0, 0].tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert seen["nodes"][0, 3].tolist() == [0, 1, 0, 0, 0, 0, 0]  # the door with mark 0, behind port 2


class Scripted(gymnasium.Env[Any, Any]):
    """Shows what it is told to, in turn, the same ones in every episode; the number of the step is the reward."""

    def __init__(self, space: spaces.Space[Any], shown: list[Any]) -> None:
        self.observation_space, self.action_space, self.shown = space, spaces.Discrete(2), shown

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.shown[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.shown[self.t], float(self.t), self.t == len(self.shown) - 1, False, {}


def graph(nodes: Any, edges: Any = None, links: Any = None, dtype: Any = np.float32) -> GraphInstance:
    return GraphInstance(np.array(nodes, dtype), edges, None if links is None else np.array(links))


BOXES = spaces.Graph(spaces.Box(-9.0, 9.0, (2,)), None)
GRAPHS = [graph([[1, 2]]), graph([[3, 4], [5, 6]], None, [[1, 0]]), graph([[7, 8]], None, np.zeros((0, 2), int))]
ROOM: dict[str, Any] = {"max_nodes": 3, "max_edges": 2}


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_graphs_are_padded_with_zeros_and_masks_to_the_end_of_their_episode(backend: Any) -> None:
    venv = envs.make(partial(Scripted, BOXES, GRAPHS), 2, wrappers=[("pad_graph", ROOM)], backend=backend)
    try:
        first: Any = venv.reset()
        assert first["nodes"].tolist() == [[[1, 2], [0, 0], [0, 0]]] * 2
        assert first["node_mask"].tolist() == [[1, 0, 0]] * 2
        assert first["edge_mask"].tolist() == [[0, 0]] * 2
        assert first["edge_index"].tolist() == [[[0, 0], [0, 0]]] * 2
        assert "edges" not in first
        second: Any = venv.step(np.zeros(2, int))[0]
        assert second["nodes"].tolist() == [[[3, 4], [5, 6], [0, 0]]] * 2
        assert second["edge_index"].tolist() == [[[1, 0], [0, 0]]] * 2
        assert second["edge_mask"].tolist() == [[1, 0]] * 2
        again, _, dones, infos = venv.step(np.zeros(2, int))
        assert dones.all()
        assert infos[1]["terminal_observation"]["nodes"].tolist() == [[7, 8], [0, 0], [0, 0]]
        assert again["nodes"].tolist() == first["nodes"].tolist()  # type: ignore[index,call-overload]
    finally:
        venv.close()


def test_categories_of_nodes_and_edges_are_one_hot() -> None:
    space = spaces.Graph(spaces.Discrete(3, start=5), spaces.Discrete(2))
    env = wrap(Scripted(space, [graph([6, 7], np.array([1]), [[0, 1]], np.int64)]), [("pad_graph", ROOM)])
    seen, _ = env.reset()
    assert seen["nodes"].tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert seen["edges"].tolist() == [[0, 1], [0, 0]]
    assert env.observation_space.contains(seen)


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (graph(np.zeros((0, 2))), "a graph without nodes was observed"),
        (graph(np.zeros((4, 2))), "a graph of 4 nodes was observed, max_nodes is 3"),
        (graph([[1, 2]], None, [[0, 0]] * 3), "a graph of 3 edges was observed, max_edges is 2"),
        (
            graph([[1, 2]], None, [[0, 0], [0, 1]]),
            r"edge 1 of a graph joins nodes \[0, 1\], but it has 1 ",
        ),
        (graph([[1, 2]], None, [[-1, 0]]), r"edge 0 of a graph joins nodes \[-1, 0\]"),
        (graph([[1, 2]], None, [0, 0]), r"edge_links must have the shape \(edges, 2\), not \(2,\)"),
        (graph([[1, 2, 3]]), r"expected elements of Box\(-9.0, 9.0, \(2,\), float32\), got an array of shape \(1, 3\)"),
    ],
)
def test_graphs_that_have_no_place_are_errors_that_say_what_came(shown: GraphInstance, message: str) -> None:
    env = wrap(Scripted(BOXES, [shown]), [("pad_graph", ROOM)])
    with pytest.raises(ValueError, match=message):
        env.reset()
    venv = envs.make(partial(Scripted, BOXES, [GRAPHS[0], shown, shown]), 1, wrappers=[("pad_graph", ROOM)])
    venv.reset()
    with pytest.raises(EnvError, match=rf"environment 0 \(Scripted\) failed in step 1: ValueError: {message}"):
        venv.step(np.zeros(1, int))


def test_features_of_edges_have_to_be_as_many_as_the_edges() -> None:
    space = spaces.Graph(spaces.Discrete(3), spaces.Discrete(2))
    shown = graph([0, 1], np.array([1, 1]), [[0, 1]], np.int64)
    with pytest.raises(ValueError, match="a graph has 2 edges but 1 edge_links"):
        wrap(Scripted(space, [shown]), [("pad_graph", ROOM)]).reset()


VECTORS = spaces.Sequence(spaces.Box(-9.0, 9.0, (2,)))


def test_sequences_are_padded_at_the_head() -> None:
    shown = [(), (np.array([1, 2], np.float32),), tuple(np.array([[3, 4], [5, 6]], np.float32))]
    for space, given in (
        (VECTORS, shown),
        (spaces.Sequence(VECTORS.feature_space, stack=True), [*shown[1:], shown[2]]),
    ):
        told = [np.stack(each) if space.stack else each for each in given]
        env = wrap(Scripted(space, told), [("pad_sequence", {"max_length": 3})])
        seen = [env.reset()[0], env.step(0)[0], env.step(0)[0]]
        assert all(env.observation_space.contains(each) for each in seen)
        for each, elements in zip(seen, given, strict=True):
            n = len(elements)
            assert each["mask"].tolist() == [0] * (3 - n) + [1] * n
            assert each["window"].tolist() == [[0, 0]] * (3 - n) + [element.tolist() for element in elements]


def test_too_long_a_sequence_is_an_error_or_cut_to_its_newest() -> None:
    env = Scripted(spaces.Sequence(spaces.Discrete(4)), [(3, 1, 2)])
    with pytest.raises(ValueError, match=r"of 3 elements was observed, max_length is 2.*truncate=True"):
        wrap(env, [("pad_sequence", {"max_length": 2})]).reset()
    seen, _ = wrap(env, [("pad_sequence", {"max_length": 2, "truncate": True})]).reset()
    assert seen["window"].argmax(axis=1).tolist() == [1, 2]


def test_what_stands_beside_a_graph_or_a_sequence_stays() -> None:
    space = spaces.Dict({"map": BOXES, "goal": spaces.Discrete(4), "words": VECTORS})
    shown = {"map": GRAPHS[1], "goal": 3, "words": ()}
    wrappers = [("pad_graph", ROOM), {"pad_sequence": {"max_length": 2, "key": "words"}}]
    venv = envs.make(partial(Scripted, space, [shown, shown]), 2, wrappers=[*wrappers, ("history", {"keys": ["goal"]})])
    seen: Any = venv.reset()
    assert set(seen) == {"nodes", "edge_index", "node_mask", "edge_mask", "window", "mask", "goal"}
    assert seen["goal"].shape == (2, 4, 4)  # one-hot, the last four
    assert seen["nodes"].tolist() == [[[3, 4], [5, 6], [0, 0]]] * 2


@pytest.mark.parametrize(
    ("space", "wrapper", "message"),
    [
        (VECTORS, ("pad_graph", ROOM), "pad_graph takes Graph observations, not Sequence"),
        (BOXES, ("pad_sequence", {"max_length": 2}), "pad_sequence takes Sequence observations, not Graph"),
        (BOXES, ("pad_graph", {**ROOM, "key": "map"}), "key='map', but the observation has no keys"),
        (spaces.Dict({"a": BOXES, "b": BOXES}), ("pad_graph", ROOM), "looks for one key with a Graph"),
        (
            spaces.Dict({"a": BOXES}),
            ("pad_graph", {**ROOM, "key": "b"}),
            "looks for key='b', but the observation",
        ),
        (
            spaces.Dict({"a": BOXES, "nodes": spaces.Discrete(2)}),
            ("pad_graph", ROOM),
            "keys of these names already",
        ),
        (BOXES, ("pad_graph", {"max_nodes": 3}), "'pad_graph' needs a value for 'max_edges'"),
        (BOXES, ("pad_graph", {**ROOM, "max_node": 3}), "'pad_graph' has no setting 'max_node'"),
        (BOXES, ("pad_graph", {**ROOM, "max_nodes": 0}), "max_nodes must be a whole number of at least 1, not 0"),
        (VECTORS, ("pad_sequence", {"max_length": 1.5}), "max_length must be a whole number of at least 1, not 1.5"),
        (spaces.Sequence(spaces.Text(2)), ("pad_sequence", {"max_length": 2}), "must be a Box, Discrete"),
    ],
)
def test_what_cannot_be_padded_is_refused_before_anything_runs(
    space: spaces.Space[Any], wrapper: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make(partial(Scripted, space, []), 1, wrappers=[wrapper])


def test_an_observation_without_its_wrapper_has_room_for_so_many() -> None:
    venv = envs.make(partial(Scripted, BOXES, GRAPHS), 1)
    assert venv.reset()["node_mask"].sum() == len(GRAPHS[0].nodes)
    assert venv.observation_space["nodes"].shape[0] == 32  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped")
def test_the_wrapped_environments_pass_the_checkers() -> None:
    for space, wrapper in ((BOXES, ("pad_graph", ROOM)), (VECTORS, ("pad_sequence", {"max_length": 3}))):
        shown = GRAPHS if space is BOXES else [(np.array([1, 2], np.float32),)] * 3
        env = wrap(Scripted(space, shown * 40), [wrapper])
        check_env(env, skip_render_check=True)
        sb3_check_env(env, warn=False)


@pytest.mark.parametrize("algorithm", [PPO, RecurrentPPO])
def test_agents_of_both_packages_train_on_graph_observations(algorithm: Any) -> None:
    venv = envs.make(partial(Scripted, BOXES, GRAPHS), 2, wrappers=[("pad_graph", ROOM)], seed=0)
    settings = {"features_extractor_class": ENCODERS["graph"], "features_extractor_kwargs": {"hidden_size": 8}}
    policy = "MultiInputPolicy" if algorithm is PPO else "RecurrentPolicy"
    model = algorithm(policy, venv, n_steps=8, batch_size=8, n_epochs=2, seed=0, device="cpu", policy_kwargs=settings)
    before = [weight.detach().clone() for weight in model.policy.features_extractor.parameters()]
    model.learn(32)
    after = list(model.policy.features_extractor.parameters())
    assert sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True)) > len(before) // 2
