"""The number of threads is measured without a trace, and taken only where it is worth it."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from agents import RecurrentPPO
from agents.runs.threads import _climb, _pass_through, _time, choose_threads
from tests.agents.probe_envs import ACTION_SPACES
from tests.pairs import each

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "numbers": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "choice": spaces.Discrete(3),
    "picture": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "mixed": spaces.Dict(mask=spaces.MultiBinary(3), numbers=spaces.Box(-1, 1, (2,))),
}


class Still(gym.Env[Any, Any]):
    """Never looked at: the measurement must not need the environment."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise AssertionError("the environment was reset")


def agent(
    observations: spaces.Space[Any] = OBSERVATIONS["numbers"],
    actions: spaces.Space[Any] = ACTION_SPACES["discrete"],
    n_envs: int = 4,
    n_steps: int = 16,
    batch_size: int = 32,
    use_sde: bool = False,
    **policy_kwargs: Any,
) -> RecurrentPPO:
    env = DummyVecEnv([lambda: Still(observations, actions) for _ in range(n_envs)])
    sizes: dict[str, Any] = dict(n_steps=n_steps, batch_size=batch_size, use_sde=use_sde, seed=0, device="cpu")
    policy = {"memory": "lstm", "memory_kwargs": {"hidden_size": 4}, **policy_kwargs}
    return RecurrentPPO("RecurrentPolicy", env, policy_kwargs=policy, **sizes)


class Counts(BaseFeaturesExtractor):
    """Its batch statistics move whenever it is run in training mode."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 3)
        self.register_buffer("runs", torch.zeros(1))
        self.layer = nn.Linear(3, 3)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        self.runs: torch.Tensor
        self.runs += 1
        features: torch.Tensor = self.layer(observations) + 0 * torch.rand(1)
        return features


class Refuses(Counts):
    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        raise IndexError("no such node")


def everything_that_may_move(model: RecurrentPPO) -> list[Any]:
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    gradients = [parameter.grad for parameter in model.policy.parameters()]
    return [
        *(random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),  # noqa: NPY002
        *(model.random_generator.bit_generator.state, model.observation_space.np_random.bit_generator.state),
        *({name: value.tolist() for name, value in state.items()}, gradients, torch.get_num_threads()),
        model.policy.training,
    ]


@pytest.mark.parametrize("extractor", [None, Counts])
def test_measuring_leaves_no_trace(extractor: Any) -> None:
    model = agent(**({} if extractor is None else {"features_extractor_class": extractor}))
    before = everything_that_may_move(model)
    choice = choose_threads(model, limit=2, seconds=0.1)
    assert everything_that_may_move(model) == before
    assert list(choice.milliseconds) == [1, 2]
    assert all(milliseconds > 0 for milliseconds in choice.milliseconds.values())
    assert choice.threads in (1, 2)


@pytest.mark.parametrize(("observations", "actions"), [*each(OBSERVATIONS, ACTION_SPACES), ("mixed", "discrete")])
def test_a_pass_is_made_up_for_every_kind_of_observation_and_action(observations: str, actions: str) -> None:
    masked = {"action_mask": "mask"} if (observations, actions) == ("mixed", "discrete") else {}
    model = agent(OBSERVATIONS[observations], ACTION_SPACES[actions], use_sde="gsde" in actions, **masked)
    _pass_through(model, 3, 2)()


def test_a_network_that_cannot_take_made_up_data_trains_on_one_thread_with_a_warning() -> None:
    model = agent(features_extractor_class=Refuses)
    with pytest.warns(UserWarning, match="IndexError: no such node"):
        assert choose_threads(model, limit=4) == (1, {})


def test_nothing_is_measured_where_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent()
    assert choose_threads(model, limit=1) == (1, {})
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert choose_threads(model) == (1, {})
    with pytest.raises(ValueError, match="limit must be at least 1 thread"):
        choose_threads(model, limit=0)


@pytest.mark.parametrize(
    ("milliseconds", "chosen", "tried"),
    [
        ({1: 100, 2: 99, 4: 1}, 1, [1, 2]),  # not clearly faster: no further
        ({1: 100, 2: 60, 4: 55}, 2, [1, 2, 4]),
        ({1: 100, 2: 60, 4: 30}, 4, [1, 2, 4]),
        ({1: 100, 2: 300, 4: 300}, 1, [1, 2]),
        ({1: 115, 2: 100, 4: 100}, 2, [1, 2, 4]),
    ],
)
def test_more_threads_are_taken_as_long_as_they_are_clearly_faster(
    milliseconds: dict[int, float], chosen: int, tried: list[int]
) -> None:
    choice = _climb([1, 2, 4], lambda n, patience: [9.9, milliseconds[n] / 1e3, 1e-9])
    assert choice.threads == chosen
    assert list(choice.milliseconds) == tried
    assert [round(choice.milliseconds[n]) for n in tried] == [milliseconds[n] for n in tried]  # odd passes do not count


def test_threads_that_wait_for_one_another_are_given_up_at_once() -> None:
    calls: list[tuple[int, float]] = []

    def times(n: int, patience: float) -> list[float]:
        calls.append((n, patience))
        return {1: [0.01, 0.01, 0.01], 2: [5.0]}[n]

    assert _climb([1, 2, 4], times).threads == 1
    assert calls == [(1, np.inf), (2, pytest.approx(0.09))]
    passes: list[int] = []
    before = torch.get_num_threads()
    assert len(_time(lambda: passes.append(1), before, 0.0)) == len(passes) == 1
    assert len(_time(lambda: passes.append(1), before, np.inf)) == len(passes) - 2
