"""Training speed: RecuRL, its peers and the limits, side by side in one process.

    python benchmarks/speed.py --quick          sb3-contrib and ours at 8 environments and 64 units, a minute
    python benchmarks/speed.py --write-docs     everything, into docs/speed.md, docs/speed.png, docs/results/speed.json
    python benchmarks/speed.py --only "256 units, separate"     the cases whose name contains this

The peers are those of benchmarks/peers.txt; one that is missing or breaks is named with the reason.

Contenders of a case take turns (A B C A B C ...), each with the same network, environments, steps, minibatches and
epochs. A ratio is taken within a turn, so that what slows the machine for a while slows both sides of it.
"""

import json
import os
import pathlib
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS = "RecuRL"


@dataclass(frozen=True)
class Settings:
    """Training speed of RecuRL and its peers."""

    quick: bool = False
    """Only the cases against sb3-contrib with 8 environments and 64 units, and few turns."""
    only: str = ""
    """Only cases whose name contains this."""
    contenders: tuple[str, ...] = ()
    """Only these contenders; none for all of a case."""
    rounds: Annotated[int, tyro.conf.arg(help_behavior_hint="default 5, with --quick 3")] = 0
    """Turns of each contender; 0 for the default."""
    seconds: float = 1.0
    """A turn takes as many iterations as fit into this, at least one."""
    threads: int = 1
    """Threads of torch and of NumPy's products."""
    write_docs: bool = False
    """Write docs/speed.md, docs/speed.png and docs/results/speed.json; cases measured before are kept."""


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
    limits: dict[str, float]
    rollout: int
    measured: dict[str, str]


def main(settings: Settings) -> None:
    # NumPy and torch read these when they are imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(settings.threads)
    sys.path.insert(0, str(ROOT))  # from a checkout, installed or not
    import torch
    from cases import SB3, all_cases
    from report import environment_of_measurement, print_case, write_docs

    torch.set_num_threads(settings.threads)
    rounds = settings.rounds or (3 if settings.quick else 5)
    kept_file = ROOT / "docs" / "results" / "speed.json"
    results: dict[str, Any] = json.loads(kept_file.read_text()) if settings.write_docs and kept_file.exists() else {}
    for case in all_cases():
        quick = case.contenders == SB3 and case.n_envs == 8 and case.network.hidden == 64 and case.task != "pendulum"
        if settings.only not in case.name or (settings.quick and not quick):
            continue
        result = measure(case, rounds, settings.seconds, settings.contenders or case.contenders)
        result.measured = environment_of_measurement(settings.threads)
        results[case.name] = asdict(result)
        print_case(case.name, results[case.name])
        if settings.write_docs:
            write_docs(results, [case.name for case in all_cases()], kept_file)


def measure(case: Any, rounds: int, seconds: float, names: tuple[str, ...]) -> CaseResult:
    """Lets the contenders of a case take turns."""
    from contenders import build
    from limits import limits_of

    rows = {name: Row(case.name, name) for name in names if name in case.contenders}
    contenders: dict[str, Any] = {}
    n_iterations: dict[str, int] = {}
    for name, row in rows.items():
        try:
            contenders[name] = build(name, case)
            n_iterations[name] = _iterations_for(seconds, contenders[name])
        except Exception as error:
            if name.startswith(OURS):
                raise
            contenders.pop(name, None)
            row.error = f"{type(error).__name__}: {error}".splitlines()[0]
    turns: dict[str, list[Any]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            turns[name].append(contender.iterate(n_iterations[name]))
    for name, taken in turns.items():
        steps = case.rollout * n_iterations[name]
        rates = [tuple(steps / part for part in turn) for turn in taken]
        row = rows[name]
        row.whole, row.collecting, row.training = (statistics.median(column) for column in zip(*rates, strict=True))
        row.turns = tuple(whole for whole, _, _ in rates)
        row.whole_range = (min(row.turns), max(row.turns))
    return CaseResult(list(rows.values()), limits_of(case, max(rounds, 3))._asdict(), case.rollout, {})


def _iterations_for(seconds: float, contender: Any) -> int:
    """How many iterations fit; the first one warms up and the second is timed."""
    contender.iterate(1)
    return max(1, int(seconds / contender.iterate(1).whole + 0.5))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
