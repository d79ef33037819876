"""``train.py --help``: the few settings that most runs need, and the others by topic, as wide as the terminal.

--help          usage, examples, what is often used, the topics
--help TOPIC    the settings of a topic, with their defaults
--help-all      all of them
"""

import ast
import difflib
import inspect
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from configs.settings import SETTINGS, Settings, shown, values

Options = Mapping[str, tuple[Any, Any]]
"""Options without their dashes -> type and default."""

USAGE = "usage: {program} [--config NAME] [--OPTION VALUE ...]"
ABOUT = """Trains an agent with memory. Settings come from their defaults, then from the file after --config, then from
the command line."""
EXAMPLES = (
    ("", "a partly seen CartPole"),
    ("--config tmaze --policy.memory gru", "a settings file, changed"),
    ("--env.id Acrobot-v1 --seeds 5", "any id, five seeds"),
    ("--resume runs/NAME", "continues a run"),
    ("--list", "what to choose from"),
)
OFTEN = {
    "config": "a settings file, or the name of one in configs/",
    "env.id": "the environment: a Gymnasium id, or module:id",
    "policy.memory": "what is carried between steps: lstm, gru, ..., none",
    "policy.encoder": "what an observation is encoded by; chosen by its space",
    "algorithm.name": "ppo or a2c",
    "total-timesteps": "environment steps to train for",
    "seed": "decides every random number",
    "seeds": "train so many seeds as one group",
    "sweep": "search settings: a file of what to try, see docs/sweeps.md",
    "device": "auto, cpu, cuda, ...",
    "name": "name of the run's directory in runs/",
    "resume": "the directory of a run to continue",
    "dry-run": "check the settings and show what would be run",
}
TOPICS = {
    "run": "the run: length, seed, device, name, and what is printed",
    "env": "the environment, wrappers, normalization",
    "algorithm": "PPO and A2C",
    "policy": "encoder, memory, heads",
    "evaluation": "evaluations while training and after it",
    "checkpoint": "checkpoints",
    "imitation": "a teacher to learn from before reinforcement learning",
    "tracking": "metrics, TensorBoard, Weights & Biases",
}
WORDS = """Lists and mappings are written as words: --policy.net-arch 64 64, --env.kwargs length=20 active=true. A
mapping's words are added to those of the file; no word at all empties it. One of them alone can be an option of its
own: --env.kwargs.length=20. A switch is turned off by --no-NAME, or --GROUP.no-NAME."""
CALLED = {
    "algo": "algorithm.name",
    "algorithm": "algorithm.name",
    "encoder": "policy.encoder",
    "env": "env.id",
    "env-id": "env.id",
    "hidden-size": "policy.memory-kwargs.hidden-size",
    "length": "env.kwargs.length",
    "lr": "algorithm.learning-rate",
    "lstm": "policy.memory",
    "num-envs": "env.n-envs",
    "num-steps": "algorithm.n-steps",
    "steps": "total-timesteps",
    "track": "tracking.wandb",
    "wandb": "tracking.wandb",
}
"""Options by the names that other packages have for them."""
NARROWEST, WIDEST = 40, 100


def text(words: Sequence[str], program: str, command: type[Any], options: Options) -> str | None:
    """The answer to --help and its like among the words of a command line; None where there is none."""
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] in ("-h", "--help", "--help-all")), None)
    if at is None:
        return None
    _, _, topic = words[at].partition("=")
    following = words[at + 1 : at + 2]
    topic = topic or (following[0] if following and following[0] in TOPICS else "")
    documented = {**_documented(command), **_documented_settings()}
    width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
    topics = [*TOPICS] if words[at] == "--help-all" else [topic] if topic in TOPICS else []
    if topics:
        lines = [line for each in topics for line in _topic(each, options, documented, width)]
        return "\n".join([*lines, *textwrap.wrap(" ".join(WORDS.split()), width)])
    return "\n".join(_overview(program, width))


def nearest(word: str, options: Iterable[str], called: Mapping[str, str] = CALLED) -> list[str]:
    """The options that may have been meant by a word that is none, the likeliest first."""
    typed = word.lstrip("-").partition("=")[0].replace("_", "-")
    if typed in called:
        return [f"--{called[typed]}"]
    options = tuple(options)
    last = {option: option.rpartition(".")[2] for option in options}
    exact = [option for option in options if last[option] == typed.rpartition(".")[2]]
    likeness = {
        option: max(difflib.SequenceMatcher(None, typed, name).ratio() for name in (option, last[option]))
        for option in options
    }
    near = sorted((option for option in options if likeness[option] >= 0.7), key=lambda option: -likeness[option])
    return [f"--{option}" for option in dict.fromkeys([*exact, *near])][:3]


def _overview(program: str, width: int) -> Iterator[str]:
    yield USAGE.format(program=program)
    yield ""
    yield from textwrap.wrap(" ".join(ABOUT.split()), width)
    yield "\nexamples:"
    lines = {f"  {program} {words}".rstrip(): what for words, what in EXAMPLES}
    column = max(map(len, lines)) + 2
    for line, what in lines.items():
        yield f"{line:{column}}{what}" if column + len(what) <= width else f"{line}\n      {what}"
    yield "\noften used:"
    for option, what in OFTEN.items():
        yield f"  --{option:18}{what}"
    yield "\n--help TOPIC explains the other settings, --help-all all of them:"
    for topic, what in TOPICS.items():
        yield f"  {topic:12}{what}"


def _topic(topic: str, options: Options, documented: Mapping[str, str], width: int) -> Iterator[str]:
    yield f"{topic}: {TOPICS[topic]}"
    yield ""
    for option, (kind, default) in options.items():
        group, dot, name = option.rpartition(".")
        if (group if dot else "run") != topic:
            continue
        switch = kind is bool
        yield f"  --{option}" + (f", --{group}{dot}no-{name}" if switch else f" {_metavar(kind)}")
        meaning = documented[_key(option)]
        usual = f" [{'on' if default else 'off'}]" if switch else f" [{shown(default)}]"
        yield from textwrap.wrap(meaning + usual, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    yield ""


def _metavar(kind: Any) -> str:
    """What to write after an option."""
    if get_origin(kind) in (Union, type(int | None)):
        parts = dict.fromkeys(_metavar(each) for each in get_args(kind) if each is not type(None))
        return "|".join([*parts, *(["None"] if type(None) in get_args(kind) else [])])
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "NAME=VALUE ..."
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])} ..."
    return {int: "INT", float: "FLOAT", str: "TEXT", bool: "True|False"}.get(kind, "NAME|{NAME: {ARGUMENT: VALUE}}")


def _key(option: str) -> str:
    return option.replace("-", "_")


def setting_options(settings: Settings) -> dict[str, tuple[Any, Any]]:
    """Every setting's option, with its type and its value."""
    now = values(settings)
    return {key.replace("_", "-"): (SETTINGS[key].type, now[key]) for key in SETTINGS}


def _documented_settings() -> dict[str, str]:
    """What every setting means, by its dotted key."""
    groups = {name: hint for name, hint in inspect.get_annotations(Settings).items() if isinstance(hint, type)}
    nested = {
        f"{name}.{key}": meaning
        for name, group in groups.items()
        if hasattr(group, "__dataclass_fields__")
        for key, meaning in _documented(group).items()
    }
    return {**_documented(Settings), **nested}


def _documented(group: type[Any]) -> dict[str, str]:
    """The text under every field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(group))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(str(meaning.value.value).replace("`", "").split())
        for field, meaning in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(meaning, ast.Expr) and isinstance(meaning.value, ast.Constant)
    }
