"""What burn-in and refresh buy: how stale the states of short training sequences get, and what comes of it.

    python benchmarks/stale_states.py                    all runs that have no result yet, then the page
    python benchmarks/stale_states.py --only tmaze       those whose name contains this
    python benchmarks/stale_states.py --steps 10000      a trial whose results are printed, not kept
    python benchmarks/stale_states.py --report           the page of what there is

The tasks are those of configs/, with rollouts of 128 steps, sequences of 16 and ten epochs an update. Two kinds of
runs:

- *states/task/variant/seed*: through a short training, before and after the last epoch of every update, the states
  that learning starts its sequences from against those that the present weights give from the rollout's start on; and
  CPU seconds an update.
- *return/task/variant/seed*: ``train.py``, then 300 episodes of the last policy and of the best checkpoint by periodic
  evaluation.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import records
import tyro
from measuring import processor
from records import Result, Run

MEASURED_STEPS = 60_000


@dataclass(frozen=True)
class Settings(records.Settings):
    """What burn-in and refresh buy."""

    seeds: int = 10
    """Seeds of every task and variant."""


class Task(NamedTuple):
    """A task whose episodes span the starts of sequences. ``config`` is a file of configs/."""

    name: str
    title: str
    config: str
    kwargs: dict[str, int]
    steps: int


TASKS = [
    Task("tmaze", "T-maze, length 10", "tmaze", dict(length=10), 300_000),
    Task("repeat", "RepeatPrevious, k = 4", "repeat_previous", dict(k=4), 600_000),
]

BOTH = ("last", "returns")
"""Of a result: the returns of the last policy and of the best checkpoint."""

VARIANTS: dict[str, list[str]] = {
    "none": [],
    "burn_in 8": ["--algorithm.burn-in", "8"],
    "refresh": ["--algorithm.refresh-states"],
    "refresh, burn_in 8": ["--algorithm.refresh-states", "--algorithm.burn-in", "8"],
}


def main(settings: Settings) -> None:
    records.run_all(settings, "stale_states", all_runs(settings), summary, write_docs)


def all_runs(settings: records.Settings) -> list[Run]:
    """Seed by seed, so that a first seed of everything is there early."""
    return [
        Run(f"{kind}/{task.name}/{variant}/{seed}", start(task, variant, seed))
        for seed in range(settings.seeds)
        for kind, start in (("states", _states_run), ("return", _return_run))
        for task in TASKS
        for variant in VARIANTS
    ]


def summary(result: Result) -> str:
    if "last" in result:
        return f"{np.mean(result['last']):.3f} after {result['steps']} steps, {result['seconds']:.0f} s"
    distance, ratio = np.mean(result["distance"]), np.mean(result["ratio"])
    return f"distance {distance:.3g}, ratio off by {ratio:.3g}, {1e3 * result['update']:.0f} ms an update"


def words(task: Task, variant: str, seed: int) -> list[str]:
    """The command line of ``train.py``: the task's settings, but for short sequences and many epochs."""
    return [
        *("--config", task.config, "--seed", str(seed), "--threads", "1"),
        *("--total-timesteps", str(task.steps)),
        *("--env.kwargs", *(f"{name}={value}" for name, value in task.kwargs.items())),
        *("--algorithm.n-steps", "128", "--algorithm.sequence-length", "16", "--algorithm.n-epochs", "10"),
        *VARIANTS[variant],
    ]


def _return_run(task: Task, variant: str, seed: int) -> Callable[[int], Result]:
    return lambda steps: {**records.trained(words(task, variant, seed), steps), "cpu": processor()}


def _states_run(task: Task, variant: str, seed: int) -> Callable[[int], Result]:
    """Figures of the weights that the last epoch of each update starts and ends with; CPU seconds of an update."""

    def start(steps: int) -> Result:
        import torch

        from agents import RecurrentPPO

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
                continues = super()._train_epoch(history, auxiliary)
                if measured:
                    self._measure()
                return continues

            def _measure(self) -> None:
                began = time.process_time()
                self.figures.append(staleness(self))
                self._measuring += time.process_time() - began

        torch.set_num_threads(1)
        agent, _ = records.agent_of(words(task, variant, seed), Measured)
        agent.learn(steps or MEASURED_STEPS)
        agent.env.close()
        distance, ratio, kl = zip(*agent.figures, strict=True)
        update = statistics.median(agent.updates[1:] or agent.updates)
        return dict(distance=distance, ratio=ratio, kl=kl, update=update, cpu=processor())

    return start


def staleness(agent: Any) -> tuple[float, float, float]:
    """Of all sequences that continue an episode: the distance of the states that learning would start from to those of
    the present weights, relative to the norm of the latter; the mean error of the probability ratio over their steps;
    and the mean KL divergence that stale states alone bring."""
    import torch

    buffer, policy = agent.rollout_buffer, agent.policy
    first_steps = range(0, buffer.buffer_size, buffer.sequence_length)
    with torch.no_grad():
        (batch,) = buffer.get(None)  # (L, S), the sequences of all environments by time
        used = agent.state_before(batch)
        before = tuple(part[0] for part in buffer.states)
        exact = policy.states_along(buffer.observations, before, buffer.episode_starts, first_steps)
        exact = tuple(part.flatten(0, 1) for part in exact)
        continues = ~batch.episode_starts[0]
        continues[: buffer.n_envs] = False  # a rollout starts from exact states
        by_state = [
            policy.evaluate_actions(batch.observations, batch.actions, state, batch.episode_starts)[1][:, continues]
            for state in (used, exact)
        ]
    difference = (by_state[0] - by_state[1]).double()
    off = sum(float((one - other)[continues].square().sum()) for one, other in zip(used, exact, strict=True))
    length = sum(float(part[continues].square().sum()) for part in exact)
    return (
        (off / length) ** 0.5,
        float(difference.expm1().abs().mean()),
        float((difference.expm1() - difference).mean()),
    )


PAGE = """# Stale states

    python benchmarks/stale_states.py

Training sequences shorter than the rollout start from states that the acting policy computed. With every step of
the optimizer they differ more from those of the weights that learn from them. `burn_in=8` computes each stored state
from the eight steps before its sequence with the present weights; `refresh_states=True` recomputes all states
from the rollout's start before every epoch but the first.

The tasks have the settings in `configs/`, but rollouts of 128 steps in sequences of 16, and ten epochs, which makes
states as stale as can be. Measured before and after the last epoch of every update, on sequences that continue an
episode, against states computed from the rollout's start with the same weights: *distance*, relative to the
norm of the true state; *ratio*, the mean error of the probability ratio of a step; *KL*, the mean KL divergence
that stale states alone bring. Milliseconds are CPU time of an update, medians over seeds. *Last policy* and *best
checkpoint*, by periodic evaluation: mean returns of 300 episodes a seed, deterministic actions. Intervals are 95 %
bootstrap intervals: seeds are resampled, then updates or episodes of each. {}

{}
"""


def write_docs(found: list[Result]) -> None:
    columns = "task | variant | distance | ratio | KL | ms | seeds | last policy | best checkpoint"
    rows = [
        _row(task, variant, found)
        for task in TASKS
        for variant in VARIANTS
        if records.by_seed(found, f"states/{task.name}/{variant}")
    ]
    records.write_page("stale_states", PAGE, [records.processors(found)], records.table(columns, rows))


def _row(task: Task, variant: str, found: list[Result]) -> list[object]:
    measured = records.by_seed(found, f"states/{task.name}/{variant}")
    trained = records.by_seed(found, f"return/{task.name}/{variant}")
    figures = [_with_interval([run[name] for run in measured]) for name in ("distance", "ratio", "kl")]
    update = 1e3 * statistics.median(run["update"] for run in measured)
    returns = [records.figure(np.array([run[name] for run in trained])) if trained else "-" for name in BOTH]
    return [task.title, variant, *figures, f"{update:.0f}", len(trained), *returns]


def _with_interval(rows: list[list[float]]) -> str:
    values = np.array(rows)  # (seeds, updates)
    low, high = records.interval(values)
    return f"{values.mean():.2g} ({low:.2g} to {high:.2g})"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
