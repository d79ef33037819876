"""The command line of ``evaluate.py``: its options by topic, and why words cannot be followed."""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from configs.command_line import find_config
from configs.errors import SettingsError, command_words
from configs.help import nearest
from configs.settings import Settings
from configs.yaml_file import read

IN_THE_RUN = Path("report.html")  # compared by identity: a file that a user calls so is another
ENTIRE_EPISODE = sys.maxsize  # lags of --horizon without a number
OUR_PAGE = '<meta name="generator" content="RecuRL">'
CALLED = {"gif": "video", "n-episodes": "episodes", "render": "video", "sampled": "stochastic", "sample": "stochastic"}
"""Options by other names for them."""
EXAMPLES = """examples:
  {program} runs/NAME                      the best checkpoint, 100 episodes
  {program} runs/NAME --checkpoint last --stochastic
  {program} runs/NAME --insight --report   does it use its memory? one page
  {program} runs/NAME --video episode.mp4
  {program} runs/lstm-* runs/gru-*         compares runs, seeds as groups
  {program} model.zip --env CartPole-v1    also one of sb3-contrib
  {program} --list                         the runs in runs/"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words, checked; --insight as the options that it stands for.

    Raises :class:`SettingsError`, also for an option that there is not, with what may have been meant.
    """
    reader = parser()
    words, unknown = reader.parse_known_args(argv)
    options = [name.lstrip("-") for each in reader._actions for name in each.option_strings]
    lines = []
    for option in (word.partition("=")[0] for word in unknown if word.startswith("-")):
        near = nearest(option, options, CALLED)
        lines.append(f"there is no option {option}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    if unknown:
        lines = lines or [f"unexpected: {' '.join(unknown)}"]
        raise SettingsError("\n".join([*lines, f"{reader.prog} --help shows the options there are"]))
    if words.insight:
        words.ablate = words.inside = True
        words.horizon = ENTIRE_EPISODE if words.horizon is None else words.horizon
    for fault in faults(words):
        raise SettingsError(fault)
    return words


def faults(words: argparse.Namespace) -> Iterator[str]:
    """Why the words cannot be followed."""
    several, report, video = len(words.run) > 1, words.report, words.video
    looks_inside = words.ablate or words.inside or words.horizon is not None
    if words.colour is not None:
        yield "--colour is called --color now"
    for name, least in (("episodes", 1), ("n_envs", 1), ("horizon", 0)):
        if (number := getattr(words, name)) is not None and number < least:
            yield f"--{name.replace('_', '-')} must be at least {least}, got {number}"
    if words.export is None and (words.with_value or words.with_sampling):
        yield "--with-value and --with-sampling go with --export FILE"
    if words.export is not None and words.export.suffix not in (".onnx", ".pt", ".c"):
        yield f"--export {words.export}: expected a name that ends in .onnx, .pt or .c"
    if words.export is not None and words.export.exists():
        yield f"--export {words.export}: exists and is not overwritten; choose another name"
    if several and words.export is not None:
        yield "--export writes one run's agent; give one run"
    if words.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", words.push_to_hub):
        yield f"--push-to-hub {words.push_to_hub}: expected owner/name"
    if words.dry_run and words.push_to_hub is None:
        yield "--dry-run goes with --push-to-hub owner/name"
    if several and (words.card or words.push_to_hub is not None):
        yield "--card and --push-to-hub share one run's agent; give one run"
    if video is not None and video.suffix not in (".mp4", ".gif"):
        yield f"--video {video}: expected a name that ends in .mp4 or .gif"
    if not words.list and not words.run:
        yield "expected the directory of a run, such as runs/NAME; --list shows the runs there are"
    if words.list and (words.run or report is not None or video is not None or looks_inside):
        yield "--list evaluates nothing and takes no run; --runs chooses the folder whose runs it lists"
    if several and video is not None:
        yield "--video records one run's agent; give one run"
    if several and looks_inside:
        yield "--ablate, --horizon, --inside and --insight look at one run's agent; give one run"
    if several and report is IN_THE_RUN:
        yield "a comparison lies in no run: give --report a file, such as --report comparison.html"
    for name, file in (("json", words.json), ("report", report)):
        if file is not None and not file.parent.is_dir():
            yield f"--{name} {file}: there is no directory {file.parent}"
    page = None if report is IN_THE_RUN else report
    if page is not None and page.is_dir():
        yield f"--report {page}: that is a directory; put the runs before --report"
    elif page is not None and page.exists() and not words.overwrite:
        yield f"--report {page}: exists and is not overwritten; choose another name, or add --overwrite"
    if words.overwrite and report is None:
        yield "--overwrite goes with --report"
    own = words.run[0] / "report.html" if report is IN_THE_RUN and len(words.run) == 1 else page
    if words.overwrite and own is not None and own.is_file() and OUR_PAGE not in start_of(own):
        yield f"--overwrite: {own} is no report of this program; choose another name"
    files = [path for path in words.run if path.suffix == ".zip"]
    if not files and (words.env is not None or words.config is not None):
        yield "--env and --config go with an agent's file, such as model.zip; a run has its own settings"
    for path in files:
        if not path.is_file():
            yield f"{path}: there is no such file"


def start_of(page: Path) -> str:
    """The beginning of a file, whatever is in it."""
    with page.open(encoding="utf-8", errors="replace") as file:
        return file.read(2000)


def parser() -> argparse.ArgumentParser:
    """The command line, by topic."""
    program = shlex.join(command_words("evaluate"))
    words = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s RUN ... [--OPTION VALUE ...]",
        description="Evaluates trained agents: tables, reports, videos, and what their memories do.",
        epilog=EXAMPLES.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = "directory of a run, such as runs/NAME, or an agent's .zip; several: one table"
    words.add_argument("run", type=Path, nargs="*", metavar="RUN", help=what)
    for add_options in (_of_playing, _of_results, _of_memory, _of_sharing, _of_files):
        add_options(words)
    words.add_argument("--list", action="store_true", help="list the runs there are, and evaluate none")
    words.add_argument("--runs", type=Path, default=Path("runs"), help="folder to list (default: runs)")
    words.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return words


def _of_playing(words: argparse.ArgumentParser) -> None:
    group = words.add_argument_group("which agent plays, and how")
    add = group.add_argument
    add("--checkpoint", default="best", help="best, last, a step, or a file (default: best)")
    add("--episodes", type=int, default=100, help="episodes in all (default: 100)")
    add("--n-envs", type=int, default=20, help="environments side by side (default: 20)")
    way = group.add_mutually_exclusive_group()
    way.add_argument("--deterministic", action="store_true", default=None, help="act deterministically")
    way.add_argument("--stochastic", dest="deterministic", action="store_false", help="sample actions")
    add("--seed", type=int, default=1_000_000, help="of environments and samples (default: 1000000)")
    add("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")


def _of_results(words: argparse.ArgumentParser) -> None:
    add = words.add_argument_group("results").add_argument
    add("--json", type=Path, metavar="FILE", help="write the result to this file too")
    page = "write an HTML page too, of several runs a comparison (default: report.html in the run)"
    add("--report", metavar="FILE", type=Path, nargs="?", const=IN_THE_RUN, help=page)
    add("--overwrite", action="store_true", help="of --report: replace a report that is there")
    add("--video", type=Path, metavar="FILE", help="record an episode to this file, .mp4 or .gif")


def _of_memory(words: argparse.ArgumentParser) -> None:
    add = words.add_argument_group("the memory").add_argument
    add("--insight", action="store_true", help="all of --ablate, --horizon and --inside")
    add("--ablate", action="store_true", help="play the same episodes with the memory wiped, exchanged and noisy")
    reach = "measure how far back an input still moves the action, up to so many steps (default: the entire episode)"
    add("--horizon", type=int, nargs="?", const=ENTIRE_EPISODE, metavar="LAGS", help=reach)
    add("--inside", action="store_true", help="draw the memory over an episode: state, gates, what is attended to")
    colors = "what colors the state's principal components: time, reward, value, action or a key of the infos"
    add("--color", default="time", metavar="KEY", help=colors)
    add("--colour", help=argparse.SUPPRESS)


def _of_sharing(words: argparse.ArgumentParser) -> None:
    add = words.add_argument_group("sharing").add_argument
    file = "write the agent to this file, .onnx, .pt or .c, to act without this package"
    add("--export", metavar="FILE", type=Path, help=file)
    add("--with-value", action="store_true", help="of --export: the critic's value is an output too")
    add("--with-sampling", action="store_true", help="of --export: actions are sampled, by an input seed")
    card = "write a folder to be shared into the run: model card, agent, settings, results, report"
    add("--card", action="store_true", help=card)
    add("--push-to-hub", metavar="OWNER/NAME", help="send that folder to the Hugging Face Hub")
    add("--dry-run", action="store_true", help="of --push-to-hub: list what would be sent, and send nothing")


def _of_files(words: argparse.ArgumentParser) -> None:
    add = words.add_argument_group("files of others").add_argument
    add("--env", metavar="ID", help="the environment of an agent's .zip that lies in no run")
    add("--config", metavar="NAME", help="a settings file that describes that environment")
    modules = "modules that the run may import, where it was not made by you from this directory"
    add("--trust", metavar="NAME", nargs="+", default=(), help=modules)


def task(words: argparse.Namespace) -> Settings | None:
    """The environment to play agents' files in; None if none is named."""
    if words.env is None and words.config is None:
        return None
    path = None if words.config is None else find_config(words.config)
    settings = Settings() if path is None else read(path)
    if words.env is None:
        return settings
    return replace(settings, env=replace(settings.env, id=words.env))
