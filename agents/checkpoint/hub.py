"""Agents from and to the Hugging Face Hub, through its own client. What comes is data: nothing of it is executed."""

import importlib
import pathlib
import re
from typing import Any

from agents.checkpoint.container import CheckpointError
from agents.checks.extras import install_command

AGENT = "agent.zip"
"""The agent's file in a shared folder."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def client() -> Any:
    """The package ``huggingface_hub``.

    Raises:
        ImportError: it is not installed; the message says what to type.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(f"sharing agents needs huggingface_hub: {install_command('hub')}") from error


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
    hub = client()
    try:
        return pathlib.Path(hub.hf_hub_download(str(source), filename, revision=revision))
    except Exception as error:  # the client's own, those of its HTTP library, and OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{filename} of {source} could not be fetched ({reason}): see that it is there"
        ) from error


def push(folder: pathlib.Path, repository: str) -> str:
    """Uploads a folder, into a repository that is made if it is not there; where it can be seen.

    Raises:
        CheckpointError: it could not be uploaded.
        ImportError: ``huggingface_hub`` is not installed.
    """
    hub = client()
    try:
        api = hub.HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the client's own, those of its HTTP library, and OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{repository} could not be written to ({reason}): log in with `hf auth login`"
        ) from error
    return str(url)
