"""The file itself: one uncompressed zip of JSON and safetensors, with a manifest, written atomically.

Its members are ``manifest.json``, ``agent.json``, any number of ``*.safetensors``, and ``data``, a summary under the
name where tools for Stable-Baselines3 look for one, which is never read here. Nothing else is accepted, and nothing is
unpickled, imported or extracted to disk. Members are stored uncompressed, so none is larger than the file.

The checksums find damage, not forgery: what a forged file can do is bounded by what is read from it, which is numbers,
strings and names of a fixed list.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from agents.checks.text import printable

FORMAT, VERSION, SUFFIX = "recurl-checkpoint", 1, ".zip"
MANIFEST, AGENT, SUMMARY = "manifest.json", "agent.json", "data"
TENSORS = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,200}\.safetensors")

BUDGET = 2**30  # bytes that reading may take besides a few times the file's own size; more is taken for a forgery
LARGEST_JSON = 64 * 2**20  # bytes
MOST_VALUES = 2**21  # of a JSON document; each takes some hundred bytes once it is read
STALE_AFTER = 3600.0  # seconds; a younger temporary file may belong to a process that is still writing

# What Python, NumPy, torch, gymnasium and safetensors raise on data that makes no sense.
MALFORMED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
    SafetensorError,
)

PathOrFile = str | os.PathLike[str] | IO[bytes]


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read. The message names the file, what was expected, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it quotes files, and a terminal obeys control characters


@contextlib.contextmanager
def refused(what: str, advice: str = "use another copy") -> Iterator[None]:
    """Raises CheckpointError, ``what`` with the reason and the advice, where the data inside make no sense."""
    try:
        yield
    except CheckpointError:
        raise
    except MALFORMED as error:
        raise CheckpointError(f"{what} ({error}); {advice}") from error


def name_of(path: PathOrFile) -> str:
    """What to call a path or an open file in a message."""
    if isinstance(path, str | os.PathLike):
        return str(os.fspath(path))
    return str(getattr(path, "name", None) or f"<{type(path).__name__}>")


def write_archive(
    path: PathOrFile,
    agent: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``agent`` as JSON, each entry of ``tensors`` as a safetensors member, ``summary`` for other tools.

    A path without a suffix gets ``.zip``; missing folders are made. The file is written next to its place, synced to
    disk, and renamed: where that fails, what was there before stays. An open binary file is written to as it is.

    Raises:
        CheckpointError: the data cannot be serialized, or the disk does not take it.
    """
    to_json = json.JSONEncoder(indent=1, allow_nan=False).encode
    members = {AGENT: to_json(agent).encode()}
    _check_json(members[AGENT], AGENT, name_of(path))
    if summary is not None:
        members[SUMMARY] = to_json(summary).encode()
    members |= {f"{name}.safetensors": safetensors.torch.save(dict(part)) for name, part in tensors.items()}
    checksums = {name: _checksum(data) for name, data in members.items()}
    members[MANIFEST] = to_json({"format": FORMAT, "version": VERSION, "members": checksums}).encode()
    data = _zipped(members)
    try:
        if isinstance(path, str | os.PathLike):
            path = Path(path)
            _replace(path if path.suffix else path.with_name(path.name + SUFFIX), data)
        else:
            path.write(data)
    except OSError as error:
        raise CheckpointError(
            f"{name_of(path)}: could not be written ({error.strerror or error}); a file that was there before is "
            "untouched. Free space or choose another place, and save again"
        ) from error


def read_archive(path: PathOrFile) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What :func:`write_archive` was given, the tensors on the CPU, after every check.

    A path that does not exist is tried again with ``.zip``, as Stable-Baselines3 does.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, of another kind, or of a newer version.
    """
    with opened(path) as file:
        name = name_of(file)
        members = _checked_members(file, name)
    agent = parsed_json(members.pop(AGENT), AGENT, name)
    members.pop(SUMMARY, None)
    tensors = {}
    for member, data in members.items():
        # The library checks that every shape has just the bytes it says, so none can ask for more than the file holds.
        with refused(f"{name}: {member} holds no readable tensors"):
            tensors[member.removesuffix(".safetensors")] = safetensors.torch.load(data)
    return agent, tensors


def opened(path: PathOrFile) -> contextlib.AbstractContextManager[IO[bytes]]:
    """A file to read: at the path, at the path with ``.zip``, or the open file that is handed over."""
    if not isinstance(path, str | os.PathLike):
        return contextlib.nullcontext(path)
    path = Path(path)
    for candidate in (path, path.with_name(path.name + SUFFIX)):
        if candidate.is_file():
            return candidate.open("rb")
    if path.exists():
        raise CheckpointError(f"{path} is not a file; expected a checkpoint, a zip written by save()")
    raise FileNotFoundError(errno.ENOENT, f"no checkpoint at this path, nor with {SUFFIX} behind it", str(path))


def _checksum(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _check_json(data: bytes, member: str, name: str) -> None:
    """Every value but the first follows one of three signs, so that they are counted without reading them."""
    values = sum(data.count(sign) for sign in (b"[", b"{", b","))
    if len(data) > LARGEST_JSON or values > MOST_VALUES:
        raise CheckpointError(
            f"{name}: {member} has {len(data)} bytes and some {values} values, more than the {LARGEST_JSON} and "
            f"{MOST_VALUES} allowed; keep many numbers in arrays"
        )


def _zipped(members: Mapping[str, bytes]) -> bytes:
    """The same members give the same bytes: no dates, no compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _replace(path: Path, data: bytes) -> None:
    """Writes next to the path, syncs, renames; on any failure removes what it wrote."""
    path = Path(os.path.realpath(path))  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:200]}."
    _remove_stale(path.parent, prefix)
    temporary = path.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _remove_stale(folder: Path, prefix: str) -> None:
    """Removes temporary files of processes that were killed while they wrote."""
    pattern = re.compile(re.escape(prefix) + r"[0-9a-f]{16}\.tmp")
    for entry in folder.iterdir():
        if pattern.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > STALE_AFTER:
                    entry.unlink()


def _sync_directory(folder: Path) -> None:
    """Makes the rename itself durable, if the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _checked_members(file: IO[bytes], name: str) -> dict[str, bytes]:
    """Every member but the manifest, after its size, checksum and name are found right."""
    try:
        with zipfile.ZipFile(file) as archive:
            _check_layout(archive, file.seek(0, os.SEEK_END), name)
            manifest = _checked_manifest(archive, name)
            members = {member: archive.read(member) for member in sorted(manifest)}
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, struct.error) as error:
        raise CheckpointError(
            f"{name} is no checkpoint, or incomplete or damaged ({error}); expected a zip written by save(). "
            "Use another copy"
        ) from error
    except (NotImplementedError, RuntimeError, ValueError, OverflowError, OSError) as error:
        raise CheckpointError(f"{name} is damaged and cannot be read ({error}); use another copy") from error
    for member, data in members.items():
        if manifest[member] != _checksum(data):
            raise CheckpointError(
                f"{name}: {member} is not what was written (its checksum differs), so the file is damaged; use another "
                "copy"
            )
    return members


def _check_layout(archive: zipfile.ZipFile, size: int, name: str) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if "policy.pth" in names or (SUMMARY in names and MANIFEST not in names):
        raise CheckpointError(
            f"{name} was saved by Stable-Baselines3 or sb3-contrib and may hold pickles, which run code as they are "
            "read. To import a model of sb3_contrib.RecurrentPPO use agents.import_contrib(path, env)"
        )
    unknown = sorted(repr(n) for n in names if n not in (MANIFEST, AGENT, SUMMARY) and not TENSORS.fullmatch(n))
    if unknown:
        raise CheckpointError(
            f"{name} holds {', '.join(unknown[:5])}, which no checkpoint does (only {MANIFEST}, {AGENT} and "
            "*.safetensors); it is refused. If it comes from a newer version, upgrade recurl"
        )
    if len(set(names)) < len(names):
        raise CheckpointError(f"{name} holds a member twice; it is refused. Use another copy")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
            raise CheckpointError(
                f"{name}: {member.filename} is compressed or encrypted, which no checkpoint is; it is refused. "
                "Zip programs that repack files do this; use the file as save() wrote it"
            )
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{name}: the members say they are larger than the file ({size} bytes); it is refused")


def _checked_manifest(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if MANIFEST not in archive.namelist():
        raise CheckpointError(f"{name} has no {MANIFEST}, so it is no checkpoint; expected a zip written by save()")
    manifest = parsed_json(archive.read(MANIFEST), MANIFEST, name)
    version = manifest.get("version")
    if manifest.get("format") != FORMAT or type(version) is not int or version < 1:
        raise CheckpointError(f"{name} is of the format {manifest.get('format')!r} {version!r}; expected {FORMAT!r}")
    if version > VERSION:
        raise CheckpointError(
            f"{name} is of version {version}, newer than this recurl reads ({VERSION}); upgrade recurl to load it"
        )
    members = manifest.get("members")
    if not isinstance(members, dict) or set(members) != set(archive.namelist()) - {MANIFEST} or AGENT not in members:
        raise CheckpointError(f"{name} does not hold the members its manifest lists; use another copy")
    return members


def parsed_json(data: bytes, member: str, name: str) -> dict[str, Any]:
    """The object that a member of a file holds.

    Raises:
        CheckpointError: it is no JSON object, or has more values than a file may ask for.
    """
    _check_json(data, member, name)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    with refused(f"{name}: {member} is not JSON"):
        content = json.loads(data, parse_constant=refuse)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, expected an object")
    return content
