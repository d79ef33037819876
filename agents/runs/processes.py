"""A run of several processes: what a checkpoint keeps of each, and who speaks.

Process 0 makes the directory, evaluates, writes and prints. At every rollout's start all processes hand each other what
is their own (environments, random numbers, carried memory), so that any of them has the complete checkpoint: where
process 0 dies, another one saves.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from typing import Any

from agents.checkpoint.agent import carried_by, checked_carried
from agents.checkpoint.container import refused
from agents.checkpoint.random_states import process_states, set_process_states
from agents.distributed import group
from agents.runs.defaults import fitted_to_episodes
from configs import ProcessFault, Settings, SettingsError, reported_as
from configs.settings import ImitationSettings

PATIENCE = 2.0  # seconds in which process 0 says what all have found


def check(settings: Settings, seeds: int = 1) -> None:
    """Raises SettingsError where a run cannot be shared by the processes there are."""
    if group.size() == 1:
        return
    with reported_as(SettingsError, "env", ValueError):
        group.share(fitted_to_episodes(settings)[0].rollout[0])
    if seeds > 1:
        raise SettingsError("seeds: several seeds are runs of one process each: leave torchrun or --seeds out")
    if any(getattr(settings.imitation, each.name) != each.default for each in fields(ImitationSettings)):
        raise SettingsError("imitation: a teacher is learned from in one process: start it without torchrun")


@contextmanager
def only_first_speaks() -> Iterator[None]:
    """The other processes print nothing but what they alone know."""
    if group.size() == 1:
        yield
        return
    try:
        if group.is_first():
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield
    except SettingsError:
        if not group.is_first():  # where all find the same, process 0 says so and torchrun ends the others
            time.sleep(PATIENCE)
        raise
    except (group.PeerFailed, group.PeerLost) as error:
        fault = ProcessFault(f"training: {error}")
        fault.is_reported = error.is_reported or (not group.is_first() and isinstance(error, group.PeerFailed))
        raise fault from error
    except BaseException as error:
        quiet: Any = error
        quiet.is_reported = not group.is_first() and (isinstance(error, KeyboardInterrupt) or _is_reported(error))
        raise


def _is_reported(error: BaseException | None) -> bool:
    """Whether process 0 knows of it: of an error, or of what it comes from."""
    return error is not None and (getattr(error, "is_reported", False) or _is_reported(error.__cause__))


def part_of(model: Any, **more: Any) -> dict[str, Any]:
    """What is this process's own of an agent between two updates."""
    normalizer = model.get_vec_normalize_env()
    return {
        "carried": carried_by(model),
        "random": {**process_states(), "model": model.random_generator.bit_generator.state},
        "returns": None if normalizer is None else normalizer.returns,
        "last_observations": getattr(normalizer, "old_obs", None),
        **more,
    }


def give(model: Any, part: Mapping[str, Any], file: str) -> None:
    """The inverse, but for the random numbers: see :func:`draw_on`.

    Raises:
        CheckpointError: it is not of this agent.
    """
    with refused(f"{file}: what it holds of process {group.rank()} cannot be understood"):
        vars(model).update(checked_carried(dict(part["carried"]), model))
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None:
            normalizer.returns = part["returns"]
            if part["last_observations"] is not None:
                normalizer.old_obs = part["last_observations"]


def draw_on(model: Any, part: Mapping[str, Any], file: str) -> None:
    """Random numbers go on as they were in this process."""
    with refused(f"{file}: the random states of process {group.rank()} cannot be understood"):
        model.random_generator.bit_generator.state = part["random"]["model"]
        set_process_states(part["random"])


def own_part(parts: Sequence[Any] | None, n_before: int) -> tuple[Any, str | None]:
    """What a checkpoint of ``n_before`` processes has of this one; or None, and why."""
    if n_before == group.size():
        return (None if parts is None else parts[group.rank()]), None
    return None, f"the checkpoint is of {n_before} process(es), and here are {group.size()}"
