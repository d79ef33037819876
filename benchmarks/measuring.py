"""What the benchmarks of speed share: threads, stopwatches, contenders that take turns, and where it was measured."""

import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, Protocol

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib", "rsl-rl-lib", "skrl", "sample-factory")

sys.path.insert(0, str(ROOT))  # from a checkout, installed or not


def use_threads(threads: int) -> None:
    """Threads of torch and of NumPy's products; to be called before either is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    import torch

    torch.set_num_threads(threads)


def environment_of_measurement(threads: int) -> dict[str, str]:
    """Hardware, versions and the day."""
    found = {"day": time.strftime("%Y-%m-%d"), "processor": processor(), "threads": str(threads)}
    found["python"] = platform.python_version()
    for package in (*PACKAGES, "pufferlib", "pufferlib-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def described(measured: Mapping[str, str]) -> str:
    """A sentence of a page about an environment of measurement."""
    versions = [f"{name} {text}" for name, text in measured.items() if name not in ("day", "processor", "threads")]
    where = f"{measured['day']} on {measured['processor']}, {measured['threads']} thread(s)"
    return f"Measured {where}, with {', '.join(versions)}:"


class Seconds(NamedTuple):
    """What some iterations took: in all, collecting rollouts, updating."""

    whole: float
    collecting: float
    training: float


class Contender(Protocol):
    """Something that trains."""

    def iterate(self, n_iterations: int) -> Seconds:
        """Collects a rollout and updates, ``n_iterations`` times."""


class Unavailable(Exception):
    """A contender that is not available here; the message is what the table reports."""


class Stopwatch:
    """Adds up the seconds spent inside a function or a block."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, also one that is to be bound to objects."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return run


class Sb3Contender:
    """A Stable-Baselines3 on-policy algorithm, its ``collect_rollouts`` and ``train`` timed inside ``learn``.

    ``finish`` waits until a device is done.
    """

    def __init__(self, model: Any, finish: Callable[[], None] = lambda: None) -> None:
        self.model = model
        self._collecting, self._training = Stopwatch(), Stopwatch()
        model.collect_rollouts = self._collecting.timed(_finished(model.collect_rollouts, finish))
        model.train = self._training.timed(_finished(model.train, finish))
        self._first = True

    def iterate(self, n_iterations: int) -> Seconds:
        steps = n_iterations * self.model.n_steps * self.model.n_envs
        self._collecting.seconds = self._training.seconds = 0.0
        start = time.perf_counter()
        self.model.learn(steps, reset_num_timesteps=self._first)
        self._first = False
        return Seconds(time.perf_counter() - start, self._collecting.seconds, self._training.seconds)


def _finished(function: Callable[..., Any], finish: Callable[[], None]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        finish()
        return result

    return run


@dataclass
class Row:
    """One contender in one case: medians over turns, steps per second; or why there are none."""

    case: str
    contender: str
    error: str = ""
    whole: float = 0.0
    collecting: float = 0.0
    training: float = 0.0
    whole_range: tuple[float, float] = (0.0, 0.0)
    turns: tuple[float, ...] = ()  # steps per second of each turn, in order, for ratios within a turn


@dataclass
class CaseResult:
    """A case's rows, and its limits in seconds of one iteration."""

    rows: list[Row]
    rollout: int
    limits: dict[str, float] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)


def take_turns(case: Any, builders: Mapping[str, Callable[[Any], Contender]], turns: int, seconds: float) -> CaseResult:
    """Lets contenders take turns (A B C A B C ...), each of as many iterations as fit into the seconds."""
    rows = {name: Row(case.name, name) for name in builders}
    contenders: dict[str, Contender] = {}
    n_iterations: dict[str, int] = {}
    for name, build in builders.items():
        try:
            contender = build(case)
            contender.iterate(2)  # what is built, loaded or captured in the first iterations is not measured
            n_iterations[name] = max(1, int(seconds / contender.iterate(1).whole + 0.5))
            contenders[name] = contender
        except Exception as error:  # whatever a peer raises: it is reported in its row
            rows[name].error = f"{type(error).__name__}: {error}".splitlines()[0]
    taken: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, contender in contenders.items():
            taken[name].append(contender.iterate(n_iterations[name]))
    for name, row in rows.items():
        if name in contenders:
            steps = case.rollout * n_iterations[name]
            rates = [tuple(steps / part for part in turn) for turn in taken[name]]
            row.whole, row.collecting, row.training = (statistics.median(column) for column in zip(*rates, strict=True))
            row.turns = tuple(whole for whole, _, _ in rates)
            row.whole_range = (min(row.turns), max(row.turns))
    return CaseResult(list(rows.values()), case.rollout)


def ratio(result: Mapping[str, Any], name: str, base: str) -> tuple[float, float, float] | None:
    """Median, smallest and largest of a contender's speed over another's, turn by turn."""
    turns = {row["contender"]: row["turns"] for row in result["rows"]}
    if not turns.get(name) or not turns.get(base):
        return None
    ratios = [mine / theirs for mine, theirs in zip(turns[name], turns[base], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def medians_in_turn(
    functions: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each function, run A B A B ... after one round to warm up."""
    return {name: statistics.median(several) for name, several in seconds_in_turn(functions, turns, clock).items()}


def seconds_in_turn(
    functions: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each function in every turn, run A B A B ... after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns + 1):
        for name, function in functions.items():
            start = clock()
            function()
            taken[name].append(clock() - start)
    return {name: several[1:] for name, several in taken.items()}
