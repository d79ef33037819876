"""Runs of a benchmark, and their results as lines of a file, so that one that was killed goes on with the next."""

import json
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

Result = dict[str, Any]


class Run(NamedTuple):
    """One run: a name, and what does it. ``start(steps)`` gives the result; 0 steps: the run's own."""

    name: str
    start: Callable[[int], Result]


@dataclass(frozen=True)
class Settings:
    """What every such benchmark is told."""

    only: str = ""
    """Only runs whose name contains this."""
    seeds: int = 3
    """Seeds of every task and way."""
    steps: int = 0
    """Environment steps in place of a run's own, for a trial whose result is printed, not kept. 0: the run's own."""
    report: bool = False
    """Run nothing, write the page."""
    list: bool = False
    """Run nothing, name the runs and say which have a result."""


Told = TypeVar("Told", bound=Settings)


def run_all(
    settings: Told,
    all_runs: Callable[[Told], list[Run]],
    path: pathlib.Path,
    said: Callable[[Result], str],
    write_docs: Callable[[list[Result]], None],
) -> None:
    """Lists the runs, or does those chosen that have no result at ``path`` yet, and writes the page of what there is.

    With ``settings.steps`` all chosen are done, and their results only ``said``.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read as torch is imported
    chosen = [run for run in all_runs(settings) if settings.only in run.name]
    if settings.list:
        done = names(path)
        print("\n".join(f"{'done' if run.name in done else '    '}  {run.name}" for run in chosen))
        return
    for run in [] if settings.report else chosen:
        # Read anew, so that several processes can share the work by --only.
        if settings.steps or run.name not in names(path):
            result = {"name": run.name, **run.start(settings.steps)}
            print(said(result), flush=True)
            if not settings.steps:
                keep(path, result)
    if not settings.steps and (found := read(path)):
        write_docs(found)


def read(path: pathlib.Path) -> list[Result]:
    """All results there are, in the order they were kept."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def names(path: pathlib.Path) -> set[str]:
    """The runs that have a result."""
    return {result["name"] for result in read(path)}


def keep(path: pathlib.Path, result: Result) -> None:
    """Appends one line at once, so that a kill leaves the lines before it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")
