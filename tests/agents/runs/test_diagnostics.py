"""What is logged of the memory in training is right, and changes nothing of the run."""

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import KVWriter, Logger

from agents import RecurrentA2C, RecurrentPPO
from agents.algorithms.callbacks import needs_steps
from agents.memory import MEMORIES
from agents.runs.diagnostics import MemoryDiagnostics, Phases, UpdateEnds, draw, figures
from tests.agents.analysis.echo import DelayLine, echo
from tests.agents.probe_envs import clocks, small_ppo


class Rows(KVWriter):
    """Keeps what is dumped."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def logged(model: Any, callback: Any, steps: int = 96) -> list[dict[str, Any]]:
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(steps, callback)
    model.logger.dump(steps)
    return rows.rows


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_run_with_diagnostics_is_the_run_without(memory: str) -> None:
    weights = []
    for callback in (None, MemoryDiagnostics(every=1)):
        model = small_ppo(clocks(), memory, "separate")
        model.learn(72, callback)
        weights.append(model.policy.state_dict())
    for name, part in weights[0].items():
        assert torch.equal(part, weights[1][name]), name


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentA2C])
def test_every_memory_has_its_figures(memory: str, cls: type[Any]) -> None:
    rows = logged(small_ppo(clocks(), memory, cls=cls), MemoryDiagnostics(every=1), 48)
    names = {name.removeprefix("memory/") for row in rows for name in row if name.startswith("memory/")}
    expected = {"gradient_lag_0", "gradient_lag_1", "gradient_lag_2", "output_norm"}
    expected |= {f"ratio_drift_{i}" for i in (1, 2, 3, 4)}
    if memory != "gtrxl":
        expected.add("state_norm")
    if memory in ("rnn", "lstm", "gru", "attention"):
        expected.add("output_saturated")
    assert names == (set() if memory == "none" else expected)
    assert all(np.isfinite(value) and value >= 0 for row in rows for name, value in row.items() if "memory/" in name)


def collected(model: Any) -> Any:
    """The model with a full rollout buffer, before the update."""
    _, callback = model._setup_learn(24)
    callback.on_training_start({}, {})
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


@pytest.mark.parametrize("memory", MEMORIES)
def test_ratios_have_not_drifted_before_an_update_and_have_after_it(memory: str) -> None:
    model = collected(small_ppo(clocks(), memory))
    sample = draw(model.rollout_buffer, 12, np.random.default_rng(1))
    before = figures(model.policy, sample)
    model.set_logger(Logger(None, []))
    model.train()
    after = figures(model.policy, sample)
    drifts = [name for name in before if name.startswith("ratio_drift")]
    assert len(drifts) == 4
    assert max(before[name] for name in drifts) <= 1e-5
    assert min(after[name] for name in drifts) > 1e-4


def delaying(lag: int, length: int = 64) -> Any:
    policy = dict(memory=DelayLine, memory_kwargs=dict(lag=lag), net_arch=[])
    return RecurrentPPO(
        "RecurrentPolicy", echo(3, lag, length), n_steps=16, batch_size=48, policy_kwargs=policy, seed=0, device="cpu"
    )


@pytest.mark.parametrize("lag", [1, 2, 4, 8])
def test_the_gradient_of_a_delay_line_lies_at_its_lag_alone(lag: int) -> None:
    model = collected(delaying(lag))
    found = figures(model.policy, draw(model.rollout_buffer, 48, np.random.default_rng(0)))
    lags = {int(name[13:]): value for name, value in found.items() if name.startswith("gradient_lag_")}
    assert list(lags) == [0, 1, 2, 4, 8]
    assert [at for at, value in lags.items() if value > 0] == [lag]


def test_lags_beyond_an_episodes_start_are_not_counted() -> None:
    model = collected(delaying(1, length=6))  # starts at 0, 6, 12: the last step is 3 after its episode's start
    found = figures(model.policy, draw(model.rollout_buffer, 48, np.random.default_rng(0)))
    assert [name for name in found if name.startswith("gradient_lag_")] == [f"gradient_lag_{lag}" for lag in (0, 1, 2)]


def test_a_sample_is_complete_sequences_with_the_state_before_them() -> None:
    model = collected(small_ppo(clocks(), "lstm"))
    buffer = model.rollout_buffer
    sample = draw(buffer, 8, np.random.default_rng(0))
    assert sample.episode_starts.shape == (4, 2)
    old = [buffer.log_probs[4 * i : 4 * i + 4, env] for i in range(2) for env in range(3)]
    places = [divmod(i, 3) for i, each in enumerate(old) if torch.equal(each, sample.old_log_probs[:, 0])]
    ((stretch, env),) = places
    assert torch.equal(sample.state[0][0], buffer.states[0][stretch, env])
    assert torch.equal(sample.observations[:, 0], buffer.observations[4 * stretch : 4 * stretch + 4, env])


def test_shares_of_time_are_shares() -> None:
    update_ends = UpdateEnds()
    callbacks = [update_ends, MemoryDiagnostics(every=1), Phases(update_ends)]
    assert not needs_steps(CallbackList(callbacks))
    rows = logged(small_ppo(clocks(), "gru"), callbacks)
    assert "time/training" not in rows[0]  # no update yet
    for row in rows[1:-1]:
        collecting, training = row["time/collecting"], row["time/training"]
        assert min(collecting, training) > 0
        assert collecting + training <= 1
