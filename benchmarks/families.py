"""Every family of environments and every kind of space: from the command line, and from a script.

    python benchmarks/families.py                    every case without a result yet, then the table
    python benchmarks/families.py --only minigrid    those whose name contains this
    python benchmarks/families.py --only learned/    the longer runs alone, hours
    python benchmarks/families.py --report           the table of what there is

A case is run twice: ``train.py`` with an id and a number of steps and nothing else, and what a script does, the same
environment given to ``RecurrentPPO``. Kept are what was said of the observation, the environment steps in a second of
the processor's time, setup and updates included, and the mean return of the last 100 episodes of the short run. The
spaces are those of ``signals.py``, whose best return is 1 and whose best without memory is 0.5.

What is learned is shown by longer runs of a few tasks with several seeds: the last policy plays 100 episodes each way,
sampled and deterministic.
"""

import csv
import importlib.util
import io
import json
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import records
import signals
import tyro
from gymnasium.vector import AutoresetMode
from measuring import processor
from records import Result, Run
from robustness import WAYS, lowest, returns_both_ways

import envs
from agents import RecurrentPPO

ROLLOUT = 8192
"""Steps between two updates with the default settings."""
OWN = re.compile(r"(episode_start|previous_action|previous_reward): ")
SEEN = re.compile(r"^observation   (.*)$", re.MULTILINE)


class Case(NamedTuple):
    """``words`` of the command line; in a script the environment is the expression ``env``."""

    name: str
    words: tuple[str, ...]
    env: str
    steps: int = 2 * ROLLOUT
    needs: str = "gymnasium"


def _id(family: str, id: str, needs: str, steps: int = 2 * ROLLOUT) -> Case:
    return Case(f"{family}/{id}", ("--env.id", id), repr(id), steps, needs)


GAME = "pettingzoo.classic.rps_v2:parallel_env"
FAMILIES = [
    _id("popgym", "popgym-RepeatPreviousEasy-v0", "popgym", 5 * ROLLOUT),
    _id("popgym", "popgym-AutoencodeEasy-v0", "popgym"),
    _id("popgym", "popgym-BattleshipEasy-v0", "popgym"),
    _id("minigrid", "MiniGrid-MemoryS7-v0", "minigrid"),
    _id("minigrid", "BabyAI-GoToRedBall-v0", "minigrid"),
    _id("atari", "ALE/Breakout-v5", "ale_py"),
    _id("atari", "ALE/Pong-v5", "ale_py"),
    _id("mujoco", "HopperNoVel-v5", "mujoco"),
    _id("mujoco", "HopperVelOnly-v5", "mujoco"),
    _id("mujoco", "AntNoVel-v5", "mujoco"),
    _id("mujoco", "AntVelOnly-v5", "mujoco"),
    _id("box2d", "LunarLanderNoVel-v3", "Box2D"),
    _id("memory_gym", "MortarMayhem-Grid-v0", "memory_gym"),
    _id("robotics", "PointMaze_UMaze-v3", "gymnasium_robotics"),
    _id("robotics", "FetchReach-v4", "gymnasium_robotics"),
    _id("pybullet", "HopperBulletEnv-v0", "pybullet_envs_gymnasium"),
    Case(f"pettingzoo/{GAME}", ("--env.id", GAME), f"envs.make({GAME!r}, 2)", needs="pettingzoo"),
]
SPACES = [
    Case(
        f"space/{kind}",
        ("--env.id", "signals:Signal", "--env.kwargs", f"kind={json.dumps(kind)}"),
        f"signals.Signal({kind!r})",
        (2 if signals.is_seen_as_images(kind) else 5) * ROLLOUT,
    )
    for kind in signals.KINDS
]
ACTIONS = [
    *(
        Case(
            f"actions/{name}",
            ("--env.id", "signals:Signal", "--env.kwargs", f"actions={name}"),
            f"signals.Signal(actions={name!r})",
            5 * ROLLOUT,
        )
        for name in signals.ACTIONS
    ),
    Case(
        "actions/MultiDiscrete with masks",
        ("--env.id", "signals:Locks", "--policy.kwargs", "action_mask=action_masks"),
        "signals.Locks()",
        5 * ROLLOUT,
    ),
]
VECTORS = [
    Case(
        f"vector/{mode.name}",
        ("--env.id", f"signals:{signals.id_of(mode)}", "--env.backend", "gymnasium"),
        f"signals.vector(4, AutoresetMode.{mode.name})",
        5 * ROLLOUT,
    )
    for mode in AutoresetMode
]
CASES = [*FAMILIES, *SPACES, *ACTIONS, *VECTORS]


class Task(NamedTuple):
    """What is learned: ``words`` of the command line, and the best return and that without memory, where known."""

    words: tuple[str, ...]
    steps: int
    best: str
    memoryless: str
    needs: str = "gymnasium"


LEARNED = {
    "MiniGrid-MemoryS7-v0, its id alone": Task(
        ("--env.id", "MiniGrid-MemoryS7-v0"), 1_000_000, "0.98", "0.5", "minigrid"
    ),
    "a Dict of an image and a vector, both needed": Task(
        ("--env.id", "signals:Signal", "--env.kwargs", 'kind="Dict of image and vector"'), 400_000, "1", "0.5"
    ),
    "MultiDiscrete actions with masks": Task(
        ("--env.id", "signals:Locks", "--policy.kwargs", "action_mask=action_masks"), 165_000, "1", "0.53"
    ),
    "Breakout, which gives 1.7 to random actions": Task(("--config", "atari"), 400_000, "", "", "ale_py"),
    "Hopper without velocities": Task(("--config", "mujoco"), 1_000_000, "", "", "mujoco"),
    "Ant without velocities, which gets 990 for standing still": Task(
        ("--config", "mujoco", "--env.id", "AntNoVel-v5", "--policy.kwargs", "log_std_init=-1"),
        1_000_000,
        "",
        "",
        "mujoco",
    ),
}
"""By name. Best is estimated for MemoryS7, known for those of ``signals.py``."""


@dataclass(frozen=True)
class Settings(records.Settings):
    """Every family and space from the command line and from a script."""


def main(settings: Settings) -> None:
    runs = [
        Run(case.name, lambda steps, case=case: run(case, steps))
        for case in CASES
        if is_available(case.name, case.needs)
    ]
    for seed in range(settings.seeds):
        for name, task in LEARNED.items():
            if is_available(name, task.needs):
                runs.append(Run(f"learned/{name}/{seed}", learns(task, seed)))
    records.run_all(settings, "families", runs, summary, write_page)


def is_available(name: str, module: str) -> bool:
    if importlib.util.find_spec(module) is not None:
        return True
    print(f"{name}: left out, {module} is not installed")
    return False


def learns(task: Task, seed: int) -> Callable[[int], Result]:
    """Trains it, for its own steps where 0 are asked for, and plays both ways."""

    def start(steps: int) -> Result:
        fixed = ["--seed", str(seed), "--threads", "1", "--total-timesteps", str(steps or task.steps)]
        words = [*task.words, *fixed, "--evaluation.final-episodes", "0"]
        return {**records.trained(words, evaluate=returns_both_ways), "cpu": processor()}

    return start


def run(case: Case, steps: int = 0) -> Result:
    """Both ways; what failed has its last line in place of a speed."""
    steps = steps or case.steps
    return {"steps": steps, **_from_command_line(case, steps), **_from_script(case, 1024), "cpu": processor()}


def _from_command_line(case: Case, steps: int) -> Result:
    import train

    with tempfile.TemporaryDirectory() as folder:
        words = [*case.words, "--total-timesteps", str(steps), "--seed", "0", "--threads", "1", "--device", "cpu"]
        words += ["--evaluation.every", "0", "--evaluation.final-episodes", "0", "--checkpoint.every", "0"]
        words += ["--tracking.no-tensorboard", "--no-progress", "--runs", folder, "--name", "run"]
        began = time.process_time()
        with _captured() as printed:
            exit_code = train.main(words)
        seconds = time.process_time() - began
        if exit_code:
            return {"command_line": _last_line(printed.getvalue())}
        with open(pathlib.Path(folder) / "run" / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    returns = [float(row["rollout/ep_rew_mean"]) for row in rows if row.get("rollout/ep_rew_mean")]
    seen = [line for line in SEEN.findall(printed.getvalue()) if not OWN.match(line)]
    return {"seen": seen, "command_line": steps / seconds, "return": returns[-1] if returns else None}


def _from_script(case: Case, steps: int) -> Result:
    with _captured():
        try:
            env = eval(case.env, {"envs": envs, "signals": signals, "AutoresetMode": AutoresetMode})
            model = RecurrentPPO("RecurrentPolicy", env, n_steps=128, n_epochs=2, device="cpu", seed=0, verbose=1)
            start = time.process_time()
            model.learn(steps)
        except Exception as error:  # whatever a package raises: it stands in the table
            return {"script": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"script": model.num_timesteps / (time.process_time() - start)}


@contextmanager
def _captured() -> Iterator[io.StringIO]:
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        yield printed


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was printed"])[-1]


def summary(result: Result) -> str:
    if "sampled" in result:
        return ", ".join(f"{way} {np.mean(result[way]):.3f}" for way in WAYS) + f", {result['seconds']:.0f} s"
    ways = ", ".join(f"{way} {_speed(result[way])}" for way in ("command_line", "script"))
    return f"{'; '.join(result.get('seen', ()))}; {ways}; return {_return(result)}"


def _speed(value: float | str) -> str:
    return f"failed: {value}" if isinstance(value, str) else f"{value:,.0f}"


def _return(result: Result) -> str:
    value = result.get("return")
    return "no episode ended" if value is None else f"{value:.2f}"


def write_page(found: list[Result]) -> None:
    """The tables, between their marks in `docs/environments.md`."""
    by_name = {result["name"]: result for result in found}
    columns = "what | printed | command line, steps/s | script, steps/s | return | after steps"
    rows = [_row(by_name[case.name]) for case in CASES if case.name in by_name]
    records.write_between("environments", "families", [*records.table(columns, rows), "", records.processors(found)])
    columns = "learned | seeds | steps | sampled | deterministic | lowest seed | best | without memory | minutes"
    learned = [row for name, task in LEARNED.items() if (row := _learned_row(name, task, found))]
    records.write_between("environments", "learned", records.table(columns, learned) if learned else [])


def _learned_row(name: str, task: Task, found: list[Result]) -> list[str]:
    runs = records.by_seed(found, f"learned/{name}")
    if not runs:
        return []
    ways = []
    for way in WAYS:
        returns = np.array([run[way] for run in runs])
        low, high = records.interval(returns)
        ways.append("{} ({} to {})".format(*map(_figures, (returns.mean(), low, high))))
    minutes = np.median([run["seconds"] for run in runs]) / 60
    worst = _figures(min(map(lowest, runs)))
    return [name, str(len(runs)), f"{runs[0]['steps']:,}", *ways, worst, task.best, task.memoryless, f"{minutes:.1f}"]


def _figures(value: float) -> str:
    """Three of them, and all those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _row(result: Result) -> list[str]:
    kind, _, name = result["name"].partition("/")
    seen = "<br>".join(f"`{line.removeprefix('observation: ')}`" for line in result.get("seen", ()))
    speeds = [_speed(result[way]) for way in ("command_line", "script")]
    return [f"{kind}: {name}", seen, *speeds, _return(result), f"{result['steps']:,}"]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
