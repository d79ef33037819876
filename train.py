"""Trains an agent with memory: configuration -> environments -> agent -> learn -> run directory.

    python train.py --config tmaze --env.kwargs length=50 --policy.memory gru
    python train.py --resume runs/NAME

``--help`` explains every setting, ``agents/runs/directory.py`` what a run leaves behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import configs
from configs import CheckpointFault, CommandError, EnvironmentFault, NotFinite, Settings, SettingsError, reported_as

if TYPE_CHECKING:  # torch takes seconds to import: not before the settings are known to be good
    from stable_baselines3.common.vec_env import VecEnv

    from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
    from agents.runs.callbacks import Interruption
    from agents.runs.directory import RunDirectory
    from agents.runs.training import Schedule


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; ``configs/errors.py`` says what each means."""
    return configs.run(command, argv)


def command(argv: Sequence[str] | None) -> None:
    asked = configs.parse(argv)
    if asked.resume is not None and asked.seeds > 1:
        raise SettingsError("--resume goes on with one run; --seeds starts several: give one of the two")
    if asked.print_config:
        print(configs.dump(asked.settings), end="")
    elif asked.dry_run:
        from agents.runs.construction import make_environments

        if asked.resume is not None:
            opened(asked.resume, asked.settings, asked.trust, argv)
        configs.say(configs.plan(asked.settings))
        if not is_registered(asked.settings.env.id):
            configs.say(f"note: no environment is registered as {asked.settings.env.id} yet; its package must do that")
        else:
            with closing(make_environments(asked.settings, asked.settings.env.n_envs, asked.settings.seed)) as env:
                show_plan(new_agent(asked.settings, env))
        if asked.seeds > 1:
            print(f"seeds         {asked.settings.seed} to {asked.settings.seed + asked.seeds - 1}, one run each")
    elif asked.seeds > 1:
        train_seeds(asked.settings, asked.seeds)
    elif asked.resume is not None:
        resume(asked.resume, asked.settings, asked.trust, argv)
    else:
        train(asked.settings)


def train_seeds(settings: Settings, seeds: int) -> list[RunDirectory]:
    """Trains a run for each of ``seeds`` seeds, from the settings' own on, and prints one table of all.

    Raises:
        SeedsFailed: some of them could not be trained; the others were.
    """
    from agents.runs.analyses import print_seeds
    from agents.runs.directory import run_name

    group = settings.group or settings.name or run_name(settings.env.id, settings.policy.memory, "seeds")
    runs: list[RunDirectory] = []
    failed: dict[int, CommandError] = {}
    for seed in range(settings.seed, settings.seed + seeds):
        name = f"{settings.name}-{seed}" if settings.name else None
        # The threads measured for the first serve all: the runs of a group differ in their seed alone.
        threads = configs.read(runs[0].settings).threads if runs else settings.threads
        configs.say(f"\nseed {seed}, run {seed - settings.seed + 1} of {seeds} of the group {group}")
        try:
            runs.append(train(replace(settings, seed=seed, name=name, group=group, threads=threads)))
        except CommandError as error:
            failed[seed] = error
            configs.say(f"seed {seed} failed: {error}", error=True)
    print_seeds(runs)
    if failed:
        raise SeedsFailed(failed, seeds)
    return runs


class SeedsFailed(CommandError):
    """Some of several seeds could not be trained; its exit code is that of the first of them."""

    def __init__(self, failed: Mapping[int, CommandError], seeds: int) -> None:
        told = "; ".join(f"seed {seed}: {error}" for seed, error in failed.items())
        super().__init__(f"{len(failed)} of {seeds} seeds failed. {told}")
        self.exit_code = next(iter(failed.values())).exit_code


def train(settings: Settings) -> RunDirectory:
    """Trains an agent, evaluates the best it was, and returns the directory of the run."""
    settings.check()
    return work(settings, start_run(settings))


def resume(
    path: str, settings: Settings, trusted: Sequence[str] = (), argv: Sequence[str] | None = None
) -> RunDirectory:
    """Goes on with a run from its last checkpoint, as if it had never stopped.

    Args:
        trusted: modules that a run made elsewhere may import.
        argv: what was typed.
    """
    return work(settings, opened(path, settings, trusted, argv), resumed=True)


def opened(
    path: str, settings: Settings, trusted: Sequence[str] = (), argv: Sequence[str] | None = None
) -> RunDirectory:
    """The run to go on with, once it is sure that it can go on with these settings and may import what it names."""
    from agents.runs.directory import RunDirectory, RunError

    settings.check()
    with reported_as(SettingsError, "--resume", RunError):
        run = RunDirectory.open(path)
    recorded = configs.read(run.settings)
    configs.check_resumable(recorded, settings)
    configs.check_trusted(
        run.path, recorded, trusted, ["python", "train.py", *(sys.argv[1:] if argv is None else argv)]
    )
    return run


def work(settings: Settings, run: RunDirectory, *, resumed: bool = False) -> RunDirectory:
    """Trains in a run's directory and evaluates what came of it; ``resumed``: see :func:`train_in`."""
    from agents.runs.callbacks import Interruption

    interruption = Interruption()
    with interruption.at_once():
        train_in(run, settings, interruption, resumed=resumed)
        if settings.evaluation.final_episodes:
            from agents.runs.analyses import evaluate_at_the_end

            told = settings.evaluation.deterministic
            evaluate_at_the_end(run, settings.evaluation.final_episodes, deterministic=told)
    configs.say(f"\nThe run is in {run.path}; evaluate it again with: python evaluate.py {run.path}")
    return run


def train_in(run: RunDirectory, settings: Settings, interruption: Interruption, *, resumed: bool) -> None:
    """Trains in a run's directory; ``resumed``: from the last checkpoint there, if there is one yet."""
    import torch

    from agents.checkpoint import CheckpointError
    from agents.runs.construction import make_environments
    from agents.runs.directory import RunError
    from agents.runs.training import learn

    torch.set_num_threads(settings.threads or 1)
    with (
        held(run),
        reported_as(SettingsError, "runs", RunError),
        reported_as(CheckpointFault, "saving", CheckpointError, OSError),
        interruption.listening(),
        closed(make_environments(settings, settings.env.n_envs, settings.seed, resumable=True)) as env,
        closed(make_environments(settings, evaluation_envs(settings))) as evaluation_env,
        reported_as(NotFinite, "training", FloatingPointError),
        configs.environment_blamed(f"environment {settings.env.id}"),
    ):
        agent = resume_agent(settings, run, env) if resumed else None
        goes_on = agent is not None
        if agent is None:
            agent = new_agent(settings, env)
        show_plan(agent, run)
        if settings.threads is None:
            settings = with_measured_threads(settings, agent, run)
        elif resumed:
            run.write_settings(configs.dump(settings))
        learn(
            agent,
            evaluation_env,
            run,
            schedule(settings),
            tensorboard=settings.tracking.tensorboard,
            wandb=wandb_arguments(settings),
            trained=lambda: film(settings, run),
            resumed=goes_on,
            interruption=interruption,
        )


def new_agent(settings: Settings, env: VecEnv) -> RecurrentOnPolicyAlgorithm:
    """An agent that knows nothing yet."""
    from agents.runs.construction import make_agent
    from agents.runs.normalization import normalize

    task = settings.env
    with reported_as(SettingsError, "agent", ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError):
        normalized = normalize(
            env,
            observations=task.normalize_observations,
            rewards=task.normalize_rewards,
            clip_observations=task.clip_observations,
            clip_rewards=task.clip_rewards,
            gamma=settings.algorithm.gamma,
        )
        algorithm, policy = asdict(settings.algorithm), asdict(settings.policy)
        return make_agent(normalized, algorithm, policy, seed=settings.seed, device=settings.device)


def resume_agent(settings: Settings, run: RunDirectory, env: VecEnv) -> RecurrentOnPolicyAlgorithm | None:
    """The agent of a run's last checkpoint, and its environments where they stood; None where none was saved yet."""
    from agents.checkpoint import CheckpointError
    from agents.runs.construction import ALGORITHMS, own_classes
    from agents.runs.resuming import resume

    with reported_as(CheckpointFault, "resuming", CheckpointError):
        found = resume(
            run,
            ALGORITHMS[settings.algorithm.name],
            env,
            seed=settings.seed,
            device=settings.device,
            # The settings say how large a rollout is: what the agent's file says of it is not believed.
            custom_objects={**own_classes(asdict(settings.policy)), "n_steps": settings.algorithm.n_steps},
            report=tell,
        )
    if found is None:
        tell(f"{run.path} has no checkpoint yet: training starts from its beginning")
        run.forget_after(-1)
        return None
    for note in found.notes:
        tell(f"not exactly as without the interruption: {note}")
    agent: RecurrentOnPolicyAlgorithm = found.agent
    tell(f"resuming from {found.file}, of {agent.num_timesteps:,} steps")
    run.note_resume(agent.num_timesteps)
    return agent


def tell(line: str) -> None:
    configs.say(line, error=True)


@contextmanager
def held(run: RunDirectory) -> Iterator[None]:
    """Nobody else trains in the run's directory inside."""
    from agents.runs.directory import RunError

    with ExitStack() as stack:
        with reported_as(SettingsError, "runs", RunError, OSError):
            stack.enter_context(run.held())
        yield


@contextmanager
def closed(env: VecEnv) -> Iterator[VecEnv]:
    """The environments, and their end. What fails then says less than what has failed before."""
    try:
        yield env
    except BaseException:
        with suppress(Exception):
            env.close()
        raise
    with reported_as(EnvironmentFault, "closing"):
        env.close()


def start_run(settings: Settings) -> RunDirectory:
    """A new directory with settings and versions in it."""
    from agents.runs.directory import RunDirectory, RunError, run_name

    with reported_as(SettingsError, "runs", RunError, OSError):
        if settings.name is not None:
            run = RunDirectory.create(settings.runs, settings.name)
        else:
            name = run_name(settings.env.id, settings.policy.memory, settings.seed)
            run = RunDirectory.create_unique(settings.runs, name)
        run.write_settings(configs.dump(settings))
        configs.sign(run.path, settings)
        run.write_versions()
    return run


def show_plan(agent: RecurrentOnPolicyAlgorithm, run: RunDirectory | None = None) -> None:
    """Prints how the agent is computed, writes it down, and says in one line what missing compiled parts cost."""
    from agents.kernels.plan import missing

    plan = agent.policy.plan()
    print(f"computed by   {plan}")
    if (cost := missing()) is not None:
        print(f"note: {cost}")
    if run is not None:
        run.write_plan(plan.as_dict())


def with_measured_threads(settings: Settings, agent: RecurrentOnPolicyAlgorithm, run: RunDirectory) -> Settings:
    """Computes on as many threads as serve the agent best, and has the run's settings say how many they are.

    Another number can change the last bits of a sum: what is written down repeats the run, measured anew it may not.
    """
    import torch

    from agents.runs.threads import choose_threads

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
    from agents.runs.analyses import Options, record_run

    try:
        record_run(run, Options(), run.videos / "best.mp4")
    except CommandError as error:
        configs.say(f"no video: {error}", error=True)


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
    from agents.runs.training import Schedule

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
    """What :class:`agents.runs.tracking.WandbWriter` takes."""
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
