"""The command line of ``train.py``: defaults, then a settings file, then what is typed, each overriding the last."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from configs import help
from configs.errors import SettingsError, say
from configs.settings import ENCODERS, MEMORIES, SETTINGS, PolicySettings, Settings, changed, did_you_mean, values
from configs.yaml_file import Sources, check, convert, parse_scalar, read_unchecked


@dataclass(frozen=True)
class Command:
    """The words of a command line; ``configs/help.py`` explains them."""

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    config: str | None = None
    """A settings file, or the name of one in configs/: tmaze."""
    seeds: int | None = None
    """Runs to train with seed, seed + 1, ..., as one group, or of every trial of a sweep; None: 1, of a sweep 3. The
    same command with the group's --name trains what is missing."""
    sweep: str | None = None
    """A sweep's file, to search what it names for the highest return; with the sweep's --name the search continues:
    configs/sweeps/memory.yaml."""
    trials: int = 20
    """Settings that a sweep tries, in all."""
    parallel: int = 1
    """Runs of --seeds, or trials of --sweep, trained at once, a process of one thread each."""
    ray: str | None = None
    """The address of a Ray cluster to train them on, or local, which starts one."""
    resume: str | None = None
    """The directory of a run to continue, from its last checkpoint, under its own settings: runs/NAME."""
    trust: tuple[str, ...] = ()
    """Modules that the run of --resume may import, where it was not made by you from this directory: NAME ..."""
    print_config: bool = False
    """Print the resolved settings as a settings file, and stop."""
    dry_run: bool = False
    """Check the settings, print what would be run, and stop."""
    list: bool = False
    """List settings files, memories, encoders, wrappers, families of environments and extras, and stop."""
    list_envs: bool = False
    """List the families of environments, which are installed, what installs the others, and some of their ids."""
    version: bool = False
    """Print the version, and stop."""
    debug: bool = False
    """Show the traceback of an error."""


class Added(dict[str, Any]):
    """Words typed for a mapping, to be added to what it holds already; no words at all empty it."""


def parse(argv: Sequence[str] | None = None) -> Command:
    """Reads the command line and the file it names, checked.

    Raises :class:`SettingsError`; SystemExit where the words themselves cannot be parsed, and after --help.
    """
    arguments = _with_entries_gathered(sys.argv[1:] if argv is None else argv)
    _check_known(arguments)
    file, run = _argument("--config", arguments), _argument("--resume", arguments)
    if file is not None and run is not None:
        raise SettingsError("--resume continues under the settings of the run: leave --config out, or start a new run")
    path = settings_of_run(run) if run is not None else find_config(file) if file is not None else None
    written, sources = (Settings(), Sources()) if path is None else read_unchecked(path)
    memory, encoder = _argument("--policy.memory", arguments), _argument("--policy.encoder", arguments)
    baseline = with_what_fits(written, memory, encoder)
    explained = help.text(arguments, _program(), Command, _options(baseline))
    if explained is not None:
        say(explained)
        raise SystemExit(0)
    command = tyro.cli(
        Command, prog=_program().removeprefix("python "), args=arguments, default=Command(baseline), registry=_WORDS
    )
    below, typed = values(baseline), values(command.settings)
    added = {key: words for key, words in typed.items() if isinstance(words, Added)}
    mappings = {key: {**below[key], **words} if words else {} for key, words in added.items()}
    settings = changed(command.settings, mappings)
    check(settings, sources, written)
    _check_several(command, settings)
    return replace(command, settings=settings)


def _check_several(command: Command, settings: Settings) -> None:
    """Raises :class:`SettingsError` where words about several runs contradict each other."""
    seeds = 1 if command.seeds is None else command.seeds
    for name, number in (("seeds", seeds), ("trials", command.trials), ("parallel", command.parallel)):
        if number < 1:
            raise SettingsError(f"--{name} must be at least 1, got {number}")
    if command.resume is not None and (command.seeds is not None or command.sweep is not None):
        what = "--sweep" if command.sweep is not None else "--seeds"
        raise SettingsError(
            f"--resume continues one run; {what} starts several, and continues them by their --name; give one"
        )
    if seeds == 1 and command.sweep is None and (command.parallel > 1 or command.ray is not None):
        raise SettingsError("--parallel and --ray go with several runs: --seeds N, or --sweep FILE")
    if settings.seed + seeds > 2**31:
        beyond = f"--seeds {seeds} from seed {settings.seed} on exceed 2147483647"
        raise SettingsError(f"{beyond}; start from a lower --seed")


def find_config(file: str) -> Path:
    """The file itself, or the one of that name in this folder. Raises :class:`SettingsError`."""
    path = Path(file)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    ours = files()
    if file not in ours:
        hint = did_you_mean(file, tuple(ours)) or f"; by name there are {', '.join(ours)}"
        raise SettingsError(f"no settings file {file}{hint}")
    return ours[file]


def files() -> dict[str, Path]:
    """The settings files that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def settings_of_run(run: str) -> Path:
    """Where a run's settings lie. Raises :class:`SettingsError` where it is no run."""
    path = Path(run) / "settings.yaml"
    if not path.is_file():
        what = "holds no settings.yaml, so it is no run of train.py" if Path(run).is_dir() else "is no directory"
        raise SettingsError(f"--resume {run}: it {what}; give that of a run, such as runs/NAME")
    return path


def _program() -> str:
    started = Path(sys.argv[0]).name
    return started if started.startswith("recurl-") else "python train.py"


def _options(settings: Settings) -> help.Options:
    """Every option without its dashes, with its type and default."""
    hints = get_type_hints(Command)
    own = {each.name: (hints[each.name], each.default) for each in fields(Command) if each.name != "settings"}
    return {**{name.replace("_", "-"): each for name, each in own.items()}, **help.setting_options(settings)}


def _check_known(arguments: Sequence[str]) -> None:
    """Raises :class:`SettingsError` that names what may have been meant by options that there are not."""
    options = _options(Settings())
    switches = (option.rpartition(".") for option, (kind, _) in options.items() if kind is bool)
    known = {*options, *(f"{group}{dot}no-{name}" for group, dot, name in switches), "help", "help-all"}
    unknown = [
        word.partition("=")[0]
        for word in arguments
        if word.startswith("--") and not word.startswith("--tyro-")
        if word.partition("=")[0].removeprefix("--").replace("_", "-") not in known
    ]
    lines = []
    for option in unknown:
        near = help.nearest(option, options)
        lines.append(f"there is no option {option}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    if lines:
        raise SettingsError("\n".join([*lines, f"{_program()} --help shows the options there are"]))


def _argument(name: str, arguments: Sequence[str]) -> str | None:
    """A word that must be known before the rest can be parsed, since the file it names gives the defaults."""
    value = None
    for word, following in zip_longest(arguments, arguments[1:]):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
    return value


def _with_entries_gathered(arguments: Sequence[str]) -> list[str]:
    """``--env.kwargs.length=20 --env.kwargs.active=true`` become ``--env.kwargs length=20 active=true``.

    What starts runs of a sweep gives every parameter an option of its own.
    """
    mappings = {f"--{key.replace('_', '-')}" for key, declared in SETTINGS.items() if get_origin(declared.type) is dict}
    others: list[str] = []
    typed: dict[str, list[str]] = {}  # by mapping, of its last option
    entries: dict[str, list[str]] = {}  # by mapping, of all options of their own
    into, words = others, iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        mapping, _, name = option.rpartition(".")
        if option in mappings:
            into = typed[option] = [value] if equals else []
        elif mapping in mappings:
            if not equals and (following := next(words, None)) is not None:
                equals, value = "=", following
            entries.setdefault(mapping, []).append(f"{name.replace('-', '_')}{equals}{value}")
        else:
            into = others if word.startswith("--") else into
            into.append(word)
    for mapping in {**typed, **entries}:
        others += [mapping, *typed.get(mapping, []), *entries.get(mapping, [])]
    return others


def with_what_fits(written: Settings, memory: str | None, encoder: str | None) -> Settings:
    """Where another memory or encoder is typed than the file's, what of the file goes on that the new one takes.

    Of an encoder's arguments these are the sizes and switches: a word, such as a pool, is one of its own choices.
    """
    policy = written.policy
    changes: dict[str, Any] = {}
    if memory is not None and memory != policy.memory:
        changes["policy.memory_kwargs"] = _taken(policy.memory_kwargs, MEMORIES.get(memory))
    if encoder is not None and encoder != (policy.encoder or "None"):
        known = {"None": (), **ENCODERS}
        taken = _taken(policy.encoder_kwargs, known.get(encoder))
        changes["policy.encoder_kwargs"] = {name: each for name, each in taken.items() if not isinstance(each, str)}
        if encoder in known.keys() - {"graph"}:
            changes |= {"policy.actions": PolicySettings.actions, "policy.first_node": PolicySettings.first_node}
    return changed(written, changes)


def _taken(kwargs: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """The arguments of these names; all where it is not known what is taken."""
    return {name: value for name, value in kwargs.items() if names is None or name in names}


_WORDS = ConstructorRegistry()


@_WORDS.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    """As in a settings file: 1e5 and 100_000 are whole numbers too, .inf is a number, and so is inf."""
    kind = info.type
    if kind not in (int, float):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: convert(math.inf if words[0] == "inf" else parse_scalar(words[0]), kind),
        is_instance=lambda value: isinstance(value, (int, kind)) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@_WORDS.primitive_rule
def _mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """name=value, the value as YAML."""
    if info.type_origin is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=lambda words: Added(map(_named_value, words)),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{key}={_word(each)}" for key, each in value.items()],
    )


@_WORDS.primitive_rule
def _list_of_anything(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Words that are each read as YAML, or None."""
    if tuple[object, ...] not in get_args(info.type):
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME|{NAME: {ARGUMENT: VALUE}} ...",
        instance_from_str=lambda words: None if words == ["None"] else tuple(parse_scalar(word) for word in words),
        is_instance=lambda value: isinstance(value, tuple | None),
        str_from_instance=lambda value: ["None"] if value is None else [_word(each) for each in value],
    )


def _named_value(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not (equals and name.isidentifier()):
        raise ValueError(f"expected name=value, got {word!r}")
    return name, parse_scalar(value)


def _word(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n...\n").strip()
