"""What a run would do, in words, before anything heavy is imported."""

from collections.abc import Sequence

from configs.settings import Settings, shown, values


def plan(settings: Settings, fitted: Settings, seeds: int = 1, searched: Sequence[str] = ()) -> str:
    """What would be run, and which settings differ from their defaults.

    Args:
        fitted: the settings with a size of rollouts where they leave it open.
        searched: names that a sweep decides.
    """
    n_envs, n_steps = fitted.rollout
    rollout = n_envs * n_steps
    updates = -(-settings.total_timesteps // rollout)
    steps = updates * rollout
    lines = [
        f"environment   {n_envs} of {settings.env.id}",
        f"rollouts      {updates:,} of {n_envs} x {n_steps} = {rollout:,} steps: {steps:,} in all",
        f"updates       {_update(settings, rollout)}",
        f"evaluations   {_times(steps, settings.evaluation.every)} of {settings.evaluation.episodes} episodes",
        f"checkpoints   {_times(steps, settings.checkpoint.every)}, {settings.checkpoint.keep} kept",
        f"directory     {settings.runs}/{settings.name or '<environment>-<memory>-<seed>-<time>'}",
    ]
    if seeds > 1:
        lines.append(f"seeds         {settings.seed} to {settings.seed + seeds - 1}, one run each")
    if searched:
        lines.append(f"searched      {', '.join(searched)}")
    usual = values(Settings())
    chosen = {key: value for key, value in values(settings).items() if value != usual[key]}
    lines += [f"setting       {key} = {shown(value)}" for key, value in chosen.items()]
    return "\n".join([*lines, "              others have their defaults; --print-config shows all of them"])


def _update(settings: Settings, rollout: int) -> str:
    algorithm = settings.algorithm
    if algorithm.name == "a2c":
        return "one gradient step each, on the full rollout"
    minibatches = max(1, -(-rollout // algorithm.batch_size))
    if algorithm.n_epochs is None:
        return f"epochs of {minibatches} minibatches, as many as the observation calls for"
    return (
        f"{algorithm.n_epochs} epochs of {minibatches} minibatches, {algorithm.n_epochs * minibatches} gradient steps"
    )


def _times(steps: int, every: int) -> str:
    return f"{max(1, steps // every):,}" if every else "none while training"
