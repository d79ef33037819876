"""A run's agent and its exports: returns over the same episodes, differences, and what a step for one agent takes.

    python benchmarks/deploy.py runs/NAME                 prints the table
    python benchmarks/deploy.py runs/NAME --write-docs    puts it into docs/deploy.md

Axes: B agents.
"""

import copy
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from measuring import DOCS, described, environment_of_measurement, use_threads

PAGE = DOCS / "deploy.md"
MARK = "<!-- deploy.py: {} -->"
SEED = 1_000_000
# Compiled in front of an exported file's own lines: what one step takes in C, without Python around it.
TIMED_IN_C = """
int main(void) {
    static policy_state state;
    static float observation[%(n_observed)d], distribution[%(n_outputs)d];
    static %(kind)s action[%(n_actions)d];
    policy_reset(&state);
    for (int step = 0; step < %(steps)d; step++) {
        struct timespec before, after;
        for (int i = 0; i < %(n_observed)d; i++) observation[i] = sinf(0.1f * (float)(step + i));
        clock_gettime(CLOCK_MONOTONIC, &before);
        policy_step(&state, observation, %(reward)saction, distribution);
        clock_gettime(CLOCK_MONOTONIC, &after);
        printf("%%ld\\n", 1000000000L * (after.tv_sec - before.tv_sec) + after.tv_nsec - before.tv_nsec);
    }
    return 0;
}
"""


@dataclass(frozen=True)
class Settings:
    """An agent and its exports, side by side."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory of a run."""
    episodes: int = 100
    """Episodes that each plays."""
    steps: int = 3000
    """Steps that latencies are of."""
    write_docs: bool = False
    """Put the table into docs/deploy.md."""


def main(settings: Settings) -> None:
    use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(settings, pathlib.Path(folder))
    where = environment_of_measurement(1)
    found = [
        f"{described(where)}",
        "",
        f"| {settings.episodes} episodes of {rows.pop('task')} | return | largest difference | step, median | step, "
        "99th percentile |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]
    print("\n".join(found))
    if settings.write_docs:
        head, _, rest = PAGE.read_text().partition(MARK.format("begin"))
        tail = rest.partition(MARK.format("end"))[2]
        PAGE.write_text("\n".join([head + MARK.format("begin"), "", *found, "", MARK.format("end") + tail]))


def measured(settings: Settings, folder: pathlib.Path) -> dict[str, Any]:
    """The rows of the table by name, each of four cells, and the task."""
    import numpy as np
    import torch

    from agents.deploy import c_source, export
    from agents.deploy.onnx import OnnxStep
    from agents.deploy.step import AgentStep
    from agents.runs.analyses import Options, loaded
    from agents.runs.directory import RunDirectory
    from recurl.play import ExportedPolicy

    run = RunDirectory.open(settings.run)
    with loaded(run, Options(seed=SEED), 1) as agent:
        player, task = agent.player, agent.settings.env.id
        written = {suffix: export(player, folder / f"policy.{suffix}", env=agent.env) for suffix in ("onnx", "pt", "c")}
    step, files = AgentStep(player).eval(), {suffix: each.path for suffix, each in written.items()}
    scripted: Any = torch.jit.load(files["pt"])  # type: ignore[no-untyped-call]

    def by_torch(inputs: Any) -> Any:
        with torch.no_grad():
            return [part.numpy() for part in scripted(*map(torch.as_tensor, inputs))]

    runs: dict[str, Callable[[Any], Any]] = {
        "onnx": OnnxStep(files["onnx"]),
        "pt": by_torch,
        "c": c_source.compiled(step, files["c"].read_text()),
    }
    with loaded(run, Options(seed=SEED), 10) as agent:
        reference = returns_of(lambda seen, rewards, starts: _played(player, seen, rewards, starts), agent, settings)
        played = {name: returns_of(carried(step, each), agent, settings) for name, each in runs.items()}
    seen = [step.observation_space.sample() for _ in range(64)]
    inputs = [part.numpy() for part in step.example(1)]
    prepared = player.policy.observation_space.sample()
    state = player.policy.predict(prepared)[1]
    starts = np.zeros(1, dtype=bool)
    exported = ExportedPolicy(files["onnx"])
    player.reset()
    frozen = copy.copy(player)
    frozen.freeze()
    latencies = {
        "agent.predict": latency(lambda _: player.policy.predict(prepared, state, starts, True), settings.steps),
        "Player": latency(lambda i: player.act(seen[i % 64], 0.0), settings.steps),
        "frozen": latency(lambda i: frozen.act(seen[i % 64], 0.0), settings.steps),
        "recurl.play": latency(lambda i: exported.act(seen[i % 64], 0.0), settings.steps),
        **{name: latency(lambda _, call=runs[name]: call(inputs), settings.steps) for name in ("onnx", "pt")},
        "c": in_c(step, files["c"], folder, settings.steps),
    }
    shown = [
        ("`agent.predict`, observations prepared before", "agent.predict", None, None),
        ("`Player`", "Player", reference, None),
        ("`Player`, frozen", "frozen", None, None),
        ("`recurl.play.ExportedPolicy`, .onnx", "recurl.play", None, None),
        ("onnxruntime alone, .onnx", "onnx", played["onnx"], written["onnx"].difference),
        ("TorchScript, .pt", "pt", played["pt"], written["pt"].difference),
        ("C, .c", "c", played["c"], written["c"].difference),
    ]
    rows: dict[str, Any] = {"task": task}
    for title, name, returns, difference in shown:
        median, high = np.percentile(latencies[name], [50, 99]) * 1e6
        same = "" if returns is None or returns is reference else _compared(returns, reference)
        cells = ["" if returns is None else f"{np.mean(returns):.1f}{same}"]
        cells += ["" if difference is None else f"{difference:.1g}", f"{median:.1f} µs", f"{high:.1f} µs"]
        rows[title] = cells
    return rows


def _compared(returns: list[float], reference: list[float]) -> str:
    equal = sum(one == other for one, other in zip(returns, reference, strict=True))
    return ", all the same" if equal == len(reference) else f", {equal} of {len(reference)} the same"


def _played(player: Any, seen: Any, rewards: Any, starts: Any) -> Any:
    player.reset(starts if not starts.all() else None)
    return player.act(seen, rewards)


def carried(step: Any, run: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """An export as a function of observations, rewards and episode starts (B,) that carries its state."""
    numbers = [i for i, name in enumerate(step.output_names) if name.startswith("state_out_")]
    state: list[Any] = []

    def act(seen: Any, rewards: Any, starts: Any) -> Any:
        state[:] = state or [part.numpy() for part in step.initial_state(len(starts))]
        parts = [seen[key] for key in step.keys] or [seen]
        outputs = run([*parts, *([rewards] if step.sees_reward else []), *state, starts])
        state[:] = [outputs[i] for i in numbers]
        return outputs[0]

    return act


def returns_of(act: Callable[[Any, Any, Any], Any], agent: Any, settings: Settings) -> list[float]:
    """The returns of each environment's first episodes, in the order of environments: the same seeds for all."""
    import numpy as np

    env = agent.env.venv if agent.player.previous is not None else agent.env
    each = -(-settings.episodes // env.num_envs)
    found: list[list[float]] = [[] for _ in range(env.num_envs)]
    env.seed(SEED)
    seen, starts = env.reset(), np.ones(env.num_envs, dtype=bool)
    rewards, totals = np.zeros(env.num_envs, np.float32), np.zeros(env.num_envs)
    while any(len(ended) < each for ended in found):
        seen, rewards, starts, _ = env.step(act(seen, rewards.astype(np.float32), starts))
        totals += rewards
        for i in np.flatnonzero(starts):
            found[i].append(float(totals[i]))
            totals[i] = 0.0
    return [total for ended in found for total in ended[:each]][: settings.episodes]


def latency(call: Callable[[int], object], steps: int) -> list[float]:
    """Seconds of each call, after a tenth of them to warm up."""
    found = []
    for i in range(steps + steps // 10):
        began = time.perf_counter()
        call(i)
        found.append(time.perf_counter() - began)
    return found[steps // 10 :]


def in_c(step: Any, file: pathlib.Path, folder: pathlib.Path, steps: int) -> list[float]:
    """Seconds of each step within a C program."""
    import math

    from gymnasium import spaces

    compiler = shutil.which("cc")
    assert compiler is not None, "install a C compiler (cc)"
    main_of = TIMED_IN_C % {
        "n_observed": max(math.prod(step.observation_space.shape or ()), 1),
        "n_outputs": step.policy.head.n_outputs,
        "n_actions": max(math.prod(step.action_space.shape or ()), 1),
        "kind": "float" if isinstance(step.action_space, spaces.Box) else "int32_t",
        "reward": "0.0f, " if step.sees_reward else "",
        "steps": steps,
    }
    source, program = folder / "timed.c", folder / "timed"
    before = "#define _POSIX_C_SOURCE 199309L\n#include <stdio.h>\n#include <time.h>\n"
    source.write_text(before + file.read_text() + main_of)
    subprocess.run([compiler, "-std=c99", "-O2", str(source), "-o", str(program), "-lm"], check=True)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    return [1e-9 * int(line) for line in done.stdout.split()]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
