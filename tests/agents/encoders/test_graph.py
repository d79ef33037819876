"""The graph encoder: order and padding do not matter, messages reach as far as there are rounds.

Axes: B observations, N nodes, E edges.
"""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.encoders.graph import POOLS, GraphEncoder
from tests.tolerance import close

F, G, SIZE = 3, 2, 8


def encoder(nodes: int = 5, edges: int = 7, edge_features: bool = True, **settings: Any) -> GraphEncoder:
    torch.manual_seed(0)
    parts: dict[str, spaces.Space[Any]] = {
        "nodes": spaces.Box(-9.0, 9.0, (nodes, F)),
        "edge_index": spaces.Box(0, nodes - 1, (edges, 2), np.int64),
        "node_mask": spaces.MultiBinary(nodes),
        "edge_mask": spaces.MultiBinary(edges),
        **settings.pop("context", {}),
    }
    if edge_features:
        parts["edges"] = spaces.Box(-9.0, 9.0, (edges, G))
    made = GraphEncoder(spaces.Dict(parts), **{"hidden_size": SIZE, "node_features": 4, **settings})
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
    given = graphs(length, length - 1, batch=1)
    edge_index = torch.stack((places[:-1], places[1:]), dim=1)[None]
    return given | {name: torch.ones_like(given[name]) for name in ("nodes", "edges")} | {"edge_index": edge_index}


def changed_nodes(model: GraphEncoder, changed: dict[str, Tensor]) -> list[bool]:
    """Whether the features of each node of a path differ from those of the unchanged one."""
    outputs = [model(given).view(6, -1) for given in (changed, path(6))]
    return [bool(far > 1e-6) for far in (outputs[0] - outputs[1]).abs().amax(dim=1)]


@pytest.mark.parametrize("edge_features", [True, False])
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_permuted_nodes_and_edges_permute_node_features_and_change_no_pooled_one(
    pool: str, both_ways: bool, edge_features: bool
) -> None:
    given = graphs()
    if not edge_features:
        del given["edges"]
    nodes, edges = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([6, 2, 0, 1, 5, 4, 3])
    moved = {name: part[:, nodes if "node" in name else edges] for name, part in given.items()}
    moved["edge_index"] = torch.argsort(nodes)[moved["edge_index"]]
    model = encoder(pool=pool, both_ways=both_ways, edge_features=edge_features, output="both", features_dim=6)
    before, after = model(given), model(moved)
    assert close(after[:, :6], before[:, :6])
    by_node = before[:, 6:].view(4, 5, -1)
    assert close(after[:, 6:].view(4, 5, -1), by_node[:, nodes])
    assert not torch.allclose(by_node[:, nodes], by_node, atol=1e-2)


@pytest.mark.parametrize("pool", POOLS)
def test_padding_of_any_amount_and_content_is_invisible(pool: str) -> None:
    given = graphs()
    tight = encoder(pool=pool, output="both", features_dim=6)
    roomy = encoder(9, 12, pool=pool, output="both", features_dim=6)
    roomy.load_state_dict(tight.state_dict())
    # Valid edges and nodes scattered among padding: edges that are padding join valid nodes, and vice versa.
    places, numbers = torch.tensor([8, 1, 3, 6, 4]), torch.tensor([11, 0, 2, 3, 5, 8, 9])
    padded = graphs(9, 12, seed=5)
    padded["node_mask"][:], padded["edge_mask"][:] = 0.0, 0.0
    for name, part in given.items():
        padded[name][:, places if "node" in name else numbers] = places[part] if name == "edge_index" else part
    padded["nodes"][0, 0] = padded["edges"][0, 1] = torch.nan
    # An edge that is marked valid, but one end of which is padding, is padding.
    padded["edge_mask"][:, 7] = 1.0
    padded["edge_index"][:, 7] = torch.tensor([8, 2])
    small, large = tight(given), roomy(padded)
    assert close(large[:, :6], small[:, :6])
    by_node = large[:, 6:].view(4, 9, -1)
    assert close(by_node[:, places], small[:, 6:].view(4, 5, -1))
    assert (by_node[:, [0, 2, 5, 7]] == 0).all()


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("both_ways", [True, False])
def test_messages_reach_as_far_as_there_are_rounds(rounds: int, both_ways: bool) -> None:
    changed = path(6)
    changed["nodes"][0, 2] = -2.0
    reached = [abs(node - 2) <= rounds and (both_ways or node >= 2) for node in range(6)]
    assert changed_nodes(encoder(6, 5, rounds=rounds, both_ways=both_ways, output="nodes"), changed) == reached


def test_features_of_an_edge_reach_the_nodes_it_joins_and_no_other() -> None:
    changed = path(6)
    changed["edges"][0, 1] = -3.0  # the edge from 1 to 2
    assert changed_nodes(encoder(6, 5, rounds=1, output="nodes"), changed) == [False, True, True, False, False, False]


def test_a_round_is_the_sum_of_messages_through_a_gated_update() -> None:
    model = encoder(3, 2, rounds=1, both_ways=False, output="nodes")
    given = graphs(3, 2, batch=1)
    given["edge_index"] = torch.tensor([[[0, 2], [1, 2]]])  # both lead to node 2; the others receive nothing
    entered = torch.tanh(model.enter(given["nodes"][0]))
    messages = torch.relu(model.sent[0](entered[:2]) + model.carried[0](given["edges"][0]))
    received = torch.stack((torch.zeros(SIZE), torch.zeros(SIZE), messages.sum(dim=0)))
    expected = torch.tanh(model.leave_nodes(torch.cat((entered, model.update(received, entered)), dim=1)))
    assert close(model(given).view(3, -1), expected)


def test_pools_are_a_sum_a_mean_and_a_weighted_mean() -> None:
    given = graphs()
    given["node_mask"][:, 3:] = 0.0
    valid = given["node_mask"].bool()
    for pool in POOLS:
        model = encoder(pool=pool)
        _, states = model._node_states(given, valid)
        pooled, states = model._pooled(states, valid), states[:, :3]
        if pool == "attention":
            assert ((pooled <= states.amax(dim=1) + 1e-6) & (pooled >= states.amin(dim=1) - 1e-6)).all()
            assert not torch.allclose(pooled, states.mean(dim=1), atol=1e-3)
        else:
            assert close(pooled, getattr(states, pool)(dim=1))


def test_context_is_seen() -> None:
    model = encoder(context={"compass": spaces.Box(-1.0, 1.0, (2, 2)), "clock": spaces.MultiBinary(3)})
    given = {**graphs(), "compass": torch.zeros(4, 2, 2), "clock": torch.zeros(4, 3)}
    for name in ("compass", "clock"):
        assert (model({**given, name: torch.ones_like(given[name])}) != model(given)).any(dim=1).all()


@pytest.mark.parametrize(("output", "size"), [("graph", 11), ("nodes", 5 * 4), ("both", 11 + 5 * 4)])
def test_features_have_the_size_that_the_encoder_states(output: str, size: int) -> None:
    model = encoder(output=output, features_dim=11)
    assert model(graphs()).shape == (4, model.features_dim) == (4, size)


def test_a_graph_without_edges_is_encoded_and_one_without_nodes_is_refused_by_its_row() -> None:
    given = graphs()
    given["edge_mask"][:] = 0.0
    assert torch.isfinite(encoder()(given)).all()
    given["node_mask"][2] = 0.0
    with pytest.raises(ValueError, match="observation 2 of the batch is a graph without nodes"):
        encoder()(given)


@pytest.mark.parametrize("pool", POOLS)
def test_weights_sum_to_one_and_padding_has_none(pool: str) -> None:
    model, given = encoder(pool=pool), graphs()
    given["node_mask"][:, 3:] = 0
    given["edge_mask"][:, 5:] = 0
    nodes, edges = model.weights(given)
    close(nodes.sum(dim=1), torch.ones(4))
    assert not nodes[:, 3:].any()
    inside = (given["edge_index"] < 3).all(dim=2) & given["edge_mask"].bool()
    assert torch.equal(edges > 0, inside)
    close(edges.sum(dim=1), inside.any(dim=1).float())


@pytest.mark.parametrize("pool", POOLS)
def test_weights_of_nodes_are_attention_or_norms_and_of_edges_the_norms_of_their_messages(pool: str) -> None:
    """One round, one way, two edges: what runs along each is relu(sent(state of its start) + carried(edge))."""
    model, given = encoder(nodes=3, edges=2, rounds=1, both_ways=False, pool=pool), graphs(nodes=3, edges=2, batch=1)
    given["edge_index"] = torch.tensor([[[0, 1], [2, 1]]])
    with torch.no_grad():
        nodes, edges = model.weights(given)
        entered = torch.tanh(model.enter(given["nodes"][0]))
        along = torch.relu(model.sent[0](entered[[0, 2]]) + model.carried[0](given["edges"][0])).norm(dim=1)
        states = model._node_states(given, torch.ones(1, 3, dtype=torch.bool))[1][0]
        norms = states.norm(dim=1)
        attended = None if model.score is None else model.score(states)[:, 0].softmax(0)
    assert (attended is None) == (pool != "attention")
    close(nodes[0], norms / norms.sum() if attended is None else attended)
    close(edges[0], along / along.sum())
