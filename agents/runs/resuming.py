"""Going on with a run as if it had never stopped: what is saved with the agent, and how it is restored.

A checkpoint is the agent between two updates, with three attributes more: where its environments stand, the figures
that wait for the next row of metrics, and what it was computed with, on which the last bits of sums depend.
"""

import platform
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.checkpoint import Captured, CheckpointError, SavedAgent, capture_algorithm, undisturbed
from agents.checkpoint.agent import OF_A_RUN
from agents.distributed import group
from agents.kernels.binding import BUILDS, VERSIONS
from agents.runs import processes
from agents.runs.construction import ALGORITHMS, own_classes
from agents.runs.directory import RunDirectory
from configs import Settings, say
from configs.settings import SCHEDULED

ENVIRONMENTS, FIGURES, COMPUTING, PARTS = OF_A_RUN
DECIDING = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def note(line: str) -> None:
    if group.is_first():
        say(line, error=True)


def capture(model: RecurrentOnPolicyAlgorithm) -> Captured:
    """The agent, its environments and its pending figures, as they are between two updates."""
    attributes, base = model, _base(model.env)
    setattr(attributes, ENVIRONMENTS, None if base is None else base.snapshot())
    setattr(attributes, FIGURES, _pending(model.logger))
    setattr(attributes, COMPUTING, computing(model))
    if group.size() == 1:
        return capture_algorithm(model, include=[ENVIRONMENTS, FIGURES, COMPUTING])
    own = {name: getattr(attributes, name) for name in (ENVIRONMENTS, FIGURES)}
    setattr(attributes, PARTS, group.gathered(processes.part_of(model, **own)))
    return capture_algorithm(model, include=[ENVIRONMENTS, FIGURES, COMPUTING, PARTS])


def computing(model: RecurrentOnPolicyAlgorithm) -> dict[str, str]:
    """What an agent computes with, as far as it decides the last bits of numbers."""
    return {
        "kernels": " and ".join(BUILDS.get(name, "none") for name in sorted(VERSIONS)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "device": model.device.type,
    }


def resume_agent(
    run: RunDirectory, recorded: Settings, settings: Settings, env: VecEnv
) -> RecurrentOnPolicyAlgorithm | None:
    """The agent of a run's last readable checkpoint, its environments where they stood; None where none was saved yet.

    Whatever is not as it would have been without the interruption is printed, a line each. ``recorded`` are the
    settings that the run had before. CheckpointError: there are checkpoints, and none of them can be read.
    """
    # The settings say how large a rollout is: what the agent's file says of it is not believed.
    custom_objects = {**own_classes(settings.policy), "n_steps": settings.algorithm.n_steps}
    files = [path for _, path in reversed(run.checkpoints())]
    for file in files:
        try:
            saved = SavedAgent(file, custom_objects)
            agent: RecurrentOnPolicyAlgorithm = ALGORITHMS[settings.algorithm.name].load(
                file, env=env, device=settings.device, custom_objects=custom_objects, force_reset=False
            )
        except CheckpointError as error:
            note(f"passing over a checkpoint: {error}")
            continue
        changes = _changed(saved, agent)
        trouble = _given_part(agent, str(file)) or _restored_undisturbed(agent)
        if trouble is not None:
            agent._last_obs = None
            seed = np.random.SeedSequence([settings.seed, agent.num_timesteps, 1])  # no two resumptions share one
            env.seed(int(seed.generate_state(1)[0] >> 1))
            changes.append(f"{trouble}: new episodes begin, and all else goes on")
        for change in changes:
            note(f"not exactly as without the interruption: {change}")
        note(f"resuming from {file}, of {agent.num_timesteps:,} steps")
        if schedules := change_of_schedules(recorded, settings, agent.num_timesteps):
            note(schedules)
        if group.is_first():
            run.note_resume(agent.num_timesteps)
        return agent
    if files:
        raise CheckpointError(f"none of the {len(files)} checkpoints of {run.path} can be read; start a new run")
    note(f"{run.path} has no checkpoint yet: training starts from its beginning")
    if group.is_first():
        run.forget_after(-1)
    return None


def change_of_schedules(recorded: Settings, settings: Settings, step: int) -> str | None:
    """What becomes of a schedule that falls to 0 where a run goes on to another number of steps; None: nothing."""
    before, now = recorded.total_timesteps, settings.total_timesteps
    changes = []
    for name in SCHEDULED:
        start, schedule = (getattr(settings.algorithm, key) for key in (name, f"{name}_schedule"))
        if schedule == "linear" and before != now:
            was, becomes = (start * max(0.0, 1 - step / total) for total in (before, now))
            changes.append(f"{name} goes on at {becomes:.3g} instead of {was:.3g}")
    if not changes:
        return None
    return f"total_timesteps is {now:,} and was {before:,}, where linear schedules end: {', '.join(changes)}"


def restore_pending(model: RecurrentOnPolicyAlgorithm) -> None:
    """Puts into the agent's logger the figures that waited for the next row when it was saved."""
    pending: Any = getattr(model, FIGURES, None) or {}
    for name, (value, excluded) in pending.items():
        model.logger.record(name, value, tuple(excluded))


def _base(env: Any) -> Any:
    """The outermost environments that can be brought back, below what normalizes them; None where there are none."""
    while env is not None and not hasattr(type(env), "snapshot"):
        env = vars(env).get("venv")
    return env


def _pending(logger: Any) -> dict[str, Any]:
    return {
        name: [float(value) if isinstance(value, np.generic) else value, list(logger.name_to_excluded[name] or ())]
        for name, value in logger.name_to_value.items()
        if isinstance(value, bool | int | float | np.floating | np.integer)
    }


def _given_part(agent: Any, file: str) -> str | None:
    """Gives an agent what a checkpoint of several processes has of this one; where it has nothing, why."""
    parts: Any = vars(agent).pop(PARTS, None)
    part, trouble = processes.own_part(parts, 1 if parts is None else len(parts))
    if part is not None:
        processes.give(agent, part, file)
        processes.draw_on(agent, part, file)
        vars(agent).update({name: part[name] for name in (ENVIRONMENTS, FIGURES)})
    return trouble


def _restored_undisturbed(agent: Any) -> str | None:
    with undisturbed():
        return _restored(agent)


def _restored(agent: Any) -> str | None:
    """Brings an agent's environments to where they stood; where that fails, why."""
    state, base = getattr(agent, ENVIRONMENTS, None), _base(agent.env)
    if state is None or base is None or agent._last_obs is None:
        return "the checkpoint does not say where its environments stood, which do not know it themselves"
    try:
        exact = base.restore(state)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"the environments cannot be brought back to where they stood ({error})"
    if not exact:
        return (
            "the environments are not where they stood after the same seeds and actions: they are not deterministic, "
            "or have changed"
        )
    return None


def _changed(saved: SavedAgent, agent: Any) -> list[str]:
    before = getattr(agent, COMPUTING, None)
    were = {**saved.versions, **(before if isinstance(before, dict) else {})}
    are = {**DECIDING, **computing(agent)}
    changed = [f"{name} {were[name]} is now {now}" for name, now in are.items() if were.get(name, now) != now]
    return [f"{', '.join(changed)}: the last bits may differ"] if changed else []
