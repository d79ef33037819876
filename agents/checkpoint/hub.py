"""Agents from and to the Hugging Face Hub, through its own client. What comes is data: nothing of it is executed."""

import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from agents.checkpoint.container import CheckpointError
from agents.checks.extras import require

AGENT = "agent.zip"
"""The agent's file in a shared folder."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@contextmanager
def _explained(what: str, advice: str) -> Iterator[None]:
    """Turns what is raised inside (the client's own, those of its HTTP library, OSError) into CheckpointError."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{what} ({reason}): {advice}") from error


def shared_file(source: str | pathlib.Path, filename: str = AGENT, revision: str | None = None) -> pathlib.Path:
    """An agent's file in a local folder that was written to be shared, or of a repository ``owner/name``.

    Raises:
        CheckpointError: there is no such folder or repository, or it holds no such file.
        ImportError: a repository is meant, and ``huggingface_hub`` is not installed.
    """
    folder = pathlib.Path(source)
    if folder.is_dir():
        if not (folder / filename).is_file():
            raise CheckpointError(f"{folder} holds no {filename}: write it with evaluate.py RUN --card")
        return folder / filename
    if not REPOSITORY.fullmatch(str(source)):
        raise CheckpointError(f"{source} is no folder, and no repository of the Hub, such as owner/name")
    hub = require("hub")
    with _explained(f"{filename} of {source} could not be fetched", "see that it is there"):
        return pathlib.Path(hub.hf_hub_download(str(source), filename, revision=revision))


def push(folder: pathlib.Path, repository: str) -> str:
    """Uploads a folder, into a repository that is made if it is not there; where it can be seen.

    Raises:
        CheckpointError: it could not be uploaded.
        ImportError: ``huggingface_hub`` is not installed.
    """
    hub = require("hub")
    with _explained(f"{repository} could not be written to", "log in with `hf auth login`"):
        api = hub.HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    return str(url)
