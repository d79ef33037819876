"""A recorded episode is the one that was played, and what is read out of it agrees with the networks' own equations."""

from typing import Any

import numpy as np
import pytest
import torch

from agents.analysis import Recording, attention, gates, graph_weights, principal_components, record
from agents.deploy.player import Player
from agents.encoders import ENCODERS
from agents.memory import GRU, LSTM, GTrXL, make_memory
from tests.agents.analysis.echo import echo
from tests.agents.probe_envs import small, small_ppo
from tests.tolerance import assert_close

LENGTH = 9


def player_of(memory: str, critic_memory: str = "shared") -> Player:
    return Player(small_ppo(echo(1, 2, LENGTH), memory, critic_memory).policy)


def test_the_components_of_a_line_are_the_line() -> None:
    direction = np.array([3.0, 0.0, -4.0])
    along = np.array([-2.0, 0.0, 1.0, 5.0])
    found = principal_components(np.array([7.0, 1.0, 2.0]) + along[:, None] * direction)
    # The largest weight, of -4, is made positive.
    assert_close(found.scores[:, 0], -5 * (along - along.mean()), dtype=np.float64)
    assert_close(found.explained, [1, 0], dtype=np.float64)
    assert_close(found.scores[:, 1], 0, scale=np.abs(found.scores).max(), dtype=np.float64)


def test_the_components_of_what_never_changes_are_0() -> None:
    found = principal_components(np.ones((1, 4)))
    assert not found.scores.any()
    assert not found.explained.any()


def gates_of(player: Player) -> tuple[Any, Recording]:
    recorded = record(player, echo(1, 2, LENGTH))
    return gates(player, recorded), recorded


def test_an_lstms_gates_make_its_next_state() -> None:
    found, recorded = gates_of(player_of("lstm"))
    (hidden, cell), opened = recorded.states, found.openness
    assert_close(hidden[1:], opened["output"] * np.tanh(cell[1:]))
    assert (np.abs(cell[1:] - opened["forget"] * cell[:-1]) <= opened["input"] + 1e-6).all()


def test_a_grus_gates_bound_its_next_state() -> None:
    found, recorded = gates_of(player_of("gru"))
    (hidden,), keep = recorded.states, found.openness["update"]
    assert (np.abs(hidden[1:] - keep * hidden[:-1]) <= 1 - keep + 1e-6).all()


@pytest.mark.parametrize(("memory", "gate", "row"), [("lstm", "forget", 1), ("gru", "update", 1), ("gru", "reset", 0)])
@pytest.mark.parametrize("bias", [30.0, -30.0])
def test_a_gate_that_is_forced_is_saturated(memory: str, gate: str, row: int, bias: float) -> None:
    player = player_of(memory)
    recurrent: Any = player.policy.memory_actor
    recurrent._set_bias(1, row, bias)
    found, _ = gates_of(player)
    n_layers, n_units = 2, 8
    assert found.openness[gate].shape == (LENGTH, n_layers, n_units)
    assert (found.saturation_over_time()[gate][:, 1] == 1).all()
    assert found.mean_over_time()[gate][:, 1] == pytest.approx(float(bias > 0))
    assert found.to_json()[gate]["saturation"][1] == 1
    assert found.to_json()[gate]["saturation"][0] < 1


@pytest.mark.parametrize("memory", ["rnn", "mingru", "lru", "gtrxl", "none"])
def test_memories_without_these_gates_have_none(memory: str) -> None:
    assert gates_of(player_of(memory))[0] is None


@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_an_attention_memory_has_the_gates_of_its_recurrence(cell: type[Any]) -> None:
    kwargs = dict(memory_kwargs=small("attention", cell=cell.__name__.lower()))
    found, _ = gates_of(Player(small_ppo(echo(1, 2, LENGTH), "attention", policy_kwargs=kwargs).policy))
    assert ("forget" in found.openness) == (cell is LSTM)


@pytest.mark.parametrize(("memory", "heads"), [("attention", 1), ("gtrxl", 8)])
def test_attention_over_an_episode_goes_back_to_its_start_and_no_further(memory: str, heads: int) -> None:
    player = player_of(memory)
    found = attention(player, record(player, echo(1, 2, LENGTH)))
    assert len(found) == heads
    for each in found.values():
        assert each.by_lag
        assert each.weights.shape == (LENGTH, 6)  # a window of 5 and the step itself
        assert_close(each.weights.sum(axis=1), 1)
        for t in range(LENGTH):
            assert not each.weights[t, t + 1 :].any()
    assert not attention(player_of("lstm"), record(player_of("lstm"), echo(1, 2, LENGTH)))


@pytest.mark.parametrize("learned", [False, True])
def test_a_gated_transformers_weights_are_those_its_output_is_made_with(learned: bool) -> None:
    torch.manual_seed(0)
    memory: Any = make_memory("gtrxl", 3, dict(small("gtrxl", num_layers=1), learned_initial_state=learned))
    assert isinstance(memory, GTrXL)
    if learned:
        torch.nn.init.normal_(memory.initial)
    features, starts = torch.randn(40, 2, 3), torch.rand(40, 2) < 0.2
    starts[0] = True
    state = memory.initial_state(2)
    weights = memory.attention_weights(features, state, starts)[:, :, 0]  # (T, B, A, M + 1)
    assert_close(weights.sum(-1), torch.ones(40, 2, 4))
    layer, carried, outputs = memory.layers[0], state, []
    for t in range(40):
        _, after = memory.step(features[t], carried, starts[t])
        window = memory._restarted(carried, starts[t])[0][:, 0]
        slots = torch.cat((window, after[0][:, 0, -1:]), dim=1)
        values = layer._heads_first(layer.value(slots))
        attended = (weights[t][:, :, None] @ values)[:, :, 0].flatten(1)
        outputs.append(layer._gated(memory.embedding(features[t]), attended))
        carried = after
    assert_close(torch.stack(outputs), memory.unroll(features, state, starts))


def test_an_encoders_attention_is_read_by_token() -> None:
    from envs import make

    env = make("CartPoleNoVel-v1", 1, wrappers=[{"history": {"length": 6}}])
    model = small_ppo(
        env,
        "gru",
        policy_kwargs=dict(
            features_extractor_class=ENCODERS["attention"], features_extractor_kwargs=dict(features_dim=8, heads=2)
        ),
        n_steps=8,
    )
    player = Player(model.policy)
    recorded = record(player, env, max_steps=10)
    found = attention(player, recorded)
    assert list(found) == ["encoder, head 1", "encoder, head 2"]
    for each in found.values():
        assert (len(each.weights), each.by_lag) == (len(recorded), False)
        assert_close(each.weights.sum(axis=1), 1)


def test_the_weights_of_an_observed_graph_are_those_of_its_encoder_at_every_step() -> None:
    from envs import make

    env = make("GraphSearch-v0", 1)
    model = small_ppo(env, "gru", n_steps=8, policy_kwargs=dict(features_extractor_class=ENCODERS["graph"]))
    player = Player(model.policy)
    recorded = record(player, env, max_steps=6)
    (found,) = graph_weights(player, recorded)
    assert found.edge_index.shape == recorded.observations["edge_index"].shape
    assert_close(found.nodes.sum(axis=1), 1)
    assert ((found.nodes > 0) == recorded.observations["node_mask"].astype(bool)).all()
    assert not found.edges[recorded.observations["edge_mask"] == 0].any()
    assert graph_weights(player_of("lstm"), record(player_of("lstm"), echo(1, 2, LENGTH))) == []
