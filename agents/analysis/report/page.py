"""A run, or a comparison of runs, as one HTML page that needs nothing else: no network, no other file.

A page is a heading and sections of blocks, ``(kind, content)``: what is on it is decided here, what it looks like in
``page.html``. All that is put in is escaped; a content security policy in the page forbids it to load anything,
whatever is in it.
"""

import base64
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jinja2
import numpy as np

from agents.analysis import statistics
from agents.analysis.evaluation import Evaluation
from agents.analysis.report import data
from agents.analysis.report.groups import COLUMNS, Group, differences, flattened, improvements, plain, score_rows
from agents.analysis.report.history import Curve, Insight, RunHistory, read_versions
from agents.analysis.statistics import CONFIDENCE, between, interquartile_mean, mean, number
from agents.checks.text import printable

RETURN = "rollout/ep_rew_mean"
PACKAGES = ("torch", "gymnasium", "stable-baselines3", "sb3-contrib", "numpy")
SHOWN_METRICS = ("train/", "memory/", "time/fps")

_PER_EPISODE = ("returns", "lengths")  # in a finding; figures of single episodes are for a program to read

Block = tuple[str, Any]


def run_page(history: RunHistory, *, state: str, episode: Mapping[str, Any] | None = None, note: str = "") -> str:
    """The report of a run.

    Args:
        state: of its training, in a word.
        episode: as :func:`agents.analysis.report.data.episode` gives it, with what else is to be said of it as "note".
        note: what is missing and why.
    """
    settings, insights = history.settings, history.insights()
    about = f"{settings['env']['id']}, memory {settings['policy']['memory']}, seed {settings['seed']}"
    findings = [each for each in insights if isinstance(each.content, dict)]
    images = [each for each in insights if isinstance(each.content, bytes)]
    pictures = [(_words(each.name), base64.b64encode(each.content).decode("ascii")) for each in images]
    sections = {
        "Learning": _learning(history),
        "Results": _results(history.results()),
        "Does it use its memory?": _findings(each for each in findings if "ablation" in each.name),
        "What it remembers": [
            *_findings(each for each in findings if "ablation" not in each.name),
            *([("pictures", pictures)] if pictures else []),
        ],
        "An episode, step by step": _episode(episode) if episode else [("quiet", "There is no episode to show.")],
        "Training, more closely": _metrics(history.metrics()),
        "Settings and versions": [_settings(settings), _versions(read_versions(history.path))],
    }
    summary = [*([("note", note)] if note else []), _facts(history, state)]
    return _page(f"{history.name}: report", about, sections, history.name, summary=summary, episode=episode)


def comparison_page(
    groups: Sequence[Group],
    note: str = "",
    *,
    title: str = "Comparison of runs",
    before: Mapping[str, Sequence[Block]] = MappingProxyType({}),
) -> str:
    """The comparison of groups of runs on one task; ``before``: sections that come first."""
    runs = [run for group in groups for run in group.runs]
    environment = runs[0].history.settings["env"]["id"]
    sections = {
        **before,
        "Results": [*_scores(groups), ("quiet", note)],
        "Learning": _curves(groups),
        "Probability of improvement": _improvements(groups),
        "In what the groups differ": [_differences(groups)],
    }
    about = f"{environment}, {len(runs)} runs in {len(groups)} groups of the same settings"
    return _page(title, about, sections)


# What pages are made of


def _page(
    title: str, subtitle: str, sections: Mapping[str, Sequence[Block]], heading: str | None = None, **more: Any
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    said = dict(title=title, heading=heading or title, subtitle=subtitle, made=time.strftime("%Y-%m-%d %H:%M"))
    given = {"summary": (), "episode": None, "sections": sections, "confidence": f"{CONFIDENCE:.0%}", **said, **more}
    return environment.get_template("page.html").render(given)


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[Any], numeric: range | None = None, *, styled: bool = False
) -> Block:
    """Rows of cells, the first a row's heading; ``styled``: (CSS class, cells). Numbers stand on the right."""
    content = rows if styled else [("", list(cells)) for cells in rows]
    numeric = range(1, len(columns)) if numeric is None else numeric
    return "table", {"caption": caption, "columns": columns, "rows": content, "numeric": numeric}


def _chart(caption: str, series: list[dict[str, Any]], y: str) -> dict[str, Any]:
    """What the page's script draws curves from."""
    x = "environment steps"
    return {"caption": caption, "series": series, "x": x, "label": f"{caption}: {y} over {x}"}


def _details(summary: str, *blocks: Block) -> Block:
    return "details", {"summary": summary, "blocks": blocks}


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


# A run's page


def _facts(history: RunHistory, state: str) -> Block:
    settings, versions, periodic = history.settings, read_versions(history.path), history.periodic()
    best = max(periodic, key=lambda row: row["mean_reward"], default=None)
    steps = max([row["step"] for row in periodic] + [c.steps[-1] for c in history.metrics().values()], default=0)
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


def _learning(history: RunHistory) -> list[Block]:
    periodic, metrics, charts = history.periodic(), history.metrics(), []
    if RETURN in metrics:
        series = [data.curve("training return", metrics[RETURN])]
        charts.append(_chart("Return in training, mean of the last episodes", series, "mean return"))
    if evaluations := history.evaluation_curve():
        by_step = {row["step"]: row for row in periodic}
        low, high = ([by_step[step].get(edge, np.nan) for step in evaluations.steps] for edge in ("low", "high"))
        series = [data.curve("mean return", evaluations, low, high)]
        charts.append(_chart("Periodic evaluation, mean return with interval", series, "mean return"))
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
    table = _table("Periodic evaluations", columns, rows)
    return [("charts", charts), _details(f"The {len(rows)} periodic evaluations as a table", table, note)]


def _results(results: Sequence[tuple[str, Evaluation]]) -> list[Block]:
    if not results:
        return [("quiet", "No evaluation has been made after training.")]
    # The same seed gives the same episodes: an evaluation that was repeated is shown once.
    different = {(name, each.returns): each for name, each in results}
    rows = [
        (
            name,
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
        for (name, returns), each in different.items()
    ]
    columns = ["agent", "mean return", "interval", "interquartile mean", "interval"]
    columns += ["median", "lowest, highest", "success", "episodes", "actions"]
    return [_table("Evaluations after training", columns, rows)]


def _episode(episode: Mapping[str, Any]) -> list[Block]:
    end = "its end" if episode["ended"] else "a cut: it went on"
    note = f"{episode.get('note', '')} {episode['steps']:,} steps up to {end}; return {episode['total']}."
    memory = "Memory is shown as it is after the step, so with this step's observation in it."
    return [("plain", f"{note} {memory}"), ("stepper", None)]


def _metrics(metrics: Mapping[str, Curve]) -> list[Block]:
    shown = {name: curve for name, curve in metrics.items() if name.startswith(SHOWN_METRICS)}
    if not shown:
        return [("quiet", "No metrics were logged more than once.")]
    charts = [_chart(name, [data.curve(name, curve)], name) for name, curve in shown.items()]
    return [_details(f"{len(charts)} metrics", ("charts", charts))]


def _settings(settings: Mapping[str, Any]) -> Block:
    rows = [(key, plain(value)) for key, value in flattened(settings)]
    return _details(f"All {len(rows)} settings", _table("Settings", ("setting", "value"), rows, range(0)))


def _versions(versions: Mapping[str, Any]) -> Block:
    if not versions:
        return "quiet", "versions.json is missing."
    packages = versions.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    rows = [(name, plain(version)) for name, version in versions.items() if name != "packages"]
    rows += [(name, version) for name, version in packages.items() if name.lower() in PACKAGES]
    others = ", ".join(f"{name} {version}" for name, version in packages.items() if name.lower() not in PACKAGES)
    return _details("Versions", _table("Versions", ("", "version"), rows, range(0)), ("quiet", others))


def _findings(insights: Iterable[Insight]) -> list[Block]:
    """A verdict as a sentence, rows of figures as tables, single figures as facts; other lists are left out."""
    blocks: list[Block] = []
    for insight in insights:
        facts = {name: _figure(name, value) for name, value in insight.content.items() if _is_single(name, value)}
        blocks.append(("heading", _words(insight.name)))
        if "verdict" in facts:
            blocks.append(("verdict", facts.pop("verdict")))
        blocks += [table for name, value in insight.content.items() if (table := _rows_of_figures(name, value))]
        blocks.append(("facts", {_words(name): value for name, value in facts.items()}))
    return blocks


def _rows_of_figures(name: str, value: Any) -> Block | None:
    """A list of mappings, or a mapping of mappings, as a table; else nothing."""
    if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
        value = [{_words(name): key, **each} for key, each in value.items()]
    if not (isinstance(value, list) and value and all(isinstance(each, dict) for each in value)):
        return None
    # The name says what kind and amount say.
    left_out = ("kind", "amount") if "name" in value[0] else ()
    columns = [key for key, first in value[0].items() if _is_single(key, first) and key not in left_out]
    rows = [[_figure(column, each.get(column, "")) for column in columns] for each in value]
    return _table(_words(name), [_words(column) for column in columns], rows) if columns else None


def _is_single(name: str, value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= 4 and all(isinstance(each, int | float) for each in value)
    return isinstance(value, str | int | float) or value is None or (few and name not in _PER_EPISODE)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, list):
        return (" to " if name.endswith("interval") else ", ").join(_figure("", each) for each in value)
    return number(value) if isinstance(value, float) else plain(value)


# A comparison


def _scores(groups: Sequence[Group]) -> list[Block]:
    notes = [
        "A group's interval draws its seeds, then episodes of each; with one seed it is over episodes alone and says "
        "nothing about other seeds. With fewer than about five seeds it is too narrow."
    ]
    twice = [group.label for group in groups if len(group.by_seed) < len(group.runs)]
    notes += [f"A seed of {label} was run more than once and counts as one." for label in twice]
    table = _table("Results", ("group and run", *COLUMNS), score_rows(groups), styled=True)
    return [table, *(("quiet", note) for note in notes)]


def _curves(groups: Sequence[Group]) -> list[Block]:
    """Curves on the axis of environment steps, with intervals over seeds where a group has several."""
    captions: dict[str, Callable[[RunHistory], Curve | None]] = {
        "Periodic evaluation": RunHistory.evaluation_curve,
        "Return in training": lambda history: history.metrics().get(RETURN),
    }
    charts = []
    for caption, curve_of in captions.items():
        if series := [drawn for group in groups if (drawn := _group_curve(group, curve_of))]:
            charts.append(_chart(caption, series, "mean return"))
    if not charts:
        return [("quiet", "None of the runs has measured anything while training.")]
    note = (
        "Lines: the mean over a group's seeds, up to the last step that all of them reached. Bands: the interval of "
        "that mean over seeds, where there are several."
    )
    return [("charts", charts), ("quiet", note)]


def _group_curve(group: Group, curve_of: Callable[[RunHistory], Curve | None]) -> dict[str, Any] | None:
    last_of_seed = {run.seed: run.history for run in group.runs}
    curves = [curve for history in last_of_seed.values() if (curve := curve_of(history))]
    steps, values = statistics.aligned(curves) if curves else (np.zeros(0), np.zeros(0))
    if not len(steps):  # also where one run had ended before another began to measure
        return None
    if len(curves) == 1:
        return data.curve(group.label, curves[0])
    middle, low, high = statistics.curve_over_seeds(values)
    return data.curve(f"{group.label} ({len(curves)} seeds)", Curve(steps, middle), low, high)


def _improvements(groups: Sequence[Group]) -> list[Block]:
    if len(groups) < 2:
        return [("quiet", "There is one group alone; give runs with other settings too.")]
    rows = []
    for each in improvements(groups):
        low, high = each.interval
        bar = {"low": 100 * low, "high": 100 * high, "at": 100 * each.probability}
        rows.append((each.ours, each.theirs, f"{each.probability:.2f}", f"{low:.2f} to {high:.2f}", bar, each.over))
    columns = ("this group", "beats that group", "probability", "interval", "0 to 1", "over")
    note = (
        "How often a score of the one is above a score of the other, a tie counting half (Agarwal et al. 2021); 0.5 is "
        "no difference. Scores are the mean returns of seeds, or single episodes where a group has one seed alone."
    )
    return [_table("Probability of improvement", columns, rows, range(2, 4)), ("quiet", note)]


def _differences(groups: Sequence[Group]) -> Block:
    rows = [(key, *map(plain, values)) for key, values in differences([group.settings for group in groups]).items()]
    if not rows:
        return "quiet", "In nothing but the seed."
    return _table("Differing settings", ("setting", *(group.label for group in groups)), rows, range(0))
