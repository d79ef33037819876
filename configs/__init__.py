"""Settings of a run: typed, read from a YAML file and the command line, checked before anything heavy is imported."""

from configs.command_line import parse
from configs.errors import (
    CheckpointFault,
    CommandError,
    EnvironmentFault,
    NotFinite,
    SettingsError,
    environment_blamed,
    reported_as,
    run,
)
from configs.plan import plan
from configs.settings import (
    AlgorithmSettings,
    CheckpointSettings,
    EnvironmentSettings,
    EvaluationSettings,
    PolicySettings,
    Settings,
    TrackingSettings,
    check_resumable,
    wrappers,
)
from configs.yaml_file import dump, read

__all__ = [
    "AlgorithmSettings",
    "CheckpointFault",
    "CheckpointSettings",
    "CommandError",
    "EnvironmentFault",
    "EnvironmentSettings",
    "EvaluationSettings",
    "NotFinite",
    "PolicySettings",
    "Settings",
    "SettingsError",
    "TrackingSettings",
    "check_resumable",
    "dump",
    "environment_blamed",
    "parse",
    "plan",
    "read",
    "reported_as",
    "run",
    "wrappers",
]
