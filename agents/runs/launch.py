"""A run from its settings to its end: directory, environments, agent, training, and what it is evaluated by."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

import gymnasium
import torch
from stable_baselines3.common.vec_env import VecEnv

import configs
from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.analysis.report.history import RunError, figures
from agents.checkpoint import CheckpointError
from agents.checks.devices import check_device
from agents.checks.extras import is_installed
from agents.distributed import group
from agents.kernels.plan import missing
from agents.runs import processes
from agents.runs.analyses import Options, evaluate_at_the_end, record_run
from agents.runs.construction import EvaluationEnvironments, make_agent, make_environments
from agents.runs.defaults import fitted_to_episodes, fitted_to_family, fitted_to_spaces
from agents.runs.directory import RunDirectory, run_name, write_atomically
from agents.runs.imitation import taught, teacher_of
from agents.runs.interruption import Interruption
from agents.runs.resuming import resume_agent
from agents.runs.symptoms import slow_environment, symptoms
from agents.runs.threads import choose_threads
from agents.runs.training import Training
from configs import CheckpointFault, CommandError, EnvironmentFault, NotFinite, Settings, SettingsError, reported_as

Closable = TypeVar("Closable", VecEnv, EvaluationEnvironments)


def train(settings: Settings) -> RunDirectory:
    """Trains an agent in a new directory and evaluates what came of it."""
    settings.check()
    _check_device(settings)
    with processes.only_first_speaks():
        processes.check(settings)
        return _work(group.from_first(lambda: new_run(settings)), settings)


def resume(path: str, settings: Settings, trusted: Sequence[str], typed: Sequence[str]) -> RunDirectory:
    """Goes on with a run from its last checkpoint, as if it had never stopped; see :func:`opened`."""
    with processes.only_first_speaks():
        processes.check(settings)
        run = opened(path, settings, trusted, typed)
        return _work(run, settings, configs.read(run.settings))


def opened(path: str, settings: Settings, trusted: Sequence[str], typed: Sequence[str]) -> RunDirectory:
    """The run to go on with, once it is sure that it can go on with these settings and may import what it names."""
    settings.check()
    _check_device(settings)
    run = RunDirectory(path)
    recorded = configs.read(run.settings)
    configs.check_resumable(recorded, settings)
    configs.check_trusted(run.path, recorded, trusted, typed)
    return run


def preview(settings: Settings) -> None:
    """Builds environments and agent, and prints how it would be computed."""
    _check_device(settings)
    if not group.is_first():
        return
    settings, chosen = fitted(settings)
    with closing(make_environments(settings, settings.rollout[0], settings.seed)) as env:
        settings, more = fitted_to_spaces(settings, env.observation_space, env.action_space)
        _print_plan(_new_agent(settings, env), settings, chosen + more)


def fitted(settings: Settings) -> tuple[Settings, list[str]]:
    """Settings in which what the environment's id decides is chosen, and a line about each choice."""
    settings, chosen = fitted_to_family(settings)
    settings, more = fitted_to_episodes(settings)
    return settings, chosen + more


def check_several(settings: Settings, seeds: int = 1) -> None:
    """Raises :class:`SettingsError` where runs of several seeds, or of a sweep, cannot be trained here."""
    _check_device(settings)
    processes.check(settings, seeds)


def _check_device(settings: Settings) -> None:
    try:
        check_device(settings.device)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def new_run(settings: Settings) -> RunDirectory:
    """A new directory with settings and versions in it."""
    name = run_name(settings.env.id, settings.policy.memory, settings.seed)
    with reported_as(SettingsError, "runs", RunError, OSError):
        run = RunDirectory.create(settings.runs, settings.name or name, numbered=settings.name is None)
        with run.removed_if_nothing_came_of_it():
            write_atomically(run.settings, configs.dump(settings))
            configs.sign(run.path, settings)
            run.write_versions()
    return run


def _work(run: RunDirectory, settings: Settings, recorded: Settings | None = None) -> RunDirectory:
    """Trains in a run's directory and evaluates what came of it; ``recorded``: settings of a run that goes on."""
    interruption, evaluation = Interruption(), settings.evaluation
    with interruption.at_once():
        _train_in(run, settings, recorded, interruption)
        if not group.is_first():
            return run
        if evaluation.final_episodes and settings.tracking.wandb == "off":
            evaluate_at_the_end(run, deterministic=evaluation.deterministic)
        for each in _symptoms(run, configs.read(run.settings)):
            configs.say(f"note: {each}")
        again = shlex.join([*configs.command_words("evaluate"), str(run.path)])
        seen = "--insight --report" if is_installed("plots") else "--report"
        configs.say(f"\nThe run is in {run.path}; evaluate it again with: {again}")
        configs.say(f"What it learned and remembers, as one page: {again} {seen}")
    return run


def _symptoms(run: RunDirectory, settings: Settings) -> list[str]:
    """Why the run has not learned, if it has not, as far as its figures tell."""
    algorithm, spec = settings.algorithm, gymnasium.registry.get(settings.env.id)
    length = algorithm.sequence_length or min(settings.rollout[1], algorithm.batch_size)
    solved_at = None if spec is None else spec.reward_threshold
    metrics = figures(run.metrics)
    found = symptoms(
        metrics,
        figures(run.evaluations),
        sequence_length=length,
        solved_at=solved_at,
        noise_lasts=algorithm.use_sde or bool(algorithm.noise_correlation),
    )
    return [*found, *slow_environment(metrics, settings.env.backend)]


def _train_in(run: RunDirectory, settings: Settings, recorded: Settings | None, interruption: Interruption) -> None:
    torch.set_num_threads(settings.threads or 1)
    settings, chosen = fitted(settings)
    evaluation = settings.evaluation
    n_evaluated = min(evaluation.n_envs or settings.rollout[0], (evaluation.episodes + 1) // 2)
    evaluated = partial(make_environments, settings)
    is_first, n_envs = group.is_first(), group.share(settings.rollout[0])
    first = group.rank() * n_envs
    with (
        reported_as(SettingsError, "runs", RunError),
        reported_as(CheckpointFault, "saving", CheckpointError, OSError),
        run.removed_if_nothing_came_of_it() if recorded is None and is_first else nullcontext(),
        run.locked() if is_first else nullcontext(),
        interruption.listening(),
        _closing(make_environments(settings, n_envs, settings.seed, resumable=True, first=first)) as env,
        _closing(EvaluationEnvironments(evaluated, n_evaluated)) if is_first else nullcontext() as environments,
        reported_as(NotFinite, "training", FloatingPointError),
        configs.environment_blamed(f"environment {settings.env.id}"),
    ):
        with reported_as(CheckpointFault, "resuming", CheckpointError):
            resumed = None if recorded is None else resume_agent(run, recorded, settings, env)
        teacher = None if resumed else teacher_of(settings)
        settings, more = fitted_to_spaces(settings, env.observation_space, env.action_space)
        agent = resumed or _new_agent(settings, env)
        configs.say(f"run           {run.path}")
        computed = _print_plan(agent, settings, chosen + more)
        if is_first:
            run.write_versions(computed=computed, **({"processes": group.size()} if group.size() > 1 else {}))
        if settings.threads is None:  # another number can change the last bits of a sum
            choice = group.from_first(lambda: choose_threads(agent))
            torch.set_num_threads(choice.threads)
            print(f"computing on {choice}")
            settings = replace(settings, threads=choice.threads)
        if is_first:
            write_atomically(run.settings, configs.dump(settings))
        if teacher is not None:
            taught(agent, teacher, settings)
        training = Training(agent, environments, run, settings, interruption, resumed=resumed is not None)
        training.run(trained=lambda: _tracked_end(run, settings, interruption) if is_first else None)


def _new_agent(settings: Settings, env: VecEnv) -> RecurrentOnPolicyAlgorithm:
    with reported_as(SettingsError, "agent", ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError):
        return make_agent(settings, env)


def _print_plan(agent: RecurrentOnPolicyAlgorithm, settings: Settings, chosen: Sequence[str]) -> dict[str, str]:
    """Prints what the agent sees and is made of, what was chosen for it, how it is computed, and in one line what
    missing compiled parts cost; returns how it is computed, by part."""
    policy, plan = agent.policy, agent.policy.plan()
    n_weights = sum(weights.numel() for weights in policy.parameters())
    memory, critic = settings.policy.memory, settings.policy.critic_memory
    size = {} if memory == "none" else {"output size": policy.memory_actor.output_size}
    arguments = "".join(f", {name} {value}" for name, value in {**size, **settings.policy.memory_kwargs}.items())
    for name, lines in {
        "device": [str(agent.device)],
        "observation": policy.observation_lines(),
        "memory": [f"{memory}{arguments}; the critic's: {critic}"],
        "parameters": [f"{n_weights:,}"],
        "chosen": chosen,
        "computed by": [str(plan)],
    }.items():
        for line in lines:
            configs.say(f"{name:14}{line}")
    if (cost := missing()) is not None:
        print(f"note: {cost}")
    return plan.as_dict()


def _tracked_end(run: RunDirectory, settings: Settings, interruption: Interruption) -> None:
    """What Weights & Biases gets before it is closed: the final evaluation, and an episode of the best agent as a
    video where the environment can be rendered."""
    if settings.tracking.wandb == "off":
        return
    with interruption.at_once():
        if settings.evaluation.final_episodes:
            evaluate_at_the_end(run, deterministic=settings.evaluation.deterministic)
    if not settings.tracking.wandb_video:
        return
    try:
        record_run(run, Options(), run.videos / "best.mp4")
    except CommandError as error:
        configs.say(f"no video: {error}", error=True)


@contextmanager
def _closing(env: Closable) -> Iterator[Closable]:
    """The environments, and their end. What fails then says less than what has failed before."""
    try:
        yield env
    except BaseException:
        with suppress(Exception):
            env.close()
        raise
    with reported_as(EnvironmentFault, "closing"):
        env.close()
