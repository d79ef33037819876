"""Infos are the environment's own: what it writes there, under any name, changes nothing of what is learned."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import agents.algorithms.experience
import agents.analysis.evaluation
import envs
import envs.vector.infos
from agents import RecurrentPPO
from agents.analysis.evaluation import evaluate
from envs.vector.adapter import VectorEnvAdapter

# Every name that this package, Stable-Baselines3 or Gymnasium reads or writes in infos, as an environment may mean it.
WRITTEN: dict[str, Any] = {
    "reset_step": 7,
    "environment_failed": "the left arm",
    "episode": 3,
    "terminal_observation": "none",
    "TimeLimit.truncated": True,
    "is_success": 0.25,
}


class Writer(gym.Env[Any, Any]):
    """Episodes of 3 steps, ended by a terminal state, with a reward of 1 a step; what it writes is not about that."""

    def __init__(self, written: dict[str, Any]) -> None:
        self.observation_space, self.action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
        self._written = written

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(2, np.float32), dict(self._written)

    def step(self, action: Any) -> Any:
        self._t += 1
        return np.full(2, self._t / 4, np.float32), 1.0, self._t == 3, False, dict(self._written)


def vector(written: dict[str, Any]) -> VecEnv:
    makers = [lambda: Writer(written)] * 2
    return VectorEnvAdapter(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP))


STEPPERS: dict[str, Callable[[dict[str, Any]], VecEnv]] = {
    "dummy": lambda written: DummyVecEnv([lambda: Writer(written)] * 2),
    "dummy with monitors": lambda written: DummyVecEnv([lambda: Monitor(Writer(written))] * 2),
    "serial": lambda written: envs.make(lambda: Writer(written), 2, backend="serial", max_restarts=2),
    "subprocess": lambda written: envs.make(
        lambda: Writer(written), 2, backend="subprocess", workers=1, max_restarts=2
    ),
    "vector": vector,
}


def learned(env: VecEnv) -> dict[str, Any]:
    """What training and evaluation make of an environment."""
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=16,
        batch_size=32,
        n_epochs=1,
        seed=0,
        device="cpu",
        policy_kwargs=dict(lstm_hidden_size=4),
    ).learn(64)
    buffer, evaluation = model.rollout_buffer, evaluate(model, env, 4, seed=0)
    assert buffer.real is buffer.valid  # its first name, which scripts read
    env.close()
    return {
        "valid": buffer.valid,
        "episode_starts": buffer.episode_starts,
        "advantages": buffer.advantages,
        "weights": torch.cat([part.flatten() for part in model.policy.parameters()]),
        "returns": evaluation.returns,
        "lengths": evaluation.lengths,
        "logged": [(episode["r"], episode["l"]) for episode in model.ep_info_buffer],
    }


@pytest.mark.parametrize("stepper", STEPPERS)
def test_what_an_environment_writes_into_infos_changes_nothing(stepper: str) -> None:
    silent = learned(STEPPERS[stepper]({}))
    spoken = learned(STEPPERS[stepper](WRITTEN))
    assert silent["returns"] == (3.0,) * 4
    for name, value in silent.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(spoken[name], value, rtol=0, atol=0, msg=name)
        else:
            assert spoken[name] == value, name


def test_names_of_our_own_are_private_and_alike_on_both_sides() -> None:
    assert agents.algorithms.experience.RESET_STEP == envs.vector.infos.RESET_STEP
    assert agents.analysis.evaluation.FAILED == envs.vector.infos.FAILED
    for name in (envs.vector.infos.RESET_STEP, envs.vector.infos.FAILED):
        assert name.startswith("recurl.")


def test_no_other_name_is_read_or_written_in_infos() -> None:
    """Read from the source: a name in quotes behind ``info`` is one of those tried above, or gymnasium's own."""
    known = {*WRITTEN, "final_obs", "_final_obs", "final_info", "_final_info"}
    for package in ("agents", "envs"):
        for path in Path(__file__).parents[1].joinpath(package).rglob("*.py"):
            for line in path.read_text().splitlines():
                named = re.findall(r"infos?(?:\[\w+\])?(?:\.get\(|\.pop\(|\.setdefault\(|\[)\"([\w.]+)\"", line)
                assert set(named) <= known, f"{path.name}: {line}"


class SilentUntilTheEnd(DummyVecEnv):
    """Gives no infos at all in a step that ends no episode."""

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        return observations, rewards, dones, infos if dones.any() else []


def test_a_vector_environment_may_give_no_infos_where_nothing_ends() -> None:
    silent = learned(SilentUntilTheEnd([lambda: Writer({})] * 2))
    assert silent["returns"] == (3.0,) * 4
    torch.testing.assert_close(silent["weights"], learned(DummyVecEnv([lambda: Writer({})] * 2))["weights"])
