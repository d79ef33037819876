"""Evaluates trained agents: run directory -> agent, environments -> episodes -> table, JSON, video, report.

    python evaluate.py runs/NAME --episodes 1000 --video pole.mp4 --report
    python evaluate.py runs/lstm-* runs/gru-* --report comparison.html
    python evaluate.py runs/NAME --insight
    python evaluate.py --list

Nothing but the run's directory is needed: settings, weights and normaliser lie in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import configs
from configs import CheckpointFault, NotFinite, Settings, SettingsError, reported_as

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from agents.analysis.report import Group
    from agents.deploy.player import Player
    from agents.runs.directory import RunDirectory

SEED = 1_000_000  # far from the seeds that training begins with
IN_THE_RUN = Path("report.html")  # told by identity from a file that a user calls so
LONGEST = sys.maxsize  # lags of --horizon without a number
HORIZON_EPISODES = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; ``configs/errors.py`` says what each means."""
    return configs.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    asked = parser().parse_args(argv)
    check_words(asked)
    if asked.list:
        list_runs(asked.runs, asked.json)
        return
    for path in asked.run:
        configs.leave_import_path(path)
    if asked.insight or asked.inside or asked.horizon is not None:
        check_plots()
    from agents.runs.directory import RunDirectory, RunError

    with reported_as(CheckpointFault, "run", RunError):
        runs = [RunDirectory.open(path) for path in asked.run]
    typed = [*configs.command_words("evaluate"), *(sys.argv[1:] if argv is None else argv)]
    for run in runs:
        configs.check_trusted(run.path, configs.read(run.settings), asked.trust, typed)
    how = {name: getattr(asked, name) for name in ("episodes", "n_envs", "deterministic", "seed", "device")}
    if len(runs) > 1:
        with reported_as(CheckpointFault, "checkpoint", RunError):
            for run in runs:  # told before anything is played
                run.find(asked.checkpoint)
        compare(runs, asked.checkpoint, how, json_file=asked.json, report=asked.report)
        return
    (run,) = runs
    if asked.report is not None and not run.has_agent:  # its curves are worth a look all the same
        configs.say(f"{run.path} holds no saved agent yet: there is nothing to evaluate", error=True)
    else:
        result = evaluate_run(run, asked.checkpoint, **how)
        if asked.json is not None:
            write_json(asked.json, result)
    if asked.video is not None:
        record_run(run, asked.checkpoint, asked.video, deterministic=asked.deterministic, seed=asked.seed)
    if run.has_agent:
        look_inside(run, asked)
    if asked.report is not None:
        report_run(run, asked.checkpoint, asked.report, deterministic=asked.deterministic, seed=asked.seed)


def check_words(asked: argparse.Namespace) -> None:
    """Raises :class:`SettingsError` where the words cannot be followed, before anything is evaluated."""
    if asked.video is not None and asked.video.suffix not in (".mp4", ".gif"):
        raise SettingsError(f"--video {asked.video}: expected a name that ends in .mp4 or .gif")
    if not asked.list and not asked.run:
        raise SettingsError("expected the directory of a run, such as runs/NAME; --list shows the runs there are")
    looks_inside = asked.ablate or asked.inside or asked.insight or asked.horizon is not None
    if asked.list and (asked.run or asked.report is not None or asked.video is not None or looks_inside):
        raise SettingsError("--list stands alone: it evaluates nothing; --runs chooses the folder it looks in")
    if len(asked.run) > 1 and asked.video is not None:
        raise SettingsError("--video records one run's agent; give one run")
    if len(asked.run) > 1 and looks_inside:
        raise SettingsError("--ablate, --horizon, --inside and --insight look at one run's agent; give one run")
    if len(asked.run) > 1 and asked.report is IN_THE_RUN:
        raise SettingsError("a comparison is no run's own: give --report a file, such as --report comparison.html")
    if asked.json is not None and not asked.json.parent.is_dir():
        raise SettingsError(f"--json {asked.json}: there is no directory {asked.json.parent}")
    if asked.report not in (None, IN_THE_RUN):
        if asked.report.is_dir():
            raise SettingsError(f"--report {asked.report}: that is a directory; put the runs before --report")
        if asked.report.exists():
            raise SettingsError(f"--report {asked.report}: exists and is not overwritten; choose another name")
        if not asked.report.parent.is_dir():
            raise SettingsError(f"--report {asked.report}: there is no directory {asked.report.parent}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(prog="evaluate.py", description="Evaluates trained agents.")
    words.add_argument("run", type=Path, nargs="*", help="directory of a run, such as runs/NAME; several: one table")
    words.add_argument("--checkpoint", default="best", help="best, last, a step, or a file (default: best)")
    words.add_argument("--episodes", type=count, default=100, help="episodes in all (default: 100)")
    words.add_argument("--n-envs", type=count, default=20, help="environments side by side (default: 20)")
    choice = words.add_mutually_exclusive_group()
    choice.add_argument("--deterministic", action="store_true", default=None, help="take the most probable action")
    choice.add_argument("--stochastic", dest="deterministic", action="store_false", help="sample actions")
    words.add_argument("--seed", type=int, default=SEED, help=f"of environments and samples (default: {SEED})")
    words.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    words.add_argument("--json", type=Path, help="write the result to this file too")
    words.add_argument("--video", type=Path, help="record an episode to this file, .mp4 or .gif")
    words.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        nargs="?",
        const=IN_THE_RUN,
        help="write an HTML page too, of several runs a comparison (default: report.html in the run)",
    )
    words.add_argument("--list", action="store_true", help="list the runs there are, and evaluate none")
    words.add_argument("--runs", type=Path, default=Path("runs"), help="folder to list (default: runs)")
    words.add_argument(
        "--ablate", action="store_true", help="play the same episodes with the memory wiped, exchanged and noisy"
    )
    words.add_argument(
        "--horizon",
        type=lags,
        nargs="?",
        const=LONGEST,
        metavar="LAGS",
        help="measure how far back an input still moves the action, up to so many steps (default: the whole episode)",
    )
    words.add_argument(
        "--inside", action="store_true", help="draw the memory over an episode: state, gates, what is attended to"
    )
    words.add_argument("--insight", action="store_true", help="all of --ablate, --horizon and --inside")
    words.add_argument(
        "--colour",
        default="time",
        metavar="KEY",
        help="what colours the state's principal components: time, reward, value, action or a key of the infos",
    )
    words.add_argument(
        "--trust",
        metavar="NAME",
        nargs="+",
        default=(),
        help="modules that the run may import, where it was not made by you from this directory",
    )
    words.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return words


def count(word: str) -> int:
    """A whole number of at least 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {word}")
    return number


def lags(word: str) -> int:
    """A whole number of at least 0."""
    number = int(word)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {word}")
    return number


def evaluate_run(
    run: RunDirectory,
    checkpoint: str = "best",
    *,
    episodes: int = 100,
    n_envs: int = 20,
    deterministic: bool | None = None,
    seed: int = SEED,
    device: str = "cpu",
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates one of a run's agents, prints the table unless ``quiet``, and writes the same as JSON into the run."""
    from rich.console import Console

    from agents.analysis.evaluation import evaluate
    from agents.runs.construction import make_environments

    settings = configs.read(run.settings)
    player, file = load(run, settings, checkpoint, deterministic, device)
    with (
        closing(make_environments(settings, min(n_envs, episodes))) as env,
        reported_as(CheckpointFault, f"{file.name} does not fit {settings.env.id}", ValueError),
        reported_as(NotFinite, "evaluation", FloatingPointError),
        configs.environment_blamed(f"environment {settings.env.id}"),
    ):
        evaluation = evaluate(player, env, episodes, seed=seed, max_steps=settings.evaluation.max_steps)
    how = manner(player)
    result = {
        "run": str(run.path),
        "checkpoint": file.name,
        "environment": asdict(settings.env),
        **evaluation.to_json(),
    }
    console = Console(quiet=quiet)
    if not quiet:
        configs.say(f"\n{settings.env.id}, memory {settings.policy.memory}, {file.name}, {how} actions")
    console.print(evaluation.table())
    try:
        path = run.write_evaluation(f"{file.stem}-{episodes}-{how}", result)
        if not quiet:
            configs.say(f"written to {path}")
    except OSError as error:  # somebody else's run may be read-only
        configs.say(f"the result was not written into the run: {error}", error=True)
    return result


def evaluate_at_the_end(run: RunDirectory, episodes: int, *, deterministic: bool = True) -> None:
    """Evaluates a run's last agent and its best one, sampled and deterministic, and prints them side by side.

    The best agent is the luckiest of many evaluations; what training comes to is the last.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # The one that the run is told to act by comes last: it is what a comparison of seeds takes.
    ways = sorted(MANNERS, key=lambda way: MANNERS[way] == deterministic)
    shown = Table("mean return", *(f"{way} actions" for way in ways), box=box.SIMPLE_HEAD)
    notes = []
    for checkpoint in ("last", "best"):
        results = []
        for way in ways:
            alone = checkpoint == "best" and way == ways[-1]
            found = evaluate_run(run, checkpoint, episodes=episodes, deterministic=MANNERS[way], quiet=not alone)
            results.append((found["return"]["mean"], *found["return"]["mean_interval"]))
        shown.add_row(f"{checkpoint} policy", *(f"{mean:.4g} ({low:.4g} to {high:.4g})" for mean, low, high in results))
        (_, low, high), (_, other_low, other_high) = results
        if low > other_high or other_low > high:
            notes.append(f"the {checkpoint} policy's sampled and deterministic actions differ beyond their intervals")
    Console().print(shown)
    for note in notes:
        print(note)


MANNERS = {"sampled": False, "deterministic": True}


def compare(
    runs: Sequence[RunDirectory],
    checkpoint: str,
    how: Mapping[str, Any],
    *,
    json_file: Path | None = None,
    report: Path | None = None,
) -> None:
    """Evaluates an agent of each of several runs on one task, and prints one table of all and their groups."""
    from agents.analysis.report import Record, Scored, comparison_page, grouped

    settings = [configs.read(run.settings) for run in runs]
    check_one_task(runs, settings)
    results = [evaluate_run(run, checkpoint, **how) for run in runs]
    records = [Record(run.path, asdict(each)) for run, each in zip(runs, settings, strict=True)]
    scored = [Scored.of(record, result) for record, result in zip(records, results, strict=True)]
    groups = grouped(scored)
    print_groups(groups)
    if json_file is not None:
        write_json(json_file, {"runs": results, "groups": [group.to_json() for group in groups]})
    if report is not None:
        note = f"{checkpoint} agents, {how['episodes']} episodes each, seed {how['seed']}."
        write_page(report, comparison_page(groups, note))


def check_one_task(runs: Sequence[RunDirectory], settings: Sequence[Settings]) -> None:
    """Raises :class:`SettingsError` where runs are not on the same environment, or one is given twice."""
    paths = [run.path.resolve() for run in runs]
    twice = [run.path for i, run in enumerate(runs) if paths[i] in paths[:i]]
    if twice:
        raise SettingsError(f"{twice[0]} is given twice; give every run once")
    first = settings[0].env.id
    for run, each in zip(runs, settings, strict=True):
        if each.env.id != first:
            raise SettingsError(
                f"returns of different tasks cannot be compared: {runs[0].path} is on {first}, {run.path} on "
                f"{each.env.id}; give runs on one"
            )


def print_groups(groups: Sequence[Group]) -> None:
    """The table of several runs, and which group is better."""
    from agents.analysis.report import improvements, print_whole, table

    print_whole(table(groups))
    for each in improvements(groups) if len(groups) > 1 else ():
        low, high = each.interval
        chance = f"{each.probability:.2f} ({low:.2f} to {high:.2f}, over {each.over})"
        configs.say(f"probability that {each.ours} beats {each.theirs}: {chance}")


def report_run(
    run: RunDirectory, checkpoint: str, path: Path, *, deterministic: bool | None = None, seed: int = SEED
) -> None:
    """Writes a run's page: what it learned, what was found about it, an episode of one of its agents."""
    from agents.analysis.report import Record, run_page

    settings = configs.read(run.settings)
    episode, note = None, "No agent has been saved yet, so there are no results and no episode."
    if run.has_agent:
        episode, note = recorded_episode(run, settings, checkpoint, deterministic, seed), ""
    state = run.state(settings.total_timesteps, settings.evaluation.stop_at_return)
    page = run_page(Record(run.path, asdict(settings)), state=state, episode=episode, note=note)
    write_page(run.free_name("report.html") if path is IN_THE_RUN else path, page)


def recorded_episode(
    run: RunDirectory, settings: Settings, checkpoint: str, deterministic: bool | None, seed: int
) -> dict[str, Any]:
    """An episode as a page shows it."""
    from agents.analysis.recording import record, units
    from agents.analysis.report.data import MOST_STEPS, episode
    from agents.runs.construction import make_environments

    player, file = load(run, settings, checkpoint, deterministic, "cpu")
    with (
        closing(make_environments(settings, 1, seed)) as env,
        reported_as(CheckpointFault, f"{file.name} does not fit {settings.env.id}", ValueError),
        configs.environment_blamed(f"environment {settings.env.id}"),
    ):
        played = record(player, env, seed=seed, max_steps=MOST_STEPS)
        shown = episode(played, units(player.policy, played), env.observation_space, env.action_space)
    how = "the most probable actions" if player.deterministic else "sampled actions"
    return {**shown, "told": f"{file.name}, {how}, seed {seed}."}


def list_runs(root: Path, json_file: Path | None = None) -> None:
    """Prints a row for every run in a folder, as the directories are now."""
    from rich.table import Table
    from rich.text import Text

    from agents.analysis.report import print_whole
    from agents.runs.directory import RunError, runs_in

    with reported_as(SettingsError, f"--runs {root}", RunError):
        rows = [listed(run) for run in runs_in(root)]
    if json_file is not None:
        write_json(json_file, {"runs": rows})
    columns = ("run", "environment", "memory", "seed", "group", "steps", "best return", "state")
    shown = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(Text("" if row[column] is None else configs.printable(str(row[column]))) for column in columns))
    if rows:
        print_whole(shown)
    else:
        configs.say(f"there are no runs in {root}")


def listed(run: RunDirectory) -> dict[str, Any]:
    """What --list says of a run; of one whose settings cannot be read, that."""
    told: dict[str, Any] = dict.fromkeys(("environment", "memory", "seed", "group"))
    best = run.best_return()
    told |= {"run": run.path.name, "steps": run.last_step(), "best return": None if best is None else round(best, 3)}
    try:
        settings = configs.read(run.settings)
    except SettingsError:
        return {**told, "state": "settings unreadable"}
    told |= {"environment": settings.env.id, "memory": settings.policy.memory}
    told |= {"seed": settings.seed, "group": settings.group}
    return {**told, "state": run.state(settings.total_timesteps, settings.evaluation.stop_at_return)}


def write_page(path: Path, page: str) -> None:
    from agents.analysis.report import write_once

    with reported_as(SettingsError, f"--report {path}", OSError):
        write_once(path, page)
    configs.say(f"report written to {path}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    with reported_as(SettingsError, f"--json {path}", OSError):
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def record_run(
    run: RunDirectory, checkpoint: str, path: Path, *, deterministic: bool | None = None, seed: int = SEED
) -> None:
    """Records an episode of one of a run's agents."""
    from agents.analysis.video import VideoError, record
    from agents.runs.construction import make_environments

    settings = configs.read(run.settings)
    player, _ = load(run, settings, checkpoint, deterministic, "cpu")
    with (
        closing(make_environments(settings, 1, seed, render_mode="rgb_array")) as env,
        reported_as(SettingsError, f"--video {path}", VideoError, OSError, ImportError),
        configs.environment_blamed(f"rendering {settings.env.id}"),
    ):
        frames = record(player, env, path)
    configs.say(f"recorded {frames} frames to {path}")


def look_inside(run: RunDirectory, asked: argparse.Namespace) -> None:
    """What the agent remembers: the parts that were asked for."""
    if asked.inside or asked.insight:
        draw_inside(run, asked)
    if asked.horizon is not None or asked.insight:
        measure_horizon(run, asked)
    if asked.ablate or asked.insight:
        ablate_run(run, asked)


def ablate_run(run: RunDirectory, asked: argparse.Namespace) -> None:
    """Prints what becomes of the return without the memory, and writes the same as JSON into the run."""
    from rich.console import Console

    from agents.analysis import ablate

    with looked_at(run, asked, min(asked.n_envs, asked.episodes)) as (player, env, settings, file):
        limit = settings.evaluation.max_steps
        found = ablate(player, env, asked.episodes, seed=asked.seed, max_steps=limit)
    if found.has_memory:
        Console().print(found.table())
    configs.say(found.verdict)
    name = f"{file.stem}-{asked.episodes}-{manner(player)}-ablation"
    with reported_as(SettingsError, "--ablate", OSError):
        configs.say(f"written to {run.write_evaluation(name, found.to_json())}")


def measure_horizon(run: RunDirectory, asked: argparse.Namespace) -> None:
    """Prints how far back an input moves the action, and writes curve and plot into the run."""
    from agents.analysis import memory_horizon, plots, record

    with looked_at(run, asked, 1) as (player, env, settings, file):
        limit = settings.evaluation.max_steps
        seeds = range(asked.seed, asked.seed + min(asked.episodes, HORIZON_EPISODES))
        episodes = [record(player, env, seed=seed, max_steps=limit) for seed in seeds]
        found = memory_horizon(player, episodes, None if asked.horizon == LONGEST else asked.horizon)
    configs.say(found.sentence)
    with reported_as(SettingsError, "--horizon", OSError):
        path = run.write_insight(f"{file.stem}-horizon", found.to_json())
        plots.save(plots.horizon(found), path.with_suffix(".png"))
    configs.say(f"written to {path} and .png")


def draw_inside(run: RunDirectory, asked: argparse.Namespace) -> None:
    """Writes an episode's memory into the run, as numbers and as pictures."""
    import numpy as np

    from agents.analysis import attention, gates, plots, principal_components, record, units

    with looked_at(run, asked, 1) as (player, env, settings, file):
        episode = record(player, env, seed=asked.seed, max_steps=settings.evaluation.max_steps)
        with reported_as(SettingsError, f"--colour {asked.colour}", ValueError):
            colour = episode.signal(asked.colour)
        carried, opened = units(player.policy, episode), gates(player, episode)
        attended = attention(player, episode)
    pictures, summary = {}, {"seed": asked.seed, "steps": len(episode), "return": episode.total}
    if carried:
        components = principal_components(np.concatenate(list(carried.values()), axis=1))
        summary["explained"] = components.explained.tolist()
        pictures = {"state": plots.state(carried), "components": plots.components(components, colour, asked.colour)}
    if opened is not None:
        summary["gates"], pictures["gates"] = opened.to_json(), plots.gates(opened)
    if attended:
        pictures["attention"] = plots.attention(attended)
    with reported_as(SettingsError, "--inside", OSError):
        path = run.write_insight(f"{file.stem}-inside", summary)
        arrays: dict[str, Any] = dict(episode.arrays())
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
        for name, picture in pictures.items():
            plots.save(picture, path.with_name(f"{path.stem}-{name}.png"))
    if not pictures:
        print("the agent carries no memory and attends to nothing: there is nothing to draw")
    configs.say(f"\nwritten to {path}, .npz{''.join(f', -{name}.png' for name in pictures)}")


@contextmanager
def looked_at(
    run: RunDirectory, asked: argparse.Namespace, n_envs: int
) -> Iterator[tuple[Player, VecEnv, Settings, Path]]:
    """The agent and environments of its own, with faults told as they are in an evaluation."""
    from agents.runs.construction import make_environments

    settings = configs.read(run.settings)
    player, file = load(run, settings, asked.checkpoint, asked.deterministic, asked.device)
    with (
        closing(make_environments(settings, n_envs)) as env,
        reported_as(CheckpointFault, f"{file.name} does not fit {settings.env.id}", ValueError),
        reported_as(NotFinite, "evaluation", FloatingPointError),
        configs.environment_blamed(f"environment {settings.env.id}"),
    ):
        yield player, env, settings, file


def check_plots() -> None:
    """Before anything is played: matplotlib is there."""
    from agents.analysis import plots

    with reported_as(SettingsError, "plots", ImportError):
        plots.check()


def manner(player: Player) -> str:
    return "deterministic" if player.deterministic else "sampled"


def load(
    run: RunDirectory, settings: Settings, checkpoint: str, deterministic: bool | None, device: str
) -> tuple[Player, Path]:
    """The agent, ready to act, and the file it came from."""
    import torch

    from agents.checkpoint import CheckpointError
    from agents.deploy.player import Player
    from agents.runs.construction import own_classes
    from agents.runs.directory import RunError

    torch.set_num_threads(settings.threads or 1)
    if deterministic is None:
        deterministic = settings.evaluation.deterministic
    with reported_as(CheckpointFault, "checkpoint", RunError, CheckpointError, OSError, ValueError):
        file = run.find(checkpoint)
        own = own_classes(settings.policy)
        return Player.load(file, device=device, deterministic=deterministic, custom_objects=own), file


if __name__ == "__main__":
    sys.exit(main())
