"""One job on 1, 2 and 4 processes of this machine: steps a second, and what sharing gradients sends and waits for.

    python benchmarks/scale.py --quick                   a minute or two
    python benchmarks/scale.py --docs docs               all of it, into docs/results/scale.json and the tables of
                                                         docs/scale.md
    python benchmarks/scale.py --curves 5                mean returns of five seeds on 1 and on 2 processes

Every measurement is of processes of its own, started as torchrun does, one thread each, A B C A B C. "fixed" divides a
job's environments and minibatches among processes, "grown" gives every process as many as one has alone. Seconds of the
processor do not count what other programs take: on a busy machine they say more than the clock's.
"""

import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import tyro
from measuring import ROOT, described, environment_of_measurement, use_threads


@dataclass(frozen=True)
class Settings:
    """Scaling over processes."""

    quick: bool = False
    """Fewer processes and turns, for a second each."""
    processes: tuple[int, ...] = ()
    """How many; default 1 2 4, with --quick 1 2."""
    turns: int = 0
    """Measurements of each; default 5, with --quick 1."""
    seconds: float = 0.0
    """Of each measurement, roughly; default 10, with --quick 1."""
    only: str = ""
    """Only jobs with this in their name; in the tables the others stay as they were."""
    curves: int = 0
    """Only compare so many seeds on 1 and 2 processes."""
    steps: int = 65536
    """Environment steps of each of these."""
    docs: pathlib.Path | None = None
    """Folder to write results/scale.json into, and the tables of scale.md."""
    point: str = ""
    """One measurement, as JSON, in this process: how the others are run."""


@dataclass(frozen=True)
class Job:
    """CartPole without velocities, an LSTM for actor and for critic, four minibatches an epoch, four epochs.

    ``by_gloo``: gradients are exchanged as between machines.
    """

    name: str
    n_envs: int
    hidden: int
    grown: bool = False
    by_gloo: bool = False
    sequence_length: int = 64
    n_steps: int = 128
    n_epochs: int = 4


class Link(NamedTuple):
    """What connects processes: seconds that a message takes however small, and bytes a second."""

    name: str
    latency: float
    bandwidth: float


JOBS = (
    Job("main job: 8 environments, 64 units, fixed", 8, 64),
    Job("main job, grown", 8, 64, grown=True),
    Job("8 environments, 256 units, fixed", 8, 256),
    Job("32 environments, 256 units, fixed", 32, 256),
    Job("64 environments, 256 units, fixed", 64, 256),
    Job("32 environments, 256 units, fixed, by gloo", 32, 256, by_gloo=True),
    Job("8 environments, 256 units, grown", 8, 256, grown=True),
)
SIZES = (2**12, 2**16, 2**20, 2**22, 2**24)  # bytes
LINKS = (
    Link("8 GPUs of one machine, NVLink", 15e-6, 150e9),
    Link("64 nodes, Ethernet of 10 Gbit/s", 60e-6, 1.0e9),
    Link("64 nodes, InfiniBand of 200 Gbit/s", 10e-6, 20e9),
)


def ring(link: Link, n: int, n_bytes: float) -> float:
    """Seconds of an all-reduce around a ring: 2 (n - 1) messages of a part of 1 / n each."""
    return 2 * (n - 1) * (link.latency + n_bytes / n / link.bandwidth)


def fitted(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Least squares for seconds = constant + divisible / n, both at least 0."""
    import numpy as np

    rows = np.array([[1.0, 1.0 / n] for n, _ in points])
    seconds = np.array([each for _, each in points])
    constant, divisible = np.linalg.lstsq(rows, seconds, rcond=None)[0]
    if constant < 0:
        return 0.0, float(np.mean(seconds * np.array([n for n, _ in points])))
    if divisible < 0:  # more processes take longer: nothing of it is divided
        return float(np.mean(seconds)), 0.0
    return float(constant), float(divisible)


def measured_here(job: Job, seconds: float) -> dict[str, Any]:
    """In each process: iterations for some seconds, gradients' exchanges timed; and all-reduces of several sizes."""
    import torch

    import envs
    from agents import RecurrentPPO
    from agents.distributed import group

    n = group.size()
    n_envs = job.n_envs if job.grown else group.share(job.n_envs)
    batch_size = n_envs * n * job.n_steps // 4
    model = RecurrentPPO(
        "RecurrentPolicy",
        envs.make("CartPoleNoVel-v1", n_envs),
        n_steps=job.n_steps,
        batch_size=batch_size,
        n_epochs=job.n_epochs,
        sequence_length=job.sequence_length,
        seed=0,
        policy_kwargs={"memory_kwargs": {"hidden_size": job.hidden}, "critic_memory": "separate"},
    )
    exchanges: list[tuple[int, float]] = []
    plain = group.summed

    def timed(tensor: Any) -> Any:
        start = time.perf_counter()
        result = plain(tensor)
        exchanges.append((tensor.numel() * tensor.element_size(), time.perf_counter() - start))
        return result

    group.summed = timed
    rollout = n_envs * n * job.n_steps
    model.learn(rollout)
    start = time.perf_counter()
    model.learn(rollout, reset_num_timesteps=False)
    n_iterations = max(2, round(seconds / (time.perf_counter() - start)))
    if n > 1:
        n_iterations = group.from_first(lambda: n_iterations)
    exchanges.clear()
    clock, processor = time.perf_counter(), time.process_time()
    model.learn(n_iterations * rollout, reset_num_timesteps=False)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    found: dict[str, Any] = {"steps": rollout, "seconds": clock / n_iterations, "processor": processor / n_iterations}
    found["parameters"] = sum(part.numel() for part in model.policy.parameters())
    if n > 1:
        found |= {
            "bytes": exchanges[0][0],
            "exchanges": len(exchanges) / n_iterations,
            "exchange": statistics.median(took for _, took in exchanges),
            "waited": sum(took for _, took in exchanges) / n_iterations,
            "by_size": {},
        }
        for size in SIZES:
            taken, tensor = [], group.room(size // 4, torch.float32, torch.device("cpu")).zero_()
            for _ in range(12):
                group.numbers(0.0)  # all begin at once
                start = time.perf_counter()
                plain(tensor)
                taken.append(time.perf_counter() - start)
            found["by_size"][str(size)] = statistics.median(taken[2:])
    return found


def started(n: int, words: Sequence[str], by_gloo: bool = False) -> str:
    """What process 0 of ``n`` prints last; ``by_gloo``: each believes to be alone on its machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if n > 1:
        common |= {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common["LOCAL_WORLD_SIZE"] = "1" if by_gloo else str(n)
    processes = [
        subprocess.Popen(
            [sys.executable, *words],
            env={**common, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if n > 1 else {})},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    texts = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a process of {n} failed: {words}")
    return texts[0].strip().splitlines()[-1]


def study(settings: Settings) -> dict[str, Any]:
    """Every job on every number of processes, in turns."""
    numbers = settings.processes or ((1, 2) if settings.quick else (1, 2, 4))
    turns = settings.turns or (1 if settings.quick else 5)
    seconds = settings.seconds or (1.0 if settings.quick else 10.0)
    jobs = [job for job in JOBS if settings.only in job.name]
    found: dict[str, dict[int, list[dict[str, Any]]]] = {job.name: {n: [] for n in numbers} for job in jobs}
    for _ in range(turns):
        for job in jobs:
            for n in numbers:
                point = json.dumps({"job": asdict(job), "seconds": seconds})
                found[job.name][n].append(json.loads(started(n, [__file__, "--point", point], job.by_gloo)))
                print(f"{job.name}, {n}: {found[job.name][n][-1]}", file=sys.stderr)
    return {"measured": environment_of_measurement(1), "jobs": found}


def header(*names: str) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


def rate(points: Sequence[dict[str, Any]], clock: str = "seconds") -> float:
    return statistics.median(point["steps"] / point[clock] for point in points)


def tables(result: dict[str, Any]) -> str:
    """The measured part of docs/scale.md."""
    lines = [described(result["measured"]), ""]
    lines += [
        "| job | processes | steps a second | ratio, each turn | ratio by the processor's time |",
        "|---|---|---|---|---|",
    ]
    for name, by_n in result["jobs"].items():
        base = by_n.get("1") or by_n[1]
        for n, points in by_n.items():
            ratios = [
                one["seconds"] / one["steps"] * p["steps"] / p["seconds"] for one, p in zip(base, points, strict=True)
            ]
            per_turn = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            by_processor = rate(points, "processor") / rate(base, "processor")
            lines.append(f"| {name} | {n} | {rate(points):,.0f} | {per_turn} | {by_processor:.2f} |")
    lines += [
        "",
        "| job | processes | parameters | bytes | exchanges | ms each | share of an iteration |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by_n in result["jobs"].items():
        for n, points in ((n, points) for n, points in by_n.items() if int(n) > 1):
            each = statistics.median(point["exchange"] for point in points)
            share = statistics.median(point["waited"] / point["seconds"] for point in points)
            first = points[0]
            sent = f"{first['parameters']:,} | {first['bytes']:,} | {first['exchanges']:.0f}"
            lines.append(f"| {name} | {n} | {sent} | {1e3 * each:.2f} | {share:.0%} |")
    return "\n".join([*lines, "", *_all_reduces(result), "", *_projection(result)])


def _all_reduces(result: dict[str, Any]) -> list[str]:
    lines = [
        "| bytes of one all-reduce | " + " | ".join(f"{size:,}" for size in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    by_way: dict[str, list[dict[str, float]]] = {}
    for name, points_by_n in result["jobs"].items():
        for n, points in points_by_n.items():
            way = f"{n} processes here" + (", by gloo" if "gloo" in name else "")
            by_way.setdefault(way, []).extend(point["by_size"] for point in points if "by_size" in point)
    for way, several in by_way.items():
        if several:
            each = [1e3 * statistics.median(one[str(size)] for one in several) for size in SIZES]
            lines.append(f"| {way}, ms | " + " | ".join(f"{ms:.2f}" for ms in each) + " |")
    return lines


def _projection(result: dict[str, Any]) -> list[str]:
    """Of a job whose processes have as many environments each as one has alone."""
    lines = [
        "| grown job | link | processes | ms of all exchanges | ms of an iteration | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_n in result["jobs"].items():
        if "grown" not in name:
            continue
        alone = by_n.get("1") or by_n[1]
        two = by_n.get("2") or by_n.get(2)
        work = statistics.median(point["processor"] for point in alone)
        for link in LINKS if two else ():
            n = 8 if "GPU" in link.name else 64
            sharing = two[0]["exchanges"] * ring(link, n, two[0]["bytes"])
            figures = f"{1e3 * sharing:.1f} | {1e3 * (work + sharing):.0f} | {work / (work + sharing):.0%}"
            lines.append(f"| {name} | {link.name} | {n} | {figures} |")
    lines += [
        "",
        "| fixed job | constant, ms | divisible, ms | speed on 2 | on 4 | at most |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_n in result["jobs"].items():
        if "fixed" in name and len(by_n) > 1:
            points = [(int(n), statistics.median(p["processor"] for p in each)) for n, each in by_n.items()]
            constant, divisible = fitted(points)
            speeds = [(constant + divisible) / (constant + divisible / n) for n in (2, 4)]
            most = f"{(constant + divisible) / constant:.1f}" if constant else "-"
            parts = f"{1e3 * constant:.1f} | {1e3 * divisible:.1f}"
            lines.append(f"| {name} | {parts} | {speeds[0]:.2f} | {speeds[1]:.2f} | {most} |")
    return lines


def learned_here(seeds: int, steps: int) -> list[list[float]]:
    """Mean returns of recent episodes of each seed, at every eighth of training."""
    from stable_baselines3.common.vec_env import VecNormalize

    import envs
    from agents import RecurrentPPO, share

    curves: list[list[float]] = []
    for seed in range(seeds):
        env = VecNormalize(envs.make("CartPoleNoVel-v1", share(8)))
        settings: Any = dict(n_steps=128, batch_size=256, sequence_length=64, n_epochs=4, learning_rate=1e-3)
        model: Any = RecurrentPPO("RecurrentPolicy", env, seed=seed, **settings)
        curves.append([])
        for part in range(8):
            model.learn(steps // 8, reset_num_timesteps=part == 0)
            curves[-1].append(statistics.fmean(episode["r"] for episode in model.ep_info_buffer))
    return curves


def compare_curves(seeds: int, steps: int) -> str:
    lines = header("processes", "seed", *(f"{steps * (i + 1) // 8:,}" for i in range(8)))
    for n in (1, 2):
        point = json.dumps({"seeds": seeds, "steps": steps})
        curves: list[list[float]] = json.loads(started(n, [__file__, "--point", point]))
        for seed, curve in enumerate(curves):
            lines.append(f"| {n} | {seed} | " + " | ".join(f"{each:.0f}" for each in curve) + " |")
        means = [statistics.fmean(column) for column in zip(*curves, strict=True)]
        lines.append(f"| {n} | mean | " + " | ".join(f"**{each:.0f}**" for each in means) + " |")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    use_threads(1)
    if settings.point:
        point = json.loads(settings.point)
        is_job = "job" in point
        print(json.dumps(measured_here(Job(**point["job"]), point["seconds"]) if is_job else learned_here(**point)))
        return
    if settings.curves:
        what, text = "curves", compare_curves(settings.curves, settings.steps)
    else:
        result = study(settings)
        if settings.docs is not None:
            file = settings.docs / "results" / "scale.json"
            if settings.only:
                before = json.loads(file.read_text())
                result = {**before, "jobs": before["jobs"] | result["jobs"]}
            file.write_text(json.dumps(result, indent=1) + "\n")
        what, text = "measured", tables(result)
    print(text)
    if settings.docs is not None:
        page = settings.docs / "scale.md"
        between = re.compile(rf"(<!-- {what} -->\n).*?(<!-- end -->)", re.DOTALL)
        page.write_text(between.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page.read_text()))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
