"""A run as one HTML page that needs nothing else: no network, no other file."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.analysis.evaluation import Evaluation
from agents.analysis.report import data, findings
from agents.analysis.report.blocks import Block, Chart, chart, details, measured, page, table
from agents.analysis.report.groups import flattened, plain
from agents.analysis.report.history import Curve, Insight, RunHistory, read_versions
from agents.analysis.statistics import between, interquartile_mean, mean, number

RETURN = "rollout/ep_rew_mean"
PACKAGES = ("torch", "gymnasium", "stable-baselines3", "sb3-contrib", "numpy")
# A metric's name as text, with what it is measured in where that is no plain number.
METRICS = {
    "train/policy_gradient_loss": "Policy loss",
    "train/value_loss": "Value loss",
    "train/loss": "Total loss",
    "train/entropy_loss": "Entropy loss (negative entropy, nats)",
    "train/approx_kl": "Approximate KL divergence of an update (nats)",
    "train/clip_fraction": "Share of ratios clipped",
    "train/explained_variance": "Explained variance of the value",
    "train/clip_range": "Clip range",
    "train/learning_rate": "Learning rate",
    "train/std": "Standard deviation of actions",
    "memory/gradient_lag": "Gradient of the last action by lag of the input (norm)",
    "memory/ratio_drift": "Mean |log ratio| by quarter of the sequences",
    "memory/state_norm": "Root mean square of the memory's state",
    "memory/output_norm": "Root mean square of the memory's output",
    "memory/output_saturated": "Share of the memory's outputs beyond 0.9",
    "time/fps": "Environment steps a second",
    "time/share": "Share of the time",
}
LOSSES = ("train/",)
DIAGNOSTICS = ("memory/",)
SPEED = ("time/fps", "time/share")
_SHARES = ("time/collecting", "time/training", "time/environment")
_DULL = ("train/n_updates",)


class Acting(NamedTuple):
    """What an agent's recorded episodes show."""

    charts: Sequence[Chart] = ()  # values and actions, over several episodes
    memory: Sequence[Block] = ()  # over the episode that is stepped through
    note: str = ""  # which agent, how many episodes


NOTHING_RECORDED = Acting()


def run_page(
    history: RunHistory,
    *,
    state: str,
    episode: Mapping[str, Any] | None = None,
    acting: Acting = NOTHING_RECORDED,
    note: str = "",
) -> str:
    """The report of a run.

    Args:
        state: of its training, in a word.
        episode: as :func:`agents.analysis.report.data.episode` gives it, with what else is to be said of it as "note",
            and with "video" (base64 of an .mp4 file) and "rate" (frames a second) where it was filmed.
        note: what is missing and why.
    """
    settings, insights, metrics, elapsed = history.settings, history.insights(), history.metrics(), history.elapsed()
    about = f"{settings['env']['id']}, memory {settings['policy']['memory']}, seed {settings['seed']}"
    of_json = [each for each in insights if isinstance(each.content, dict)]
    exports = [each for each in of_json if "-export-" in each.name]
    others = [each for each in of_json if "ablation" not in each.name and each not in exports]
    if acting.memory:  # the same over an episode of the agent as it is now
        others = [each for each in others if "inside" not in each.name]
    sections = {
        "Learning": _learning(history, metrics.get(RETURN), elapsed),
        "Results": _results(history.results()),
        "How it acts": _acting(acting),
        "Does it use its memory?": findings.found(each for each in of_json if "ablation" in each.name),
        "What it remembers": [*acting.memory, *findings.found(others), *_pictures(insights, bool(acting.memory))],
        "An episode, step by step": _episode(episode) if episode else [("quiet", "There is no episode to show.")],
        **({"Exports": findings.found(exports)} if exports else {}),
        "Losses and diagnostics": _metrics(metrics, elapsed),
        "Settings and versions": [_settings(settings), _versions(read_versions(history.path))],
    }
    summary = [*([("note", note)] if note else []), _facts(history, state, metrics)]
    # The film stands in the page as an element, and not in what the script reads.
    stepped = None if episode is None else {key: value for key, value in episode.items() if key != "video"}
    return page(f"{history.name}: report", about, sections, history.name, summary=summary, stepped=stepped)


def _facts(history: RunHistory, state: str, metrics: Mapping[str, Curve]) -> Block:
    settings, versions, periodic = history.settings, read_versions(history.path), history.periodic()
    best = max(periodic, key=lambda row: row["mean_reward"], default=None)
    steps = max([row["step"] for row in periodic] + [c.steps[-1] for c in metrics.values()], default=0)
    return "facts", {
        "environment": settings["env"]["id"],
        "memory": settings["policy"]["memory"],
        "algorithm": settings["algorithm"]["name"],
        "seed": settings["seed"],
        "training": f"{state}, {int(steps):,} of {settings['total_timesteps']:,} steps",
        "best periodic evaluation": f"{number(best['mean_reward'])} at step {int(best['step']):,}" if best else "none",
        "started": str(versions.get("started", "unknown"))[:16].replace("T", " "),
        "commit": str(versions.get("commit") or "unknown")[:12],
    }


def _learning(history: RunHistory, training: Curve | None, elapsed: Curve | None) -> list[Block]:
    periodic, charts = history.periodic(), []
    if training is not None:
        series = [data.curve("training return", training, elapsed=elapsed)]
        charts.append(chart("Return in training, mean of the last episodes", series, "mean return"))
    if evaluations := history.evaluation_curve():
        by_step = {row["step"]: row for row in periodic}
        low, high = ([by_step[step].get(edge, np.nan) for step in evaluations.steps] for edge in ("low", "high"))
        series = [data.curve("mean return", evaluations, low, high, elapsed=elapsed)]
        charts.append(chart("Periodic evaluation, mean return with interval", series, "mean return"))
    if not charts:
        return [("quiet", "Nothing has been measured yet: no update has been logged and no evaluation made.")]
    if not periodic:
        return [("charts", charts), ("quiet", "There is no periodic evaluation (yet).")]
    rows = [
        (
            f"{int(row['step']):,}",
            number(row["mean_reward"]),
            between((row["low"], row["high"])) if "low" in row else "",
            number(row["median_reward"]) if "median_reward" in row else "",
            f"{row['success_rate']:.1%}" if "success_rate" in row else "",
            int(row.get("episodes", 0)),
        )
        for row in periodic
    ]
    columns = ("step", "mean return", "interval", "median", "success", "episodes")
    note = "quiet", "Intervals: the mean and 1.96 of its standard errors to each side, over episodes."
    listed = table("Periodic evaluations", *measured(columns, rows))
    return [("charts", charts), details(f"The {len(rows)} periodic evaluations as a table", listed, note)]


def _results(results: Sequence[tuple[str, Evaluation]]) -> list[Block]:
    if not results:
        return [("quiet", "No evaluation has been made after training.")]
    # The same seed gives the same episodes: an evaluation that was repeated is shown once.
    different = {(name, each.manner, each.returns): each for name, each in results}
    rows = [
        (
            _policy(name),
            number(each.mean),
            between(each.interval(mean)),
            number(each.interquartile_mean),
            between(each.interval(interquartile_mean)),
            number(each.median),
            f"{number(min(returns))}, {number(max(returns))}",
            "" if each.success_rate is None else f"{each.success_rate:.1%}",
            each.episodes,
            each.manner,
        )
        for (name, _, returns), each in different.items()
    ]
    columns = ["policy", "mean return", "interval", "interquartile mean", "interval"]
    columns += ["median", "lowest, highest", "success", "episodes", "actions"]
    return [table("Evaluations after training", *measured(columns, rows))]


def _policy(file: str) -> str:
    """A checkpoint's file name as text: step_000000061440.zip is step 61,440."""
    step = re.fullmatch(r"step_(\d+)\.zip", file)
    return f"step {int(step[1]):,}" if step else "best policy" if file == "best.zip" else file


def _acting(acting: Acting) -> list[Block]:
    if not acting.charts:
        return []
    limited = "Of an episode that a time limit truncates, the last steps are left out of value against return."
    units = "Values and returns are in the environment's units; on the dashed line the value is right."
    return [("plain", acting.note), ("charts", acting.charts), ("quiet", f"{units} {limited}")]


def _episode(episode: Mapping[str, Any]) -> list[Block]:
    end = "its end" if episode["ended"] else "a limit: it went on"
    note = f"{episode.get('note', '')} {episode['steps']:,} steps up to {end}; return {episode['total']}."
    units = "The value is the discounted return expected before the step, in the environment's units."
    memory = "Memory is shown as it is after the step, so with this step's observation in it."
    return [("plain", f"{note} {units} {memory}"), ("stepper", episode)]


def _pictures(insights: Sequence[Insight], drawn: bool) -> list[Block]:
    """Pictures left in the run, less those of what the page draws itself."""
    numbers = {each.name for each in insights if isinstance(each.content, dict)}
    superseded = r"-inside(-\d+)?-(state|components|gates|attention)$"
    images = [each for each in insights if isinstance(each.content, bytes) and each.name not in numbers]
    left = [each for each in images if not (drawn and re.search(superseded, each.name))]
    shown = [(findings.words(each.name), base64.b64encode(each.content).decode("ascii")) for each in left]
    return [("pictures", shown)] if shown else []


def _metrics(metrics: Mapping[str, Curve], elapsed: Curve | None) -> list[Block]:
    charts: dict[str, list[dict[str, Any]]] = {}
    for name, found in metrics.items():
        joint, label = _joint(name)
        charts.setdefault(joint, []).append(data.curve(label, found, elapsed=elapsed))
    blocks: list[Block] = []
    for title, prefixes in (("Losses and policy", LOSSES), ("Memory", DIAGNOSTICS), ("Speed", SPEED)):
        names = sorted((each for each in charts if each.startswith(prefixes)), key=_place)
        drawn = [chart(METRICS.get(name, name), charts[name], _unit(name)) for name in names]
        if drawn and prefixes == LOSSES:
            blocks += [("heading", title), ("charts", drawn)]
        elif drawn:
            blocks.append(details(f"{title}: {len(drawn)} charts", ("charts", drawn)))
    return blocks or [("quiet", "No metrics were logged more than once.")]


def _joint(name: str) -> tuple[str, str]:
    """The chart that a metric is drawn in, and its name there; a chart of its own: its own name."""
    if name in _DULL:
        return "", name
    if name in _SHARES:
        return "time/share", name.partition("/")[2]
    lag = re.fullmatch(r"(memory/gradient_lag|memory/ratio_drift)_(\d+)", name)
    if lag is None:
        return name, name
    return lag[1], f"lag {lag[2]}" if lag[1].endswith("lag") else f"quarter {lag[2]}"


def _place(name: str) -> int:
    known = list(METRICS)
    return known.index(name) if name in known else len(known)


def _unit(name: str) -> str:
    return name.partition("/")[2].replace("_", " ")


def _settings(settings: Mapping[str, Any]) -> Block:
    rows = [(key, plain(value)) for key, value in flattened(settings)]
    return details(f"All {len(rows)} settings", table("Settings", ("setting", "value"), rows, range(0)))


def _versions(versions: Mapping[str, Any]) -> Block:
    if not versions:
        return "quiet", "versions.json is missing."
    packages = versions.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    rows = [(name, plain(version)) for name, version in versions.items() if name != "packages"]
    rows += [(name, version) for name, version in packages.items() if name.lower() in PACKAGES]
    others = ", ".join(f"{name} {version}" for name, version in packages.items() if name.lower() not in PACKAGES)
    return details("Versions", table("Versions", ("", "version"), rows, range(0)), ("quiet", others))
