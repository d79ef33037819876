"""A run, or a comparison of runs, as one HTML page that needs nothing else: no network, no other file.

Everything from outside (names, settings, findings) is escaped; a content security policy in the page forbids it to
load anything, whatever is in it.
"""

import base64
import html
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from agents.analysis.evaluation import CONFIDENCE
from agents.analysis.report import data
from agents.analysis.report.groups import Group, Scored, between, differences, flattened, improvements, number
from agents.analysis.report.records import Curve, Insight, Record
from agents.analysis.report.statistics import aligned, curve_over_seeds
from agents.checks.text import printable

RETURN = "rollout/ep_rew_mean"
PACKAGES = ("torch", "gymnasium", "stable-baselines3", "sb3-contrib", "numpy")
SHOWN_METRICS = ("train/", "memory/", "time/fps")

_PER_EPISODE = ("returns", "lengths")  # in a finding; figures of single episodes are for a program to read

Charts = dict[str, dict[str, Any]]


def run_page(record: Record, *, state: str, episode: Mapping[str, Any] | None = None, note: str = "") -> str:
    """The report of a run.

    Args:
        state: of its training, in a word.
        episode: as :func:`agents.analysis.report.data.episode` gives it, with what else is to be said of it as "told".
        note: what is missing and why; empty for nothing.
    """
    settings, charts = record.settings, dict[str, dict[str, Any]]()
    about = f"{settings['env']['id']}, memory {settings['policy']['memory']}, seed {settings['seed']}"
    body = [
        f'<p class="note">{escape(note)}</p>' if note else "",
        _facts(record, state),
        _section("Learning", _learning(record, charts)),
        _section("Results", _results(record.results())),
        *_insights(record.insights()),
        _section("An episode, step by step", _episode(episode) if episode else _absent("There is no episode to show.")),
        _section("Training, more closely", _metrics(record.metrics(), charts)),
        _section("Settings and versions", _settings(settings) + _versions(record.versions)),
    ]
    return _page(f"{record.name}: report", record.name, about, body, {"charts": charts, "episode": episode})


def comparison_page(groups: Sequence[Group], episodes_note: str = "") -> str:
    """The comparison of groups of runs on one task."""
    charts: Charts = {}
    runs = [run for group in groups for run in group.runs]
    about = f"{runs[0].record.settings['env']['id']}, {len(runs)} runs in {len(groups)} groups of the same settings"
    body = [
        _section("Results", _comparison_table(groups) + f'<p class="quiet">{escape(episodes_note)}</p>'),
        _section("Learning", _aligned_curves(groups, charts)),
        _section("Probability of improvement", _improvements(groups)),
        _section("In what the groups differ", _differences(groups)),
    ]
    return _page("Comparison of runs", "Comparison of runs", about, body, {"charts": charts, "episode": None})


def write_once(path: Path, text: str) -> None:
    """Writes a file that does not exist yet.

    Raises:
        FileExistsError: it does.
    """
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def escape(text: str, quote: bool = True) -> str:
    """Text that is not ours, for a page: nothing in it is an element, a line separator or a control character."""
    return html.escape(printable(text), quote)


# The page around it


def _page(title: str, heading: str, subtitle: str, body: Iterable[str], content: Mapping[str, Any]) -> str:
    parts = {
        "title": escape(title),
        "heading": escape(heading),
        "subtitle": escape(subtitle),
        "style": _resource("page.css"),
        "script": _resource("page.js"),
        "body": "\n".join(part for part in body if part),
        "data": data.as_script(content),
        "footer": f"Made by RecuRL on {time.strftime('%Y-%m-%d %H:%M')}. Intervals are {CONFIDENCE:.0%} intervals.",
    }
    # In one pass, so that nothing that was put in is taken for a place to put something.
    return re.sub(r"\[\[(\w+)\]\]", lambda match: parts[match[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _section(title: str, content: str) -> str:
    anchor = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(title)}</h2>\n{content}\n</section>'


def _absent(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'


def _figure(charts: Charts, caption: str, series: list[dict[str, Any]], y: str, x: str = "environment steps") -> str:
    """A place for a curve; the script draws it."""
    name = f"chart{len(charts)}"
    charts[name] = {"series": series, "x": x, "label": f"{caption}: {y} over {x}"}
    return f'<figure class="panel" data-chart="{name}"><figcaption>{escape(caption)}</figcaption></figure>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, figures_from: int = 1) -> str:
    """Cells are escaped; the first is a row's heading, those from ``figures_from`` on are numbers."""

    def style(i: int) -> str:
        return ' class="n"' if i >= figures_from else ' class="any"'

    head = "".join(f'<th scope="col"{style(i)}>{escape(name)}</th>' for i, name in enumerate(columns))
    lines = []
    for row in rows:
        first, *others = (escape(str(cell)) for cell in row)
        cells = "".join(f"<td{style(i)}>{cell}</td>" for i, cell in enumerate(others, 1))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    label = escape(caption, quote=True)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}"><table aria-label="{label}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


# The parts of a run's page


def _facts(record: Record, state: str) -> str:
    settings, versions = record.settings, record.versions
    periodic = record.periodic()
    best = max(periodic, key=lambda row: row["mean_reward"], default=None)
    steps = max([row["step"] for row in periodic] + [c.steps[-1] for c in record.metrics().values()], default=0)
    told = {
        "environment": settings["env"]["id"],
        "memory": settings["policy"]["memory"],
        "algorithm": settings["algorithm"]["name"],
        "seed": settings["seed"],
        "training": f"{state}, {int(steps):,} of {settings['total_timesteps']:,} steps",
        "best periodic evaluation": f"{number(best['mean_reward'])} at step {int(best['step']):,}" if best else "none",
        "started": str(versions.get("started", "unknown"))[:16].replace("T", " "),
        "commit": str(versions.get("commit") or "unknown")[:12],
    }
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in told.items())
    return f'<dl class="facts">{cells}</dl>'


def _learning(record: Record, charts: Charts) -> str:
    periodic, metrics = record.periodic(), record.metrics()
    figures = []
    if RETURN in metrics:
        series = [data.curve("training return", metrics[RETURN])]
        figures.append(_figure(charts, "Return in training, mean of the last episodes", series, "mean return"))
    if evaluations := record.evaluation_curve():
        by_step = {row["step"]: row for row in periodic}
        rows = [by_step[step] for step in evaluations.steps]
        low, high = ([row.get(edge, np.nan) for row in rows] for edge in ("low", "high"))
        series = [data.curve("mean return", evaluations, low, high)]
        figures.append(_figure(charts, "Periodic evaluation, mean return with interval", series, "mean return"))
    if not figures:
        return _absent("Nothing has been measured yet: no update has been logged and no evaluation made.")
    missing = "" if periodic else _absent("There is no periodic evaluation (yet).")
    return f'<div class="pair">{"".join(figures)}</div>{missing}{_periodic_table(periodic)}'


def _periodic_table(periodic: list[dict[str, float]]) -> str:
    if not periodic:
        return ""
    rows = [
        (
            f"{int(row['step']):,}",
            number(row["mean_reward"]),
            f"{number(row['low'])} to {number(row['high'])}" if "low" in row else "",
            number(row["median_reward"]) if "median_reward" in row else "",
            f"{row['success_rate']:.1%}" if "success_rate" in row else "",
            int(row.get("episodes", 0)),
        )
        for row in periodic
    ]
    columns = ("step", "mean return", "interval", "median", "success", "episodes")
    return (
        f"<details><summary>The {len(rows)} periodic evaluations as a table</summary>"
        f"{_table(columns, rows, 'Periodic evaluations')}"
        '<p class="quiet">Intervals: the mean and 1.96 of its standard errors to each side, over episodes.</p>'
        "</details>"
    )


def _results(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return _absent("No evaluation has been made after training.")
    rows = []
    # The same seed gives the same episodes: an evaluation that was repeated is told once.
    for each in {json.dumps([each.get("checkpoint"), each["returns"]]): each for each in results}.values():
        returns = each["return"]
        success = each.get("success_rate")
        rows.append(
            (
                each.get("checkpoint", "?"),
                number(returns["mean"]),
                _span(returns.get("mean_interval")),
                number(returns["interquartile_mean"]),
                _span(returns.get("interquartile_mean_interval")),
                number(returns["median"]),
                f"{number(returns['min'])}, {number(returns['max'])}",
                "" if success is None else f"{success:.1%}",
                each.get("episodes", ""),
                "most probable" if each.get("deterministic") else "sampled",
            )
        )
    columns = [
        *("agent", "mean return", "interval", "interquartile mean", "interval"),
        *("median", "lowest, highest", "success", "episodes", "actions"),
    ]
    return _table(columns, rows, "Evaluations after training")


def _span(interval: Any) -> str:
    return f"{number(interval[0])} to {number(interval[1])}" if interval else ""


def _episode(episode: Mapping[str, Any]) -> str:
    speeds = "".join(f"<option{' selected' if each == 5 else ''}>{each}</option>" for each in (1, 2, 5, 10, 20))
    end = "its end" if episode["ended"] else "a cut: it went on"
    told = f"{episode.get('told', '')} {episode['steps']:,} steps up to {end}; return {episode['total']}."
    return f"""<p>{escape(told)} Memory is shown as it is after the step, so with this step's observation in it.</p>
<div id="episode" role="group" aria-label="Step through the episode">
<div class="controls">
<button type="button" id="previous" aria-label="previous step">&#9664;</button>
<button type="button" id="play" class="main">Play</button>
<button type="button" id="next" aria-label="next step">&#9654;</button>
<label class="quiet" for="step" id="of-step">step</label><input type="range" id="step" min="0" value="0">
<output id="told" for="step" aria-live="off"></output>
<label class="quiet">a second <select id="speed" aria-label="steps a second">{speeds}</select></label>
</div>
<p class="quiet">Arrow keys step too; a click on a plot or picture goes there.</p>
<div class="grid four">
<div class="panel"><h3>Observation</h3><div id="seen" tabindex="0" role="group" aria-label="Observation"></div></div>
<div class="panel"><h3>Action</h3><div id="done"></div></div>
<div class="panel"><h3>Value and reward</h3><div id="got"></div></div>
<div class="panel"><h3>Memory</h3><div id="remembered"></div></div>
</div>
<div class="pair" id="timelines"></div>
<div class="pair" id="memories"></div>
</div>"""


def _metrics(metrics: Mapping[str, Curve], charts: Charts) -> str:
    shown = {name: curve for name, curve in metrics.items() if name.startswith(SHOWN_METRICS)}
    figures = [_figure(charts, name, [data.curve(name, curve)], name) for name, curve in shown.items()]
    if not figures:
        return _absent("No metrics were logged more than once.")
    return f'<details><summary>{len(figures)} metrics</summary><div class="grid">{"".join(figures)}</div></details>'


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [(key, _plain(value)) for key, value in flattened(settings)]
    table = _table(("setting", "value"), rows, "Settings", figures_from=9)
    return f"<details><summary>All {len(rows)} settings</summary>{table}</details>"


def _versions(versions: Mapping[str, Any]) -> str:
    if not versions:
        return _absent("versions.json is missing.")
    packages = versions.get("packages")
    packages = packages if isinstance(packages, dict) else {}
    lower = {name.lower(): version for name, version in packages.items()}
    rows = [(name, _plain(versions[name])) for name in versions if name != "packages"]
    rows += [(name, lower[name]) for name in PACKAGES if name in lower]
    others = ", ".join(f"{name} {version}" for name, version in packages.items() if name.lower() not in PACKAGES)
    table = _table(("", "version"), rows, "Versions", figures_from=9)
    return f'<details><summary>Versions</summary>{table}<p class="quiet">{escape(others)}</p></details>'


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_plain(each) for each in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# What was found about the memory


def _insights(insights: Sequence[Insight]) -> Iterator[str]:
    """Ablations first, since they answer whether the memory is used, then figures and pictures."""
    ablations = [each for each in insights if "ablation" in each.name and isinstance(each.content, dict)]
    texts = [each for each in insights if each not in ablations and isinstance(each.content, dict)]
    pictures = [each for each in insights if isinstance(each.content, bytes)]
    if ablations:
        yield _section("Does it use its memory?", "".join(_finding(each) for each in ablations))
    if texts or pictures:
        shown = "".join(_image(each) for each in pictures)
        grid = f'<div class="pair">{shown}</div>' if shown else ""
        yield _section("What it remembers", "".join(_finding(each) for each in texts) + grid)


def _image(insight: Insight) -> str:
    name = escape(_words(insight.name), quote=True)
    source = base64.b64encode(insight.content).decode("ascii")
    return (
        f'<figure class="panel"><figcaption>{name}</figcaption>'
        f'<img class="picture" alt="{name}" src="data:image/png;base64,{source}"></figure>'
    )


def _finding(insight: Insight) -> str:
    """A verdict as a sentence, rows of figures as tables, single figures as facts; other lists are left out."""
    content = insight.content
    verdict = f'<p class="verdict">{escape(str(content["verdict"]))}</p>' if "verdict" in content else ""
    tables = "".join(_rows_table(key, value) for key, value in content.items())
    single = {key: value for key, value in content.items() if key != "verdict" and _is_single(key, value)}
    facts = "".join(
        f"<div><dt>{escape(_words(k))}</dt><dd>{escape(_figure_of(k, v))}</dd></div>" for k, v in single.items()
    )
    return f'<h3 class="quiet">{escape(_words(insight.name))}</h3>{verdict}{tables}<dl class="facts">{facts}</dl>'


def _rows_table(name: str, value: Any) -> str:
    """A list of mappings, or a mapping of mappings, as a table; else nothing."""
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        value = [{_words(name): key, **each} for key, each in value.items()]
    if not (isinstance(value, list) and value and all(isinstance(each, dict) for each in value)):
        return ""
    columns = [key for key, first in value[0].items() if _is_single(key, first)]
    if not columns:
        return ""
    if "name" in columns:  # it says what these say
        columns = [column for column in columns if column not in ("kind", "amount")]
    rows = [[_figure_of(column, each.get(column, "")) for column in columns] for each in value]
    return _table([_words(column) for column in columns], rows, _words(name))


def _is_single(name: str, value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= 4 and all(isinstance(each, (int, float)) for each in value)
    return isinstance(value, (str, int, float)) or value is None or (few and name not in _PER_EPISODE)


def _figure_of(name: str, value: Any) -> str:
    if isinstance(value, list):
        return (" to " if name.endswith("interval") else ", ").join(_figure_of("", each) for each in value)
    return number(value) if isinstance(value, float) else _plain(value)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


# The parts of a comparison


def _comparison_table(groups: Sequence[Group]) -> str:
    columns = ("group and run", "seed", "mean return", "interval", "interquartile mean", "interval", "episodes")
    head = "".join(f'<th scope="col"{" class=n" if i else ""}>{escape(name)}</th>' for i, name in enumerate(columns))
    lines = []
    for group in groups:
        lines.append(_comparison_row("group", group.label, _seeds(group), *_of_group(group)))
        lines.extend(_comparison_row("member", run.record.name, str(run.seed), *_of_run(run)) for run in group.runs)
    notes = [
        "A group's interval draws its seeds, then episodes of each; with one seed it is over episodes alone and says "
        "nothing about other seeds. With fewer than about five seeds it is too narrow."
    ]
    twice = [group.label for group in groups if len(group.seeds()) < len(group.runs)]
    notes += [f"A seed of {label} was run more than once and counts as one." for label in twice]
    table = (
        '<div class="wide" role="region" tabindex="0" aria-label="Results"><table aria-label="Results">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    return table + "".join(f'<p class="quiet">{escape(note)}</p>' for note in notes)


def _comparison_row(kind: str, name: str, *cells: str) -> str:
    told = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
    return f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{told}</tr>'


def _seeds(group: Group) -> str:
    seeds = len(group.seeds())
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _of_group(group: Group) -> tuple[str, ...]:
    middle, around = number(group.interquartile_mean), between(group.interquartile_interval)
    return number(group.mean), between(group.interval), middle, around, str(len(group.episodes))


def _of_run(run: Scored) -> tuple[str, ...]:
    alone = Group("", (run,))
    middle, around = number(alone.interquartile_mean), between(alone.interquartile_interval)
    return number(run.mean), between(run.interval), middle, around, str(len(run.returns))


def _aligned_curves(groups: Sequence[Group], charts: Charts) -> str:
    """Curves on the axis of environment steps, with intervals over seeds where a group has several."""
    figures = []
    for caption, curves_of in (("Periodic evaluation", _evaluations_of), ("Return in training", _training_of)):
        series = [drawn for group in groups if (drawn := _group_curve(group, curves_of(group)))]
        if series:
            figures.append(_figure(charts, caption, series, "mean return"))
    if not figures:
        return _absent("None of the runs has measured anything while training.")
    return (
        f'<div class="pair">{"".join(figures)}</div><p class="quiet">Lines: the mean over a group\'s seeds, up to the '
        "last step that all of them reached. Bands: the interval of that mean over seeds, where there are several.</p>"
    )


def _evaluations_of(group: Group) -> list[Curve]:
    return [curve for run in group.by_seed() if (curve := run.record.evaluation_curve())]


def _training_of(group: Group) -> list[Curve]:
    return [curve for run in group.by_seed() if (curve := run.record.metrics().get(RETURN))]


def _group_curve(group: Group, curves: Sequence[Curve]) -> dict[str, Any] | None:
    if not curves:
        return None
    steps, values = aligned(curves)
    if not len(steps):  # one run had ended before another began to measure
        return None
    if len(curves) == 1:
        return data.curve(group.label, curves[0])
    middle, low, high = curve_over_seeds(values)
    return data.curve(f"{group.label} ({len(curves)} seeds)", Curve(steps, middle), low, high)


def _improvements(groups: Sequence[Group]) -> str:
    if len(groups) < 2:
        return _absent("There is one group alone; give runs with other settings too.")
    rows = []
    for each in improvements(groups):
        low, high = each.interval
        bar = (
            '<div class="range" aria-hidden="true">'
            f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
            f'<b style="left:{100 * each.probability:.1f}%"></b></div>'
        )
        rows.append(
            f'<tr><th scope="row">{escape(each.ours)}</th><td class="any">{escape(each.theirs)}</td>'
            f'<td class="n">{each.probability:.2f}</td><td class="n">{low:.2f} to {high:.2f}</td>'
            f'<td style="min-width:10rem">{bar}</td><td>{each.over}</td></tr>'
        )
    names = ("this group", "beats that group", "probability", "interval", "0 to 1", "over")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        '<div class="wide" role="region" tabindex="0" aria-label="Probability of improvement"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="quiet">How often a score of the one is above a score of the other, a tie counting half (Agarwal et '
        "al. 2021); 0.5 is no difference. Scores are the mean returns of seeds, or single episodes where a group has "
        "one seed alone.</p>"
    )


def _differences(groups: Sequence[Group]) -> str:
    found = differences(groups)
    if not found:
        return _absent("In nothing but the seed.")
    rows = [(key, *(_plain(value) for value in values)) for key, values in found.items()]
    return _table(("setting", *(group.label for group in groups)), rows, "Differing settings", figures_from=9)
