"""The policy whose actions are about nodes: they move with their nodes, and it acts as it learns.

Axes: T steps, B observations, N nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor

import envs
from agents import RecurrentPPO
from agents.policy.nodes import NodeActionPolicy
from tests.tolerance import close

N, E, F = 5, 6, 3
SPACE = spaces.Dict(
    {
        "nodes": spaces.Box(-9.0, 9.0, (N, F)),
        "edge_index": spaces.Box(0, N - 1, (E, 2), np.int64),
        "node_mask": spaces.MultiBinary(N),
        "edge_mask": spaces.MultiBinary(E),
    }
)


def policy(actions: int = N, memory: str = "lstm", **settings: Any) -> NodeActionPolicy:
    torch.manual_seed(0)
    made = NodeActionPolicy(SPACE, spaces.Discrete(actions), lambda _: 1e-3, memory=memory, **settings)
    with torch.no_grad():
        made.action_net.score.weight.mul_(300)
    return made


def graphs(steps: int = 4, batch: int = 2) -> dict[str, Tensor]:
    """(T, B, ...), without padding."""
    generator = torch.Generator().manual_seed(0)
    return {
        "nodes": torch.randn(steps, batch, N, F, generator=generator),
        "edge_index": torch.randint(0, N, (steps, batch, E, 2), generator=generator),
        "node_mask": torch.ones(steps, batch, N),
        "edge_mask": torch.ones(steps, batch, E),
    }


def log_probabilities(made: NodeActionPolicy, given: dict[str, Tensor], actions: int = N) -> Tensor:
    """(T, B, n), of every action."""
    steps, batch = given["node_mask"].shape[:2]
    starts = torch.zeros(steps, batch, dtype=torch.bool)
    every = [torch.full((steps, batch), action) for action in range(actions)]
    state = made.initial_state(batch)
    return torch.stack([made.evaluate_actions(given, action, state, starts)[1] for action in every], dim=2)


@pytest.mark.parametrize("memory", ["none", "lstm"])
@pytest.mark.parametrize("critic_memory", ["shared", "separate"])
def test_permuted_nodes_permute_their_actions(memory: str, critic_memory: str) -> None:
    made, given = policy(memory=memory, critic_memory=critic_memory), graphs()
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {**given, "nodes": given["nodes"][:, :, order], "edge_index": torch.argsort(order)[given["edge_index"]]}
    before, after = log_probabilities(made, given), log_probabilities(made, moved)
    assert close(after, before[:, :, order])
    assert before.std(dim=2).min() > 0.01
    starts, actions = torch.zeros(4, 2, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.int64)
    values = [made.evaluate_actions(each, actions, made.initial_state(2), starts)[0] for each in (given, moved)]
    assert close(*values)


def test_earlier_observations_decide_between_the_present_nodes() -> None:
    made, given = policy(), graphs()
    other = {name: part.clone() for name, part in given.items()}
    other["nodes"][0] += 1.0
    difference = (log_probabilities(made, other) - log_probabilities(made, given)).abs().amax(dim=(1, 2))
    assert difference[1] > 1e-4


def test_padding_nodes_have_probability_zero() -> None:
    made, given = policy(3, first_node=1), graphs()
    given["node_mask"][:, :, 2] = 0.0
    probabilities = log_probabilities(made, given, 3).exp()
    assert (probabilities[:, :, 1] == 0).all()
    assert close(probabilities.sum(dim=2), torch.ones(4, 2))
    assert (probabilities[:, :, [0, 2]] > 0).all()


def test_the_first_action_is_about_the_first_node_named() -> None:
    given = graphs()
    every, some = policy(N), policy(3, first_node=2)
    some.load_state_dict(every.state_dict())
    all_nodes = log_probabilities(every, given)
    of_three = torch.log_softmax(all_nodes[:, :, 2:], dim=2)
    assert close(log_probabilities(some, given, 3), of_three)


class Choice(gymnasium.Env[Any, Any]):
    """Step 0 shows a color on a node alone, step 1 some nodes of it and some of the other: choose one of the first."""

    action_space = spaces.Discrete(N)
    observation_space = spaces.Graph(spaces.Box(-1.0, 1.0, (1,)), None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.wanted = 0, self.np_random.choice([-1.0, 1.0])
        return self.observe(np.array([self.wanted])), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.t == 2:
            reward = float(self.colors[int(action)] == self.wanted)
            return self.observe(self.colors), reward, True, False, {}
        n_right = self.np_random.integers(1, N)
        self.colors = self.np_random.permutation([self.wanted] * n_right + [-self.wanted] * (N - n_right))
        return self.observe(self.colors), 0.0, False, False, {}

    def observe(self, colors: Any) -> spaces.GraphInstance:
        return spaces.GraphInstance(np.array(colors, np.float32)[:, None], None, None)


PAD = [("pad_graph", {"max_nodes": N, "max_edges": 1})]


def test_it_learns_to_choose_a_node_of_the_remembered_color() -> None:
    model = RecurrentPPO(
        "NodeActionPolicy",
        envs.make(Choice, 32, wrappers=PAD, seed=0),
        n_steps=16,
        batch_size=128,
        n_epochs=8,
        # Falling to 0: once every episode is solved, normalized advantages are noise.
        learning_rate=LinearSchedule(2e-3, 0.0, 1.0),
        gamma=0.9,
        ent_coef=0.01,
        seed=0,
        device="cpu",
        policy_kwargs={
            "memory": "lstm",
            "memory_kwargs": {"hidden_size": 32},
            "net_arch": [32],
            "features_extractor_kwargs": {"hidden_size": 32, "rounds": 1, "pool": "sum"},
            "optimizer_kwargs": {"eps": 1e-5},  # as these few steps were tuned
        },
    )

    def returns() -> list[float]:
        return [episode["r"] for episode in model.ep_info_buffer or ()]

    model.learn(4096, callback=lambda *_: len(returns()) < 100 or float(np.mean(returns())) < 0.95)
    # Either color is wanted with equal chance, whatever nodes there are: without memory half are right.
    assert np.mean(returns()) > 0.9


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    env = envs.make(Choice, 2, wrappers=PAD, seed=0)
    settings = {"features_extractor_kwargs": {"hidden_size": 8}}
    model = RecurrentPPO("NodeActionPolicy", env, n_steps=4, batch_size=4, policy_kwargs=settings, seed=0, device="cpu")
    model.learn(16)
    model.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", env=env, device="cpu")
    assert type(loaded.policy) is NodeActionPolicy
    observations: Any = env.reset()
    one, _ = model.predict(observations, deterministic=True)
    other, _ = loaded.predict(observations, deterministic=True)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("actions", "settings", "message"),
    [
        (spaces.Box(-1, 1, (2,)), {}, "chooses one of the nodes, Discrete.*got Box"),
        (spaces.Discrete(6), {}, r"6 actions about nodes 0 to 5, .* room for 5 nodes; make the .* Discrete\(5\)"),
        (spaces.Discrete(5), {"first_node": 1}, r"make the action space Discrete\(4\) or smaller, or set first_node"),
        (spaces.Discrete(5), {"features_extractor_class": CombinedExtractor}, "so the graph encoder; got"),
        (spaces.Discrete(5), {"share_features_extractor": False}, "actor and critic share the encoder"),
    ],
)
def test_what_cannot_have_actions_about_nodes_is_refused(actions: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NodeActionPolicy(SPACE, actions, lambda _: 1e-3, **settings)
