"""Evaluates trained agents: run directory -> agent, environments -> episodes -> table, JSON, video, report.

    python evaluate.py runs/NAME --episodes 1000 --video pole.mp4 --report
    python evaluate.py runs/lstm-* runs/gru-* --report comparison.html
    python evaluate.py runs/NAME --insight
    python evaluate.py model.zip --env CartPole-v1
    python evaluate.py --list

Nothing but the run's directory is needed: settings, weights and normalizer lie in it. A file that lies in no run says
nothing of its environment, which must be named.
"""

import sys
from collections.abc import Sequence

import configs
from configs.evaluation_line import ENTIRE_EPISODE, IN_THE_RUN, parse, task


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; ``configs/errors.py`` says what each means."""
    return configs.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    words = parse(argv)
    for path in words.run:
        configs.leave_import_path(path)
    from agents.runs import analyses  # takes seconds: not before the words are known to be good

    if words.list:
        analyses.list_runs(words.runs, words.json)
        return
    analyses.check_computes_on(words.device)
    if words.inside or words.horizon is not None:
        analyses.check_installed("plots", "plots")
    if words.push_to_hub is not None:
        analyses.check_installed("hub", "--push-to-hub")
    typed = [*configs.command_words("evaluate"), *(sys.argv[1:] if argv is None else argv)]
    runs = analyses.open_runs(words.run, words.trust, typed, task(words))
    options = analyses.Options(**{name: getattr(words, name) for name in analyses.Options._fields})
    if len(words.run) > 1:
        analyses.compare(runs, options, words.json, words.report, overwrite=words.overwrite)
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
        page = None if words.report is IN_THE_RUN else words.report
        analyses.report_run(run, options, page, overwrite=words.overwrite)


if __name__ == "__main__":
    sys.exit(main())
