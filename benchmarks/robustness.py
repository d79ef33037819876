"""Whether the shared default solves task after task with every seed, judged by the last policy.

    python benchmarks/robustness.py                                   all runs that have no result yet, then the table
    python benchmarks/robustness.py --tasks tmaze copy --seeds 0 1    those whose name begins so, these seeds
    python benchmarks/robustness.py --switch lambda-0.9               with one setting changed; see SWITCHES
    python benchmarks/robustness.py --switch "wide: --policy.memory-kwargs hidden_size=128"
    python benchmarks/robustness.py --report                          the table of what there is

A run is ``train.py`` with no settings file: the environment, its arguments and the number of steps alone. When it has
ended its last policy plays ``EPISODES`` episodes each way, sampled and deterministic. Results are appended to
docs/results/robustness.jsonl, a line a run, so that what was killed goes on with the next run; deleting a line repeats
its run. Runs are processes of one thread each, ``--processes`` of them side by side.

The score of a run is 0 at the return without memory and 1 at the best or the published one. A table gives each task,
and over all of them the interquartile mean with the stratified bootstrap (Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice"): seeds are drawn anew within every task.

Axes: S runs of all tasks, E episodes, R resamples.
"""

import csv
import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import records
import tyro
from numpy.typing import NDArray
from records import Result

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "robustness.jsonl"
EPISODES = 100
POINTS = 20
RESAMPLES = 10_000
DEFAULT = "default"
ESTIMATED, EXACT = "estimated", "known to the environment"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """A task, how long it is trained for, and what a return of it means.

    ``memoryless`` is what comes without memory, ``best`` the best possible or, where ``source`` says so, a published
    return; a run has solved the task whose last policy returns ``solved`` both ways. ``needs`` is a module that
    registers it. Where the environment knows both bounds itself, they are its own (a test compares them); the others
    that ``source`` does not name are estimates, and the table marks their scores with ``~``.
    """

    name: str
    id: str
    steps: int
    memoryless: float
    best: float
    solved: float
    kwargs: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    seeds: int = 5
    needs: str | None = None
    source: str = ESTIMATED

    def arguments(self) -> list[str]:
        """Words for ``train.py``."""
        kwargs = [f"{name}={value}" for name, value in self.kwargs.items()]
        return ["--env.id", self.id, *(["--env.kwargs", *kwargs] if kwargs else []), *self.words]


def popgym(name: str, steps: int, memoryless: float, best: float, seeds: int = 3) -> Task:
    source = "estimated, but for popgym's GRU at 15M"
    margin = best - 0.05 * (best - memoryless)
    return Task(
        f"popgym-{name}",
        f"popgym-{name}-v0",
        steps,
        memoryless,
        best,
        margin,
        seeds=seeds,
        needs="popgym",
        source=source,
    )


def _mask(*indices: int) -> tuple[str, ...]:
    return ("--env.wrappers", f"{{mask: {{indices: {list(indices)}, remove: true}}}}")


TASKS = [
    Task("cartpole", "CartPoleNoVel-v1", 200_000, 50.0, 500.0, 475.0),
    Task("pendulum", "PendulumNoVel-v1", 300_000, -1200.0, -150.0, -250.0),
    Task("mountaincar", "MountainCarContinuousNoVel-v0", 300_000, 0.0, 95.0, 90.0),
    Task("acrobot", "AcrobotNoVel-v1", 300_000, -500.0, -80.0, -100.0),
    Task("tmaze-20", "TMaze-v0", 300_000, 0.5, 1.0, 0.95, {"length": 20}, source=EXACT),
    Task("tmaze-100", "TMaze-v0", 1_000_000, 0.5, 1.0, 0.95, {"length": 100}, source=EXACT),
    Task("tmaze-20-active", "TMaze-v0", 600_000, 0.5, 1.0, 0.95, {"length": 20, "active": True}, source=EXACT),
    Task("recall-50", "Recall-v0", 300_000, 0.0, 1.0, 0.95, {"length": 50}, source=EXACT),
    Task("recall-100", "Recall-v0", 500_000, 0.0, 1.0, 0.95, {"length": 100}, source=EXACT),
    Task("recall-200", "Recall-v0", 1_000_000, 0.0, 1.0, 0.95, {"length": 200}, seeds=3, source=EXACT),
    Task("recall-400", "Recall-v0", 2_000_000, 0.0, 1.0, 0.95, {"length": 400}, seeds=3, source=EXACT),
    Task("repeat-previous-4", "RepeatPrevious-v0", 600_000, -0.49, 1.0, 0.95, {"k": 4}, source=EXACT),
    Task("repeat-previous-16", "RepeatPrevious-v0", 2_000_000, -0.49, 1.0, 0.95, {"k": 16}, seeds=3, source=EXACT),
    Task("repeat-first", "RepeatFirst-v0", 400_000, -0.5, 1.0, 0.95, source=EXACT),
    Task("associative-recall-4", "AssociativeRecall-v0", 1_000_000, -0.5, 1.0, 0.95,
         {"pairs": 4, "keys": 8, "values": 4, "queries": 4}, source=EXACT),
    Task("copy-4", "Copy-v0", 600_000, -0.5, 1.0, 0.95, {"length": 4, "symbols": 4}, source=EXACT),
    Task("count-recall", "CountRecall-v0", 600_000, -0.65, 1.0, 0.9, source=EXACT),
    Task("phase-forecast", "PhaseForecast-v0", 600_000, 0.52, 1.0, 0.9, {"length": 32}, source=EXACT),
    Task("graph-search", "GraphSearch-v0", 600_000, 0.5, 1.0, 0.95,
         {"rooms": 4, "doors": 2, "loops": 0, "max_degree": 3}, source=EXACT),
    Task("lunarlander", "LunarLander-v3", 3_000_000, -100.0, 205.0, 200.0, words=_mask(2, 3, 5), seeds=3,
         needs="Box2D", source="estimated, but for BenchNetRL's GRU at 5M"),
    popgym("NoisyPositionOnlyCartPoleEasy", 1_000_000, 0.2, 0.95),
    popgym("NoisyPositionOnlyCartPoleMedium", 2_000_000, 0.2, 0.642),
    popgym("RepeatPreviousEasy", 1_000_000, -0.49, 1.0),
    popgym("RepeatPreviousMedium", 3_000_000, -0.49, -0.315),
    popgym("AutoencodeEasy", 3_000_000, -0.5, -0.283),
    popgym("MultiarmedBanditEasy", 2_000_000, 0.0, 0.619),
    popgym("HigherLowerEasy", 1_000_000, 0.47, 0.529),
    popgym("ConcentrationEasy", 2_000_000, -0.2, -0.1),
    popgym("BattleshipEasy", 3_000_000, -0.5, -0.35),
    Task("minigrid-memory-7", "MiniGrid-MemoryS7-v0", 1_000_000, 0.47, 0.95, 0.9, needs="minigrid",
         words=("--env.wrappers", "minigrid.wrappers:ImgObsWrapper"), seeds=3),
    Task("minigrid-memory-9", "MiniGrid-MemoryS9-v0", 2_000_000, 0.47, 0.883, 0.883, needs="minigrid",
         words=("--env.wrappers", "minigrid.wrappers:ImgObsWrapper"), seeds=3,
         source="estimated, but for MarcoMeter's LSTM at 2M"),
]  # fmt: skip

SWITCHES: dict[str, str] = {
    DEFAULT: "",
    "batch-advantages": "--algorithm.normalize-advantage batch",
    "plain-inputs": "--env.previous-action-reward False",
    "lambda-0.9": "--algorithm.gae-lambda 0.9",
    "lambda-0.7": "--algorithm.gae-lambda 0.7",
    "no-entropy": "--algorithm.ent-coef 0",
    "clipped-values": "--algorithm.clip-range-vf 0.2",
    "ten-epochs": "--algorithm.n-epochs 10",
    "64-environments": "--env.n-envs 64 --algorithm.batch-size 2048",
    "detached-critic": "--policy.critic-memory detached",
    "separate-critic": "--policy.critic-memory separate",
    "gru": "--policy.memory gru",
    "mingru": "--policy.memory mingru",
    "before": "--env.n-envs 8 --env.previous-action-reward False --algorithm.learning-rate 5e-4 "
    "--algorithm.learning-rate-schedule constant --algorithm.n-steps 128 --algorithm.batch-size 256 "
    "--algorithm.n-epochs 10 --algorithm.ent-coef 0 --algorithm.normalize-advantage batch "
    "--policy.memory-kwargs forget_bias=1.0",
}
"""What is tried in place of the default, by name: words for ``train.py``. `before`: the default that this one followed,
eight environments and a forget bias of 1 among it."""


@dataclass(frozen=True)
class Settings:
    """Every task of the suite with every seed."""

    tasks: tuple[str, ...] = ()
    """Tasks whose name begins with one of these; none: all."""
    seeds: tuple[int, ...] = ()
    """Seeds; none: each task's own number of them, from 0."""
    switch: str = DEFAULT
    """A name in SWITCHES, or `name: words` for one of your own."""
    steps: float = 1.0
    """Share of a task's steps, for a trial; its results go under a name of their own."""
    processes: int = 2
    """Runs side by side."""
    results: pathlib.Path = RESULTS
    """File of results."""
    report: bool = False
    """Run nothing, print the tables."""
    list: bool = False
    """Run nothing, name the runs and say which have a result."""


def main(settings: Settings) -> None:
    switch, words = chosen_switch(settings.switch)
    if settings.steps != 1.0:
        switch = f"{switch}@{settings.steps:g}"
    tasks = [each for each in TASKS if not settings.tasks or each.name.startswith(settings.tasks)]
    if not tasks:
        raise SystemExit(
            f"no task begins with {', '.join(settings.tasks)}; there are {', '.join(t.name for t in TASKS)}"
        )
    runs = [(each, seed) for each, seed in seed_by_seed(tasks, settings.seeds) if is_there(each)]
    done = records.names(settings.results)
    if settings.list:
        for task, seed in runs:
            name = run_name(task, switch, seed)
            print(f"{'done' if name in done else '    '}  {name}")
        return
    if not settings.report:
        left = [(task, seed) for task, seed in runs if run_name(task, switch, seed) not in done]
        with ThreadPoolExecutor(settings.processes) as pool:
            for result in pool.map(lambda each: played(*each, switch, words, settings), left):
                print(said(result), flush=True)
    print_tables(records.read(settings.results))


def chosen_switch(text: str) -> tuple[str, list[str]]:
    """A name, and the words that it stands for."""
    name, colon, words = text.partition(":")
    if not colon and name not in SWITCHES:
        raise SystemExit(f"no switch is called {name}; there are {', '.join(SWITCHES)}, or give 'name: words'")
    return name, shlex.split(words if colon else SWITCHES[name])


def seed_by_seed(tasks: Sequence[Task], seeds: Sequence[int]) -> Iterable[tuple[Task, int]]:
    """A first seed of everything is there early."""
    for seed in seeds or range(max(task.seeds for task in tasks)):
        for task in tasks:
            if seeds or seed < task.seeds:
                yield task, seed


def is_there(task: Task) -> bool:
    """Whether the package of a task is installed; where it is not, the task is left out, and that is said."""
    if task.needs is None or importlib.util.find_spec(task.needs) is not None:
        return True
    print(f"left out: {task.name} needs {task.needs}", file=sys.stderr)
    return False


def run_name(task: Task, switch: str, seed: int) -> str:
    return f"{task.name}/{switch}/{seed}"


def played(task: Task, seed: int, switch: str, words: Sequence[str], settings: Settings) -> Result:
    """Trains and plays in a process of its own, and keeps the result; one that failed is kept with its error."""
    name, total = run_name(task, switch, seed), int(task.steps * settings.steps)
    arguments = [*task.arguments(), "--seed", str(seed), "--total-timesteps", str(total), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--work", folder, *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        file = pathlib.Path(folder) / "result.json"
        outcome = json.loads(file.read_text()) if file.exists() else {"error": done.stderr.strip()[-2000:]}
    result = {"name": name, "words": " ".join(words), "steps": total, **outcome}
    records.keep(settings.results, result)
    return result


def work(folder: str, words: list[str]) -> None:
    """One run in this process: its result as a file in the folder."""
    sys.path.insert(0, str(ROOT))
    import configs
    import train
    from agents.runs.analyses import Options, evaluate_run

    options = [
        *("--runs", folder, "--name", "run", "--threads", "1", "--device", "cpu", "--no-progress"),
        *("--checkpoint.every", "0", "--evaluation.final-episodes", "0", "--tracking.no-tensorboard"),
    ]
    settings = configs.parse([*options, *words]).settings
    every = str(max(settings.total_timesteps // POINTS, 1))
    settings = configs.parse([*options, "--evaluation.every", every, *words]).settings
    began = time.perf_counter()
    run = train.train(settings)
    seconds = time.perf_counter() - began
    with open(run.path / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    last = {
        way: evaluate_run(run, Options("last", EPISODES, deterministic=way == "deterministic"))["returns"]
        for way in ("sampled", "deterministic")
    }
    curve = [[int(row["step"]), float(row["mean_reward"])] for row in rows]
    result = {"seconds": seconds, "curve": curve, "cpu": _cpu(), **last}
    (pathlib.Path(folder) / "result.json").write_text(json.dumps(result))


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def said(result: Result) -> str:
    if "error" in result:
        return f"{result['name']}: failed: {result['error'].splitlines()[-1:]}"
    both = ", ".join(f"{way} {np.mean(result[way]):.3f}" for way in ("sampled", "deterministic"))
    best = max(value for _, value in result["curve"])
    return f"{result['name']}: {both}, best on the way {best:.3f}, {result['seconds']:.0f} s"


# Statistics


def score(task: Task, result: Result) -> float:
    """0 without memory, 1 at the best, of the worse of the two ways to act; a run that failed has 0."""
    if "error" in result:
        return 0.0
    return (lowest(result) - task.memoryless) / (task.best - task.memoryless)


def lowest(result: Result) -> float:
    """The mean return of the worse of the two ways to act."""
    return float(min(np.mean(result["sampled"]), np.mean(result["deterministic"])))


def is_solved(task: Task, result: Result) -> bool:
    return "error" not in result and lowest(result) >= task.solved


def interquartile_mean(values: Values) -> Values:
    """(..., S) -> (...): the mean of the middle half, a quarter (rounded down) cut off on each side."""
    cut = values.shape[-1] // 4
    result: Values = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return result


def stratified_interval(scores: Sequence[Values]) -> tuple[float, float]:
    """The 95 % interval of the interquartile mean over all runs; scores of each task's seeds, drawn anew within it."""
    rng = np.random.default_rng(0)
    drawn = [of_task[rng.integers(len(of_task), size=(RESAMPLES, len(of_task)))] for of_task in scores]
    low, high = np.percentile(interquartile_mean(np.concatenate(drawn, axis=1)), [2.5, 97.5])
    return float(low), float(high)


def print_tables(found: Sequence[Result]) -> None:
    """A table for every switch, and what each comes to over all tasks."""
    switches = list(dict.fromkeys(result["name"].split("/")[1] for result in found))
    for switch in switches:
        print(f"\n{switch}\n")
        print("| task | seeds | solved | sampled | deterministic | worst seed | score | goal | steps | s |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        everything, solved = [], []
        for task in TASKS:
            results = [each for each in found if each["name"].rpartition("/")[0] == f"{task.name}/{switch}"]
            if not results:
                continue
            everything.append(np.array([score(task, each) for each in results]))
            solved += [is_solved(task, each) for each in results]
            print(_row(task, results))
        low, high = stratified_interval(everything)
        middle = float(interquartile_mean(np.concatenate(everything)))
        print("\n~ between bounds that are estimated, in part or whole")
        print(
            f"\n{switch}: interquartile mean {middle:.3f} ({low:.3f} to {high:.3f}), solved {sum(solved)} of "
            f"{len(solved)} ({np.mean(solved):.0%}), of {len(everything)} tasks"
        )


def _row(task: Task, results: Sequence[Result]) -> str:
    whole = [each for each in results if "error" not in each]
    returns = [f"{np.mean([np.mean(each[way]) for each in whole]):.3f}" if whole else "-" for way in WAYS]
    worst = f"{min(map(lowest, whole)):.3f}" if len(whole) == len(results) else "failed"
    seconds = f"{np.median([each['seconds'] for each in whole]):.0f}" if whole else "-"
    return (
        f"| {task.name} | {len(results)} | {sum(is_solved(task, each) for each in results)} | {returns[0]} "
        f"| {returns[1]} | {worst} | {np.mean([score(task, each) for each in results]):.2f}{_mark(task)} "
        f"| {task.solved:g} | {results[0]['steps']:,} | {seconds} |"
    )


def _mark(task: Task) -> str:
    return "" if task.source == EXACT else "~"


WAYS = ("sampled", "deterministic")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3:])
    else:
        main(tyro.cli(Settings, description=__doc__))
