"""How many steps a teacher saves: CartPole without velocities, taught by a policy that sees them, and learned alone.

    python benchmarks/imitation.py            the runs that have no result yet, and the table in docs/imitation.md
    python benchmarks/imitation.py --report   the table alone

Steps are those of the student; a step of its environments counts whoever acted.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tyro
from records import DOCS, Result, Run, Settings, by_seed, run_all, table, trained

NAME = "imitation"
MARK = "<!-- imitation.py: {} -->"
SOLVED = 475.0
TAUGHT = 16_384
EPISODES = 40
STUDENT = (
    *("--env.id", "CartPole-v1", "--env.n-envs", "16", "--algorithm.n-steps", "256", "--policy.memory", "lstm"),
    *("--env.wrappers", "{keep: {key: teacher}}", "{mask: {indices: [1, 3], keys: [observation]}}"),
    *("--policy.kwargs", "privileged=[teacher]", "--policy.critic-memory", "separate", "--device", "cpu"),
)


def main(settings: Settings) -> None:
    runs = [
        Run(f"{name}/{seed}", partial(start, seed))
        for seed in range(settings.seeds)
        for name, start in (("taught", taught), ("alone", alone))
    ]
    run_all(settings, NAME, runs, summary, report)


def alone(seed: int, steps: int) -> Result:
    """PPO with configs/cartpole_novel.yaml."""
    words = ["--config", "cartpole_novel", "--seed", str(seed), "--evaluation.every", "2048", "--threads", "1"]
    result = trained([*words, "--evaluation.episodes", str(2 * EPISODES)], steps)
    return {"steps": result["steps"], "curve": result["curve"]}


def taught(seed: int, steps: int) -> Result:
    """DAgger, then the critic alone, then PPO; ``curve`` is of the first, ``after`` of the others."""
    import configs
    from agents import evaluate
    from agents.algorithms.imitation import Imitation, Lesson
    from agents.deploy.player import Player
    from agents.runs.construction import make_agent, make_environments
    from agents.runs.defaults import fitted_to_episodes

    settings, _ = fitted_to_episodes(configs.parse([*STUDENT, "--seed", str(seed)]).settings)
    agent = make_agent(settings, make_environments(settings, settings.rollout[0], seed))
    judged = make_environments(settings, 20)

    def score() -> float:
        return evaluate(agent, judged, EPISODES, deterministic=True, seed=1_000_000).mean

    curve: list[list[float]] = []

    def after(lesson: Lesson) -> None:
        curve.append([lesson.steps, score()])

    with tempfile.TemporaryDirectory() as folder:
        lessons = Imitation(agent, teacher(seed, folder, Player.load), key="teacher")
        lessons.run(steps or TAUGHT, after)
    lessons.warm_up_critic(8192)
    continued = [score()]
    for _ in range(4):
        agent.learn(8192)
        continued.append(score())
    return {"steps": curve[-1][0], "curve": curve, "after": continued}


def teacher(seed: int, folder: str, load: Callable[[Any], Any]) -> Any:
    """A policy without memory that has learned from all of CartPole's observation."""
    import configs
    import train

    words = ["--env.id", "CartPole-v1", "--policy.memory", "none", "--total-timesteps", "150000", "--seed", str(seed)]
    words += ["--runs", folder, "--name", "teacher", "--no-progress", "--threads", "1", "--device", "cpu"]
    words += ["--evaluation.final-episodes", "0", "--tracking.no-tensorboard"]
    return load(train.train(configs.parse(words).settings).find("best"))


def steps_until_solved(result: Result) -> float:
    """Of the first evaluation at which the return was reached."""
    return next((steps for steps, value in result["curve"] if value >= SOLVED), float("inf"))


def summary(result: Result) -> str:
    return f"{SOLVED:g} after {steps_until_solved(result):,.0f} steps"


def report(found: list[Result]) -> None:
    rows = []
    for mine, theirs in zip(by_seed(found, "taught"), by_seed(found, "alone"), strict=False):
        ours, ppo = steps_until_solved(mine), steps_until_solved(theirs)
        after = ", ".join(f"{value:.0f}" for value in mine["after"])
        seed = mine["name"].rsplit("/", 1)[1]
        rows.append([seed, f"{ours:,.0f}", f"{ppo:,.0f}", f"{ours / ppo:.2f}", after])
    ratios = [float(row[3]) for row in rows]
    rows.append(["mean", "", "", f"{np.mean(ratios):.2f}", ""])
    columns = (
        f"seed | taught: steps to {SOLVED:g} | PPO alone | ratio | return after the critic's warm-up and 4 updates"
    )
    page = DOCS / "imitation.md"
    head, _, rest = page.read_text().partition(MARK.format("begin"))
    tail = rest.partition(MARK.format("end"))[2]
    lines = table(columns, rows)
    page.write_text("\n".join([head + MARK.format("begin"), "", *lines, "", MARK.format("end") + tail]))
    print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
