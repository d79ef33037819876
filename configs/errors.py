"""What can go wrong with a command, and what it tells the shell.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a fault of the program itself, shown with its traceback |
| 2 | a setting, an argument or a place on disk that cannot be used |
| 3 | the environment could not be made, or raised |
| 4 | a number was not finite |
| 5 | a checkpoint could not be found, read or written |
| 6 | another process of the run, as torchrun starts several, failed or was killed |
| 130, 143 | stopped by Ctrl-C, by SIGTERM |
"""

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class CommandError(Exception):
    """A fault that its message explains: the user sees that and no traceback."""

    exit_code = 1
    is_reported = False
    """Whether another process tells the user."""


class SettingsError(CommandError, ValueError):
    """A setting, an argument or a place on disk that cannot be used."""

    exit_code = 2


class EnvironmentFault(CommandError):
    """The environment could not be made, or raised."""

    exit_code = 3


class NotFinite(CommandError):
    """A number was not finite."""

    exit_code = 4


class CheckpointFault(CommandError):
    """A checkpoint could not be found, read or written."""

    exit_code = 5


class ProcessFault(CommandError):
    """Another process that trains the same agent failed, or is gone."""

    exit_code = 6


@contextmanager
def reported_as(kind: type[CommandError], what: str, *types: type[Exception]) -> Iterator[None]:
    """Turns exceptions of these types (any, if none is named) from inside into ``kind("what: its message")``."""
    expected = types or (Exception,)
    try:
        yield
    except CommandError:
        raise
    except expected as error:
        raise kind(f"{what}: {describe(error)}") from error


@contextmanager
def environment_blamed(what: str) -> Iterator[None]:
    """Turns what an environment's own code raises inside into :class:`EnvironmentFault` that names the line."""
    try:
        yield
    except SystemExit as error:
        message = f"sys.exit({error.code!r}) was called in the middle of the work{_place(error)}"
        kind = EnvironmentFault if _is_of_environment(error) else CommandError
        raise kind(f"{what}: {message}" if kind is EnvironmentFault else message) from error
    except Exception as error:
        # EnvError names environment and step itself; this package does not know its class.
        names_itself = type(error).__name__ == "EnvError"
        if not names_itself and not _is_of_environment(error):
            raise
        message = str(error) if names_itself else describe(error)
        raise EnvironmentFault(f"{what}: {message}{_place(error.__cause__ if names_itself else error)}") from error


def _is_of_environment(error: BaseException) -> bool:
    """Whether a Gymnasium environment was on the way to it."""
    from gymnasium import Env
    from gymnasium.vector import VectorEnv

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(isinstance(frame.f_locals.get("self"), Env | VectorEnv) for frame in frames)


def _place(error: BaseException | None) -> str:
    """The line that raised, in brackets; nothing where that is not known here."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    return f" ({frames[-1].filename}:{frames[-1].lineno}; --debug shows the traceback)" if frames else ""


def describe(error: BaseException) -> str:
    """The message, with the type before it unless that says nothing more, as with our own, and the notes after it."""
    house, _, _ = __package__.rpartition("configs")  # "recurl." where installed, nothing in a checkout
    ours = type(error).__module__.removeprefix(house).partition(".")[0] in ("agents", "envs", "configs")
    message, notes = str(error), getattr(error, "__notes__", ())
    if not message:
        frames = traceback.extract_tb(error.__traceback__)
        message = type(error).__name__ + (f", raised by: {frames[-1].line}" if frames and frames[-1].line else "")
    elif not (ours or isinstance(error, (ValueError, OSError, ImportError))):
        message = f"{type(error).__name__}: {message}"
    return ". ".join([message.removesuffix("."), *notes]) if notes else message


def printable(text: str) -> str:
    """The text with all that a terminal would obey, and not show, written as an escape; line ends and tabs stay."""
    shown = (c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def say(text: object = "", *, error: bool = False) -> None:
    """Prints a line in which something may stand that is not ours: a path, a name, a setting."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def command_words(name: str) -> list[str]:
    """What starts ``train`` or ``evaluate`` where the user is: a console command, or this Python and the script."""
    started = Path(sys.argv[0])
    if started.name.startswith("recurl-"):
        installed = f"recurl-{name}"
        return [installed if shutil.which(installed) else str(started.with_name(installed))]
    python = "python" if shutil.which("python") == sys.executable else _from_here(Path(sys.executable))
    script = Path(__file__).parents[1] / f"{name}.py"
    return [python, _from_here(script)] if script.exists() else [python, "-m", f"recurl.scripts.{name}"]


def _from_here(path: Path) -> str:
    """Relative where it lies below the folder that the user is in; links, such as a virtual environment's, stay."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; a fault becomes one message, with ``--debug`` its traceback too."""
    arguments = sys.argv[1:] if argv is None else argv
    # A script's own folder is on the path, the one it is called from is not; a user's environment lies there.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        command(argv)
    except CommandError as error:
        if "--debug" in arguments or os.environ.get("RECURL_DEBUG"):
            traceback.print_exc()
        if not error.is_reported:
            say(f"error: {error}", error=True)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        if not getattr(interrupt, "is_reported", False):
            say(str(interrupt) or "interrupted", error=True)
        return int(getattr(interrupt, "exit_code", 130))
    except SystemExit as request:  # argument parsers end this way
        return request.code if isinstance(request.code, int) else 0 if request.code is None else 2
    return 0
