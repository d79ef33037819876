"""Trains an agent with memory: configuration -> environments -> agent -> learn -> run directory.

    python train.py --config tmaze --env.kwargs length=50 --policy.memory gru
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
    from agents.runs import launch

    typed = [*configs.command_words("train"), *(sys.argv[1:] if argv is None else argv)]
    if words.dry_run:
        if words.resume is not None:
            launch.opened(words.resume, settings, words.trust, typed)
        configs.say(configs.plan(settings, words.seeds))
        launch.preview(settings)
    elif words.resume is not None:
        launch.resume(words.resume, settings, words.trust, typed)
    elif words.seeds > 1:
        launch.train_seeds(settings, words.seeds)
    else:
        train(settings)


def train(settings: Settings) -> RunDirectory:
    """Trains an agent, evaluates what came of it, and returns the directory of the run."""
    from agents.runs import launch

    return launch.train(settings)


if __name__ == "__main__":
    sys.exit(main())
