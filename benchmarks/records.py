"""What the benchmarks of learning share: runs whose results are lines of a file, statistics, and pages of them.

A result is appended to docs/results/NAME.jsonl when its run ends, so that a benchmark that was killed continues with
the next run; deleting a line repeats its run. ``--fresh`` repeats all of them elsewhere, and compares.

Axes: S seeds, E episodes, P points of a curve.
"""

import csv
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EPISODES = 300
RESAMPLES = 10_000
Result = dict[str, Any]
Values = NDArray[np.float64]

sys.path.insert(0, str(ROOT))  # from a checkout, installed or not


class Run(NamedTuple):
    """One run: a name, and what does it. ``start(steps)`` gives the result; 0 steps: the run's own."""

    name: str
    start: Callable[[int], Result]


@dataclass(frozen=True)
class Settings:
    """Settings of every benchmark of learning."""

    only: str = ""
    """Only runs whose name contains this."""
    seeds: int = 3
    """Seeds of every task and variant."""
    steps: int = 0
    """Environment steps in place of a run's own, for a trial whose result is printed, not kept. 0: the run's own."""
    report: bool = False
    """Run nothing, write the page."""
    list: bool = False
    """Run nothing, list the runs and which have a result."""
    fresh: bool = False
    """Repeat runs that have a result, keep the new ones elsewhere, and compare the two; the pages stay as they are."""
    into: str = ""
    """The folder of --fresh; one that holds results is continued. Empty: a temporary one, whose name is printed."""


def run_all(
    settings: Settings,
    benchmark: str,
    runs: Iterable[Run],
    summary: Callable[[Result], str],
    report: Callable[[list[Result]], None],
    processes: int = 1,
) -> None:
    """Lists the runs, or does those chosen that have no result yet and reports what there is.

    ``summary`` is the line that is printed of a result; with ``settings.steps`` all chosen are done and only printed.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # read as torch is imported
    chosen = [run for run in runs if settings.only in run.name]
    fresh = _fresh_folder(settings, benchmark)
    if settings.list:
        done = names(benchmark, fresh)
        print("\n".join(f"{'done' if run.name in done else '    '}  {run.name}" for run in chosen))
        return

    def do(run: Run) -> None:
        # The file is read again for each, so that several processes can share the work by --only.
        if (settings.steps and fresh is None) or run.name not in names(benchmark, fresh):
            result = {"name": run.name, **run.start(settings.steps)}
            print(f"{run.name}: {summary(result)}", flush=True)
            if fresh is not None or not settings.steps:
                keep(benchmark, result, fresh)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(do, [] if settings.report else chosen))
    if fresh is not None:
        print("\n".join(["", *comparison(read(benchmark), read(benchmark, fresh), summary)]))
    elif not settings.steps and (found := read(benchmark)):
        report(found)


def _fresh_folder(settings: Settings, benchmark: str) -> pathlib.Path | None:
    if settings.into and not settings.fresh:
        raise SystemExit("error: --into is the folder of --fresh: add that")
    if not settings.fresh or (settings.list and not settings.into):
        return None
    folder = pathlib.Path(settings.into or tempfile.mkdtemp(prefix=f"{benchmark}-"))
    print(f"results go to {results_file(benchmark, folder)}; --fresh --into {folder} continues", flush=True)
    return folder


def comparison(before: Sequence[Result], now: Sequence[Result], summary: Callable[[Result], str]) -> list[str]:
    """Lines: every run that is new, with what was kept of it before."""
    kept = {result["name"]: summary(result) for result in before}
    rows = [("run", "before", "now"), *((each["name"], kept.get(each["name"], "-"), summary(each)) for each in now)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def results_file(benchmark: str, folder: pathlib.Path | None = None) -> pathlib.Path:
    return (DOCS / "results" if folder is None else folder) / f"{benchmark}.jsonl"


def read(benchmark: str, folder: pathlib.Path | None = None) -> list[Result]:
    """All results there are, in the order they were kept."""
    path = results_file(benchmark, folder)
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def names(benchmark: str, folder: pathlib.Path | None = None) -> set[str]:
    """The runs that have a result."""
    return {result["name"] for result in read(benchmark, folder)}


def keep(benchmark: str, result: Result, folder: pathlib.Path | None = None) -> None:
    """Appends one line at once, so that a kill leaves the lines before it complete."""
    path = results_file(benchmark, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def by_seed(found: Iterable[Result], prefix: str) -> list[Result]:
    """The results of all seeds of one kind of run, by seed."""
    chosen = [result for result in found if result["name"].startswith(prefix + "/")]
    return sorted(chosen, key=lambda result: int(result["name"].rsplit("/", 1)[1]))


# Training


def final_returns(run: Any) -> Result:
    """Of the best checkpoint by periodic evaluation and of the last policy, deterministic."""
    found = {"returns": "best", "last": "step"}
    files = {name: next((run.path / "evaluations").glob(f"{file}*-deterministic.json")) for name, file in found.items()}
    return {name: json.loads(file.read_text())["returns"] for name, file in files.items()}


def trained(words: Sequence[str], steps: int = 0, evaluate: Callable[[Any], Result] = final_returns) -> Result:
    """Runs ``train.py`` with these words: its steps, seconds, curve, and what ``evaluate`` finds of the run."""
    import configs
    import train

    with tempfile.TemporaryDirectory() as folder:
        settings = configs.parse(
            [
                *("--evaluation.final-episodes", str(EPISODES), "--checkpoint.every", "0", "--device", "cpu"),
                *("--tracking.no-tensorboard", "--no-progress", "--runs", folder, "--name", "run"),
                *words,
                *(["--total-timesteps", str(steps)] if steps else []),
            ]
        ).settings
        began = time.perf_counter()
        run = train.train(settings)
        seconds = time.perf_counter() - began
        with open(run.path / "evaluations.csv", newline="") as file:
            curve = [[int(row["step"]), float(row["mean_reward"])] for row in csv.DictReader(file)]
        return dict(steps=settings.total_timesteps, seconds=seconds, curve=curve, **evaluate(run))


def agent_of(words: Sequence[str], algorithm: type | None = None) -> tuple[Any, Any]:
    """The agent that ``train.py`` with these words would train, of another class if given, and the settings."""
    import configs
    from agents.runs.construction import ALGORITHMS, make_agent, make_environments
    from agents.runs.defaults import fitted_to_episodes
    from configs.settings import changed

    settings, _ = fitted_to_episodes(changed(configs.parse(words).settings, {"device": "cpu"}))
    if algorithm is not None:
        ALGORITHMS["of the benchmark"] = algorithm
        settings = changed(settings, {"algorithm.name": "of the benchmark"})
    return make_agent(settings, make_environments(settings, settings.rollout[0], settings.seed)), settings


# Statistics


def mean(values: Values) -> Values:
    result: Values = values.mean(axis=-1)
    return result


def interquartile_mean(values: Values) -> Values:
    """(..., N) -> (...): the mean without a quarter (rounded down) of the values on each side."""
    quarter = values.shape[-1] // 4
    return mean(np.sort(values, axis=-1)[..., quarter : values.shape[-1] - quarter])


def interval(returns: Values, statistic: Callable[[Values], Values] = mean) -> tuple[float, float]:
    """(S, E) -> 95 % bootstrap interval of a statistic of all episodes: seeds are resampled, then episodes of each."""
    rng = np.random.default_rng(0)
    n_seeds, n_episodes = returns.shape
    resampled = []
    for _ in range(RESAMPLES // 100):
        seeds = rng.integers(n_seeds, size=(100, n_seeds, 1))
        episodes = rng.integers(n_episodes, size=(100, n_seeds, n_episodes))
        resampled.append(statistic(returns[seeds, episodes].reshape(100, -1)))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return float(low), float(high)


def curve_interval(curves: Values) -> tuple[Values, Values]:
    """(S, P) -> (P,), (P,): 95 % bootstrap interval over seeds of the mean at every point."""
    rng = np.random.default_rng(0)
    resampled = curves[rng.integers(len(curves), size=(RESAMPLES, len(curves)))].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return low, high


def figure(returns: Values) -> str:
    """(S, E) -> the mean of all episodes and its interval, with the same decimals: 499.8 (499.6 to 500.0)."""
    shown = [float(returns.mean()), *interval(returns)]
    largest = max(map(abs, shown))
    digits = 3 if largest < 10 else 2 if largest < 100 else 1
    value, low, high = (f"{each:.{digits}f}" for each in shown)
    return f"{value} ({low} to {high})"


# Pages and plots


def write_page(benchmark: str, text: str, *tables: list[str]) -> None:
    """docs/NAME.md: the text, with each ``{}`` in it replaced by the lines of a table."""
    DOCS.mkdir(exist_ok=True)
    (DOCS / f"{benchmark}.md").write_text(text.format(*("\n".join(lines) for lines in tables)).lstrip("\n"))


def write_between(page: str, mark: str, lines: Iterable[str]) -> None:
    """Replaces what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in docs/PAGE.md."""
    path, begin, end = DOCS / f"{page}.md", f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    before, _, rest = path.read_text().partition(begin)
    path.write_text(before + begin + "\n".join([*lines, ""]) + end + rest.partition(end)[2])


def processors(found: Iterable[Result]) -> str:
    """A sentence: the processors that results came from."""
    return f"Processors: {', '.join(sorted({result['cpu'] for result in found if 'cpu' in result})) or 'not recorded'}."


def table(columns: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """Markdown; ``columns`` are titles with bars between."""
    head = [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]
    return [*head, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def subplots(n_rows: int, n_columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure without a screen, and its axes, (rows, columns)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(n_rows, n_columns, figsize=(width * n_columns, height * n_rows), squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_plot(figure: Any, path: pathlib.Path, rect: tuple[float, float, float, float] = (0, 0, 1, 1)) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout(rect=rect)
    figure.savefig(path, dpi=110)
    plt.close(figure)
