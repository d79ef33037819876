"""Settings of a run: typed, read from a YAML file and the command line, checked before anything heavy is imported."""

from configs.command_line import find_config, parse
from configs.errors import (
    CheckpointFault,
    CommandError,
    EnvironmentFault,
    NotFinite,
    ProcessFault,
    SettingsError,
    command_words,
    environment_blamed,
    printable,
    reported_as,
    run,
    say,
)
from configs.help import nearest
from configs.plan import plan
from configs.settings import Settings, check_resumable, wrappers
from configs.space import Space, read_space
from configs.trust import check_trusted, leave_import_path, sign
from configs.yaml_file import dump, read

__all__ = [
    "CheckpointFault",
    "CommandError",
    "EnvironmentFault",
    "NotFinite",
    "ProcessFault",
    "Settings",
    "SettingsError",
    "Space",
    "check_resumable",
    "check_trusted",
    "command_words",
    "dump",
    "environment_blamed",
    "find_config",
    "leave_import_path",
    "nearest",
    "parse",
    "plan",
    "printable",
    "read",
    "read_space",
    "reported_as",
    "run",
    "say",
    "sign",
    "wrappers",
]
