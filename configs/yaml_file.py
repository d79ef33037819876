"""Settings files: YAML read strictly into the dataclasses of :mod:`configs.settings`, and written back.

Strict means: safe types only, every unknown or repeated key and every value of a wrong type is an error that names
file, line and key. Scalars follow YAML 1.2's core schema, so that ``1e-3`` is a number and ``off`` a word.
"""

import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from configs.errors import SettingsError
from configs.settings import SETTINGS, Settings, as_meant, changed, did_you_mean, problems, values

LARGEST = 2**20  # characters of a settings file
MOST_VALUES = 10_000  # in it, with every alias written out

Parsed = TypeVar("Parsed")

Sources = dict[str, str]
"""Dotted key -> "file:line" where it was set."""


def read(path: str | os.PathLike[str]) -> Settings:
    """The settings of a file, defaults for what it leaves out, checked. Raises :class:`SettingsError`."""
    settings, sources = read_unchecked(path)
    check(settings, sources)
    return settings


def read_unchecked(path: str | os.PathLike[str]) -> tuple[Settings, Sources]:
    """The settings of a file before their ranges are checked, since the command line may still change them."""
    found, lines = parsed_file(path, _parsed)
    return changed(Settings(), as_meant(found)), {key: f"{os.fspath(path)}:{line}" for key, line in lines.items()}


def parsed_file(path: str | os.PathLike[str], parse: Callable[[str], Parsed], kind: str = "settings file") -> Parsed:
    """What ``parse`` makes of a file's text; a yaml.MarkedYAMLError becomes :class:`SettingsError` with its line."""
    file = os.fspath(path)
    try:
        with Path(path).open(encoding="utf-8") as stream:
            text = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise SettingsError(f"no {kind} {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {kind} {file}: {error}") from error
    if len(text) > LARGEST:
        raise SettingsError(f"{file} has more than {LARGEST} characters, so it is no {kind}")
    try:
        return parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SettingsError(f"{file}{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: {error}") from None
    except RecursionError:
        raise SettingsError(f"{file}: nested too deeply") from None


def check(settings: Settings, sources: Mapping[str, str], baseline: Settings | None = None) -> None:
    """Raises :class:`SettingsError` naming what cannot be used, and file and line of what still is as ``baseline``."""
    now, before = values(settings), values(baseline or settings)
    found = []
    for key, message in problems(settings):
        place = f"{sources[key]}: " if key in sources and now[key] == before[key] else ""
        found.append(f"{place}{key} {message}")
    if found:
        raise SettingsError("\n".join(found))


def dump(settings: Settings) -> str:
    """The YAML from which :func:`read` gives the same settings."""
    text: str = yaml.dump(asdict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def parse_scalar(text: str) -> Any:
    """What a word on the command line is as YAML: a number, true, null, a string, a {mapping: ...}."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not YAML: {getattr(error, 'problem', error)}") from None


_SCALARS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def convert(value: Any, declared: Any) -> Any:
    """``value`` as the type ``declared``; raises ValueError that says what was expected and what came."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return value if type(value) in arguments else convert(value, arguments[0])  # None, true and false
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            hint = did_you_mean(value, arguments) if isinstance(value, str) else ""
            raise ValueError(f"must be one of {', '.join(arguments)}; got {shown(value)}{hint}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list, got {shown(value)}")
        return tuple(convert(each, arguments[0]) for each in value)
    if origin is dict:
        value = {} if value is None else value  # "kwargs:" with nothing after it
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"must map names to values, got {shown(value)}")
        return value
    if declared is object:
        return value
    is_number = type(value) in (int, float) and declared in (int, float)
    if not (type(value) is declared or (is_number and (declared is float or value == value // 1))):  # 1e5 is whole
        hint = "; put it in quotes if it is meant as one" if declared is str else ""
        raise ValueError(f"must be {_SCALARS[declared]}, got {shown(value)}{hint}")
    return declared(value)


def shown(value: Any) -> str:
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


class Loader(yaml.SafeLoader):
    """Safe types, the scalars of YAML 1.2, no repeated keys, and no more values than settings have."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Counts the values with every alias written out: ten lines of aliases of aliases stand for a billion."""
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        assert node is not None
        if is_alias and node not in self._sizes:  # an alias of what it stands in
            raise located("a recursive alias", node)
        children: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            _check_names(node)
            children = [child for entry in node.value for child in entry]
        self._sizes[node] = 1 + sum(self._sizes[child] for child in children)
        if self._sizes[node] > MOST_VALUES:
            raise located(f"more than {MOST_VALUES} values with every alias written out", node)
        return node


def _check_names(node: yaml.MappingNode) -> None:
    seen = set()
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise located("a name was expected here", name)
        if name.value in seen:
            raise located(f"{name.value!r} is set twice", name)
        seen.add(name.value)


def located(message: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    """An error that knows its line."""
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`Loader` would not read as a string; short sequences and empty mappings on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.2's core schema, and 1_000_000. PyYAML's own follows 1.1: 1e5 a string, off false, 1:30 ninety.
_SCALAR_PATTERNS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _kind in (Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _SCALAR_PATTERNS.items():
        _kind.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(node.value, base=0 if node.value[:2] in ("0x", "0o") else 10),
)
Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan")),
)
for _sequence in (list, tuple):
    _Dumper.add_representer(
        _sequence, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
    )


def _parsed(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Values and lines of a file's settings by dotted key. Raises MarkedYAMLError."""
    loader = Loader(text)
    root = loader.get_single_node()
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, node in _entries(root, "") if root is not None else ():
        try:
            found[key] = convert(loader.construct_object(node, deep=True), SETTINGS[key].type)
        except ValueError as error:
            raise located(f"{key} {error}", node) from None
        lines[key] = node.start_mark.line + 1
    return found, lines


def _entries(node: yaml.Node, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    """(dotted key, value) of every setting below a group; a group with nothing after it keeps its defaults."""
    if not isinstance(node, yaml.MappingNode):
        raise located(f"{prefix.rstrip('.') or 'the file'} must hold settings, one `name: value` a line", node)
    names = tuple(dict.fromkeys(k.removeprefix(prefix).partition(".")[0] for k in SETTINGS if k.startswith(prefix)))
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        if name.value not in names:
            hint = did_you_mean(name.value, names) or f"; known are {', '.join(names)}"
            raise located(f"unknown setting {key}{hint}", name)
        if key in SETTINGS:
            yield key, value
        elif not value.tag.endswith(":null"):
            yield from _entries(value, f"{key}.")
