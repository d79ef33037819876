"""Agents go to the Hub and come from it through its own client, against a stand-in that serves one repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agents.checkpoint import CheckpointError, hub

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0" * 40


class StandIn(BaseHTTPRequestHandler):
    """A Hub with the repository me/maze, whose files are those of its last commit."""

    files: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.rpartition("/resolve/main/")[2].partition("?")[0]
        if self.path.startswith("/me/maze/resolve/") and name in self.files:
            content = self.files[name]
            self._answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        elif self.path.startswith("/api/models/me/maze"):
            self._answer({"id": "me/maze", "sha": COMMIT, "siblings": [], "tags": []})
        else:
            self._answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/me/maze"})
        elif "/preupload/" in self.path:
            paths = [each["path"] for each in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"http://{self.headers['Host']}/me/maze/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({})


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """What the stand-in holds, with the client pointed at it."""
    found: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (StandIn,), {"files": found}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield found
    server.shutdown()
    server.server_close()


def test_a_folder_that_was_sent_comes_back(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / hub.AGENT).write_bytes(b"an agent")
    (folder / "README.md").write_text("# A card\n")
    assert hub.push(folder, "me/maze").endswith("/me/maze")
    assert files == {hub.AGENT: b"an agent", "README.md": b"# A card\n"}
    assert hub.shared_file("me/maze").read_bytes() == b"an agent"
    assert hub.shared_file(folder) == folder / hub.AGENT


def test_what_is_not_there_is_said_in_one_sentence(files: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match=r"^agent.zip of me/other could not be fetched \(.*\): see that it is"):
        hub.shared_file("me/other")
