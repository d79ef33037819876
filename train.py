"""Trains an agent with memory: configuration -> environments -> agent -> learn -> run directory.

    python train.py --config tmaze --env.kwargs length=50 --policy.memory gru
    python train.py --config tmaze --seeds 10 --parallel 2
    python train.py --config tmaze --sweep configs/sweeps/memory.yaml --trials 40 --parallel 2
    python train.py --resume runs/NAME
    python train.py --list

``--help`` explains the settings, ``agents/runs/directory.py`` what a run leaves behind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import configs
from configs import Settings

if TYPE_CHECKING:  # torch takes seconds to import: not before the settings are known to be good
    from agents.runs.directory import RunDirectory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; ``configs/errors.py`` says what each means."""
    return configs.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    words = configs.parse(argv)
    settings = words.settings
    if words.print_config:
        print(configs.dump(settings), end="")
        return
    if words.version or words.list or words.list_envs:
        from agents.runs import listing

        listing.print_asked(version=words.version, choices=words.list, environments=words.list_envs)
        return
    space = configs.read_space(words.sweep) if words.sweep is not None else None
    if space is not None:
        space.check(settings)
    from agents.runs import launch, several, sweep

    typed = [*configs.command_words("train"), *(sys.argv[1:] if argv is None else argv)]
    seeds = words.seeds or (1 if space is None else sweep.SEEDS)
    if words.dry_run:
        if words.resume is not None:
            launch.opened(words.resume, settings, words.trust, typed)
        searched = () if space is None else [each.key for each in space.parameters]
        configs.say(configs.plan(settings, launch.fitted(settings)[0], seeds, searched))
        launch.preview(settings)
    elif words.resume is not None:
        launch.resume(words.resume, settings, words.trust, typed)
    elif space is not None:
        search = sweep.Search(settings, space, words.trials, seeds)
        sweep.run(search, parallel=words.parallel, ray=words.ray, typed=typed)
    elif seeds > 1:
        several.train_seeds(settings, seeds, parallel=words.parallel, ray=words.ray, typed=typed)
    else:
        train(settings)


def train(settings: Settings) -> RunDirectory:
    """Trains an agent, evaluates what came of it, and returns the directory of the run."""
    from agents.runs import launch

    return launch.train(settings)


if __name__ == "__main__":
    sys.exit(main())
