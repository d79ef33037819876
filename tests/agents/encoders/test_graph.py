"""The graph encoder: order and padding do not matter, messages go as far as there are rounds, and it trains.

Axes: B observations, N nodes, E edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import envs
from agents.encoders import ENCODERS
from agents.encoders.graph import POOLS, GraphEncoder
from envs.wrappers.transforms import wrap
from tests.tolerance import close

from .ragged import ALGORITHMS, RaggedGraph, deviation_of_first_ratio, extractors, trained

F, G, SIZE = 3, 2, 8
PAD = [("pad_graph", {"max_nodes": 5, "max_edges": 6})]


def graph_space(nodes: int, edges: int, edge_features: bool = True, **beside: spaces.Space[Any]) -> spaces.Dict:
    parts: dict[str, spaces.Space[Any]] = {
        "nodes": spaces.Box(-9.0, 9.0, (nodes, F)),
        "edge_index": spaces.Box(0, nodes - 1, (edges, 2), np.int64),
        "node_mask": spaces.MultiBinary(nodes),
        "edge_mask": spaces.MultiBinary(edges),
    }
    if edge_features:
        parts["edges"] = spaces.Box(-9.0, 9.0, (edges, G))
    return spaces.Dict({**parts, **beside})


def encoder(nodes: int = 5, edges: int = 7, edge_features: bool = True, **settings: Any) -> GraphEncoder:
    torch.manual_seed(0)
    made = GraphEncoder(
        graph_space(nodes, edges, edge_features), **{"hidden_size": SIZE, "node_features": 4, **settings}
    )
    # Larger weights than at the start, so that what comes from afar is not lost in rounding.
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


def graphs(nodes: int = 5, edges: int = 7, batch: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Graphs without padding."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "nodes": torch.randn(batch, nodes, F, generator=generator),
        "edges": torch.randn(batch, edges, G, generator=generator),
        "edge_index": torch.randint(0, nodes, (batch, edges, 2), generator=generator),
        "node_mask": torch.ones(batch, nodes),
        "edge_mask": torch.ones(batch, edges),
    }


def path(length: int) -> dict[str, Tensor]:
    """0 -> 1 -> 2 -> ..., one graph, all nodes alike."""
    places = torch.arange(length)
    return {
        "nodes": torch.ones(1, length, F),
        "edges": torch.ones(1, length - 1, G),
        "edge_index": torch.stack((places[:-1], places[1:]), dim=1)[None],
        "node_mask": torch.ones(1, length),
        "edge_mask": torch.ones(1, length - 1),
    }


def node_outputs(model: GraphEncoder, given: dict[str, Tensor]) -> Tensor:
    """(B, N, node features) of an encoder with output="nodes"."""
    return model(given).view(len(given["nodes"]), model.max_nodes, -1)


@pytest.mark.parametrize("edge_features", [True, False])
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_the_order_of_nodes_and_edges_changes_no_pooled_feature_and_moves_node_features_along(
    pool: str, both_ways: bool, edge_features: bool
) -> None:
    given = graphs()
    if not edge_features:
        del given["edges"]
    nodes, edges = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([6, 2, 0, 1, 5, 4, 3])
    place_of = torch.argsort(nodes)  # where each node went
    moved = {name: part[:, nodes if "node" in name else edges] for name, part in given.items()}
    moved["edge_index"] = place_of[moved["edge_index"]]
    model = encoder(pool=pool, both_ways=both_ways, edge_features=edge_features, output="both", features_dim=6)
    before, after = model(given), model(moved)
    assert close(after[:, :6], before[:, :6])
    by_node = before[:, 6:].view(4, 5, -1)
    assert close(after[:, 6:].view(4, 5, -1), by_node[:, nodes])
    assert not torch.allclose(by_node[:, nodes], by_node, atol=1e-2)


@pytest.mark.parametrize("pool", POOLS)
def test_padding_of_any_amount_and_content_changes_nothing(pool: str) -> None:
    given = graphs()
    tight = encoder(pool=pool, output="both", features_dim=6)
    roomy = encoder(9, 12, pool=pool, output="both", features_dim=6)
    roomy.load_state_dict(tight.state_dict())
    generator = torch.Generator().manual_seed(5)
    # Real edges and nodes scattered among others: edges that are not there join nodes that are, and vice versa.
    places, numbers = torch.tensor([8, 1, 3, 6, 4]), torch.tensor([11, 0, 2, 3, 5, 8, 9])
    padded = {
        "nodes": 9 * torch.randn(4, 9, F, generator=generator),
        "edges": 9 * torch.randn(4, 12, G, generator=generator),
        "edge_index": torch.randint(0, 9, (4, 12, 2), generator=generator),
        "node_mask": torch.zeros(4, 9),
        "edge_mask": torch.zeros(4, 12),
    }
    for name, part in given.items():
        padded[name][:, places if "node" in name else numbers] = places[part] if name == "edge_index" else part
    padded["nodes"][0, 0] = padded["edges"][0, 1] = torch.nan
    # An edge that is marked real, but whose end is not, counts as not there.
    padded["edge_mask"][:, 7] = 1.0
    padded["edge_index"][:, 7] = torch.tensor([8, 2])
    small, large = tight(given), roomy(padded)
    assert close(large[:, :6], small[:, :6])
    by_node = large[:, 6:].view(4, 9, -1)
    assert close(by_node[:, places], small[:, 6:].view(4, 5, -1))
    assert (by_node[:, [0, 2, 5, 7]] == 0).all()


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("both_ways", [True, False])
def test_a_node_hears_of_nodes_as_far_away_as_there_are_rounds(rounds: int, both_ways: bool) -> None:
    model = encoder(6, 5, rounds=rounds, both_ways=both_ways, output="nodes")
    given, changed = path(6), path(6)
    changed["nodes"][0, 2] = -2.0
    difference = (node_outputs(model, changed) - node_outputs(model, given))[0].abs().amax(dim=1)
    heard = [abs(node - 2) <= rounds and (both_ways or node >= 2) for node in range(6)]
    assert [bool(far > 1e-6) for far in difference] == heard


def test_a_round_is_the_sum_of_messages_through_a_gated_update() -> None:
    model = encoder(3, 2, rounds=1, both_ways=False, output="nodes")
    given = graphs(3, 2, batch=1)
    given["edge_index"] = torch.tensor([[[0, 2], [1, 2]]])  # both lead to node 2; the others hear nothing
    entered = torch.tanh(model.enter(given["nodes"][0]))
    messages = torch.relu(model.sent[0](entered[:2]) + model.carried[0](given["edges"][0]))
    heard = torch.stack((torch.zeros(SIZE), torch.zeros(SIZE), messages.sum(dim=0)))
    expected = torch.tanh(model.leave_nodes(torch.cat((entered, model.update(heard, entered)), dim=1)))
    assert close(node_outputs(model, given)[0], expected)


def test_features_of_an_edge_reach_the_nodes_it_joins_and_no_other() -> None:
    model = encoder(6, 5, rounds=1, output="nodes")
    given, changed = path(6), path(6)
    changed["edges"][0, 1] = -3.0  # the edge from 1 to 2
    difference = (node_outputs(model, changed) - node_outputs(model, given))[0].abs().amax(dim=1)
    assert [bool(far > 1e-6) for far in difference] == [False, True, True, False, False, False]


def test_pools_are_a_sum_a_mean_and_a_weighted_mean() -> None:
    given = graphs()
    given["node_mask"][:, 3:] = 0.0
    by_pool = {}
    for pool in POOLS:
        model = encoder(pool=pool)
        real = given["node_mask"].bool()
        _, states = model._node_states(given, real)
        by_pool[pool] = model._pooled(states, real), states[:, :3]
    for pool, expected in (("sum", torch.sum), ("mean", torch.mean)):
        pooled, states = by_pool[pool]
        assert close(pooled, expected(states, dim=1))
    pooled, states = by_pool["attention"]
    assert (pooled <= states.amax(dim=1) + 1e-6).all()
    assert (pooled >= states.amin(dim=1) - 1e-6).all()
    assert not torch.allclose(pooled, states.mean(dim=1), atol=1e-3)


def test_what_stands_beside_the_graph_is_in_the_features() -> None:
    torch.manual_seed(0)
    model = GraphEncoder(graph_space(5, 7, compass=spaces.Box(-1.0, 1.0, (2, 2)), clock=spaces.MultiBinary(3)))
    given = {**graphs(), "compass": torch.zeros(4, 2, 2), "clock": torch.zeros(4, 3)}
    before = model(given)
    assert before.shape == (4, model.features_dim) == (4, 64)
    for name in ("compass", "clock"):
        assert (model({**given, name: torch.ones_like(given[name])}) != before).any(dim=1).all()


@pytest.mark.parametrize(("output", "size"), [("graph", 11), ("nodes", 5 * 4), ("both", 11 + 5 * 4)])
def test_features_are_as_many_as_the_encoder_says(output: str, size: int) -> None:
    model = encoder(output=output, features_dim=11)
    assert model(graphs()).shape == (4, model.features_dim) == (4, size)


def test_a_graph_without_edges_is_a_set_of_nodes() -> None:
    given = graphs()
    given["edge_mask"][:] = 0.0
    assert torch.isfinite(encoder()(given)).all()


def test_a_graph_without_nodes_is_refused_by_its_row() -> None:
    given = graphs()
    given["node_mask"][2] = 0.0
    with pytest.raises(ValueError, match="observation 2 of the batch is a graph without nodes"):
        encoder()(given)


def without(name: str) -> spaces.Dict:
    return spaces.Dict({key: part for key, part in graph_space(5, 7).items() if key != name})


def with_other(name: str, part: spaces.Space[Any]) -> spaces.Dict:
    return spaces.Dict({**graph_space(5, 7).spaces, name: part})


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (spaces.Graph(spaces.Discrete(2), None), {}, "put the wrapper 'pad_graph' around it"),
        (spaces.Box(-1.0, 1.0, (3,)), {}, "takes a Dict observation with nodes, edge_index, node_mask, edge_mask"),
        (without("edge_mask"), {}, "got the keys .*'pad_graph' makes one"),
        (with_other("nodes", spaces.Box(-1.0, 1.0, (5,))), {}, r"'nodes' must be a Box of shape \(nodes, features\)"),
        (
            with_other("node_mask", spaces.MultiBinary(4)),
            {},
            "'node_mask' must be a Box or MultiBinary of shape",
        ),
        (with_other("edges", spaces.Box(-1.0, 1.0, (6, 2))), {}, r"'edges' must be a Box of shape \(7, 2\)"),
        (with_other("edge_index", spaces.Box(0, 5, (7, 2), np.int64)), {}, "from 0 to 5, but there are 5 nodes"),
        (graph_space(5, 7), {"pool": "max"}, "pool is one of attention, mean, sum; got 'max'"),
        (graph_space(5, 7), {"output": "edges"}, "output is one of graph, nodes, both; got 'edges'"),
        (graph_space(5, 7), {"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        (graph_space(5, 7), {"hidden_size": 1.5}, "hidden_size must be a whole number of at least 1, got 1.5"),
    ],
)
def test_what_is_no_graph_and_impossible_settings_are_refused(
    space: spaces.Space[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GraphEncoder(space, **settings)


@pytest.mark.parametrize("output", ["graph", "nodes"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_serves_the_algorithms_of_other_packages(algorithm: str, output: str) -> None:
    env = wrap(RaggedGraph(continuous=algorithm == "sac"), PAD)
    model = trained(algorithm, env, ENCODERS["graph"], hidden_size=8, features_dim=8, output=output, node_features=2)
    assert all(isinstance(part, GraphEncoder) for part in extractors(model))
    observation, _ = env.reset(seed=1)
    action, _ = model.predict(observation)
    assert env.action_space.contains(action if algorithm == "sac" else int(action))


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("output", ["graph", "nodes", "both"])
def test_the_first_ratio_is_one_over_graph_observations(memory: str, output: str) -> None:
    env = envs.make(RaggedGraph, 3, wrappers=PAD, seed=0)
    settings = {"hidden_size": 8, "features_dim": 8, "output": output}
    assert deviation_of_first_ratio(env, ENCODERS["graph"], memory, **settings) < 1e-5
