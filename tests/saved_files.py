"""Files of agents for tests: written, taken apart, and put together with other members."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

File = io.BytesIO | Path


def saved(model: Any, **kwargs: Any) -> io.BytesIO:
    """What ``model.save`` writes."""
    file = io.BytesIO()
    model.save(file, **kwargs)
    return file


def loaded(model: Any, env: Any = None, **kwargs: Any) -> Any:
    """The model as it comes back from a file."""
    return type(model).load(saved(model), env, device="cpu", **kwargs)


def members_of(file: File) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer


def rewritten(file: File, changes: dict[str, bytes]) -> io.BytesIO:
    return zipped({**members_of(file), **changes})


def forged(file: File, changes: dict[str, bytes]) -> io.BytesIO:
    """The file with members replaced or added, and a manifest that says so."""
    members = {**members_of(file), **changes}
    manifest = json.loads(members.pop("manifest.json"))
    manifest["members"] = {n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in members.items()}
    return zipped({"manifest.json": json.dumps(manifest).encode(), **members})


def edited(file: File, edit: Callable[[Any], Any]) -> io.BytesIO:
    """The file with its agent.json edited, and everything else in order."""
    agent = json.loads(members_of(file)["agent.json"])
    edit(agent)
    return forged(file, {"agent.json": json.dumps(agent).encode()})


class Bomb:
    """A pickle of it makes a folder as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def assert_explodes(payload: bytes, folder: Path) -> None:
    """The pickle has not been read before, and runs its code where it is."""
    assert not folder.exists()
    with pytest.raises(FileExistsError):
        pickle.loads(payload), pickle.loads(payload)
