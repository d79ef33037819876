"""The policy whose actions are about links, and the graph encoder's auxiliary losses.

Axes: T steps, B observations, N nodes, E edges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import envs
from agents import RecurrentPPO
from agents.encoders.graph import GraphEncoder
from agents.policy.nodes import LinkActionPolicy
from tests.agents.encoders.test_node_actions import SPACE, E, N, graphs, log_probabilities
from tests.tolerance import close

LABELS = {
    "node_labels": spaces.Box(-1, 2, (N,), np.int64),
    "pair_index": spaces.Box(0, N - 1, (3, 2), np.int64),
    "pair_labels": spaces.Box(-1, 1, (3,), np.int64),
}
LABELED = spaces.Dict({**SPACE.spaces, **LABELS})


def policy(space: Any = SPACE, actions: Any = None, **settings: Any) -> LinkActionPolicy:
    torch.manual_seed(0)
    made = LinkActionPolicy(space, actions or spaces.Discrete(E), lambda _: 1e-3, **settings)
    with torch.no_grad():
        made.action_net.score.weight.mul_(300)
    return made


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_permuted_links_permute_their_actions_and_permuted_nodes_change_nothing(memory: str) -> None:
    made, given = policy(memory=memory), graphs()
    before = log_probabilities(made, given, E)
    links = torch.tensor([5, 2, 0, 1, 4, 3])
    after = log_probabilities(made, {**given, "edge_index": given["edge_index"][:, :, links]}, E)
    assert close(after, before[:, :, links])
    nodes = torch.tensor([3, 0, 4, 1, 2])
    moved = {**given, "nodes": given["nodes"][:, :, nodes], "edge_index": torch.argsort(nodes)[given["edge_index"]]}
    assert close(log_probabilities(made, moved, E), before)
    assert before.std(dim=2).min() > 0.01


def test_a_link_and_its_reverse_are_told_apart() -> None:
    made, given = policy(), graphs()
    back = {**given, "edge_index": given["edge_index"].flip(-1)}
    assert (log_probabilities(made, back, E) - log_probabilities(made, given, E)).abs().max() > 1e-3


def test_links_that_are_not_there_have_probability_zero() -> None:
    made, given = policy(), graphs()
    given["edge_mask"][:, :, 2] = 0.0
    probabilities = log_probabilities(made, given, E).exp()
    assert (probabilities[:, :, 2] == 0).all()
    assert close(probabilities.sum(dim=2), torch.ones(4, 2))


def test_a_yes_or_no_for_each_link_is_no_where_there_is_none_or_the_mask_forbids_it() -> None:
    space = spaces.Dict({**SPACE.spaces, "allowed": spaces.MultiBinary(E)})
    made = policy(space, spaces.MultiBinary(E), action_mask="allowed")
    given = {**graphs(steps=1, batch=500), "allowed": torch.ones(1, 500, E)}
    given["edge_mask"][..., 1] = 0.0
    given["allowed"][..., 4] = 0.0
    flat = {name: part[0] for name, part in given.items()}
    starts = torch.zeros(500, dtype=torch.bool)
    bits, _, log_probs, _ = made(flat, made.initial_state(500), starts)
    assert not bits[:, [1, 4]].any()
    assert (bits[:, [0, 2, 3, 5]].mean(dim=0) - 0.5).abs().max() < 0.45
    _, again, entropies = made.evaluate_actions(given, bits[None], made.initial_state(500), starts[None])
    assert close(again[0], log_probs)
    assert entropies is not None
    assert (entropies <= 4 * np.log(2) + 1e-5).all()


@pytest.mark.parametrize("output", ["graph", "graph and links"])
def test_labels_make_losses_and_no_features(output: str) -> None:
    torch.manual_seed(0)
    encoder = GraphEncoder(LABELED, output=output, auxiliary_weight=0.5)
    given = {name: part[0] for name, part in graphs(steps=1).items()}
    labels = {
        "node_labels": torch.tensor([[0, 1, 2, -1, -1], [2, 2, 2, 2, 2]]),
        "pair_index": torch.tensor([[[0, 1], [2, 3], [4, 0]]] * 2),
        "pair_labels": torch.tensor([[1, 0, -1], [-1, -1, 1]]),
    }
    features = encoder({**given, **labels})
    other = encoder({**given, "node_labels": labels["node_labels"].roll(1, 0), "pair_labels": 1 - labels["pair_labels"],
                     "pair_index": labels["pair_index"]})  # fmt: skip
    assert torch.equal(features, other)
    encoder({**given, **labels})
    losses = encoder.auxiliary_losses()
    assert encoder.auxiliary_losses() == {}
    valid = given["node_mask"].bool()
    _, states = encoder._node_states(given, valid)
    known = labels["node_labels"] >= 0
    expected = nn.functional.cross_entropy(encoder.classify(states)[known], labels["node_labels"][known])
    assert close(losses["node_classification"], 0.5 * expected)
    # Of the first graph pairs (0, 1) and (2, 3) are known, of the second (4, 0).
    ends = [(0, 0, 1, 1.0), (0, 2, 3, 0.0), (1, 4, 0, 1.0)]
    logits = torch.stack([encoder.join(states[b, u], states[b, v]) for b, u, v, _ in ends]).squeeze(1)
    target = torch.tensor([label for *_, label in ends])
    expected = nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert close(losses["link_prediction"], 0.5 * expected)
    encoder.eval()
    encoder({**given, **labels})
    assert encoder.auxiliary_losses() == {}


def test_what_is_all_unknown_costs_nothing() -> None:
    encoder = GraphEncoder(LABELED, auxiliary_weight=1.0)
    given = {name: part[0] for name, part in graphs(steps=1).items()}
    unknown = {name: torch.full((2, *part.shape), -1) for name, part in LABELS.items() if "labels" in name}
    encoder({**given, **unknown, "pair_index": torch.zeros(2, 3, 2, dtype=torch.int64)})
    assert {name: loss.item() for name, loss in encoder.auxiliary_losses().items()} == {
        "node_classification": 0.0,
        "link_prediction": 0.0,
    }


def test_the_losses_are_learned_and_logged_and_the_agent_is_saved_and_loaded(tmp_path: Path) -> None:
    env = envs.make("PacketRouting-v0", 8, env_kwargs={"routes": 2, "hops": 2, "labels": True}, seed=0)
    settings = {"action_mask": "action_mask", "features_extractor_kwargs": {"hidden_size": 16, "auxiliary_weight": 1.0}}
    model = RecurrentPPO(
        "LinkActionPolicy", env, 1e-2, n_steps=16, batch_size=64, policy_kwargs=settings, seed=0, device="cpu"
    )
    logged: list[dict[str, float]] = []
    model.learn(128 * 8, callback=lambda *_: logged.append(dict(model.logger.name_to_value)) or True)
    losses = [each["train/node_classification"] for each in logged if "train/node_classification" in each]
    assert losses[-1] < 0.5 * losses[0]
    model.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", env=env, device="cpu")
    assert type(loaded.policy) is LinkActionPolicy
    observations: Any = env.reset()
    np.testing.assert_array_equal(*(each.predict(observations, deterministic=True)[0] for each in (model, loaded)))


@pytest.mark.parametrize(
    ("actions", "settings", "message"),
    [
        (spaces.Box(-1, 1, (2,)), {}, r"one of the links, Discrete\(n\), or says yes or no for each"),
        (spaces.Discrete(7), {}, r"7 actions about links 0 to 6, .* room for 6 links; make the .* Discrete\(6\)"),
        (spaces.MultiBinary(7), {}, r"make the action space MultiBinary\(6\) or smaller"),
        (spaces.Discrete(5), {"first_node": 1}, "action i of LinkActionPolicy is about edge i"),
        (
            spaces.Discrete(5),
            {"features_extractor_kwargs": {"auxiliary_weight": 1.0}},
            "auxiliary_weight needs labels in the observation",
        ),
    ],
)
def test_what_cannot_have_actions_about_links_is_refused(actions: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinkActionPolicy(SPACE, actions, lambda _: 1e-3, **settings)


def test_pairs_need_their_labels_and_nodes_there_are() -> None:
    with pytest.raises(ValueError, match="pair_index and pair_labels go together"):
        GraphEncoder(spaces.Dict({**SPACE.spaces, "pair_labels": LABELS["pair_labels"]}))
    beyond = spaces.Box(0, N, (3, 2), np.int64)
    with pytest.raises(ValueError, match="'pair_index' may reach from 0 to 5, but there are 5 nodes"):
        GraphEncoder(spaces.Dict({**LABELED.spaces, "pair_index": beyond}))
