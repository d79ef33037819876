"""Training speed: RecuRL, its peers and the limits, side by side in one process.

    python benchmarks/speed.py --quick          sb3-contrib and ours at 8 environments and 64 units, a minute
    python benchmarks/speed.py --write-docs     everything, into docs/speed.md, docs/speed.png, docs/results/speed.json
    python benchmarks/speed.py --only "256 units, separate"     the cases whose name contains this

The peers are those of benchmarks/peers.txt; one that is missing or breaks is named with the reason.

Contenders of a case take turns (A B C A B C ...), each with the same network, environments, steps, minibatches and
epochs. A ratio is taken within a turn, so that what slows the machine for a while slows both sides of it.
"""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from measuring import DOCS, CaseResult, environment_of_measurement, take_turns, use_threads

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


def main(settings: Settings) -> None:
    use_threads(settings.threads)
    from cases import SB3, all_cases
    from report import print_case, write_docs

    rounds = settings.rounds or (3 if settings.quick else 5)
    kept_file = DOCS / "results" / "speed.json"
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
    """Lets the contenders of a case take turns; ours must not fail."""
    from contenders import CONTENDERS
    from limits import limits_of

    chosen = {name: CONTENDERS[name] for name in names if name in case.contenders}
    result = take_turns(case, chosen, rounds, seconds)
    for row in result.rows:
        if row.error and row.contender.startswith(OURS):
            raise RuntimeError(f"{row.contender}: {row.error}")
    result.limits = limits_of(case, max(rounds, 3))
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
