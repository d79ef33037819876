"""What others have published, with what the suite's runs returned: a section of docs/learning.md.

    python benchmarks/published.py

Ours are the runs of ``benchmarks/robustness.py`` in docs/results/robustness.jsonl, and for RL Zoo's rows, which have
settings for each task, those of ``benchmarks/learning.py``. ``learning.py --report`` writes the section, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import records
import robustness
from records import Result


class Published(NamedTuple):
    """A published return: of which task of the suite, whose, after how many environment steps, and where it stands.

    ``memory`` is that of the settings file whose runs are compared with it, where there is one.
    """

    task: str
    who: str
    value: float
    steps: int
    source: str
    memory: str = ""


M = 1_000_000
SOURCES = {
    "Zoo": "RL Baselines3 Zoo, benchmark.md, ppo_lstm",
    "POPGym": "Morad et al. 2023, arXiv 2303.01859, table 3: the highest mean return during training",
    "POPGym 3M": "a re-run of POPGym's tasks at 3M steps, as our notes have it; second-hand",
    "BenchNetRL": "arXiv 2505.15040; LunarLander-v2 there, v3 here",
    "T-maze": "second-hand, the publication not found again",
    "MarcoMeter": "MarcoMeter/recurrent-ppo-truncated-bptt, TensorBoard logs",
    "POBAX": "Tao et al. 2025, arXiv 2508.00046; its scripts plot returns while it trains, discounted by 0.99 "
    "for RockSample, whose map is another, and as they are for Battleship",
    "LD": "Allen et al. 2024, arXiv 2407.07333, lambda-discrepancy",
    "RESeL": "Luo et al. 2024, arXiv 2405.15384, its table's PPO-GRU",
}

_T_MAZE = {20: (0.98, 0.99), 50: (0.88, 0.98), 100: (0.68, 0.96), 250: (0.53, 0.94), 500: (0.51, 0.92)}
ROWS = [
    Published("cartpole", "LSTM", 500.0, 100_000, "Zoo", "lstm"),
    Published("pendulum", "LSTM", -217.9, 100_000, "Zoo", "hybrid"),
    Published("mountaincar", "LSTM", 91.5, 300_000, "Zoo", "lstm"),
    *(
        Published(f"tmaze-{length}", who, value, M, "T-maze")
        for length, values in _T_MAZE.items()
        for who, value in zip(("GRU", "transformer"), values, strict=True)
    ),
    Published("repeat-first", "GRU", 1.0, 15 * M, "POPGym"),
    Published("repeat-first", "GRU", 0.86, 3 * M, "POPGym 3M"),
    Published("popgym-RepeatPreviousEasy", "GRU", 1.0, 15 * M, "POPGym"),
    Published("popgym-RepeatPreviousEasy", "GRU", 0.89, 3 * M, "POPGym 3M"),
    Published("popgym-RepeatPreviousMedium", "GRU", -0.315, 15 * M, "POPGym"),
    Published("popgym-RepeatPreviousMedium", "LMU", 0.789, 15 * M, "POPGym"),
    Published("popgym-RepeatPreviousMedium", "GRU", -0.461, 3 * M, "POPGym 3M"),
    Published("popgym-NoisyPositionOnlyCartPoleEasy", "GRU", 0.995, 15 * M, "POPGym"),
    Published("popgym-NoisyPositionOnlyCartPoleMedium", "GRU", 0.642, 15 * M, "POPGym"),
    Published("popgym-NoisyPositionOnlyCartPoleMedium", "GRU", 0.693, 3 * M, "POPGym 3M"),
    Published("popgym-AutoencodeEasy", "GRU", -0.283, 15 * M, "POPGym"),
    Published("popgym-MultiarmedBanditEasy", "GRU", 0.619, 15 * M, "POPGym"),
    Published("popgym-MultiarmedBanditEasy", "GRU", 0.327, 3 * M, "POPGym 3M"),
    Published("popgym-HigherLowerEasy", "GRU", 0.529, 15 * M, "POPGym"),
    Published("popgym-HigherLowerEasy", "GRU", 0.518, 3 * M, "POPGym 3M"),
    Published("lunarlander", "LSTM", 125.0, 5 * M, "BenchNetRL"),
    Published("lunarlander", "GRU", 205.0, 5 * M, "BenchNetRL"),
    Published("lunarlander", "TrXL", 243.0, 5 * M, "BenchNetRL"),
    Published("minigrid-memory-9", "LSTM", 0.883, 2_050_000, "MarcoMeter"),
    Published("minigrid-memory-11", "LSTM", 0.49, 15 * M, "BenchNetRL"),
    Published("minigrid-memory-11", "GRU", 0.49, 15 * M, "BenchNetRL"),
    Published("minigrid-memory-11", "GTrXL", 0.93, 15 * M, "BenchNetRL"),
    Published("minigrid-memory-11", "Mamba-2", 0.96, 15 * M, "BenchNetRL"),
    Published("rocksample-11-11", "RNN", 12.7, 5 * M, "POBAX"),
    Published("battleship-10", "RNN", 12.0, 10 * M, "POBAX"),
    Published("battleship-10", "RNN, lambda-discrepancy", 19.0, 10 * M, "LD"),
    Published("bullet-hopper-p", "GRU", 1592.0, 1_500_000, "RESeL"),
    Published("bullet-hopper-v", "GRU", 438.0, 1_500_000, "RESeL"),
    Published("bullet-walker2d-p", "GRU", 651.0, 1_500_000, "RESeL"),
    Published("bullet-walker2d-v", "GRU", 423.0, 1_500_000, "RESeL"),
]

MET, BELOW, LONGER, FAILED = "at or above, no more steps", "below", "at or above, more steps", "a run failed"
DECIMALS = 3
"""Of a return of ours that is compared, as many as any published one has."""
SETTINGS_FILE = "its file in configs/"


class Ours(NamedTuple):
    """The runs of one task with one switch: mean return of the last policies, steps, minutes, seeds."""

    switch: str
    value: float
    steps: int
    minutes: float
    seeds: int

    def verdict(self, row: Published) -> str:
        if np.isnan(self.value):
            return FAILED
        return BELOW if round(self.value, DECIMALS) < row.value else MET if self.steps <= row.steps else LONGER


def ours(row: Published, suite: list[Result], learned: list[Result]) -> list[Ours]:
    """First the runs with a settings file; then the default's, then those of other switches, the
    nearest first."""
    by_switch: dict[str, list[Result]] = {}
    for result in suite:
        name, switch, _ = result["name"].split("/")
        if name == row.task:
            by_switch.setdefault(switch, []).append(result)
    with_file = records.by_seed(learned, f"task/{row.task}/{row.memory}") if row.memory else []
    first = [_mean(SETTINGS_FILE, with_file, _last)] if with_file else []
    chosen = [_mean(switch, runs, robustness.lowest) for switch, runs in by_switch.items()]
    nearest = {robustness.DEFAULT: 0, "independent-choices": 1}
    return first + sorted(chosen, key=lambda each: (nearest.get(each.switch, len(nearest)), -each.seeds))


def _last(run: Result) -> float:
    """The mean return of the last policy, deterministic."""
    return float(np.mean(run["last"])) if "last" in run else float(run["curve"][-1][1])


def _mean(switch: str, runs: list[Result], value_of: Callable[[Result], float]) -> Ours:
    failed = any("error" in run for run in runs)
    value = float("nan") if failed else float(np.mean([value_of(run) for run in runs]))
    minutes = float("nan") if failed else float(np.median([run["seconds"] for run in runs])) / 60
    return Ours(switch, value, max(run["steps"] for run in runs), minutes, len(runs))


def write_section() -> None:
    """Between the marks in docs/learning.md."""
    suite, learned = records.read("robustness"), records.read("learning")
    table = [(row, ours(row, suite, learned)) for row in ROWS]
    run = [(row, sides[0]) for row, sides in table if sides]
    met = sum(side.verdict(row) == MET for row, side in run)
    count = (
        f"{met} of {len(run)} rows at or above the published return with no more steps; {len(ROWS) - len(run)} not run."
    )
    columns = "task | published | by | steps | RecuRL | steps | minutes | seeds | | with other settings"
    sources = [f"- {name}: {text}." for name, text in SOURCES.items()]
    lines = [count, "", *records.table(columns, [_row(*each) for each in table]), "", *sources, ""]
    records.write_between("learning", "published", ["", *lines, records.processors(suite), ""])


def _row(row: Published, sides: list[Ours]) -> list[object]:
    theirs = [row.task, f"{row.value:g}", f"{row.who} ({row.source})", f"{row.steps:,}"]
    if not sides:
        return [*theirs, "not run", "", "", "", "", ""]
    first, *others = sides
    switch = "" if first.switch == robustness.DEFAULT else f" ({first.switch})"
    tried = [] if first.verdict(row) == MET else [f"{each.switch} {each.value:.4g} ({each.seeds})" for each in others]
    own = [f"{first.value:.4g}{switch}", f"{first.steps:,}", f"{first.minutes:.1f}", first.seeds]
    return [*theirs, *own, first.verdict(row), ", ".join(tried)]


if __name__ == "__main__":
    write_section()
