"""What burn-in and refresh buy: how stale the states of short training sequences get, and what comes of it.

    python benchmarks/stale_states.py                    all runs that have no result yet, then the page
    python benchmarks/stale_states.py --only tmaze       those whose name contains this
    python benchmarks/stale_states.py --steps 10000      a trial whose results are printed, not kept
    python benchmarks/stale_states.py --report           the page of what there is

A run's result is appended to docs/results/stale_states.jsonl when the run ends, so a benchmark that was killed goes on
with the next; deleting a line repeats its run. The tasks are those of configs/, with rollouts of 128 steps cut into
sequences of 16 and ten epochs an update. Two kinds of runs:

- *states/task/way/seed*: through a short training, before and after the last epoch of every update, what learning
  starts its sequences from against what the weights at that moment give from the rollout's start on; and CPU seconds
  an update.
- *return/task/way/seed*: ``train.py``, then 300 episodes of the best checkpoint by periodic evaluation.

Axes: C stretches of a rollout, B environments, L steps of a sequence, S seeds, E episodes.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # from a checkout, installed or not

import learning  # noqa: E402
import records  # noqa: E402
from learning import interval, mean  # noqa: E402
from records import Run  # noqa: E402

DOCS = ROOT / "docs"
RESULTS = DOCS / "results" / "stale_states.jsonl"
MEASURED_STEPS = 60_000
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Settings(records.Settings):
    """What burn-in and refresh buy."""


class Task(NamedTuple):
    """A task whose episodes reach over the starts of sequences. ``config`` is a file of configs/."""

    name: str
    title: str
    config: str
    kwargs: dict[str, int]
    steps: int


TASKS = [
    Task("tmaze", "T-maze, length 10", "tmaze", dict(length=10), 300_000),
    Task("repeat", "RepeatPrevious, k = 4", "repeat_previous", dict(k=4), 600_000),
]

WAYS: dict[str, list[str]] = {
    "none": [],
    "burn_in 8": ["--algorithm.burn-in", "8"],
    "refresh": ["--algorithm.refresh-states"],
    "refresh, burn_in 8": ["--algorithm.refresh-states", "--algorithm.burn-in", "8"],
}


def main(settings: Settings) -> None:
    records.run_all(settings, all_runs, RESULTS, _said, write_docs)


def all_runs(settings: Settings) -> list[Run]:
    """Seed by seed, so that a first seed of everything is there early."""
    return [
        Run(f"{kind}/{task.name}/{way}/{seed}", start(task, way, seed))
        for seed in range(settings.seeds)
        for kind, start in (("states", _states_run), ("return", _return_run))
        for task in TASKS
        for way in WAYS
    ]


def _said(result: dict[str, Any]) -> str:
    if "returns" in result:
        said = f"{np.mean(result['returns']):.3f} after {result['steps']} steps, {result['seconds']:.0f} s"
    else:
        said = f"distance {np.mean(result['distance']):.3g}, ratio off by {np.mean(result['ratio']):.3g}"
        said += f", {1e3 * result['update']:.0f} ms an update"
    return f"{result['name']}: {said}"


# Runs


def words(task: Task, way: str, seed: int) -> list[str]:
    """The command line of ``train.py``: the task's settings, but for short sequences and many epochs."""
    return [
        *("--config", task.config, "--seed", str(seed), "--threads", "1"),
        *("--total-timesteps", str(task.steps)),
        *("--env.kwargs", *(f"{name}={value}" for name, value in task.kwargs.items())),
        *("--algorithm.n-steps", "128", "--algorithm.sequence-length", "16", "--algorithm.n-epochs", "10"),
        *WAYS[way],
    ]


def _return_run(task: Task, way: str, seed: int) -> Callable[[int], dict[str, Any]]:
    return lambda steps: learning.trained(words(task, way, seed), steps)


def _states_run(task: Task, way: str, seed: int) -> Callable[[int], dict[str, Any]]:
    """Figures of the weights that the last epoch of each update starts and ends with; CPU seconds of an update."""

    def start(steps: int) -> dict[str, Any]:
        import torch

        import configs
        from agents import RecurrentPPO
        from agents.runs.construction import ALGORITHMS, make_agent, make_environments
        from agents.runs.normalization import normalize

        class Measured(RecurrentPPO):
            """Compares the states that learning starts from with exact ones, and leaves learning as it is."""

            def _setup_model(self) -> None:
                super()._setup_model()
                self.figures: list[tuple[float, float, float]] = []
                self.updates: list[float] = []

            def train(self) -> None:
                self._epoch, self._measuring = 0, 0.0
                began = time.process_time()
                super().train()
                self.updates.append(time.process_time() - began - self._measuring)

            def _train_epoch(self, history: Any, auxiliary: Any) -> bool:
                self._epoch += 1
                measured = self._epoch == self.n_epochs
                if measured:
                    self._measure()
                goes_on = super()._train_epoch(history, auxiliary)
                if measured:
                    self._measure()
                return goes_on

            def _measure(self) -> None:
                began = time.process_time()
                self.figures.append(staleness(self))
                self._measuring += time.process_time() - began

        ALGORITHMS["measured"] = Measured
        torch.set_num_threads(1)
        settings = configs.parse(words(task, way, seed)).settings
        env = normalize(make_environments(settings, settings.env.n_envs, settings.seed))
        algorithm = {**vars(settings.algorithm), "name": "measured"}
        agent: Any = make_agent(env, algorithm, vars(settings.policy).copy(), seed=settings.seed, device="cpu")
        agent.learn(steps or MEASURED_STEPS)
        env.close()
        distance, ratio, kl = zip(*agent.figures, strict=True)
        return dict(distance=distance, ratio=ratio, kl=kl, update=statistics.median(agent.updates[1:] or agent.updates))

    return start


def staleness(agent: Any) -> tuple[float, float, float]:
    """Of all sequences that go on with an episode: how far the states that learning would start from are from those of
    the weights as they are, in parts of the latter's length; how far the probability ratio is off on average over
    their steps; and the mean divergence of the policy as computed from the true one."""
    import torch

    buffer, policy = agent.rollout_buffer, agent.policy
    first_steps = range(0, buffer.buffer_size, buffer.sequence_length)
    with torch.no_grad():
        (batch,) = buffer.get(None)  # (L, C * B), stretch after stretch
        used = agent._state_before(batch)
        before = tuple(part[0] for part in buffer.states)
        exact = policy.states_along(buffer.observations, before, buffer.episode_starts, first_steps)
        exact = tuple(part.flatten(0, 1) for part in exact)
        goes_on = ~batch.episode_starts[0]
        goes_on[: buffer.n_envs] = False  # what a rollout starts from is given
        by_state = [
            policy.evaluate_actions(batch.observations, batch.actions, state, batch.episode_starts)[1][:, goes_on]
            for state in (used, exact)
        ]
    difference = (by_state[0] - by_state[1]).double()
    off = sum(float((one - other)[goes_on].square().sum()) for one, other in zip(used, exact, strict=True))
    length = sum(float(part[goes_on].square().sum()) for part in exact)
    return (
        (off / length) ** 0.5,
        float(difference.expm1().abs().mean()),
        float((difference.expm1() - difference).mean()),
    )


# The page


def write_docs(found: list[dict[str, Any]]) -> None:
    lines = [
        "# Stale states",
        "",
        "    python benchmarks/stale_states.py",
        "",
        "Training sequences shorter than the rollout start from states that the acting policy left. With every step of",
        "the optimizer they are less those of the weights that learn from them. `burn_in=8` takes each kept state",
        "through the eight steps before its sequence with the weights as they are; `refresh_states=True` computes all",
        "states anew from the rollout's start before every epoch but the first.",
        "",
        "The tasks have the settings in `configs/`, but rollouts of 128 steps in sequences of 16, and ten epochs: what",
        "stales states most. Measured before and after the last epoch of every update, on sequences that go on with an",
        "episode, against states computed from the rollout's start with the same weights: *distance*, in parts of the",
        "length of the true state; *ratio*, by how much the probability ratio of a step is off on average; *KL*, the",
        "mean divergence that stale states alone bring. Milliseconds are CPU time of an update, medians over seeds.",
        "*Return* is the mean of the best checkpoint over 300 episodes a seed. Intervals are 95 % bootstrap intervals:",
        "seeds are drawn, then updates or episodes of each.",
        "",
        "| task | way | distance | ratio | KL | ms | seeds | return | interval |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(task, way, found) for task in TASKS for way in WAYS if _of(found, "states", task, way)),
    ]
    DOCS.mkdir(exist_ok=True)
    (DOCS / "stale_states.md").write_text("\n".join(lines) + "\n")


def _of(found: list[dict[str, Any]], kind: str, task: Task, way: str) -> list[dict[str, Any]]:
    return learning.of(found, f"{kind}/{task.name}/{way}")


def _row(task: Task, way: str, found: list[dict[str, Any]]) -> str:
    measured, trained = _of(found, "states", task, way), _of(found, "return", task, way)
    figures = " | ".join(_span([run[name] for run in measured], ".2g") for name in ("distance", "ratio", "kl"))
    update = 1e3 * statistics.median(run["update"] for run in measured)
    returns = "- | -"
    if trained:
        values: Values = np.array([run["returns"] for run in trained])
        low, high = interval(values, mean)
        returns = f"{values.mean():.3f} | {low:.3g} to {high:.3g}"
    return f"| {task.title} | {way} | {figures} | {update:.0f} | {len(trained)} | {returns} |"


def _span(rows: list[list[float]], form: str) -> str:
    values: Values = np.array(rows)  # (S, updates)
    low, high = interval(values, mean)
    return f"{values.mean():{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
