"""Evaluates trained agents: run directory -> agent, environments -> episodes -> table, JSON, video, report.

    python evaluate.py runs/NAME --episodes 1000 --video pole.mp4 --report
    python evaluate.py runs/lstm-* runs/gru-* --report comparison.html
    python evaluate.py runs/NAME --insight
    python evaluate.py --list

Nothing but the run's directory is needed: settings, weights and normalizer lie in it.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import configs
from configs import SettingsError

IN_THE_RUN = Path("report.html")  # compared by identity: a file that a user calls so is another
ENTIRE_EPISODE = sys.maxsize  # lags of --horizon without a number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; ``configs/errors.py`` says what each means."""
    return configs.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    words = parser().parse_args(argv)
    if words.insight:
        words.ablate = words.inside = True
        words.horizon = ENTIRE_EPISODE if words.horizon is None else words.horizon
    for fault in faults(words):
        raise SettingsError(fault)
    for path in words.run:
        configs.leave_import_path(path)
    from agents.runs import analyses  # takes seconds: not before the words are known to be good

    if words.list:
        analyses.list_runs(words.runs, words.json)
        return
    if words.inside or words.horizon is not None:
        analyses.check_plots()
    if words.push_to_hub is not None:
        analyses.check_hub()
    typed = [*configs.command_words("evaluate"), *(sys.argv[1:] if argv is None else argv)]
    runs = analyses.open_runs(words.run, words.trust, typed)
    options = analyses.Options(**{name: getattr(words, name) for name in analyses.Options._fields})
    if len(runs) > 1:
        analyses.compare(runs, options, words.json, words.report)
        return
    (run,) = runs
    shares = words.card or words.push_to_hub is not None
    if run.has_agent or words.report is None or shares:
        result = analyses.evaluate_run(run, options, words.json)
        if shares:
            analyses.share_run(run, options, result, words.push_to_hub, dry=words.dry_run)
    if words.export is not None:
        analyses.export_run(run, options, words.export, value=words.with_value, sample=words.with_sampling)
    if words.video is not None:
        analyses.record_run(run, options, words.video)
    if words.inside and run.has_agent:
        analyses.draw_inside(run, options, words.color)
    if words.horizon is not None and run.has_agent:
        analyses.measure_horizon(run, options, None if words.horizon == ENTIRE_EPISODE else words.horizon)
    if words.ablate and run.has_agent:
        analyses.ablate_run(run, options)
    if words.report is not None:
        analyses.report_run(run, options, None if words.report is IN_THE_RUN else words.report)


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
        yield "--list stands alone: it evaluates nothing; --runs chooses the folder it looks in"
    if several and video is not None:
        yield "--video records one run's agent; give one run"
    if several and looks_inside:
        yield "--ablate, --horizon, --inside and --insight look at one run's agent; give one run"
    if several and report is IN_THE_RUN:
        yield "a comparison is no run's own: give --report a file, such as --report comparison.html"
    for name, file in (("json", words.json), ("report", report)):
        if file is not None and not file.parent.is_dir():
            yield f"--{name} {file}: there is no directory {file.parent}"
    page = None if report is IN_THE_RUN else report
    if page is not None and page.is_dir():
        yield f"--report {page}: that is a directory; put the runs before --report"
    elif page is not None and page.exists():
        yield f"--report {page}: exists and is not overwritten; choose another name"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(prog="evaluate.py", description="Evaluates trained agents.")
    add, switch = words.add_argument, partial(words.add_argument, action="store_true")
    add("run", type=Path, nargs="*", help="directory of a run, such as runs/NAME; several: one table")
    add("--checkpoint", default="best", help="best, last, a step, or a file (default: best)")
    add("--episodes", type=int, default=100, help="episodes in all (default: 100)")
    add("--n-envs", type=int, default=20, help="environments side by side (default: 20)")
    way = words.add_mutually_exclusive_group()
    way.add_argument("--deterministic", action="store_true", default=None, help="take the most probable action")
    way.add_argument("--stochastic", dest="deterministic", action="store_false", help="sample actions")
    add("--seed", type=int, default=1_000_000, help="of environments and samples (default: 1000000)")
    add("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    add("--json", type=Path, help="write the result to this file too")
    add("--video", type=Path, help="record an episode to this file, .mp4 or .gif")
    file = "write the agent to this file, .onnx, .pt or .c, to act without this package"
    add("--export", metavar="FILE", type=Path, help=file)
    switch("--with-value", help="of --export: the critic's value is an output too")
    switch("--with-sampling", help="of --export: actions are drawn, by an input seed")
    switch("--card", help="write a folder to be shared into the run: model card, agent, settings, results, report")
    add("--push-to-hub", metavar="OWNER/NAME", help="send that folder to the Hugging Face Hub")
    switch("--dry-run", help="of --push-to-hub: list what would go, and send nothing")
    page = "write an HTML page too, of several runs a comparison (default: report.html in the run)"
    add("--report", metavar="FILE", type=Path, nargs="?", const=IN_THE_RUN, help=page)
    switch("--list", help="list the runs there are, and evaluate none")
    add("--runs", type=Path, default=Path("runs"), help="folder to list (default: runs)")
    switch("--ablate", help="play the same episodes with the memory wiped, exchanged and noisy")
    reach = "measure how far back an input still moves the action, up to so many steps (default: the entire episode)"
    add("--horizon", type=int, nargs="?", const=ENTIRE_EPISODE, metavar="LAGS", help=reach)
    switch("--inside", help="draw the memory over an episode: state, gates, what is attended to")
    switch("--insight", help="all of --ablate, --horizon and --inside")
    colors = "what colors the state's principal components: time, reward, value, action or a key of the infos"
    add("--color", default="time", metavar="KEY", help=colors)
    add("--colour", help=argparse.SUPPRESS)
    modules = "modules that the run may import, where it was not made by you from this directory"
    add("--trust", metavar="NAME", nargs="+", default=(), help=modules)
    switch("--debug", help="show the traceback of an error")
    return words


if __name__ == "__main__":
    sys.exit(main())
