"""A run that begins with a teacher: from its settings to lessons, and to a critic that has been warmed up."""

from pathlib import Path
from typing import Any

import configs
from agents.algorithms.imitation import Imitation, Lesson
from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.analysis.report.history import RunError
from agents.checkpoint import CheckpointError
from agents.deploy.player import Player
from agents.runs.construction import own_classes
from agents.runs.directory import RunDirectory
from configs import CheckpointFault, Settings, SettingsError, reported_as
from recurl.play import ExportedPolicy


def teacher_of(settings: Settings) -> Any:
    """The policy that teaches; None if there is none.

    Raises:
        SettingsError: the run imports modules and was not made here.
        CheckpointFault: there is no such run or file, or it holds no agent.
    """
    name = settings.imitation.teacher
    if name is None:
        return None
    path = Path(name)
    with reported_as(
        CheckpointFault, f"imitation.teacher {name}", RunError, CheckpointError, ImportError, ValueError, OSError
    ):
        if path.suffix == ".onnx":
            return ExportedPolicy(path)
        if path.suffix == ".zip":
            return Player.load(path)
        run = RunDirectory.open(path)
        learned = configs.read(run.settings)
        configs.check_trusted(run.path, learned, (), ())
        return Player.load(run.find("best"), custom_objects=own_classes(learned.policy))


def taught(agent: RecurrentOnPolicyAlgorithm, teacher: Any, settings: Settings) -> None:
    """The teacher's lessons, then the critic's; the agent's steps are counted from 0 after them."""
    chosen = settings.imitation
    with reported_as(SettingsError, "imitation", ValueError, KeyError):
        lessons = Imitation(
            agent,
            teacher,
            key=chosen.key,
            n_steps=chosen.n_steps,
            sequence_length=chosen.sequence_length,
            n_epochs=chosen.n_epochs,
            batch_size=chosen.batch_size,
            learning_rate=chosen.learning_rate,
            mixing=chosen.mixing,
        )
        lessons.run(chosen.steps, after=_report)
    if chosen.critic_steps:
        lessons.warm_up_critic(chosen.critic_steps)
        configs.say(f"imitation     the critic learned for {chosen.critic_steps:,} steps")


def _report(lesson: Lesson) -> None:
    agreed = "" if lesson.agreement != lesson.agreement else f", {lesson.agreement:.0%} of actions as the teacher's"
    configs.say(f"imitation     {lesson.steps:,} steps: loss {lesson.loss:.3g}{agreed}")
