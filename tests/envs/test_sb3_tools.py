"""What Stable-Baselines3 puts around or does with a VecEnv works on ours, whatever steps them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

import envs

BACKENDS: list[Any] = ["vector", "serial", "subprocess"]


def walk(venv: VecEnv, steps: int = 60) -> list[tuple[Any, dict[str, Any]]]:
    """Act the same everywhere; the last observation and the info of each episode that ended."""
    venv.reset()
    ended = []
    for step in range(steps):
        actions = np.full(venv.num_envs, step % 2)
        _, _, dones, infos = venv.step(actions)
        ended += [(infos[i]["terminal_observation"], infos[i]) for i in dones.nonzero()[0]]
    return ended


@pytest.mark.parametrize("backend", BACKENDS)
def test_sb3s_wrappers_see_the_same_episodes_as_without_them(backend: Any) -> None:
    def make(**settings: Any) -> VecEnv:
        return envs.make("CartPoleNoVel-v1", 3, seed=1, backend=backend, **settings)

    plain = walk(make())
    assert len(plain) >= 3
    normalized = VecNormalize(make(), norm_reward=False)
    for (last, info), (expected, _) in zip(walk(VecCheckNan(normalized)), plain, strict=True):
        assert np.isfinite(last).all()
        assert info["episode"]["l"] > 0
        assert last.shape == expected.shape
    for (last, _), (expected, _) in zip(walk(VecFrameStack(make(), 2)), plain, strict=True):
        np.testing.assert_array_equal(last[4:], expected)
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        monitored = VecMonitor(make())
    for (_, info), (_, expected_info) in zip(walk(monitored), plain, strict=True):
        assert info["episode"]["r"] == pytest.approx(expected_info["episode"]["r"])
        assert info["episode"]["l"] == expected_info["episode"]["l"]
    dicts = make(wrappers=[("history", {"length": 2, "mask": True})])
    for (last, _), (expected, _) in zip(walk(VecExtractDictObs(dicts, "history")), plain, strict=True):
        np.testing.assert_array_equal(last[1], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_reports_the_true_returns_and_misses_no_monitor(backend: Any) -> None:
    venv = VecNormalize(envs.make("CartPoleNoVel-v1", 2, seed=3, backend=backend), training=False)
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        returns, lengths = evaluate_policy(model, venv, n_eval_episodes=5, return_episode_rewards=True)
    assert returns == lengths
    venv.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sb3s_ppo_learns_with_an_evaluation_callback(backend: Any, tmp_path: Path) -> None:
    venv = envs.make("TMaze-v0", 4, seed=0, backend=backend, env_kwargs={"length": 3})
    evaluation = envs.make("TMaze-v0", 2, seed=9, backend=backend, env_kwargs={"length": 3})
    callback = EvalCallback(evaluation, n_eval_episodes=4, eval_freq=32, log_path=str(tmp_path), verbose=0)
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=64, n_epochs=1, seed=0).learn(256, callback=callback)
    assert len(model.ep_info_buffer or []) > 10
    found = np.load(tmp_path / "evaluations.npz")
    assert found["ep_lengths"].max() <= 4
    assert {bool(value) for value in found["successes"].ravel()} <= {False, True}
    venv.close()
    evaluation.close()


@pytest.mark.parametrize("id", ["CartPoleNoVel-v1", "TMaze-v0"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_video_is_recorded(id: str, backend: Any, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    venv = envs.make(id, 2, seed=0, backend=backend, render_mode="rgb_array")
    recorder = VecVideoRecorder(venv, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=4)
    recorder.reset()
    for _ in range(6):
        recorder.step(np.zeros(2, dtype=np.int64))
    recorder.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_dict_observations_are_learned_from() -> None:
    venv = envs.make("RepeatFirst-v0", 2, seed=0, wrappers=["previous_action_reward"])
    PPO("MultiInputPolicy", venv, n_steps=16, batch_size=32, n_epochs=1, seed=0).learn(128)


def test_workers_need_no_main_guard_and_compute_on_one_thread(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, gymnasium, numpy as np, envs\n"
        "class Mine(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-1, 1, (2,))\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n"
        "    def reset(self, seed=None, options=None):\n"
        "        return np.zeros(2, np.float32), {}\n"
        "    def step(self, action):\n"
        "        return np.zeros(2, np.float32), 1.0, False, False, {'threads': os.environ['OMP_NUM_THREADS']}\n"
        "gymnasium.register('Mine-v0', Mine, max_episode_steps=2)\n"
        "venv = envs.make('Mine-v0', 3, backend='subprocess')\n"
        "venv.reset()\n"
        "print(venv.step(np.zeros(3, int))[3][2]['threads'], os.environ.get('OMP_NUM_THREADS'))\n"
        "venv.close()\n"
    )
    # Elsewhere than these sources, which are on the path as an installed package is.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.stdout.split() == ["1", "2"], done.stderr
    assert done.stderr == ""
