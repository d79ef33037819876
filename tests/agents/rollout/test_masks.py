"""Action masks as sb3-contrib's MaskablePPO takes them: what is forbidden is never chosen."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from agents import ActionMaskVecEnv, Player, RecurrentPPO, evaluate
from agents.policy.heads import number_of_choices
from agents.rollout.masks import ACTION_MASKS
from agents.runs.construction import make_agent, make_environments
from configs import Settings
from configs.settings import AlgorithmSettings, EnvironmentSettings

SMALL: dict[str, Any] = dict(n_steps=8, batch_size=16, seed=0, device="cpu")


class OnlyOne(gymnasium.Env[Any, Any]):
    """Allows one of three actions, which moves on with each step, and fails at any other; episodes of four steps."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space: Any = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def allowed(self) -> Any:
        return np.arange(3) == self.t % 3

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.allowed()[action], f"{action} is forbidden at step {self.t}"
        self.t += 1
        return np.full(2, self.t / 4, np.float32), 1.0, False, self.t == 4, {}


def masking() -> Any:
    return ActionMasker(OnlyOne(), lambda env: env.allowed())  # type: ignore[attr-defined]


def learned(env: Any = None, **settings: Any) -> RecurrentPPO:
    model = RecurrentPPO("RecurrentPolicy", env or make_vec_env(masking, 2), **{**SMALL, **settings})
    return model.learn(32)


gymnasium.register("OnlyOne-v0", masking)


@pytest.mark.parametrize("backend", ["serial", "subprocess"])
def test_a_run_obeys_action_masks_without_a_setting_on_every_backend(backend: Any) -> None:
    task = EnvironmentSettings(id=f"{__name__}:OnlyOne-v0", n_envs=2, backend=backend)
    sizes = AlgorithmSettings(n_steps=8, batch_size=16, n_epochs=1)
    settings = Settings(env=task, algorithm=sizes, device="cpu")
    with closing(make_environments(settings, 2, seed=0)) as env:
        agent = make_agent(settings, env)
        agent.learn(32)
        assert agent.policy.action_mask == ACTION_MASKS


def test_an_agent_obeys_what_an_action_masker_says_without_a_setting() -> None:
    model = learned()
    assert model.policy.action_mask == ACTION_MASKS
    buffer = model.rollout_buffer
    masks = buffer.observations[ACTION_MASKS]
    assert bool((masks.gather(-1, buffer.actions[..., None]) == 1).all())
    assert bool((buffer.log_probs == 0).all())  # there was no choice


def test_predict_takes_masks_as_maskable_ppo_does() -> None:
    model, env = learned(), masking()
    assert evaluate_policy(model, make_vec_env(masking, 2), n_eval_episodes=4)[0] == 4.0
    observation, _ = env.reset()
    state, start = None, np.ones(1, dtype=bool)
    for _ in range(4):
        action, state = model.predict(observation, state, start, action_masks=env.action_masks())
        observation, *_ = env.step(int(action))
        start = np.zeros(1, dtype=bool)
    with pytest.raises(ValueError, match=r"which actions are allowed: hand in action_masks=env.action_masks\(\)"):
        model.predict(observation)
    plain = RecurrentPPO("RecurrentPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="made without action masks: train it in"):
        plain.predict(np.zeros(4), action_masks=[True, False])


def test_a_saved_agent_finds_the_masks_again_and_goes_on(tmp_path: Path) -> None:
    learned().save(tmp_path / "agent.zip")
    again = RecurrentPPO.load(tmp_path / "agent.zip", env=make_vec_env(masking, 2), device="cpu")
    again.learn(16)
    again.set_env(make_vec_env(masking, 2))
    again.learn(16)
    assert evaluate(again, make_vec_env(masking, 2), 4).mean == 4.0
    assert evaluate(Player.load(tmp_path / "agent.zip"), make_vec_env(masking, 2), 4, deterministic=False).mean == 4.0


def test_a_normalizer_goes_around_the_masks() -> None:
    with pytest.raises(ValueError, match=r"put them inside: VecNormalize\(agents.ActionMaskVecEnv\(venv\), norm_obs"):
        learned(VecNormalize(make_vec_env(masking, 2)))
    inside = VecNormalize(ActionMaskVecEnv(make_vec_env(masking, 2)), norm_obs_keys=["observation"])
    model = learned(inside)
    assert model.policy.action_mask == ACTION_MASKS
    assert evaluate(model, make_vec_env(masking, 2), 2).mean == 4.0


def test_a_terminal_observation_allows_everything_and_a_mask_of_another_size_is_named() -> None:
    venv = ActionMaskVecEnv(make_vec_env(masking, 1))
    assert venv.reset()[ACTION_MASKS].tolist() == [[1, 0, 0]]
    for t in range(4):
        observations, _, _, infos = venv.step(np.array([t % 3]))
    assert observations[ACTION_MASKS].tolist() == [[1, 0, 0]]
    assert infos[0]["terminal_observation"][ACTION_MASKS].tolist() == [1, 1, 1]
    wrong = make_vec_env(lambda: ActionMasker(OnlyOne(), lambda env: np.ones(2)), 1)
    with pytest.raises(ValueError, match=r"environment 0 gave 2 entries, the action space Discrete\(3\) needs 3"):
        ActionMaskVecEnv(wrong).reset()


def test_entries_of_a_mask_are_choices_or_bits() -> None:
    assert [number_of_choices(each) for each in (spaces.Discrete(3), spaces.MultiDiscrete([2, 3]))] == [3, 5]
    assert number_of_choices(spaces.MultiBinary([2, 2])) == 4
    with pytest.raises(ValueError, match="can be masked for Discrete"):
        number_of_choices(spaces.Box(-1.0, 1.0, (2,)))
