"""Which modules a run's settings may have imported when somebody looks at it.

A run's directory is data, but its settings may name modules of the user's own (``env.id: module:id``, wrappers,
memory and encoder as ``module:Class``), and importing one runs it. Runs that were made here are known by a signature
in their directory: made with a key of this user, over the names of the modules and the directory that they were
imported from. Everybody else's must be named with ``--trust``. A run's own directory is never searched.
"""

import hashlib
import hmac
import json
import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from configs.errors import SettingsError
from configs.settings import Settings

SIGNATURE = "trusted_modules.json"
LARGEST_SIGNATURE = 2**16  # bytes


def modules_named(settings: Settings) -> tuple[str, ...]:
    """The modules that a run's settings have imported, each once."""
    policy = settings.policy
    names: list[Any] = [policy.memory, policy.encoder, policy.kwargs.get("memory")]  # the last one as it is
    for wrapper in settings.env.wrappers or ():
        names += list(wrapper) if isinstance(wrapper, dict) else [wrapper]
    modules = {name.partition(":")[0] for name in names if isinstance(name, str) and ":" in name}
    return tuple(sorted((modules | {settings.env.id.rpartition(":")[0]}) - {""}))


def check_trusted(run: Path, settings: Settings, trusted: Sequence[str], command: Sequence[str]) -> None:
    """Lets a run's modules be imported, if they are this user's own or named in ``trusted``; signs the latter.

    Whatever they are, the run's directory leaves the path on which modules are found.

    Raises:
        SettingsError: they are neither, or one lies in the run's directory; it says what to add to the ``command``.
    """
    leave_import_path(run)
    modules = modules_named(settings)
    for module in modules:
        if (place := _inside(run, module)) is not None:
            raise SettingsError(f"{run}: its settings import {module}, which lies in the run itself ({place}); refused")
    if not modules or _is_signed(run, modules):
        return
    unknown = [module for module in modules if module not in trusted]
    if unknown:
        raise SettingsError(
            f"{run}: its settings import {', '.join(unknown)}, which would run that code, and this run is not known as "
            f"one that you made here. If you trust it: {shlex.join([*command, '--trust', *modules])}"
        )
    sign(run, settings)


def sign(run: Path, settings: Settings) -> None:
    """Leaves in a run's directory that its modules were imported here by this user; where that fails it asks again."""
    modules = modules_named(settings)
    if not modules:
        return
    with suppress(OSError):
        content = {"modules": modules, "signature": _signature(_key(make=True), modules)}
        (run / SIGNATURE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def leave_import_path(run: Path) -> None:
    """Takes a run's directory, and all in it, off the path on which modules are found: it may be where one stands."""
    inside = run.resolve()
    sys.path[:] = [entry for entry in sys.path if not Path(entry or os.getcwd()).resolve().is_relative_to(inside)]


def _inside(run: Path, module: str) -> str | None:
    """Where in a run's directory a module would be found, without importing anything; None where it would not."""
    path: list[str] | None = None
    for part in module.split("."):
        # By its last name alone: with the full one a namespace package would have to be imported first.
        spec = PathFinder.find_spec(part, path) if part else None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
        for place in (spec.origin, *path):
            if place and place not in ("built-in", "frozen") and Path(place).resolve().is_relative_to(run.resolve()):
                return place
    return None


def _is_signed(run: Path, modules: Sequence[str]) -> bool:
    try:
        with (run / SIGNATURE).open("rb") as file:
            content = json.loads(file.read(LARGEST_SIGNATURE))
        return hmac.compare_digest(str(content["signature"]), _signature(_key(make=False), modules))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _signature(key: bytes, modules: Sequence[str]) -> str:
    signed = json.dumps([os.path.realpath(os.getcwd()), sorted(modules)]).encode()
    return hmac.new(key, signed, hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes:
    """This user's, in the folder for settings of theirs; raises OSError where there is none and none can be made."""
    try:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "recurl"
    except RuntimeError as error:
        raise OSError(str(error)) from error
    path = folder / "key"
    if make:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    key = path.read_bytes()
    if len(key) < 32:
        raise OSError(f"{path} is no key")
    return key
