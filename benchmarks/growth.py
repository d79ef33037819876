"""How peak memory and time of an iteration grow with what a user may turn up, one factor at a time.

    python benchmarks/growth.py --quick              few points, a minute or two
    python benchmarks/growth.py --docs docs          all of it, into docs/growth.md, .png and docs/results/growth.json
    python benchmarks/growth.py --factors hidden     one factor

Every point runs in a process of its own, so that its peak memory is its own; what a tiny run takes, libraries and all,
is subtracted. A cliff is a step between neighboring points in which a figure per unit (an environment step, a squared
hidden size: what the factor should cost) gets more than 1.5 times worse, or also better where it should not depend on
the factor.
"""

import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from measuring import Sb3Contender, described, environment_of_measurement, use_threads
from records import save_plot, subplots

OURS, THEIRS = "RecuRL", "sb3-contrib"
CLIFF = 1.5
RESOLUTION = 8.0  # MiB: two runs of the same differ by as much
MEASURES = {
    "collecting": "collecting, µs per step",
    "training": "training, µs per step and epoch",
    "memory": "peak memory, MiB",
}


@dataclass(frozen=True)
class Settings:
    """Growth of memory and time."""

    quick: bool = False
    """Few points of each factor, and one iteration of each."""
    factors: tuple[Literal["n_envs", "sequence_length", "hidden", "episode", "n_steps"], ...] = ()
    """Only these factors; none for all."""
    iterations: Annotated[int, tyro.conf.arg(help_behavior_hint="default 3, with --quick 1")] = 0
    """Iterations timed at each point, after one that is not; 0 for the default."""
    threads: int = 1
    """Threads of torch and of NumPy's products."""
    docs: pathlib.Path | None = None
    """Folder to write growth.md, growth.png and results/growth.json into; factors measured before are kept."""
    point: str = ""
    """One point, as JSON: measure it in this process and print its figures. How the study runs each."""


@dataclass(frozen=True)
class Point:
    """One run: CartPole without velocities, episodes of exactly ``episode`` steps, an LSTM for actor and for critic."""

    contender: str = OURS
    n_envs: int = 8
    n_steps: int = 128
    sequence_length: int = 128
    batch_size: int = 256
    hidden: int = 64
    episode: int = 100
    n_epochs: int = 2

    @property
    def rollout(self) -> int:
        """Environment steps of one iteration."""
        return self.n_envs * self.n_steps


class Growth(NamedTuple):
    """What a figure should be proportional to, as a power of the factor, and whether it may fall faster than that."""

    power: float
    may_fall: bool = True


@dataclass(frozen=True)
class Factor:
    """A factor, the points along it, and how time per step and memory should grow. ``quick``: the points of a trial."""

    name: str
    title: str
    points: dict[int, Point]
    quick: tuple[int, ...]
    time: Growth
    memory: Growth
    contenders: tuple[str, ...] = (OURS,)

    def growth(self, measure: str) -> Growth:
        return self.memory if measure == "memory" else self.time


BASE = Point()
LONG = Point(n_steps=2048, batch_size=4096)
WIDE = Point(hidden=256, batch_size=1024, n_epochs=1)
SMALLEST = Point(n_envs=1, n_steps=16, sequence_length=16, batch_size=16, hidden=8, episode=10)
FLAT = Growth(0, may_fall=False)  # a figure that should not depend on the factor, neither way

FACTORS = [
    Factor(
        "n_envs",
        "number of environments",
        {n: replace(BASE, n_envs=n, batch_size=32 * n) for n in (8, 32, 128, 512, 1024)},
        (8, 128, 1024),
        time=Growth(0),
        memory=Growth(1),
    ),
    Factor(
        "sequence_length",
        "sequence length",
        {length: replace(LONG, sequence_length=length) for length in (16, 32, 64, 128, 256, 512, 1024, 2048)},
        (16, 256, 2048),
        time=FLAT,
        memory=FLAT,
    ),
    Factor(
        "hidden",
        "hidden size",
        {size: replace(BASE, hidden=size) for size in (32, 64, 128, 256, 512, 1024)},
        (32, 128, 512),
        time=Growth(2),
        memory=Growth(2),
    ),
    Factor(
        "episode",
        "episode length",
        {
            length: replace(LONG, n_steps=1024, sequence_length=1024, batch_size=2048, episode=length)
            for length in (10, 30, 100, 300, 1000)
        },
        (10, 100, 1000),
        time=FLAT,
        memory=FLAT,
    ),
    Factor(
        "n_steps",
        "steps of a rollout",
        {steps: replace(WIDE, n_steps=steps) for steps in (128, 512, 2048, 8192)},
        (128, 512),
        time=Growth(0),
        memory=Growth(1),
        contenders=(OURS, THEIRS),
    ),
]


def main(settings: Settings) -> None:
    iterations = settings.iterations or (1 if settings.quick else 3)
    if settings.point:
        print(json.dumps(measure(Point(**json.loads(settings.point)), iterations, settings.threads)))
        return
    kept_file = None if settings.docs is None else settings.docs / "results" / "growth.json"
    results: dict[str, Any] = json.loads(kept_file.read_text()) if kept_file is not None and kept_file.exists() else {}
    for factor in FACTORS:
        if settings.factors and factor.name not in settings.factors:
            continue
        print(f"\n{factor.title}")
        rows = list(study(factor, settings.quick, iterations, settings.threads))
        results[factor.name] = {"rows": rows, "measured": environment_of_measurement(settings.threads)}
        if settings.docs is not None:
            write_docs(results, settings.docs)
    for line in cliffs(results):
        print(line)


def study(factor: Factor, quick: bool, iterations: int, threads: int) -> Iterator[dict[str, Any]]:
    """A row for every point of a factor: value, contender, and its figures or the error that it ended with."""
    for contender in factor.contenders:
        floor = in_own_process(replace(SMALLEST, contender=contender), 1, threads)
        for value, point in factor.points.items():
            if quick and value not in factor.quick:
                continue
            row: dict[str, Any] = {"contender": contender, "value": value}
            try:
                row |= in_own_process(replace(point, contender=contender), iterations, threads)
                row["memory"] -= floor["memory"]
            except RuntimeError as error:
                row["error"] = str(error)
            print(f"  {contender:12}{value:6}  {_figures(row)}", flush=True)
            yield row


def in_own_process(point: Point, iterations: int, threads: int) -> dict[str, float]:
    """The figures of a point. Raises RuntimeError with the last line of the process's errors, if it failed."""
    words = ["--iterations", str(iterations), "--threads", str(threads), "--point", json.dumps(asdict(point))]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "killed").splitlines()[-1]
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(point: Point, iterations: int, threads: int) -> dict[str, float]:
    """Medians of iterations, in microseconds per environment step (and epoch, where it trains); peak memory in MiB."""
    use_threads(threads)
    contender = Sb3Contender(model_of(point))
    contender.iterate(1)
    taken = [contender.iterate(1) for _ in range(iterations)]
    return {
        "collecting": 1e6 * statistics.median(each.collecting for each in taken) / point.rollout,
        "training": 1e6 * statistics.median(each.training for each in taken) / point.rollout / point.n_epochs,
        "memory": peak_memory(),
    }


def model_of(point: Point) -> Any:
    """The agent of a point, with a learning rate of 0: all is computed and no weight moves."""
    import sb3_contrib
    from cases import ENDLESS

    import agents
    import envs

    env = envs.make(ENDLESS, point.n_envs, seed=0, env_kwargs={"max_episode_steps": point.episode})
    settings: dict[str, Any] = dict(
        learning_rate=0.0,
        n_steps=point.n_steps,
        batch_size=point.batch_size,
        n_epochs=point.n_epochs,
        policy_kwargs=dict(lstm_hidden_size=point.hidden),
        seed=0,
        device="cpu",
    )
    if point.contender == OURS:
        return agents.RecurrentPPO("MlpLstmPolicy", env, sequence_length=point.sequence_length, **settings)
    return sb3_contrib.RecurrentPPO("MlpLstmPolicy", env, **settings)


def peak_memory() -> float:
    """MiB that this process has used at most."""
    status = pathlib.Path("/proc/self/status")
    # getrusage would start with the parent's memory at the start of this process.
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found is not None:
        return int(found[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Step(NamedTuple):
    """From one point to its neighbor: the slope of a figure in log-log, and how much worse it got per unit."""

    slope: float
    worse: float


def steps(factor: Factor, rows: list[dict[str, Any]], measure: str) -> list[Step | None]:
    """One entry a row: the step that leads to it from the row before; None where either was not measured."""
    growth = factor.growth(measure)
    found: list[Step | None] = [None] * len(rows)
    for i, (before, after) in enumerate(pairwise(rows), start=1):
        if "error" in before or "error" in after:
            continue
        figures = (before[measure], after[measure])
        low, high = (max(each, RESOLUTION) for each in figures) if measure == "memory" else figures
        grown, wider = high / low, after["value"] / before["value"]
        worse = grown / wider**growth.power
        found[i] = Step(math.log(grown) / math.log(wider), worse if growth.may_fall else max(worse, 1 / worse))
    return found


def cliffs(results: dict[str, Any]) -> list[str]:
    """What grows faster than it should, in words; one line if nothing does."""
    lines = []
    for factor in FACTORS:
        for contender, rows in by_contender(results.get(factor.name, {"rows": []})):
            for name in MEASURES:
                for i, step in enumerate(steps(factor, rows, name)):
                    if step is not None and step.worse > CLIFF:
                        (low, before), (high, after) = ((row["value"], row[name]) for row in rows[i - 1 : i + 1])
                        lines.append(
                            f"Cliff: {contender}, {name}, {factor.title} {low} to {high}: {before:.4g} to {after:.4g}, "
                            f"{step.worse:.1f} times {'worse' if after > before else 'better'} per unit."
                        )
            lines += [
                f"{contender}, {factor.title} {row['value']}: not measured, {row['error']}"
                for row in rows
                if "error" in row
            ]
    return lines or ["No cliff: no figure per unit gets more than 1.5 times worse between neighbors."]


def by_contender(result: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    names = dict.fromkeys(row["contender"] for row in result["rows"])
    return [(name, [row for row in result["rows"] if row["contender"] == name]) for name in names]


def _figures(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"not measured: {row['error']}"
    return "".join(f"{title.split(',')[0]} {row[name]:9.1f}  " for name, title in MEASURES.items())


def write_docs(results: dict[str, Any], docs: pathlib.Path) -> None:
    """growth.md, growth.png and results/growth.json."""
    (docs / "results").mkdir(parents=True, exist_ok=True)
    ordered = {factor.name: results[factor.name] for factor in FACTORS if factor.name in results}
    (docs / "results" / "growth.json").write_text(json.dumps(ordered, indent=1) + "\n")
    (docs / "growth.md").write_text(page(ordered))
    plot(ordered, docs / "growth.png")


PAGE = """# Growth

{measured}

    python benchmarks/growth.py --docs docs

What an iteration of `RecurrentPPO` takes (`MlpLstmPolicy` with its defaults: an LSTM for the actor and one
for the critic) as one size is turned up and the others stay. The environment is CartPole without velocities,
in NumPy, whose pole cannot fall: episodes have exactly the length given and end one environment after the
other. Every point is measured in a separate process; memory is the peak of the process less that of a tiny run,
time the median over iterations. Collecting is per environment step, training per step and epoch.

*Slope* is that between a point and the one before it on logarithmic axes: 0 is flat, 1 proportional, 2
quadratic. A figure in **bold** got more than 1.5 times worse per unit than at the point before, or better
by as much if it should be flat: a cliff.

{cliffs}

![Growth](growth.png)

"""


def page(results: dict[str, Any]) -> str:
    measured = described(next(iter(results.values()))["measured"])
    text = PAGE.format(measured=measured, cliffs="\n".join(f"- {line}" for line in cliffs(results)))
    lines = [line for factor in FACTORS if factor.name in results for line in _table(factor, results[factor.name])]
    return text + "\n".join(lines) + "\n"


def _table(factor: Factor, result: dict[str, Any]) -> list[str]:
    first = next(iter(factor.points.values()))
    shown = {name: value for name, value in asdict(first).items() if name not in ("contender", factor.name)}
    if len({point.batch_size for point in factor.points.values()}) > 1:
        del shown["batch_size"]
        shown["minibatches"] = first.rollout // first.batch_size
    lines = [
        f"## {factor.title.capitalize()}",
        "",
        "With " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items()) + ". "
        f"Expected slopes: time per step {factor.time.power:g}, memory {factor.memory.power:g}"
        + (" at most." if factor.time.may_fall else ", neither up nor down."),
        "",
    ]
    for contender, rows in by_contender(result):
        lines += [
            f"| {contender}, {factor.title} | " + " | ".join(f"{title} | slope" for title in MEASURES.values()) + " |",
            "|---" * (1 + 2 * len(MEASURES)) + "|",
        ]
        ways = {name: steps(factor, rows, name) for name in MEASURES}
        for i, row in enumerate(rows):
            if "error" in row:
                lines.append(f"| {row['value']} | not measured: {row['error']}" + " |" * (2 * len(MEASURES)))
                continue
            cells = []
            for name, way in ways.items():
                step, figure = way[i], f"{row[name]:,.1f}"
                cells.append(f"**{figure}**" if step is not None and step.worse > CLIFF else figure)
                cells.append("" if step is None else f"{step.slope:.2f}")
            lines.append(f"| {row['value']} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """A column for each factor, a row for each figure; logarithmic axes, cliffs ringed."""
    shown = [factor for factor in FACTORS if factor.name in results]
    figure, axes = subplots(len(MEASURES), len(shown), 3.3, 2.6)
    for axes_of_factor, factor in zip(axes.T, shown, strict=True):
        for axis, (name, title) in zip(axes_of_factor, MEASURES.items(), strict=True):
            _panel(axis, factor, results[factor.name], name)
            if axis.get_subplotspec().is_first_col():
                axis.set_ylabel(title, fontsize=9)
        axes_of_factor[0].set_title(factor.title, fontsize=10)
        axes_of_factor[-1].set_xlabel(factor.title, fontsize=9)
    figure.text(0.5, 0.005, "dotted: the expected slope; ringed: a cliff", ha="center", fontsize=9)
    save_plot(figure, path, rect=(0, 0.02, 1, 1))


def _panel(axis: Any, factor: Factor, result: dict[str, Any], name: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set(xscale="log", yscale="log")
    lowest, highest = math.inf, 0.0
    for contender, rows in by_contender(result):
        there = [row for row in rows if "error" not in row]
        if not there:
            continue
        # A process that peaks no higher than the tiny run has no place on a logarithmic axis.
        values, figures = [row["value"] for row in there], [max(row[name], 0.1) for row in there]
        color = "#c44e52" if contender == OURS else "#8c96a3"
        axis.plot(values, figures, "o-", color=color, markersize=4, linewidth=1.6, label=contender)
        expected = [figures[-1] * (value / values[-1]) ** factor.growth(name).power for value in values]
        axis.plot(values, expected, ":", color=color, linewidth=1)
        fallen = [i for i, step in enumerate(steps(factor, there, name)) if step is not None and step.worse > CLIFF]
        axis.plot([values[i] for i in fallen], [figures[i] for i in fallen], "o", color="black", mfc="none", ms=11)
        lowest, highest = min(lowest, *figures), max(highest, *figures)
    if highest:
        # Flat lines look flat: at least a decade is shown.
        margin = max(1.3, math.sqrt(10 * lowest / highest))
        axis.set_ylim(lowest / margin, highest * margin)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.xaxis.set(major_locator=FixedLocator(sorted({row["value"] for row in result["rows"]})), major_formatter=plain)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=plain, minor_formatter=NullFormatter())
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25, which="both", axis="y")
    if len(by_contender(result)) > 1:
        axis.legend(fontsize=7, loc="center right")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
