"""Actions about links: what a graph encoder and a memory are worth on a task that needs both, and each alone.

    python benchmarks/links.py                 every run without a result yet, then the table
    python benchmarks/links.py --report        the table of what there is

PacketRouting-v0 with two routes of two hops, with `configs/packet_routing.yaml` and what a variant changes of it. The
last policy plays 100 episodes each way, sampled and deterministic; a run's figure is the worse of the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import records
import tyro
from measuring import processor
from records import Result, Run
from robustness import WAYS, lowest, returns_both_ways

STEPS = 200_000
FLAT = ("--policy.encoder", "flatten", "--policy.encoder-kwargs", "--policy.actions", "flat")
FORGETS = ("--policy.memory", "none", "--policy.memory-kwargs")
VARIANTS: dict[str, tuple[str, ...]] = {
    "graph and memory": ("--env.kwargs", "routes=2", "hops=2", "labels=true"),
    "graph alone": ("--env.kwargs", "routes=2", "hops=2", "labels=true", *FORGETS),
    "memory alone": ("--env.kwargs", "routes=2", "hops=2", "labels=false", *FLAT),
    "neither": ("--env.kwargs", "routes=2", "hops=2", "labels=false", *FLAT, *FORGETS),
}


@dataclass(frozen=True)
class Settings(records.Settings):
    """PacketRouting-v0 with and without graph encoder and memory."""

    seeds: int = 5
    """Seeds of every variant."""


def main(settings: Settings) -> None:
    runs = [
        Run(f"{name}/{seed}", _run(words, seed)) for seed in range(settings.seeds) for name, words in VARIANTS.items()
    ]
    records.run_all(settings, "links", runs, _summary, write_page)


def _run(words: Sequence[str], seed: int) -> Callable[[int], Result]:
    def start(steps: int) -> Result:
        fixed = ["--config", "packet_routing", "--seed", str(seed), "--threads", "1"]
        result = records.trained(
            [*fixed, "--total-timesteps", str(steps or STEPS), "--evaluation.final-episodes", "0", *words],
            evaluate=returns_both_ways,
        )
        return {**result, "cpu": processor()}

    return start


def _summary(result: Result) -> str:
    return ", ".join(f"{way} {np.mean(result[way]):.3f}" for way in WAYS) + f", {result['seconds']:.0f} s"


def write_page(found: list[Result]) -> None:
    """The table, between its marks in `docs/environments.md`."""
    lines = ["| | seeds | mean return of the last policy | lowest, highest seed | s |", "|---|---|---|---|---|"]
    for name in VARIANTS:
        runs = records.by_seed(found, name)
        if runs:
            each = [lowest(run) for run in runs]
            low, high = records.interval(np.array([min((run[way] for way in WAYS), key=np.mean) for run in runs]))
            seconds = np.median([run["seconds"] for run in runs])
            lines.append(
                f"| {name} | {len(runs)} | {np.mean(each):.2f} ({low:.2f} to {high:.2f}) "
                f"| {min(each):.2f}, {max(each):.2f} | {seconds:.0f} |"
            )
    records.write_between("environments", "links", [*lines, "", records.processors(found)])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
