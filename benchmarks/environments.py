"""Environment steps a second, without any agent: ours, and what users have today, in turn.

    python benchmarks/environments.py                     CartPole without velocities, 8 to 1024 environments
    python benchmarks/environments.py --task Acrobot --envs 8 128
    python benchmarks/environments.py --slow wait --milliseconds 1 --envs 16      in processes
    python benchmarks/environments.py --task Ant --envs 8                         MuJoCo's, in processes
    python benchmarks/environments.py --task MiniGrid --envs 8                    observations read from the world
    python benchmarks/environments.py --table --envs 8       the table of docs/environments.md; on an idle machine

Random actions, so episodes of about 20 steps in CartPole: many ends, which cost more than steps do. A contender's
figure is the median of its turns; turns alternate, so that what slows the machine for a while slows all.

With --slow each step takes some milliseconds, of waiting (a simulator elsewhere) or of computing, and the ways to step
environments in processes are compared: ours with several numbers of workers, on Ray with one an environment where that
is installed, and Stable-Baselines3's `SubprocVecEnv` and gymnasium's `AsyncVectorEnv`, which have one process an
environment. All step the same environments, made without a render mode; ratios are those of turns that follow each
other.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import gymnasium
import numpy as np
import records
import tyro
from cases import HideVelocities
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from measuring import processor, seconds_in_turn
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import envs

# Task: our id, gymnasium's, and which entries of its observation are velocities.
TASKS = {
    "CartPole": ("CartPoleNoVel-v1", "CartPole-v1", [1, 3]),
    "Pendulum": ("PendulumNoVel-v1", "Pendulum-v1", [2]),
    "MountainCarContinuous": ("MountainCarContinuousNoVel-v0", "MountainCarContinuous-v0", [1]),
    "Acrobot": ("AcrobotNoVel-v1", "Acrobot-v1", [4, 5]),
    "Ant": ("AntNoVel-v5", "Ant-v5", list(range(13, 105))),
    "MiniGrid": ("MiniGrid-MemoryS9-v0", "MiniGrid-MemoryS9-v0", []),
}
NO_VECTOR = ("Ant",)
STEPS: tuple[tuple[Literal["wait", "compute"], float], ...] = (
    *(("wait", milliseconds) for milliseconds in (0.1, 1.0, 10.0)),
    *(("compute", milliseconds) for milliseconds in (0.1, 1.0, 10.0)),
)
"""Of the table: what a step spends its milliseconds on, and how many."""
SUBPROC, ASYNC, RAY = "SubprocVecEnv + Monitor", "AsyncVectorEnv", "on Ray"


@dataclass(frozen=True)
class Settings:
    """Environment steps a second."""

    task: Literal["CartPole", "Pendulum", "MountainCarContinuous", "Acrobot", "Ant", "MiniGrid"] = "CartPole"
    """The task, without velocities."""
    envs: tuple[int, ...] = (8, 32, 128, 1024)
    """Numbers of environments."""
    seconds: float = 0.5
    """Of each turn."""
    turns: int = 5
    """Turns of each contender."""
    slow: Literal["wait", "compute"] | None = None
    """What each step spends its milliseconds on."""
    milliseconds: float = 1.0
    """Of a slow step."""
    table: bool = False
    """Steps of 0.1, 1 and 10 ms, waiting and computing, and MuJoCo's Ant, as a table of the documentation."""


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Each step takes so many seconds longer, waiting or computing."""

    def __init__(self, env: gymnasium.Env[Any, Any], how: str, seconds: float) -> None:
        super().__init__(env)
        self._how, self._seconds = how, seconds

    def step(self, action: Any) -> Any:
        if self._how == "wait":
            time.sleep(self._seconds)
        else:
            # The processor's time, not the clock's: a process that is preempted computes nothing meanwhile.
            end = time.process_time() + self._seconds
            while time.process_time() < end:
                pass
        return self.env.step(action)


def main(settings: Settings) -> None:
    if settings.table:
        write_table(settings)
        return
    slow = f", {settings.milliseconds:g} ms more a step ({settings.slow})" if settings.slow else ""
    hidden = " without velocities" if TASKS[settings.task][2] else ""
    print(f"{settings.task}{hidden}{slow}, environment steps a second (ratio to the first)")
    for n_envs in settings.envs:
        rates = measured(settings, n_envs)
        base = next(iter(rates))
        print(f"\n{n_envs} environments")
        for name, turns in rates.items():
            print(f"  {name:34} {median(turns):12,.0f}   {ratio(rates, name, base):7.2f}x")


def write_table(settings: Settings) -> None:
    """A row a kind of step: ours with the number of workers that is fastest, and how many times faster than each.

    Rows are printed as they come, and written between the marks of `docs/environments.md` when all are there.
    """
    rows: list[list[str]] = []
    cases = [(f"{ms:g} ms {how}", replace(settings, slow=how, milliseconds=ms)) for how, ms in STEPS]
    if importlib.util.find_spec("mujoco") is not None:
        cases.append(("MuJoCo Ant", replace(settings, task="Ant", slow=None)))
    for n_envs in settings.envs:
        for what, case in cases:
            rates = measured(case, n_envs)
            serial, *others = rates
            ours = max((name for name in others if name.startswith("envs.make")), key=lambda name: median(rates[name]))
            speeds = [f"{median(rates[name]):,.0f}" for name in (serial, ours, SUBPROC, ASYNC)]
            over = ", ".join(f"{ratio(rates, ours, name):.2f}" for name in (SUBPROC, ASYNC))
            on_ray = f"{median(rates[RAY]):,.0f}" if RAY in rates else "-"
            rows.append([what, str(n_envs), *speeds, on_ray, ours.split()[1], over])
            print("  ".join(rows[-1]), flush=True)
    columns = f"a step | environments | serial | ours | {SUBPROC} | {ASYNC} | {RAY} | our workers | ours over each"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    measured_on = f"Processors: {processor()}. Medians of {settings.turns} turns; load of the machine {load:.1f}."
    records.write_between("environments", "stepping", [*records.table(columns, rows), "", measured_on])


def ratio(rates: dict[str, list[float]], name: str, base: str) -> float:
    """The median over turns of how many times faster one is than another."""
    return median(mine / theirs for mine, theirs in zip(rates[name], rates[base], strict=True))


def measured(settings: Settings, n_envs: int) -> dict[str, list[float]]:
    """Environment steps a second of each contender, turn by turn."""
    in_processes = settings.slow is not None or settings.task in NO_VECTOR
    of_task = grid_contenders if settings.task == "MiniGrid" else contenders
    made = (slow_contenders if in_processes else of_task)(settings, n_envs)
    for env in made.values():
        if isinstance(env, VecEnv):
            env.seed(0)
            env.reset()
        else:
            env.reset(seed=0)
    try:
        return measure(made, settings, n_envs)
    finally:
        for env in made.values():
            env.close()


def slow_contenders(settings: Settings, n_envs: int) -> dict[str, Any]:
    """Ways to step environments in processes, and one after the other."""
    _, theirs, velocities = TASKS[settings.task]

    def make() -> gymnasium.Env[Any, Any]:
        env = HideVelocities(gymnasium.make(theirs), velocities)
        return env if settings.slow is None else Slow(env, settings.slow, settings.milliseconds / 1e3)

    def monitored() -> gymnasium.Env[Any, Any]:
        return Monitor(make())

    made: dict[str, Any] = {"DummyVecEnv + Monitor": DummyVecEnv([monitored] * n_envs)}
    for workers in sorted({1, 2, 4, n_envs // 2, n_envs} & set(range(1, n_envs + 1))):
        made[f"envs.make, {workers} worker(s)"] = envs.make(make, n_envs, backend="subprocess", workers=workers)
    if importlib.util.find_spec("ray") is not None:
        made[RAY] = envs.make(make, n_envs, backend="ray", workers=n_envs)
    made[SUBPROC] = SubprocVecEnv([monitored] * n_envs)
    made[ASYNC] = AsyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    return made


def contenders(settings: Settings, n_envs: int) -> dict[str, Any]:
    """Ways to step environments in one process, and in several."""
    ours, theirs, velocities = TASKS[settings.task]

    def make() -> gymnasium.Env[Any, Any]:
        return HideVelocities(gymnasium.make(theirs), velocities)

    mask = [("mask", {"indices": velocities})]
    return {
        "DummyVecEnv + Monitor + mask": DummyVecEnv([lambda: Monitor(make()) for _ in range(n_envs)]),
        "envs.make, vector": envs.make(ours, n_envs, backend="vector"),
        "envs.make, serial, mask": envs.make(theirs, n_envs, backend="serial", wrappers=mask),
        "envs.make, subprocess, mask": envs.make(theirs, n_envs, backend="subprocess", wrappers=mask),
        "SyncVectorEnv + mask": SyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP),
        "ours as a gymnasium vector": gymnasium.make_vec(ours, n_envs),
    }


def grid_contenders(settings: Settings, n_envs: int) -> dict[str, Any]:
    """Worlds whose image alone is seen."""
    from minigrid.wrappers import ImgObsWrapper

    id, make = TASKS[settings.task][0], lambda: Monitor(ImgObsWrapper(gymnasium.make(TASKS[settings.task][1])))
    return {
        "DummyVecEnv + Monitor": DummyVecEnv([make] * n_envs),
        "envs.make, serial": envs.make(id, n_envs, backend="serial", wrappers=["minigrid.wrappers:ImgObsWrapper"]),
    }


def measure(made: dict[str, Any], settings: Settings, n_envs: int) -> dict[str, list[float]]:
    """Environment steps a second of each, turn by turn."""
    space = gymnasium.make(TASKS[settings.task][0]).action_space
    space.seed(0)
    actions = [np.stack([space.sample() for _ in range(n_envs)]) for _ in range(16)]

    def stepping(step: Callable[[Any], Any]) -> tuple[Callable[[], None], int]:
        """A turn, of as many rounds over the actions as fit into the seconds, and its environment steps."""
        start, rounds = time.perf_counter(), 0
        while time.perf_counter() - start < settings.seconds:
            for action in actions:
                step(action)
            rounds += 1

        def run() -> None:
            for _ in range(rounds):
                for action in actions:
                    step(action)

        return run, rounds * len(actions) * n_envs

    turns = {name: stepping(env.step) for name, env in made.items()}
    seconds = seconds_in_turn({name: run for name, (run, _) in turns.items()}, settings.turns)
    return {name: [steps / each for each in seconds[name]] for name, (_, steps) in turns.items()}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
