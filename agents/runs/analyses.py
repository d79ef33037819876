"""The analyses of trained runs: their directories -> agents and environments -> agents.analysis -> terminal, files."""

import base64
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from stable_baselines3.common.vec_env import VecEnv

import configs
from agents.analysis import (
    ablate,
    attention,
    gates,
    graph_weights,
    memory_horizon,
    plots,
    principal_components,
    record,
    units,
)
from agents.analysis.evaluation import Evaluation, differ, evaluate, manner
from agents.analysis.report.acting import actions, remembered, value_against_return
from agents.analysis.report.comparison import comparison_page
from agents.analysis.report.data import MOST_STEPS, episode
from agents.analysis.report.groups import (
    Group,
    Scored,
    aggregates,
    grouped,
    improvements,
    print_uncut,
    score_table,
    tasks_of,
)
from agents.analysis.report.history import RunError, RunHistory
from agents.analysis.report.page import Acting, run_page
from agents.analysis.statistics import interquartile_mean, mean, table
from agents.analysis.video import VideoError, frame_rate, write_video
from agents.checkpoint import CheckpointError, hub
from agents.checks.devices import check_device
from agents.checks.extras import require
from agents.deploy.card import model_card
from agents.deploy.exports import export
from agents.deploy.player import Player
from agents.runs.agent_files import run_of
from agents.runs.budget import games_at_the_end
from agents.runs.construction import ALGORITHMS, make_environments, own_classes
from agents.runs.directory import RunDirectory, runs_in, write_atomically
from configs import CheckpointFault, NotFinite, Settings, SettingsError, reported_as
from configs.settings import ImitationSettings

HORIZON_EPISODES = 20
REPORT_EPISODES = 10
VIDEO_WIDTH = 320  # pixels, at most
LARGEST_VIDEO = 2_000_000  # bytes


class Options(NamedTuple):
    """Which agent of a run acts, how, and for how long."""

    checkpoint: str = "best"  # last, a step, or a file
    episodes: int = 100
    n_envs: int = 20
    deterministic: bool | None = None  # as the run's settings say
    seed: int = 1_000_000  # far from the seeds that training begins with
    device: str = "cpu"


class Loaded(NamedTuple):
    """An agent, environments of its own, the settings of its run and the file that it came from."""

    player: Player
    env: VecEnv
    settings: Settings
    file: Path

    @property
    def manner(self) -> str:
        return manner(self.player.deterministic)


def open_runs(
    paths: Sequence[Path], trusted: Sequence[str], typed: Sequence[str], task: Settings | None = None
) -> list[RunDirectory]:
    """The runs, or what an agent's file makes one, once it is sure that they may import what they name, or that it is
    ``trusted``. Among several a directory without an agent is named and left out.

    Args:
        task: settings of the environment for files that lie in no run.
    """
    runs = []
    for path in paths:
        try:
            run = run_of(path, task) if path.suffix == ".zip" and path.is_file() else RunDirectory.open(path)
            if len(paths) > 1 and not run.has_agent:
                raise RunError(f"{path} holds no saved agent")
        except RunError as error:
            if len(paths) == 1 or not path.exists():
                raise CheckpointFault(f"run: {error}") from error
            configs.say(f"left out: {error}", error=True)
            continue
        configs.check_trusted(run.path, configs.read(run.settings), trusted, typed)
        runs.append(run)
    if not runs:
        raise CheckpointFault("run: none of the directories holds a saved agent")
    return runs


def check_computes_on(device: str) -> None:
    """Raises :class:`SettingsError` where there is no such device."""
    try:
        check_device(device)
    except ValueError as error:
        raise SettingsError(f"--{error}") from error


def check_installed(extra: str, what: str) -> None:
    """Raises :class:`SettingsError`, with the command that installs it, where what an option takes is missing."""
    with reported_as(SettingsError, what, ImportError):
        require(extra)


@contextmanager
def loaded(run: RunDirectory, options: Options, n_envs: int, render_mode: str | None = None) -> Iterator[Loaded]:
    """An agent ready to act, and environments; faults inside are reported for what they are."""
    settings = configs.read(run.settings)
    torch.set_num_threads(settings.threads or 1)
    deterministic = settings.evaluation.deterministic if options.deterministic is None else options.deterministic
    with reported_as(CheckpointFault, "checkpoint", RunError, CheckpointError, OSError, ValueError):
        file = run.find(options.checkpoint)
        own = own_classes(settings.policy)
        player = Player.load(file, device=options.device, deterministic=deterministic, custom_objects=own)
    with (
        closing(make_environments(settings, n_envs, render_mode=render_mode)) as env,
        reported_as(CheckpointFault, f"{file.name} does not fit {settings.env.id}", ValueError),
        reported_as(NotFinite, "evaluation", FloatingPointError),
        configs.environment_blamed(f"environment {settings.env.id}"),
    ):
        yield Loaded(player, env, settings, file)


def evaluate_run(
    run: RunDirectory,
    options: Options,
    json_file: Path | None = None,
    *,
    max_steps: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates one of a run's agents, prints the table unless ``quiet``, and writes the same as JSON into the run.

    Args:
        max_steps: after which an episode is truncated; None: as the run's settings say.
    """
    with loaded(run, options, min(options.n_envs, options.episodes)) as agent:
        settings, limit = agent.settings, max_steps or agent.settings.evaluation.max_steps
        evaluation = evaluate(agent.player, agent.env, options.episodes, seed=options.seed, max_steps=limit)
    result = {
        "run": str(run.path),
        "checkpoint": agent.file.name,
        "environment": asdict(settings.env),
        **evaluation.to_json(),
    }
    if not quiet:
        memory = settings.policy.memory
        configs.say(f"\n{settings.env.id}, memory {memory}, {agent.file.name}, {agent.manner} actions")
        Console().print(evaluation.table())
    try:
        path = run.write_result("evaluations", f"{agent.file.stem}-{options.episodes}-{agent.manner}", result)
        if not quiet:
            configs.say(f"written to {path}")
    except OSError as error:  # somebody else's run may be read-only
        configs.say(f"the result was not written into the run: {error}", error=True)
    if json_file is not None:
        _write_json(json_file, result)
    return result


def evaluate_at_the_end(run: RunDirectory, *, deterministic: bool = True) -> None:
    """Evaluates a run's last agent and its best one, sampled and deterministic, and prints them side by side.

    The best agent was chosen as the highest of many evaluations, which overstates it; training is judged by the last.
    """
    settings = configs.read(run.settings)
    evaluation = settings.evaluation
    episodes, max_steps = games_at_the_end(run, settings)
    if episodes < evaluation.final_episodes:
        share = (
            f"evaluations may take {evaluation.share or 1:.0%} of the steps of training (--evaluation.share None: any)"
        )
        print(f"{episodes} episodes each instead of {evaluation.final_episodes}: {share}")
    ways = (not deterministic, deterministic)
    shown = table("mean return", *(f"{manner(way)} actions" for way in ways))
    notes = []
    for checkpoint in ("last", "best"):
        found = []
        for way in ways:
            quiet = checkpoint == "last" or way != deterministic
            result = evaluate_run(
                run, Options(checkpoint, episodes, deterministic=way), max_steps=max_steps, quiet=quiet
            )
            found.append(Evaluation.from_json(result))
        cells = ("{:.4g} ({:.4g} to {:.4g})".format(each.mean, *each.interval(mean)) for each in found)
        shown.add_row(f"{checkpoint} policy", *cells)
        if differ(*found):
            notes.append(f"the {checkpoint} policy's sampled and deterministic actions differ beyond their intervals")
    Console().print(shown)
    for note in notes:
        print(note)


def compare(
    runs: Sequence[RunDirectory],
    options: Options,
    json_file: Path | None,
    report: Path | None,
    *,
    overwrite: bool = False,
) -> None:
    """Evaluates an agent of each of several runs, and prints one table of all and their groups."""
    with reported_as(CheckpointFault, "checkpoint", RunError):
        for run in runs:  # before anything is played
            run.find(options.checkpoint)
    histories = [history_of(run) for run in runs]
    _check_given_once(histories)
    results = [evaluate_run(run, options) for run in runs]
    scores = (np.array(result["returns"]) for result in results)
    groups = print_groups([Scored(*pair) for pair in zip(histories, scores, strict=True)])
    if json_file is not None:
        _write_json(
            json_file,
            {
                "runs": results,
                "groups": [group.to_json() for group in groups],
                "aggregates": [each.to_json() for each in aggregates(groups)],
            },
        )
    if report is not None:
        note = f"{options.checkpoint} agents, {options.episodes} episodes each, seed {options.seed}."
        _write_page(report, comparison_page(groups, note, report), overwrite=overwrite)


def history_of(run: RunDirectory) -> RunHistory:
    return RunHistory(run.path, asdict(configs.read(run.settings)))


def _check_given_once(histories: Sequence[RunHistory]) -> None:
    """Raises :class:`SettingsError` where a run is given twice."""
    paths = [history.path.resolve() for history in histories]
    for i, history in enumerate(histories):
        if paths[i] in paths[:i]:
            raise SettingsError(f"{history.path} is given twice; give every run once")


def last_result(run: RunDirectory) -> Evaluation | None:
    """:meth:`RunDirectory.final_evaluation`, acting as the run's settings say."""
    return run.final_evaluation(deterministic=configs.read(run.settings).evaluation.deterministic)


def print_seeds(runs: Sequence[RunDirectory]) -> None:
    """The evaluations of several runs' last agents as one table, for the runs that have one."""
    found = [(run, result) for run in runs if (result := last_result(run)) is not None]
    if found:
        print(f"\nThe last policies, {found[0][1].manner} actions:")
        print_groups([Scored(history_of(run), np.array(result.returns)) for run, result in found])


def print_groups(runs: Sequence[Scored]) -> list[Group]:
    """The table of several runs, and which group is better; returns the groups."""
    groups = grouped(runs)
    print_uncut(score_table(groups))
    for each in improvements(groups):
        low, high = each.interval
        chance = f"{each.probability:.2f} ({low:.2f} to {high:.2f})"
        configs.say(f"{each.task}: probability that {each.ours} beats {each.theirs}: {chance}")
    if len(tasks := tasks_of(groups)) > 1:
        for whole in aggregates(groups):
            value, (low, high) = whole.located(interquartile_mean)
            middle = f"interquartile mean {value:.2f} ({low:.2f} to {high:.2f}) of normalized scores"
            configs.say(f"{whole.label} over {len(tasks)} tasks: {middle}")
    return groups


def report_run(
    run: RunDirectory,
    options: Options,
    path: Path | None = None,
    settings: Settings | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a run's page, into the run unless a path is given; ``settings`` are shown in place of the run's own."""
    history, shown, acting, note = (
        RunHistory(run.path, asdict(settings or configs.read(run.settings))),
        None,
        Acting(),
        "",
    )
    if run.has_agent:
        shown, acting = _acted(run, options)
        shown |= _video(run, options, shown["steps"])
    else:
        note = "No agent has been saved yet, so there are no results and no episode."
        configs.say(f"{run.path} holds no saved agent yet: there is nothing to evaluate", error=True)
    state = run.state(configs.read(run.settings))
    page = run_page(history, state=state, episode=shown, acting=acting, note=note)
    inside = run.path / "report.html" if overwrite else run.free_name("report.html")
    _write_page(path or inside, page, overwrite=overwrite)


def _acted(run: RunDirectory, options: Options) -> tuple[dict[str, Any], Acting]:
    """An episode to step through, and what it and some more show; the seeds count up."""
    with loaded(run, options, 1) as agent:
        player, env = agent.player, agent.env
        played = [record(player, env, seed=options.seed, max_steps=MOST_STEPS)]
        while len(played) < REPORT_EPISODES and (left := MOST_STEPS - sum(map(len, played))) > 0:
            played.append(record(player, env, seed=options.seed + len(played), max_steps=left))
        carried, graphs = units(player.policy, played[0]), graph_weights(player, played[0])
        shown = episode(played[0], carried, env.observation_space, env.action_space, graphs)
        shown["note"] = f"{agent.file.name}, {agent.manner} actions, seed {options.seed}."
        found = principal_components(np.concatenate(list(carried.values()), axis=1)) if carried else None
        memory = remembered(found, gates(player, played[0]), attention(player, played[0]))
        values = value_against_return(played, agent.settings.algorithm.gamma)
        charts = [*([] if values is None else [values]), *actions(played, env.action_space)]
    steps = f"{len(played)} episodes" if len(played) > 1 else "an episode"
    return shown, Acting(
        charts, memory, f"{agent.file.name}, {agent.manner} actions, {steps}, {sum(map(len, played)):,} steps."
    )


def _video(run: RunDirectory, options: Options, steps: int) -> dict[str, Any]:
    """The same episode as a small video, "video" and "rate", where packages and environment can make one."""
    try:
        with loaded(run, options, 1, render_mode="rgb_array") as (player, env, *_), TemporaryDirectory() as folder:
            path = Path(folder) / "episode.mp4"
            frames = write_video(player, env, path, seed=options.seed, width=VIDEO_WIDTH)
            video, rate = path.read_bytes(), frame_rate(env)
    except Exception:  # whatever an environment that cannot be seen raises: a report without a video is one
        return {}
    if frames != steps or len(video) > LARGEST_VIDEO:
        return {}
    return {"video": base64.b64encode(video).decode("ascii"), "rate": rate}


def list_runs(root: Path, json_file: Path | None = None) -> None:
    """Prints a row for every run in a folder, as the directories are now."""
    with reported_as(SettingsError, f"--runs {root}", RunError):
        rows = [_listed(run) for run in runs_in(root)]
    if json_file is not None:
        _write_json(json_file, {"runs": rows})
    if not rows:
        configs.say(f"there are no runs in {root}")
        return
    shown = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(Text("" if value is None else configs.printable(str(value))) for value in row.values()))
    print_uncut(shown)


def _listed(run: RunDirectory) -> dict[str, Any]:
    """What is listed of a run; of one whose settings cannot be read, that."""
    row: dict[str, Any] = {"run": run.path.name, **dict.fromkeys(("environment", "memory", "seed", "group"))}
    row |= {"steps": run.last_step(), "final return": None, "best checkpoint": None}
    try:
        settings = configs.read(run.settings)
    except SettingsError:
        return {**row, "state": "settings unreadable"}
    way = settings.evaluation.deterministic
    final, best = run.final_return(deterministic=way), run.best_checkpoint_return(deterministic=way)
    row |= {"environment": settings.env.id, "memory": settings.policy.memory, "seed": settings.seed}
    row |= {"final return": _shortened(final), "best checkpoint": _shortened(best)}
    return {**row, "group": settings.group, "state": run.state(settings)}


def _shortened(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def record_run(run: RunDirectory, options: Options, path: Path) -> None:
    """Records a video of an episode of one of a run's agents."""
    with (
        loaded(run, options, 1, render_mode="rgb_array") as (player, env, settings, _),
        reported_as(SettingsError, f"--video {path}", VideoError, OSError, ImportError),
        configs.environment_blamed(f"rendering {settings.env.id}"),
    ):
        frames = write_video(player, env, path, seed=options.seed)
    configs.say(f"recorded {frames} frames to {path}")


def ablate_run(run: RunDirectory, options: Options) -> None:
    """Prints what becomes of the return without the memory, and writes the same as JSON into the run."""
    with loaded(run, options, min(options.n_envs, options.episodes)) as agent:
        limit = agent.settings.evaluation.max_steps
        found = ablate(agent.player, agent.env, options.episodes, seed=options.seed, max_steps=limit)
    if found.has_memory:
        Console().print(found.table())
    configs.say(found.verdict)
    name = f"{agent.file.stem}-{options.episodes}-{agent.manner}-ablation"
    with reported_as(SettingsError, "--ablate", OSError):
        configs.say(f"written to {run.write_result('evaluations', name, found.to_json())}")


def export_run(run: RunDirectory, options: Options, path: Path, *, value: bool, sample: bool) -> None:
    """Writes one of a run's agents as a file that acts without this package, compared with it on the run's task.

    How far they differ is written into the run, for its report.
    """
    with loaded(run, options, 1) as agent:  # one: its episodes then end among the steps that are compared
        agent.player.deterministic = True
        written = export(agent.player, path, value=value, sample=sample, env=agent.env)
    configs.say(
        f"\n{agent.file.name} exported to {written.path}; over {written.steps:,} steps it differs from the agent by "
        f"{written.difference:.1g} at most"
    )
    compared = {"file": path.name, "steps_compared": written.steps, "largest_difference": written.difference}
    with reported_as(SettingsError, "--export", OSError):
        run.write_result("insight", f"{agent.file.stem}-export-{path.suffix[1:]}", compared)


def share_run(
    run: RunDirectory, options: Options, result: Mapping[str, Any], repository: str | None, *, dry: bool = False
) -> None:
    """Writes a folder to be shared into the run: card, agent, settings, results, report; uploads it, unless ``dry``.

    Args:
        result: what :func:`evaluate_run` gave.
        repository: ``owner/name``; None: the folder alone.
    """
    settings, folder = configs.read(run.settings), run.free_name("hub")
    shared = replace(settings, runs="runs", name=None, imitation=_without_folder(settings.imitation))
    files = {
        hub.AGENT: "the agent: weights, spaces, normalizer",
        "settings.yaml": "what it was trained with",
        "results.json": "every episode of the evaluation",
        "report.html": "curves, results and an episode to step through",
    }
    name, algorithm = repository or run.path.resolve().name, ALGORITHMS[settings.algorithm.name].__name__
    card = model_card(name, result, settings.policy.memory, algorithm, files, repository or folder.name)
    with reported_as(SettingsError, "--card", OSError, RunError):
        folder.mkdir()
        shutil.copyfile(run.find(options.checkpoint), folder / hub.AGENT)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "settings.yaml").write_text(configs.dump(shared), encoding="utf-8")
    _write_json(folder / "results.json", {key: value for key, value in result.items() if key != "run"})
    report_run(run, options, folder / "report.html", shared)
    listed = "".join(f"\n  {each.name:14} {each.stat().st_size:>12,} bytes" for each in sorted(folder.iterdir()))
    configs.say(f"written to {folder}:{listed}")
    if repository is None:
        return
    if dry:
        configs.say(f"this would be sent to {repository}; nothing was sent")
        return
    with reported_as(CheckpointFault, "--push-to-hub", CheckpointError):
        configs.say(f"sent to {hub.push(folder, repository)}")


def _without_folder(imitation: ImitationSettings) -> ImitationSettings:
    """Settings that do not tell where on this machine the teacher lies."""
    return imitation if imitation.teacher is None else replace(imitation, teacher=Path(imitation.teacher).name)


def measure_horizon(run: RunDirectory, options: Options, lags: int | None = None) -> None:
    """Prints how far back an input moves the action, and writes curve and plot into the run."""
    with loaded(run, options, 1) as (player, env, settings, file):
        limit = settings.evaluation.max_steps
        seeds = range(options.seed, options.seed + min(options.episodes, HORIZON_EPISODES))
        found = memory_horizon(player, [record(player, env, seed=seed, max_steps=limit) for seed in seeds], lags)
    configs.say(found.sentence)
    with reported_as(SettingsError, "--horizon", OSError):
        path = run.write_result("insight", f"{file.stem}-horizon", found.to_json())
        plots.horizon(found).savefig(path.with_suffix(".png"), dpi=130)
    configs.say(f"written to {path} and .png")


def draw_inside(run: RunDirectory, options: Options, color: str = "time") -> None:
    """Writes an episode's memory into the run, as numbers and as pictures colored by :meth:`Recording.signal`."""
    with loaded(run, options, 1) as (player, env, settings, file):
        played = record(player, env, seed=options.seed, max_steps=settings.evaluation.max_steps)
        with reported_as(SettingsError, f"--color {color}", ValueError):
            signal = played.signal(color)
        carried, opened = units(player.policy, played), gates(player, played)
        attended = attention(player, played)
        graphs = [each._asdict() for each in graph_weights(player, played)]
        weights = {f"graphs.{i}.{name}": part for i, each in enumerate(graphs) for name, part in each.items()}
    pictures: dict[str, Any] = {}
    summary: dict[str, Any] = {"seed": options.seed, "steps": len(played), "return": played.total}
    if carried:
        components = principal_components(np.concatenate(list(carried.values()), axis=1))
        summary["explained"] = components.explained.tolist()
        pictures = {"state": plots.state(carried), "components": plots.components(components, signal, color)}
    if opened is not None:
        summary["gates"], pictures["gates"] = opened.to_json(), plots.gates(opened)
    if attended:
        pictures["attention"] = plots.attention(attended)
    with reported_as(SettingsError, "--inside", OSError):
        path = run.write_result("insight", f"{file.stem}-inside", summary)
        arrays: dict[str, Any] = {**played.arrays(), **weights}
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
        for name, picture in pictures.items():
            picture.savefig(path.with_name(f"{path.stem}-{name}.png"), dpi=130)
    if not pictures:
        print("the agent carries no memory and attends to nothing: there is nothing to draw")
    configs.say(f"\nwritten to {path}, .npz{''.join(f', -{name}.png' for name in pictures)}")


def _write_page(path: Path, page: str, *, overwrite: bool = False) -> None:
    with reported_as(SettingsError, f"--report {path}", OSError):
        if overwrite:
            write_atomically(path, page)
        else:
            with path.open("x", encoding="utf-8") as file:
                file.write(page)
    configs.say(f"report written to {path}")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with reported_as(SettingsError, f"--json {path}", OSError):
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
