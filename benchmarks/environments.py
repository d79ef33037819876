"""Environment steps a second, without any agent: ours, and what users have today, one after the other in turn.

    python benchmarks/environments.py                     CartPole without velocities, 8 to 1024 environments
    python benchmarks/environments.py --task Acrobot --envs 8 128
    python benchmarks/environments.py --slow wait --milliseconds 1 --envs 16      in processes

Random actions, so episodes of about 20 steps in CartPole: many ends, which cost more than steps do. A contender's
figure is the median of its turns; turns alternate, so that a slow spell of the machine meets all alike. (The file is
not named after the package it measures, since a script's folder comes first among those Python imports from.)

With --slow each step takes some milliseconds, of waiting (a simulator elsewhere) or of computing, and the ways to step
environments in processes are compared: ours with several numbers of workers, Stable-Baselines3's `SubprocVecEnv` and
gymnasium's `AsyncVectorEnv`, which have one process an environment.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import envs

# Task: our id, gymnasium's, and which entries of its observation are velocities.
TASKS = {
    "CartPole": ("CartPoleNoVel-v1", "CartPole-v1", [1, 3]),
    "Pendulum": ("PendulumNoVel-v1", "Pendulum-v1", [2]),
    "MountainCarContinuous": ("MountainCarContinuousNoVel-v0", "MountainCarContinuous-v0", [1]),
    "Acrobot": ("AcrobotNoVel-v1", "Acrobot-v1", [4, 5]),
}
Step = Callable[[Any], Any]


class WithoutVelocities(gymnasium.ObservationWrapper[Any, Any, Any]):
    """As users hide velocities: a wrapper around each environment."""

    def __init__(self, env: gymnasium.Env[Any, Any], velocities: list[int]) -> None:
        super().__init__(env)
        self._shown = np.ones(env.observation_space.shape or (), dtype=np.float32)
        self._shown[velocities] = 0.0

    def observation(self, observation: Any) -> Any:
        return observation * self._shown


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Each step takes so many seconds longer, waiting or computing."""

    def __init__(self, env: gymnasium.Env[Any, Any], how: str, seconds: float) -> None:
        super().__init__(env)
        self._how, self._seconds = how, seconds

    def step(self, action: Any) -> Any:
        if self._how == "wait":
            time.sleep(self._seconds)
        else:
            # The processor's time, not the clock's: a process that is held up has not computed meanwhile.
            end = time.process_time() + self._seconds
            while time.process_time() < end:
                pass
        return self.env.step(action)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="CartPole")
    parser.add_argument("--envs", type=int, nargs="+", default=[8, 32, 128, 1024], help="numbers of environments")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--slow", choices=("wait", "compute"), help="what each step spends its milliseconds with")
    parser.add_argument("--milliseconds", type=float, default=1.0, help="of a slow step")
    settings = parser.parse_args()
    if settings.slow is not None:
        compare_processes(settings)
        return
    print(f"{settings.task} without velocities, environment steps a second (ratio to DummyVecEnv + Monitor)")
    for n_envs in settings.envs:
        rates = measure(contenders(settings.task, n_envs), settings.turns, settings.seconds, n_envs, settings.task)
        base = rates["DummyVecEnv + Monitor + mask"]
        print(f"\n{n_envs} environments")
        for name, rate in rates.items():
            print(f"  {name:34} {rate:12,.0f}   {rate / base:7.2f}x")


def compare_processes(settings: argparse.Namespace) -> None:
    """Slow environments in processes, and one after the other as what they are measured against."""
    print(f"{settings.task} without velocities, {settings.milliseconds:g} ms more a step ({settings.slow})")
    for n_envs in settings.envs:
        made = slow_contenders(settings.task, n_envs, settings.slow, settings.milliseconds / 1e3)
        rates = measure(
            {name: env.step for name, env in made.items()}, settings.turns, settings.seconds, n_envs, settings.task
        )
        for env in made.values():
            env.close()
        base = next(iter(rates.values()))
        print(f"\n{n_envs} environments")
        for name, rate in rates.items():
            print(f"  {name:34} {rate:12,.0f}   {rate / base:7.2f}x")


def slow_contenders(task: str, n_envs: int, how: str, seconds: float) -> dict[str, Any]:
    _, theirs, velocities = TASKS[task]

    def make() -> gymnasium.Env[Any, Any]:
        return Slow(WithoutVelocities(gymnasium.make(theirs), velocities), how, seconds)

    def monitored() -> gymnasium.Env[Any, Any]:
        return Monitor(make())

    made: dict[str, Any] = {"DummyVecEnv + Monitor": DummyVecEnv([monitored] * n_envs)}
    for workers in sorted({1, 2, 4, n_envs // 2, n_envs} & set(range(1, n_envs + 1))):
        made[f"envs.make, {workers} worker(s)"] = envs.make(make, n_envs, backend="subprocess", workers=workers)
    made["SubprocVecEnv + Monitor"] = SubprocVecEnv([monitored] * n_envs)
    made["AsyncVectorEnv"] = AsyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    for name, env in made.items():
        if name == "AsyncVectorEnv":
            env.reset(seed=0)
        else:
            env.seed(0)
            env.reset()
    return made


def contenders(task: str, n_envs: int) -> dict[str, Step]:
    """What steps `n_envs` environments, each reset and ready."""
    ours, theirs, velocities = TASKS[task]

    def make() -> gymnasium.Env[Any, Any]:
        return WithoutVelocities(gymnasium.make(theirs), velocities)

    mask = [("mask", {"indices": velocities})]
    vec_envs: dict[str, VecEnv] = {
        "DummyVecEnv + Monitor + mask": DummyVecEnv([lambda: Monitor(make()) for _ in range(n_envs)]),
        "envs.make, vector": envs.make(ours, n_envs, backend="vector"),
        "envs.make, serial, mask": envs.make(theirs, n_envs, backend="serial", wrappers=mask),
        "envs.make, subprocess, mask": envs.make(theirs, n_envs, backend="subprocess", wrappers=mask),
    }
    vectors: dict[str, VectorEnv[Any, Any, Any]] = {
        "SyncVectorEnv + mask": SyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP),
        "ours as a gymnasium vector": gymnasium.make_vec(ours, n_envs),
    }
    for venv in vec_envs.values():
        venv.seed(0)
        venv.reset()
    for vector in vectors.values():
        vector.reset(seed=0)
    steps: dict[str, Step] = {name: venv.step for name, venv in vec_envs.items()}
    return steps | {name: vector.step for name, vector in vectors.items()}


def measure(steps: dict[str, Step], turns: int, seconds: float, n_envs: int, task: str) -> dict[str, float]:
    """Environment steps a second of each, the median of its turns."""
    space = gymnasium.make(TASKS[task][0]).action_space
    space.seed(0)
    actions = [np.stack([space.sample() for _ in range(n_envs)]) for _ in range(64)]
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        rate(step, actions, 0.2 * seconds, n_envs)
    for _ in range(turns):
        for name, step in steps.items():
            rates[name].append(rate(step, actions, seconds, n_envs))
    return {name: statistics.median(turn_rates) for name, turn_rates in rates.items()}


def rate(step: Step, actions: list[Any], seconds: float, n_envs: int) -> float:
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for action in actions[:16]:
            step(action)
        done += 16 * n_envs
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
