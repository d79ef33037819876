"""A teacher that sees more than its student: what the student takes over, and what stays as it is.

Axes: T steps, B environments.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents import RecurrentPPO
from agents.algorithms import imitation
from agents.algorithms.imitation import Imitation, as_stored

LENGTH = 4
PRIVILEGED = dict(privileged=["sign"], critic_memory="separate", memory="gru", memory_kwargs=dict(hidden_size=8))


class Sign(gymnasium.Env[Any, Any]):
    """A sign, -1 or 1, seen at an episode's first step only; a teacher sees it throughout. Episodes of four steps."""

    observation_space = spaces.Dict(seen=spaces.Box(-1.0, 1.0, (1,)), sign=spaces.Box(-1.0, 1.0, (1,)))

    def __init__(self, action_space: Any = None) -> None:
        self.action_space = action_space or spaces.Discrete(2)

    def observe(self) -> dict[str, Any]:
        sign = np.full(1, self.sign, np.float32)
        return {"seen": sign if self.t == 0 else np.zeros(1, np.float32), "sign": sign}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.sign = 0, self.np_random.choice([-1.0, 1.0])
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observe(), float(np.all(action == (self.sign > 0))), self.t == LENGTH, False, {}


class OfSign:
    """Knows the action: 1 where the sign is positive, or the sign itself where actions are numbers."""

    def __init__(self, continuous: bool = False) -> None:
        self._continuous = continuous

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        assert deterministic
        return (observation if self._continuous else (observation[:, 0] > 0).astype(np.int64)), state


def student(action_space: Any = None, normalize: bool = False, **policy: Any) -> RecurrentPPO:
    venv: Any = DummyVecEnv([lambda: Sign(action_space)] * 8)
    if normalize:
        venv = VecNormalize(venv, norm_obs_keys=["seen"])
    kwargs = {**PRIVILEGED, **policy}
    return RecurrentPPO("RecurrentPolicy", venv, n_steps=16, batch_size=32, policy_kwargs=kwargs, seed=0, device="cpu")


def teaching(model: RecurrentPPO, continuous: bool = False, **settings: Any) -> Imitation:
    small = dict(n_steps=8, sequence_length=8, batch_size=64, n_epochs=10, learning_rate=2e-2)
    return Imitation(model, OfSign(continuous), key="sign", **{**small, **settings})


def weights(model: RecurrentPPO, own: bool) -> list[torch.Tensor]:
    return [
        parameter.detach().clone()
        for name, parameter in model.policy.named_parameters()
        if name.startswith(imitation.CRITICS_OWN) is own
    ]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_student_remembers_what_its_teacher_sees(normalize: bool) -> None:
    model = student(normalize=normalize)
    critic, moved = weights(model, own=True), weights(model, own=False)
    lessons = teaching(model).run(500)
    assert [lesson.steps for lesson in lessons] == [64 * i for i in range(1, 9)]
    assert lessons[0].agreement < 0.9
    assert lessons[-1].agreement == 1.0
    assert lessons[-1].loss < 0.1
    assert all(map(torch.equal, critic, weights(model, own=True)))
    assert not all(map(torch.equal, moved, weights(model, own=False)))
    model.learn(128)  # goes on


def test_numbers_are_imitated_and_exploration_stays_as_wide_as_it_was() -> None:
    model = student(spaces.Box(-2.0, 2.0, (1,)))
    lessons = teaching(model, continuous=True).run(500)
    assert lessons[-1].loss < 0.93  # of a standard deviation of 1 it is 0.92 at least
    assert np.isnan(lessons[-1].agreement)
    assert torch.equal(model.policy.log_std, torch.zeros(1))


@pytest.mark.parametrize("critic_memory", ["separate", "none"])
def test_a_critic_is_warmed_up_and_the_actor_stays_as_it_is(critic_memory: str) -> None:
    model = student(critic_memory=critic_memory)
    actor, critic = weights(model, own=False), weights(model, own=True)
    teaching(model).warm_up_critic(512)
    assert all(map(torch.equal, actor, weights(model, own=False)))
    assert not any(map(torch.equal, critic, weights(model, own=True)))
    buffer = model.rollout_buffer
    assert torch.nn.functional.mse_loss(buffer.values, buffer.returns) < 0.8 * buffer.returns.square().mean()
    assert "train" not in vars(model)


def test_a_shared_memory_is_not_changed_by_the_critic() -> None:
    model = student(critic_memory="separate")
    model = RecurrentPPO("RecurrentPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=0, device="cpu")
    memory = [parameter.detach().clone() for parameter in model.policy.memory_actor.parameters()]
    Imitation(model).warm_up_critic(64)
    assert all(map(torch.equal, memory, model.policy.memory_actor.parameters()))


def episode(sign: float, steps: int = LENGTH) -> tuple[Any, Any]:
    seen = np.zeros((steps, 1), np.float32)
    seen[0] = sign
    return {"seen": seen, "sign": np.full((steps, 1), sign, np.float32)}, np.full(steps, int(sign > 0))


def test_recorded_episodes_are_cloned() -> None:
    model = student()
    lessons = Imitation(model, sequence_length=8, batch_size=32, n_epochs=60, learning_rate=1e-2)
    assert lessons.clone([episode(-1.0), episode(1.0, 6), episode(1.0), episode(-1.0, 3)]) < 0.1
    for sign in (-1.0, 1.0):
        state, start = None, np.ones(1, dtype=bool)
        for t in range(LENGTH):
            seen = {"seen": np.full((1, 1), sign if t == 0 else 0.0, np.float32)}
            action, state = model.predict(seen, state, start, deterministic=True)
            start = np.zeros(1, dtype=bool)
            assert action == (sign > 0)


def test_episodes_are_laid_end_to_end_and_filled_up_with_steps_that_do_not_count() -> None:
    episodes = [episode(1.0, 3), episode(-1.0, 5), episode(1.0, 1)]
    laid = imitation._laid_out(episodes, student(), n_rows=2)
    assert laid.observations["seen"][..., 0].T.tolist() == [[-1, 0, 0, 0, 0], [1, 0, 0, 1, 1]]
    assert laid.actions.T.tolist() == [[0] * 5, [1] * 5]
    assert laid.starts.T.tolist() == [[True, *[False] * 4], [True, False, False, True, False]]
    assert laid.valid.T.tolist() == [[True] * 5, [True] * 4 + [False]]


def test_actions_are_stored_as_the_policy_stores_them() -> None:
    for space in (
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        spaces.MultiBinary(3),
        spaces.Box(-1.0, 1.0, (2, 2)),
    ):
        policy = student(space).policy
        space.seed(0)
        drawn = np.stack([space.sample() for _ in range(5)])
        assert np.array_equal(policy.head.to_environment(as_stored(drawn, policy)), drawn)


def test_what_cannot_be_taught_is_refused_before_anything_is_played() -> None:
    with pytest.raises(ValueError, match=r"would act on 'sign', .*privileged=\['sign'\], critic_memory='separate'"):
        teaching(student(privileged=[], critic_memory="shared"))
    with pytest.raises(ValueError, match="key names what the teacher sees in a Dict observation; 'other' is not in"):
        Imitation(student(), OfSign(), key="other")
    with pytest.raises(ValueError, match=r"run\(\) needs a teacher: .* recorded episodes go to clone\(\)"):
        Imitation(student()).run(10)
    with pytest.raises(ValueError, match=r"a teacher has predict\(observation, state"):
        Imitation(student(), object()).run(10)
    with pytest.raises(ValueError, match="mixing must be between 0 and 1"):
        teaching(student(), mixing=2.0)
    lessons = Imitation(student())
    with pytest.raises(ValueError, match=r"clone\(\) needs episodes: pairs of"):
        lessons.clone([])
    observations, actions = episode(1.0)
    with pytest.raises(ValueError, match=r"under 'seen' of episode 0 have the shape \(4, 1\), expected \(3, 1\) for"):
        lessons.clone([(observations, actions[:3])])
