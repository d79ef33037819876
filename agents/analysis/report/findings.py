"""What analyses left in a run's directory, as blocks under headings in words.

A file may be of an older version, damaged or somebody's own: what is not understood is shown as it is.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agents.analysis.evaluation import manner
from agents.analysis.report import data
from agents.analysis.report.blocks import Block, chart, span, table
from agents.analysis.report.groups import plain
from agents.analysis.report.history import Insight
from agents.analysis.statistics import between, number

_PER_EPISODE = ("returns", "lengths")  # figures of single episodes are for a program to read


def found(insights: Iterable[Insight]) -> list[Block]:
    """The blocks of findings; one that was repeated with the same result is shown once."""
    blocks: list[Block] = []
    seen: list[Any] = []
    for insight in insights:
        if insight.content in seen:
            continue
        seen.append(insight.content)
        form = next((form for key, form in _FORMS.items() if key in insight.name), _as_it_is)
        try:
            blocks += list(form(insight.name, insight.content))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # not what the analysis writes
            blocks += list(_as_it_is(insight.name, insight.content))
    return blocks


def words(name: str) -> str:
    """A file's or key's name as text."""
    return name.replace("_", " ").replace("-", " ")


def _ablation(name: str, content: Mapping[str, Any]) -> Iterator[Block]:
    conditions = content["conditions"]
    edges = [edge for each in conditions for edge in each["mean_interval"]]
    scale = min(edges), max(edges)
    rows = []
    for i, each in enumerate(conditions):
        low, high = each["mean_interval"]
        change = _change(each["difference"], each["difference_interval"]) if i else ("", "", "")
        cell = span(low, each["mean"], high, scale)
        rows.append((_condition(each), number(each["mean"]), between((low, high)), cell, *change))
    drawn = f"{number(scale[0])} to {number(scale[1])}"
    columns = ("memory", "mean return", "interval", drawn, "difference", "interval", "in words")
    how = f"{len(conditions[0]['returns'])} episodes, {manner(content['deterministic'])} actions"
    yield "heading", f"Return with the memory changed: {name.partition('-')[0]} policy, {how}"
    yield "verdict", _sentence(content["verdict"])
    yield table("Ablation of the memory", columns, rows, range(1, 7))
    if len(conditions) > 1:
        enough = content["enough"]
        every = "every interval tried loses return" if enough is None else f"every {enough} steps"
        yield "facts", {"return lost without memory": number(content["fall"]), "can be wiped without loss": every}


def _condition(each: Mapping[str, Any]) -> str:
    """A condition's name, in a table without its heading."""
    name = str(each["name"])
    if name.startswith("noise of "):
        return name.replace(" deviations", " standard deviations")
    return {"of another episode": "exchanged with another episode's"}.get(name, name)


def _change(difference: float, interval: tuple[float, float]) -> tuple[str, str, str]:
    low, high = interval
    verdict = "return falls" if high < 0 else "memory hurts here: return rises" if low > 0 else "no clear difference"
    return number(difference), between((low, high)), verdict


def _horizon(name: str, content: Mapping[str, Any]) -> Iterator[Block]:
    sensitivity = [float(value) for value in content["sensitivity"]]
    lags = data.evenly_spaced(len(sensitivity), data.MOST_POINTS).tolist()
    y = [data.rounded(sensitivity[lag]) for lag in lags]
    series = [{"name": "sensitivity", "x": lags, "y": y}]
    yield "heading", f"How far back it reaches: {name.partition('-')[0]} policy"
    yield "verdict", _sentence(content["verdict"])
    x = "steps since the input (the line: the horizon)"
    caption, mark = "Influence of an input on later actions", content["horizon"]
    yield "charts", [chart(caption, series, "norm of gradient", x, mark=mark)]


def _inside(name: str, content: Mapping[str, Any]) -> Iterator[Block]:
    if not {"explained", "gates"} & set(content):  # it carries nothing
        return
    yield "heading", f"Inside the memory: {name.partition('-')[0]} policy, an episode of {content['steps']} steps"
    if "explained" in content:
        shares = ", ".join(f"{share:.0%}".replace("%", " %") for share in content["explained"])
        yield "plain", f"Explained variance of its principal components: {shares}."
    if gates := content.get("gates"):
        rows = [(gate, _list(each["openness"]), _list(each["saturation"])) for gate, each in gates.items()]
        yield table("Gates", ("gate", "mean openness, by layer", "saturated share, by layer"), rows)


def _list(values: Iterable[float]) -> str:
    return ", ".join(number(value) for value in values)


def _sentence(text: str) -> str:
    text = str(text)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _export(name: str, content: Mapping[str, Any]) -> Iterator[Block]:
    yield "heading", str(content["file"])
    compared = f"{content['steps_compared']:,} steps"
    yield (
        "facts",
        {"compared over": compared, "largest difference from the agent": f"{content['largest_difference']:.1g}"},
    )


_FORMS = {"ablation": _ablation, "horizon": _horizon, "inside": _inside, "-export-": _export}


def _as_it_is(name: str, content: Mapping[str, Any]) -> Iterator[Block]:
    """A verdict as a sentence, rows of figures as tables, single figures as facts; other lists are left out."""
    facts = {key: _figure(key, value) for key, value in content.items() if _is_single(key, value)}
    yield "heading", words(name).capitalize()
    if "verdict" in facts:
        yield "verdict", _sentence(facts.pop("verdict"))
    yield from (rows for key, value in content.items() if (rows := _rows_of_figures(key, value)))
    yield "facts", {words(key): value for key, value in facts.items()}


def _rows_of_figures(name: str, value: Any) -> Block | None:
    """A list of mappings, or a mapping of mappings, as a table; else nothing."""
    if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
        value = [{words(name): key, **each} for key, each in value.items()]
    if not (isinstance(value, list) and value and all(isinstance(each, dict) for each in value)):
        return None
    columns = [key for key, first in value[0].items() if _is_single(key, first)]
    rows = [[_figure(column, each.get(column, "")) for column in columns] for each in value]
    return table(words(name), [words(column) for column in columns], rows) if columns else None


def _is_single(name: str, value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= 4 and all(isinstance(each, int | float) for each in value)
    return isinstance(value, str | int | float) or value is None or (few and name not in _PER_EPISODE)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, list):
        return (" to " if name.endswith("interval") else ", ").join(_figure("", each) for each in value)
    return number(value) if isinstance(value, float) else plain(value)
