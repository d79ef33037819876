"""Where each millisecond of an iteration goes: ours, on one of the cases of the speed benchmark.

    python benchmarks/iteration.py                                   the cases of docs/performance.md
    python benchmarks/iteration.py --only "64 units, detached, early"
    python benchmarks/iteration.py --write-docs                      the tables in docs/performance.md

Functions on the way are timed from outside, each without the time of those called within it, so that the parts add up
to the whole; what is not named is in *between*. A time is the median over iterations. Timing costs a microsecond or
two for each call, most of all in collecting.
"""

import os
import pathlib
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
MARK = "<!-- iteration.py: {} -->"
CASES = (
    "8 environments, 64 units, separate, early",
    "8 environments, 64 units, detached, early",
    "8 environments, 256 units, separate, late",
)


@dataclass(frozen=True)
class Settings:
    """Where each millisecond of an iteration goes."""

    only: str = ""
    """Cases of benchmarks/speed.py whose name contains this, in place of those of the page."""
    iterations: int = 20
    """Iterations that the medians are over."""
    threads: int = 1
    """Threads of torch and of NumPy's products."""
    write_docs: bool = False
    """Put the tables into docs/performance.md."""


class Clock:
    """Adds up what named parts take, each without the parts within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                self.seconds[name] += taken - self._within.pop()
                self._within[-1] += taken

        return run

    def time(self, owner: Any, function: str, name: str) -> None:
        """Puts the timed function in the place of the other."""
        setattr(owner, function, self.timed(name, getattr(owner, function)))


def main(settings: Settings) -> None:
    # NumPy and torch read these when they are imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(settings.threads)
    sys.path.insert(0, str(ROOT))  # from a checkout, installed or not
    import torch
    from cases import all_cases
    from report import environment_of_measurement

    torch.set_num_threads(settings.threads)
    watch = Clock()
    watch_modules(watch)
    lines = []
    for case in all_cases():
        if settings.only not in case.name if settings.only else case.name not in CASES:
            continue
        seconds = measure(case, watch, settings.iterations)
        lines += ["", f"### {case.name}", "", *table(seconds, case.rollout)]
    print("\n".join(lines))
    if settings.write_docs:
        said = environment_of_measurement(settings.threads)
        write([", ".join(f"{name} {value}" for name, value in said.items()) + ".", *lines])


def watch_modules(watch: Clock) -> None:
    """Parts that are functions and methods of classes."""
    import agents.algorithms.on_policy
    import agents.rollout.numpy_actor
    from agents.algorithms import ppo
    from agents.kernels import heads, recurrent
    from agents.rollout.buffer import SequenceRolloutBuffer

    actor: Any = agents.rollout.numpy_actor.NumpyActor
    watch.time(agents.algorithms.on_policy, "make_actor", "collecting: building the acting step")
    watch.time(actor, "__init__", "collecting: building the acting step")
    watch.time(actor, "act", "collecting: acting, between")
    for name in ("add_observations", "add_actions", "add_rewards"):
        watch.time(SequenceRolloutBuffer, name, "collecting: buffer")
    watch.time(SequenceRolloutBuffer, "compute_returns_and_advantage", "collecting: advantages")
    watch.time(SequenceRolloutBuffer, "_batch", "training: taking minibatches")
    watch.time(ppo, "ppo_objective", "training: objective")
    watch.time(heads, "categorical", "training: log-probabilities")
    watch.time(heads, "perceptron", "training: heads, forward")
    for owner, name in ((heads._Perceptron, "heads"), (heads._Categorical, "log-probabilities")):
        owner.backward = staticmethod(watch.timed(f"training: {name}, backward", owner.backward))
    heads._ClippedObjective.backward = staticmethod(  # type: ignore[method-assign]
        watch.timed("training: objective, backward", heads._ClippedObjective.backward)
    )
    watch.time(recurrent, "_call", "training: memory, over time")
    for direction in ("forward", "backward"):
        name = f"training: memory, products before and after, {direction}"
        function = watch.timed(name, getattr(recurrent._Layers, direction))
        setattr(recurrent._Layers, direction, staticmethod(function))
    watch.time(ppo, "clip_gradients", "training: clipping")
    watch.time(ppo.AdamStep, "__call__", "training: Adam")


def measure(case: Any, watch: Clock, n_iterations: int) -> dict[str, float]:
    """Medians over iterations, by part."""
    import torch
    from cases import fast_env
    from contenders import recurl

    contender: Any = recurl(case, fast_env(case))
    model = contender._model
    watch.time(model, "collect_rollouts", "collecting: between")
    watch.time(model, "train", "training: between")
    watch.time(model.policy, "evaluate_actions", "training: between")
    env = model.env
    watch.time(env, "step_wait", "collecting: environment")
    backward = torch.Tensor.backward
    torch.Tensor.backward = watch.timed("training: autograd", backward)  # type: ignore[assignment]
    actor = watch_steps(watch)
    try:
        contender.iterate(2)
        taken = []
        for _ in range(n_iterations):
            watch.seconds.clear()
            contender.iterate(1)
            taken.append(dict(watch.seconds))
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
        actor()
    names = {name for one in taken for name in one}
    return {name: statistics.median(one.get(name, 0.0) for one in taken) for name in names}


def watch_steps(watch: Clock) -> Callable[[], None]:
    """Parts of an acting step, which are made anew for every rollout. Returns what undoes it."""
    import agents.rollout.numpy_actor as acting

    makers = {"_layers_of": "heads", "_sampler_of": "sampling"}
    before = {name: getattr(acting, name) for name in makers}
    for name, part in makers.items():
        made = before[name]
        setattr(acting, name, lambda *args, made=made, part=part: watch.timed(f"collecting: {part}", made(*args)))
    return lambda: [setattr(acting, name, made) for name, made in before.items()] and None


def table(seconds: dict[str, float], rollout: int) -> list[str]:
    """Markdown: milliseconds and shares, the largest first within collecting and training."""
    whole = sum(seconds.values())
    lines = ["| part | ms | share |", "|---|---|---|"]
    for phase in ("collecting", "training"):
        parts = {name: taken for name, taken in seconds.items() if name.startswith(phase)}
        total = sum(parts.values())
        lines.append(f"| **{phase}** | **{1e3 * total:.1f}** | **{total / whole:.0%}** |")
        for name, taken in sorted(parts.items(), key=lambda item: -item[1]):
            lines.append(f"| {name.removeprefix(phase + ': ')} | {1e3 * taken:.2f} | {taken / whole:.1%} |")
    lines.append(f"| **whole** | **{1e3 * whole:.1f}** | {rollout / whole:,.0f} steps/s |")
    return lines


def write(lines: list[str]) -> None:
    """Between the marks of the page; all else in it is written by hand."""
    text = PAGE.read_text()
    first, last = MARK.format("begin"), MARK.format("end")
    head, _, rest = text.partition(first)
    _, _, tail = rest.partition(last)
    PAGE.write_text("\n".join([head + first, *lines, "", last + tail]))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
