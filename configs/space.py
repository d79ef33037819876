"""A sweep's file: what is searched, and how; the sweep file of Weights & Biases, so that one file serves both.

    method: bayes                        bayes (Optuna's TPE) or random
    early_terminate: {type: median}      median (the default), hyperband or none; min_iter: evaluations before it
    parameters:
      policy.memory: {values: [lstm, gru]}
      policy.memory-kwargs.hidden-size: {distribution: q_log_uniform_values, q: 1, min: 16, max: 256}
      algorithm.learning-rate: {distribution: log_uniform_values, min: 1.0e-4, max: 3.0e-3}

``program``, ``command`` and ``metric`` are for Weights & Biases. Read as strictly as a settings file.
"""

import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_origin

import yaml

from configs.command_line import with_what_fits
from configs.errors import SettingsError
from configs.settings import ENCODERS, MEMORIES, SETTINGS, Settings, changed, did_you_mean, problems, values
from configs.yaml_file import Loader, convert, located, parsed_file, shown

FIELDS = ("method", "parameters", "early_terminate", "program", "command", "metric", "name", "description", "project")
METHODS = ("bayes", "random")
STOPS = ("median", "hyperband", "none")
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "categorical": ("values",),
    "constant": ("value",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform_values": ("min", "max", "q"),
}
"""Distributions of a parameter, and what each is given by."""

NOT_LEARNED = (
    *("seed", "name", "group", "runs", "threads", "device", "progress", "tracking", "checkpoint", "evaluation"),
    *("env.id", "env.backend", "env.workers", "env.timeout", "env.address", "env.max_restarts"),
)
"""Settings, or groups of them, that do not decide what is learned, or change what returns mean."""
FIRST = ("policy.memory", "policy.encoder")
"""Chosen before all others: which arguments there are depends on them."""
DRAWN = 50
"""Combinations that are looked at for every value before a sweep starts."""


@dataclass(frozen=True)
class Parameter:
    """A setting, or an argument of a memory, an encoder or an environment, that is searched."""

    key: str  # algorithm.learning_rate, policy.memory_kwargs.hidden_size
    place: str = field(compare=False)  # line of the file
    choices: tuple[Any, ...] = ()  # one of them; or else a number of a range
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def examples(self) -> tuple[Any, ...]:
        """All choices, or the ends of the range."""
        return self.choices or (self.low, self.high)

    def drawn(self, chance: random.Random) -> Any:
        return chance.choice(self.examples)

    def holds(self, value: Any) -> bool:
        if self.choices:
            return any(type(value) is type(each) and value == each for each in self.choices)
        return isinstance(value, int | float) and self.low <= value <= self.high and not isinstance(value, bool)


@dataclass(frozen=True)
class Stop:
    """When a trial that is behind is ended."""

    kind: str = "median"
    min_iter: int = 1  # evaluations that every trial has
    eta: int = 3


@dataclass(frozen=True)
class Space:
    """What is searched."""

    parameters: tuple[Parameter, ...]
    method: str = "bayes"
    stop: Stop = Stop()
    text: str = field(default="", compare=False)  # of the file

    def settings(self, base: Settings, chosen: Mapping[str, Any]) -> Settings:
        """``base`` with the values that were chosen, by key."""
        memory, encoder = (chosen.get(key) for key in FIRST)
        settings = with_what_fits(base, memory, "None" if encoder is None and FIRST[1] in chosen else encoder)
        now, changes = values(settings), dict[str, Any]()
        for key, value in chosen.items():
            mapping, _, argument = key.rpartition(".")
            if key in SETTINGS:
                changes[key] = value
            else:
                changes[mapping] = {**changes.get(mapping, now[mapping]), argument: value}
        return changed(settings, changes)

    def applies(self, parameter: Parameter, base: Settings, chosen: Mapping[str, Any]) -> bool:
        """Whether it is an argument of what is chosen, as far as one knows what that takes."""
        mapping, _, argument = parameter.key.rpartition(".")
        for key, known in zip(FIRST, (MEMORIES, ENCODERS), strict=True):
            if mapping == f"{key}_kwargs":
                name = chosen.get(key, getattr(base.policy, key.partition(".")[2]))
                return argument in known.get(name, (argument,)) and name is not None
        return True

    def of(self, base: Settings) -> dict[str, Any] | None:
        """What the settings themselves say, by key; None where that is not in the space."""
        now, found = values(base), dict[str, Any]()
        for each in self.parameters:
            mapping, _, argument = each.key.rpartition(".")
            if not self.applies(each, base, found):
                continue
            there = now[each.key] if each.key in now else now[mapping].get(argument)
            if not each.holds(there):
                return None
            found[each.key] = there
        return found

    def check(self, base: Settings) -> None:
        """Raises :class:`SettingsError` that names every value with which no combination can be trained."""
        chance, found = random.Random(0), []
        for parameter in self.parameters:
            for value in parameter.examples:
                faults = [self._fault(base, parameter, value, chance) for _ in range(DRAWN)]
                if all(faults):
                    found.append(f"{parameter.place}: {parameter.key} {shown(value)}: {faults[0]}")
        if found:
            raise SettingsError("\n".join(dict.fromkeys(found)))

    def _fault(self, base: Settings, fixed: Parameter, value: Any, chance: random.Random) -> str | None:
        """Why a random combination with this value cannot be trained."""
        chosen: dict[str, Any] = {}
        for each in self.parameters:
            drawn = value if each is fixed else each.drawn(chance)
            if each is fixed or self.applies(each, base, chosen):
                chosen[each.key] = drawn
        if not self.applies(fixed, base, chosen):
            return "is an argument that nothing in the sweep takes" if fixed.key.count(".") > 1 else None
        return next((f"{key} {message}" for key, message in problems(self.settings(base, chosen))), None)


def read_space(path: str | os.PathLike[str]) -> Space:
    """The space of a sweep's file. Raises :class:`SettingsError` with file, line and the nearest name."""
    return parsed_file(path, lambda text: _space(text, os.fspath(path)), "sweep file")


def _space(text: str, file: str) -> Space:
    loader = Loader(text)
    root = loader.get_single_node() or yaml.MappingNode("tag:yaml.org,2002:map", [], loader.get_mark())
    top = dict(_fields(root, FIELDS, "of a sweep"))
    if "parameters" not in top:
        raise located("parameters are missing: what is to be searched, by the names of settings", root)
    method = _word(loader, top["method"], METHODS, "method") if "method" in top else "bayes"
    metric = loader.construct_object(top["metric"], deep=True) if "metric" in top else None
    if isinstance(metric, dict) and metric.get("goal", "maximize") != "maximize":
        raise located("metric: a return is maximized; goal must be maximize", top["metric"])
    stop = _stop(loader, top["early_terminate"]) if "early_terminate" in top else Stop()
    found = [_parameter(loader, name, node, file) for name, node in _named(top["parameters"])]
    if not found:
        raise located("parameters are missing: what is to be searched, by the names of settings", root)
    return Space(tuple(sorted(found, key=lambda each: each.key not in FIRST)), method, stop, text)


def _fields(node: yaml.Node, known: Sequence[str], what: str) -> Iterator[tuple[str, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise located(f"expected a mapping of {', '.join(known)}", node)
    for name, value in node.value:
        if name.value not in known:
            hint = did_you_mean(name.value, tuple(known)) or f"; known are {', '.join(known)}"
            raise located(f"{name.value!r} is no field {what}{hint}", name)
        yield name.value, value


def _named(node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise located("parameters must be named by settings, such as algorithm.learning-rate: {...}", node)
    yield from node.value


def _word(loader: Loader, node: yaml.Node, known: Sequence[str], what: str) -> str:
    value = loader.construct_object(node)
    if value not in known:
        hint = did_you_mean(str(value), tuple(known))
        raise located(f"{what} must be one of {', '.join(known)}; got {shown(value)}{hint}", node)
    return str(value)


def _stop(loader: Loader, node: yaml.Node) -> Stop:
    fields = dict(_fields(node, ("type", "min_iter", "eta"), "of early_terminate"))
    kind = _word(loader, fields["type"], STOPS, "early_terminate.type") if "type" in fields else "median"
    numbers = {}
    for name, least in (("min_iter", 1), ("eta", 2)):
        if name in fields:
            value = loader.construct_object(fields[name])
            if type(value) is not int or value < least:
                raise located(f"early_terminate.{name} must be a whole number of at least {least}", fields[name])
            numbers[name] = value
    return Stop(kind, **numbers)


def _parameter(loader: Loader, name: yaml.Node, node: yaml.Node, file: str) -> Parameter:
    key = str(name.value).replace("-", "_")
    kind = _kind(key, name)
    every = ("distribution", *dict.fromkeys(field for fields in DISTRIBUTIONS.values() for field in fields))
    fields = dict(_fields(node, every, f"of the parameter {name.value}"))
    given = {field: loader.construct_object(value, deep=True) for field, value in fields.items()}
    place = f"{file}:{name.start_mark.line + 1}"
    how = _distribution(loader, fields, given, node, name.value)
    try:
        if how in ("categorical", "constant"):
            choices = given["values"] if how == "categorical" else [given["value"]]
            if not isinstance(choices, list) or not choices:
                raise ValueError(f"values must be a list of some, got {shown(choices)}")
            return Parameter(key, place, tuple(_converted(key, each, kind) for each in choices))
        return _range(key, place, how, given, kind)
    except ValueError as error:
        raise located(f"{name.value} {error}", node) from None


def _kind(key: str, name: yaml.Node) -> Any:
    """The type of a setting; object for an argument. Raises MarkedYAMLError where there is none of that name."""
    mapping = key.rpartition(".")[0]
    declared = SETTINGS.get(key) or SETTINGS.get(mapping)
    if declared is None or (key not in SETTINGS and get_origin(declared.type) is not dict):
        known = tuple(each for each in SETTINGS if not _is_fixed(each))
        near = did_you_mean(key, known) or f"; train.py --help-all shows the settings (of {mapping or 'the run'})"
        raise located(f"unknown setting {name.value}{near}", name)
    if _is_fixed(key):
        raise located(f"{name.value} does not decide what is learned, or changes what returns mean: leave it out", name)
    return declared.type if key in SETTINGS else object


def _is_fixed(key: str) -> bool:
    return key in NOT_LEARNED or key.partition(".")[0] in NOT_LEARNED


def _distribution(
    loader: Loader, fields: Mapping[str, yaml.Node], given: Mapping[str, Any], node: yaml.Node, name: str
) -> str:
    if "distribution" in fields:
        how = _word(loader, fields["distribution"], tuple(DISTRIBUTIONS), f"{name}: distribution")
    elif "values" in given or "value" in given:
        how = "categorical" if "values" in given else "constant"
    else:
        how = "int_uniform" if type(given.get("min")) is type(given.get("max")) is int else "uniform"
    needed = DISTRIBUTIONS[how]
    if set(needed) != set(given) - {"distribution"}:
        raise located(f"{name}: {how} is given by {', '.join(needed)}, not by {', '.join(given) or 'nothing'}", node)
    return how


def _range(key: str, place: str, how: str, given: Mapping[str, Any], kind: Any) -> Parameter:
    """Raises ValueError."""
    numbers = {name: given[name] for name in DISTRIBUTIONS[how]}
    for name, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a number, got {shown(value)}")
    whole = how == "int_uniform" or (how.startswith("q_") and all(type(value) is int for value in numbers.values()))
    log, step, (low, high) = "log" in how, numbers.get("q"), (numbers["min"], numbers["max"])
    if low >= high:
        raise ValueError(f"min must be less than max, got {low} and {high}")
    if log and low <= 0:
        raise ValueError(f"min must be greater than 0 on a logarithmic scale, got {low}")
    if log and step not in (None, 1):
        raise ValueError(f"q must be 1 on a logarithmic scale, for whole numbers, got {step}")
    if step is not None and step <= 0:
        raise ValueError(f"q must be greater than 0, got {step}")
    if log and step is not None and not whole:
        raise ValueError("min and max must be whole numbers where q is 1")
    if how == "int_uniform" and not (type(low) is type(high) is int):
        raise ValueError("min and max of int_uniform must be whole numbers")
    for end in (low, high) if whole else (low + (high - low) / math.pi,):  # which is no whole number by chance
        try:
            _converted(key, end, kind)
        except ValueError as error:
            use = "" if whole else "; whole numbers are int_uniform, or q_log_uniform_values with q: 1"
            raise ValueError(f"{error}{use}") from None
    return Parameter(key, place, low=low, high=high, step=None if log else step, log=log, whole=whole)


def _converted(key: str, value: Any, kind: Any) -> Any:
    """Of the setting's type and in its range; raises ValueError."""
    made = convert(value, kind)
    limit = SETTINGS[key].limit if key in SETTINGS else None
    if limit is not None and made is not None and not limit.holds(made):
        raise ValueError(f"must be {limit.words}, got {shown(made)}")
    return made
