"""Noise of actions that lasts: at every step distributed as independent noise, correlated from one to the next.

Axes: T steps, B environments, A components of an action.
"""

import io
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import LinearSchedule

from agents import RecurrentA2C, RecurrentPPO
from agents.kernels import heads
from agents.policy.heads import exploring_with
from agents.rollout.noise import EVERY, CorrelatedNoise, RepeatedNoise
from tests.agents.probe_envs import clocks, small_ppo, states_equal

ALGORITHMS = [RecurrentPPO, RecurrentA2C]


def noise_of(model: Any) -> np.ndarray[Any, Any]:
    """(T, B, A): what the actions of the last rollout have besides their means, in standard deviations."""
    buffer, policy = model.rollout_buffer, model.policy
    means = torch.empty(buffer.buffer_size, buffer.n_envs, *policy.head.shape)
    state = tuple(part[0] for part in buffer.states)
    with torch.no_grad():
        for t in range(buffer.buffer_size):
            starts = buffer.episode_starts[t]
            hidden, state = policy.actor_hidden(buffer.observations[t], state, starts)
            means[t] = policy.distribution_parameters(hidden, None)[0]
        noise = (buffer.actions - means) / policy.log_std.exp()
    return noise.numpy()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_each_step_is_standard_normal_and_of_every_eighth_environment_like_the_one_before(kind: Any) -> None:
    fresh = np.random.default_rng(0).standard_normal((4000, 200, 2), dtype=np.float32)
    noise = CorrelatedNoise(0.8)
    e = np.stack([np.array(noise(kind(x.copy()))) for x in fresh])
    assert e.dtype == np.float32
    assert np.array_equal(noise.last, e[-1])  # type: ignore[arg-type]
    assert np.array_equal(np.delete(e, np.s_[::EVERY], axis=1), np.delete(fresh, np.s_[::EVERY], axis=1))
    e = e[:, ::EVERY]
    np.testing.assert_allclose(e.mean(), 0.0, atol=0.03)
    np.testing.assert_allclose(e[-1000:].std(), 1.0, atol=0.03)
    for lag in (1, 2, 5):
        np.testing.assert_allclose((e[lag:] * e[:-lag]).mean(), 0.8**lag, atol=0.03)
    np.testing.assert_allclose((e[..., 0] * e[..., 1]).mean(), 0.0, atol=0.03)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_every_eighth_environment_has_the_noise_of_choices_again_with_the_probability(kind: Any) -> None:
    rng = np.random.default_rng(0)
    fresh = rng.standard_exponential((4000, 200, 3), dtype=np.float32)
    noise = RepeatedNoise(0.8, rng)
    e = np.stack([np.array(noise(kind(x.copy()))) for x in fresh])
    assert e.dtype == np.float32
    assert np.array_equal(noise.last, e[-1])  # type: ignore[arg-type]
    assert np.array_equal(np.delete(e, np.s_[::EVERY], axis=1), np.delete(fresh, np.s_[::EVERY], axis=1))
    e, fresh = e[:, ::EVERY], fresh[:, ::EVERY]
    again = (e[1:] == e[:-1]).all(axis=-1)
    assert np.array_equal(again, (e[1:] == e[:-1]).any(axis=-1))  # all of it, or none
    assert np.array_equal(e[1:][~again], fresh[1:][~again])
    np.testing.assert_allclose(again.mean(), 0.8, atol=0.01)
    np.testing.assert_allclose(again[:, 1:][again[:, :-1]].mean(), 0.8, atol=0.01)  # each environment for itself
    np.testing.assert_allclose([e.mean(), e.std()], 1.0, atol=0.03)


@pytest.mark.parametrize("memory", ["lstm", "gtrxl"])  # which act in NumPy, and through torch
@pytest.mark.parametrize("actions", ["discrete", "multi discrete", "multi binary"])
@pytest.mark.parametrize("compiled", [True, False])
def test_choices_of_a_rollout_are_often_the_same_and_as_probable_as_without(
    memory: str, actions: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "available", heads.available and compiled)
    settings: dict[str, Any] = dict(n_steps=64, noise_correlation=0.95, learning_rate=1e-12)
    model = small_ppo(clocks(actions, n_envs=64), memory, actions=actions, **settings).learn(64 * 64)
    chosen = model.rollout_buffer.actions.reshape(64, 64, -1)
    again = (chosen[1:] == chosen[:-1]).to(torch.float32).mean(dim=(0, 2))
    others = torch.ones(64, dtype=torch.bool)
    others[::EVERY] = False
    assert again[::EVERY].mean() > again[others].mean() + 0.15
    assert model._last_noise.shape == (64, model.policy.head.n_outputs)
    for batch in model.rollout_buffer.get(512):
        log_probs = model.policy.evaluate_actions(batch.observations, batch.actions, batch.state, batch.episode_starts)
        torch.testing.assert_close(batch.steps(log_probs[1]), batch.steps(batch.old_log_probs), atol=1e-4, rtol=1e-4)


def test_a_step_by_hand() -> None:
    noise = CorrelatedNoise(0.6, np.array([[1.0, -2.0], [1.0, 1.0]]))
    np.testing.assert_allclose(noise(np.array([[0.5, 1.0], [3.0, 4.0]])), [[0.6 + 0.8 * 0.5, -1.2 + 0.8], [3.0, 4.0]])


@pytest.mark.parametrize("memory", ["lstm", "gtrxl"])  # which act in NumPy, and through torch
@pytest.mark.parametrize("cls", ALGORITHMS)
def test_the_actions_of_a_rollout_have_it(memory: str, cls: Any) -> None:
    settings: dict[str, Any] = dict(n_steps=64, noise_correlation=0.9, learning_rate=1e-9)
    model = small_ppo(clocks("box", n_envs=64), memory, actions="box", cls=cls, **settings).learn(64 * 64)
    first = noise_of(model)
    np.testing.assert_allclose(model._last_noise, first[-1], atol=1e-4)
    np.testing.assert_allclose(first.std(), 1.0, atol=0.1)
    product = first[1:] * first[:-1]
    np.testing.assert_allclose(product[:, ::EVERY].mean(), 0.9, atol=0.2)
    np.testing.assert_allclose(np.delete(product, np.s_[::EVERY], axis=1).mean(), 0.0, atol=0.05)
    model.learn(64 * 64, reset_num_timesteps=False)  # the next rollout goes on from it
    difference = noise_of(model)[0, ::EVERY] - 0.9 * first[-1, ::EVERY]
    np.testing.assert_allclose(difference.std(), np.sqrt(1 - 0.9**2), atol=0.25)


def test_probabilities_are_those_of_the_policy_and_prediction_samples_independently() -> None:
    model = small_ppo(clocks("box", n_envs=4), actions="box", noise_correlation=0.9, learning_rate=1e-9)
    model.learn(32)
    for batch in model.rollout_buffer.get(8):
        log_probs = model.policy.evaluate_actions(batch.observations, batch.actions, batch.state, batch.episode_starts)
        torch.testing.assert_close(batch.steps(log_probs[1]), batch.steps(batch.old_log_probs), atol=1e-4, rtol=1e-4)
    head, parameters = model.policy.head, (torch.zeros(2000, 2), torch.zeros(2))
    with exploring_with(head, CorrelatedNoise(0.99, np.full((2000, 2), 3.0, np.float32))):
        assert float(head.sample(parameters)[::EVERY].mean()) > 2.5
    assert abs(float(head.sample(parameters).mean())) < 0.2


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_without_correlation_nothing_changes(cls: Any) -> None:
    plain = small_ppo(clocks("box"), actions="box", cls=cls).learn(48)
    none = small_ppo(clocks("box"), actions="box", cls=cls, noise_correlation=0.0).learn(48)
    assert states_equal(tuple(plain.policy.parameters()), tuple(none.policy.parameters()))
    assert none._last_noise is None


@pytest.mark.parametrize(("actions", "numbers"), [("box", 2), ("multi discrete", 5)])
def test_a_saved_agent_goes_on_exactly(actions: str, numbers: int) -> None:
    def model() -> Any:
        return small_ppo(clocks(actions), actions=actions, noise_correlation=LinearSchedule(0.9, 0.5, 1.0))

    trained = model().learn(24)
    file = io.BytesIO()
    trained.save(file)
    file.seek(0)
    again = RecurrentPPO.load(file, env=trained.get_env(), device="cpu")
    np.testing.assert_array_equal(again._last_noise, trained._last_noise)
    assert again.noise_correlation(0.0) == 0.5  # type: ignore[operator]
    fewer = RecurrentPPO.load(io.BytesIO(file.getvalue()), env=clocks(actions, n_envs=2), device="cpu")
    assert fewer._last_noise is None
    fewer.learn(16)
    assert fewer._last_noise.shape == (2, numbers)


@pytest.mark.parametrize(
    ("actions", "kwargs", "message"),
    [
        ("box", {"noise_correlation": 1.0}, "noise_correlation must be from 0 to below 1, got 1.0"),
        ("box", {"noise_correlation": -0.1}, "noise_correlation must be"),
        ("box", {"noise_correlation": "pink"}, "noise_correlation must be"),
        ("gsde", {"noise_correlation": 0.5}, r"must be 0 with gSDE \(use_sde=True\)"),
    ],
)
def test_what_cannot_have_it_is_refused_before_training(actions: str, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_ppo(clocks(actions), actions=actions, **kwargs)


def test_a_schedule_out_of_range_is_refused_as_it_gets_there() -> None:
    with pytest.raises(ValueError, match=r"noise_correlation must be from 0 to below 1, got 2.0"):
        small_ppo(clocks("box"), actions="box", noise_correlation=lambda progress: 2.0)
    model = small_ppo(clocks("box"), actions="box", noise_correlation=lambda progress: 2.0 - 1.5 * progress)
    with pytest.raises(ValueError, match=r"noise_correlation must be from 0 to below 1, got"):
        model.learn(96)
