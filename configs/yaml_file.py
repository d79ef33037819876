"""Settings files: YAML read strictly into the dataclasses of :mod:`configs.settings`, and written back.

Strict means: safe types only, every unknown or repeated key and every value of a wrong type is an error that names
file, line and key. Scalars follow YAML 1.2's core schema, so that ``1e-3`` is a number and ``off`` a word.
"""

import dataclasses
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from configs.errors import SettingsError
from configs.settings import (
    BEFORE,
    MEMORIES,
    RENAMED_MEMORY_KWARGS,
    Settings,
    did_you_mean,
    field_type,
    problems,
)

LARGEST = 2**20  # characters of a settings file
MOST_VALUES = 10_000  # in it, with every alias written out

Sources = dict[str, str]
"""Dotted key -> "file:line" where it was set."""


def read(path: str | os.PathLike[str]) -> Settings:
    """The settings of a file, defaults for what it leaves out, checked. Raises :class:`SettingsError`."""
    settings, sources = read_unchecked(path)
    check(settings, sources)
    return settings


def read_unchecked(path: str | os.PathLike[str]) -> tuple[Settings, Sources]:
    """The settings of a file before their ranges are checked, since the command line may still change them."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise SettingsError(f"no settings file {os.fspath(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read settings file {os.fspath(path)}: {error}") from error
    if len(text) > LARGEST:
        raise SettingsError(f"{os.fspath(path)} has more than {LARGEST} characters, so it is no settings file")
    reader = _Reader(os.fspath(path))
    settings = reader.settings(text)
    unsaid = set(_keys(Settings)) - reader.sources.keys()
    if reader.sources and unsaid <= BEFORE.keys():
        for key in unsaid:
            settings = _with(settings, key.split("."), BEFORE[key])
        if settings.policy.memory in MEMORIES:
            kwargs = {RENAMED_MEMORY_KWARGS.get(name, name): it for name, it in settings.policy.memory_kwargs.items()}
            settings = _with(settings, ["policy", "memory_kwargs"], kwargs)
    return settings, reader.sources


def check(settings: Settings, sources: Mapping[str, str], baseline: Settings | None = None) -> None:
    """Raises :class:`SettingsError` naming what cannot be used, and file and line of what still is as ``baseline``."""

    def place(key: str) -> str:
        unchanged = baseline is None or _get(settings, key) == _get(baseline, key)
        return f"{sources[key]}: " if unchanged and key in sources else ""

    found = problems(settings)
    if found:
        raise SettingsError("\n".join(f"{place(key)}{key} {message}" for key, message in found))


def dump(settings: Settings) -> str:
    """The YAML from which :func:`read` gives the same settings."""
    text: str = yaml.dump(_plain(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def parse_scalar(text: str) -> Any:
    """What a word on the command line is as YAML: a number, true, null, a string, a {mapping: ...}."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not YAML: {getattr(error, 'problem', error)}") from None


def convert(value: Any, declared: Any) -> Any:
    """``value`` as the type ``declared``; raises ValueError that says what was expected and what came."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        declared, *others = (each for each in arguments if each is not type(None))
        return value if bool in others and isinstance(value, bool) else convert(value, declared)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            hint = did_you_mean(value, arguments) if isinstance(value, str) else ""
            raise ValueError(f"must be one of {', '.join(arguments)}; got {_shown(value)}{hint}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list, got {_shown(value)}")
        return tuple(convert(each, arguments[0]) for each in value)
    if origin is dict:
        return _convert_mapping(value)
    if declared is object:
        return value
    return _SCALARS[declared](value)


def _convert_mapping(value: Any) -> dict[str, Any]:
    if value is None:  # "kwargs:" with nothing after it
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"must map names to values, got {_shown(value)}")
    return value


def _convert_int(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # 1e5
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, got {_shown(value)}")
    return value


def _convert_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number, got {_shown(value)}")
    return float(value)


def _convert_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {_shown(value)}")
    return value


def _convert_str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a text, got {_shown(value)}; put it in quotes if it is meant as one")
    return value


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: _convert_int,
    float: _convert_float,
    bool: _convert_bool,
    str: _convert_str,
}


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


class _Loader(yaml.SafeLoader):
    """Safe types, the scalars of YAML 1.2, no repeated keys, and no more values than settings have."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _check_size(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name was expected here", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is set twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(node.value, base=0 if node.value[:2] in ("0x", "0o") else 10)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _check_size(node: yaml.Node) -> None:
    """Counts the values with every alias written out: ten lines of aliases of aliases stand for a billion."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise yaml.constructor.ConstructorError(None, None, "a recursive alias", node.start_mark)
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
            sizes[id(node)] = 1 + sum(map(size_of, flat))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if size_of(node) > MOST_VALUES:
        message = f"more than {MOST_VALUES} values with every alias written out"
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` would not read as a string; short sequences and empty mappings on one line."""


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
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _SCALAR_PATTERNS.items():
        _kind.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


class _Reader:
    """Walks the nodes of one file, which know their lines, along the fields of the dataclasses."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.sources: Sources = {}

    def settings(self, text: str) -> Settings:
        try:
            self._loader = _Loader(text)
            node = self._loader.get_single_node()
            if node is None:  # an empty file: all defaults
                return Settings()
            settings: Settings = self._group(node, Settings, "")
            return settings
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            raise SettingsError(f"{self._file}{line}: {error.problem or error.context}") from None
        except yaml.YAMLError as error:
            raise SettingsError(f"{self._file}: {error}") from None
        except RecursionError:
            raise SettingsError(f"{self._file}: nested too deeply") from None

    def _group(self, node: yaml.Node, group: type[Any], prefix: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{prefix.rstrip('.') or 'the file'} must hold settings, one `name: value` a line")
        names = tuple(each.name for each in dataclasses.fields(group))
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a name was expected here")
            if name not in names:
                hint = did_you_mean(name, names) or f"; known are {', '.join(names)}"
                raise self._error(key_node, f"unknown setting {prefix}{name}{hint}")
            if name in values:
                raise self._error(key_node, f"{prefix}{name} is set twice")
            values[name] = self._value(value_node, group, name, prefix)
        return group(**values)

    def _value(self, node: yaml.Node, group: type[Any], name: str, prefix: str) -> Any:
        declared, key = field_type(group, name), f"{prefix}{name}"
        if isinstance(declared, type) and dataclasses.is_dataclass(declared):
            # "env:" with nothing after it leaves the group's defaults.
            empty = isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")
            return declared() if empty else self._group(node, declared, f"{key}.")
        self.sources[key] = f"{self._file}:{node.start_mark.line + 1}"
        try:
            return convert(self._loader.construct_object(node, deep=True), declared)
        except ValueError as error:
            raise self._error(node, f"{key} {error}") from None

    def _error(self, node: yaml.Node, message: str) -> SettingsError:
        return SettingsError(f"{self._file}:{node.start_mark.line + 1}: {message}")


def _plain(value: Any) -> Any:
    """Dataclasses to dicts and tuples to lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _keys(group: type[Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings."""
    for each in dataclasses.fields(group):
        declared = field_type(group, each.name)
        if isinstance(declared, type) and dataclasses.is_dataclass(declared):
            yield from _keys(declared, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}"


def _with(settings: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    inner = _with(getattr(settings, name), rest, value) if rest else value
    return dataclasses.replace(settings, **{name: inner})


def _get(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings
