"""Trains an agent with memory: configuration -> environments -> agent -> learn -> run directory.

    python train.py --config tmaze --env.kwargs length=50 --policy.memory gru

``--help`` explains every setting, ``agents/run_directory.py`` what a run leaves behind.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import configs
from configs import CheckpointFault, CommandError, EnvironmentFault, NotFinite, Settings, SettingsError, reported_as

if TYPE_CHECKING:  # torch takes seconds to import: not before the settings are known to be good
    from stable_baselines3.common.vec_env import VecEnv

    from agents.on_policy import RecurrentOnPolicyAlgorithm
    from agents.run_directory import RunDirectory
    from agents.training import Schedule


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; ``configs/errors.py`` says what each means."""
    return configs.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    asked = configs.parse(argv)
    if asked.print_config:
        print(configs.dump(asked.settings), end="")
    elif asked.dry_run:
        print(configs.plan(asked.settings))
        if not is_registered(asked.settings.env.id):
            print(f"note: no environment is registered as {asked.settings.env.id} yet; its package must do that")
        if asked.seeds > 1:
            print(f"seeds         {asked.settings.seed} to {asked.settings.seed + asked.seeds - 1}, one run each")
    elif asked.seeds > 1:
        train_seeds(asked.settings, asked.seeds)
    else:
        train(asked.settings)


def train_seeds(settings: Settings, seeds: int) -> list[RunDirectory]:
    """Trains a run for each of ``seeds`` seeds, from the settings' own on, and prints one table of all.

    Raises:
        SeedsFailed: some of them could not be trained; the others were.
    """
    from agents.run_directory import run_name

    group = settings.group or settings.name or run_name(settings.env.id, settings.policy.memory, "seeds")
    runs: list[RunDirectory] = []
    failed: dict[int, CommandError] = {}
    for seed in range(settings.seed, settings.seed + seeds):
        name = f"{settings.name}-{seed}" if settings.name else None
        # The threads measured for the first serve all: the runs of a group differ in their seed alone.
        threads = configs.read(runs[0].settings).threads if runs else settings.threads
        print(f"\nseed {seed}, run {seed - settings.seed + 1} of {seeds} of the group {group}", flush=True)
        try:
            runs.append(train(replace(settings, seed=seed, name=name, group=group, threads=threads)))
        except CommandError as error:
            failed[seed] = error
            print(f"seed {seed} failed: {error}", file=sys.stderr, flush=True)
    show_seeds(runs)
    if failed:
        raise SeedsFailed(failed, seeds)
    return runs


class SeedsFailed(CommandError):
    """Some of several seeds could not be trained; its exit code is that of the first of them."""

    def __init__(self, failed: Mapping[int, CommandError], seeds: int) -> None:
        told = "; ".join(f"seed {seed}: {error}" for seed, error in failed.items())
        super().__init__(f"{len(failed)} of {seeds} seeds failed. {told}")
        self.exit_code = next(iter(failed.values())).exit_code


def show_seeds(runs: Sequence[RunDirectory]) -> None:
    """The final evaluations of several runs as one table, for the runs that have one."""
    from agents.report import Record, Scored, grouped
    from evaluate import print_groups

    records = [Record(run, asdict(configs.read(run.settings))) for run in runs]
    scored = [Scored.of(record, results[-1]) for record in records if (results := record.results())]
    if scored:
        print_groups(grouped(scored))


def train(settings: Settings) -> RunDirectory:
    """Trains an agent, evaluates the best it was, and returns the directory of the run."""
    settings.check()
    import torch

    from agents.checkpoint import CheckpointError
    from agents.construction import make_agent
    from agents.normalization import normalize
    from agents.training import learn

    torch.set_num_threads(settings.threads or 1)
    run, task, about = start_run(settings), settings.env, f"environment {settings.env.id}"
    with (
        closing(make_environments(settings, task.n_envs, settings.seed)) as env,
        closing(make_environments(settings, evaluation_envs(settings))) as evaluation_env,
        reported_as(NotFinite, "training", FloatingPointError),
        reported_as(CheckpointFault, "saving", CheckpointError),
        configs.environment_blamed(about),
    ):
        with reported_as(
            SettingsError, "agent", ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError
        ):
            normalized = normalize(
                env,
                observations=task.normalize_observations,
                rewards=task.normalize_rewards,
                clip_observations=task.clip_observations,
                clip_rewards=task.clip_rewards,
                gamma=settings.algorithm.gamma,
            )
            agent = make_agent(
                normalized,
                asdict(settings.algorithm),
                asdict(settings.policy),
                seed=settings.seed,
                device=settings.device,
            )
        if settings.threads is None:
            settings = with_measured_threads(settings, agent, run)
        learn(
            agent,
            evaluation_env,
            run,
            schedule(settings),
            tensorboard=settings.tracking.tensorboard,
            wandb=wandb_arguments(settings),
            trained=lambda: film(settings, run),
        )
    if settings.evaluation.final_episodes:
        from evaluate import evaluate_run

        evaluate_run(run, episodes=settings.evaluation.final_episodes)
    print(f"\nThe run is in {run.path}; evaluate it again with: python evaluate.py {run.path}")
    return run


def start_run(settings: Settings) -> RunDirectory:
    """A new directory with settings and versions in it."""
    from agents.run_directory import RunDirectory, RunError, run_name

    with reported_as(SettingsError, "runs", RunError, OSError):
        if settings.name is not None:
            run = RunDirectory.create(settings.runs, settings.name)
        else:
            name = run_name(settings.env.id, settings.policy.memory, settings.seed)
            run = RunDirectory.create_unique(settings.runs, name)
        run.write_settings(configs.dump(settings))
        run.write_versions()
    return run


def with_measured_threads(settings: Settings, agent: RecurrentOnPolicyAlgorithm, run: RunDirectory) -> Settings:
    """Computes on as many threads as serve the agent best, and has the run's settings say how many they are.

    Another number can change the last bits of a sum: what is written down repeats the run, measured anew it may not.
    """
    import torch

    from agents.threads import choose_threads

    choice = choose_threads(agent)
    torch.set_num_threads(choice.threads)
    print(f"computing on {choice}")
    settings = replace(settings, threads=choice.threads)
    run.write_settings(configs.dump(settings))
    return settings


def film(settings: Settings, run: RunDirectory) -> None:
    """An episode of the best agent for Weights & Biases, where the environment can be rendered."""
    if settings.tracking.wandb == "off" or not settings.tracking.wandb_video:
        return
    from evaluate import record_run

    try:
        record_run(run, "best", run.videos / "best.mp4")
    except CommandError as error:
        print(f"no video: {error}", file=sys.stderr)


def make_environments(
    settings: Settings, n_envs: int, seed: int | None = None, render_mode: str | None = None
) -> VecEnv:
    """The task as the settings describe it, before normalisation."""
    import envs

    task = settings.env
    with reported_as(EnvironmentFault, f"environment {task.id}"):
        return envs.make(
            task.id,
            n_envs,
            seed=seed,
            env_kwargs=task.kwargs,
            wrappers=task.wrappers,
            backend=task.backend if render_mode is None else "serial",
            render_mode=render_mode,
            workers=task.workers if render_mode is None else None,
        )


def is_registered(env_id: str) -> bool:
    """Whether Gymnasium knows an id without importing what may register it."""
    import gymnasium

    import envs  # noqa: F401  (registers ours)

    return env_id in gymnasium.registry


def evaluation_envs(settings: Settings) -> int:
    """How many environments evaluate side by side."""
    return min(settings.evaluation.n_envs or settings.env.n_envs, settings.evaluation.episodes)


def schedule(settings: Settings) -> Schedule:
    """What happens when."""
    from agents.training import Schedule

    return Schedule(
        total_timesteps=settings.total_timesteps,
        seed=settings.seed,
        evaluate_every=settings.evaluation.every,
        evaluation_episodes=settings.evaluation.episodes,
        deterministic=settings.evaluation.deterministic,
        stop_at_return=settings.evaluation.stop_at_return,
        longest_episode=settings.evaluation.max_steps,
        checkpoint_every=settings.checkpoint.every,
        checkpoints_kept=settings.checkpoint.keep,
        log_interval=settings.tracking.log_interval,
        progress=settings.progress,
        memory_diagnostics=settings.tracking.memory_diagnostics,
    )


def wandb_arguments(settings: Settings) -> dict[str, Any] | None:
    """What :class:`agents.tracking.WandbWriter` takes."""
    chosen = settings.tracking
    if chosen.wandb == "off":
        return None
    return {
        "mode": chosen.wandb,
        "project": chosen.wandb_project,
        "entity": chosen.wandb_entity,
        "group": chosen.wandb_group or settings.group,
        "tags": chosen.wandb_tags,
        "timeout": chosen.wandb_timeout,
        "config": asdict(settings),
    }


if __name__ == "__main__":
    sys.exit(main())
