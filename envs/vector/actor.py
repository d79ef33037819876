"""The actor of a Ray cluster that steps environments. As with a worker process, no torch is imported for it."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from multiprocessing.connection import Connection, Listener
from typing import Any

from envs.vector import worker


class EnvironmentWorker:
    """A worker's environments, behind a connection of its own."""

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._key = b""

    def listen(self, key: bytes, node: str, import_path: list[str]) -> tuple[str, Any]:
        """The node that this is on, and the address to connect to, with that key, from ``node``."""
        sys.path += [entry for entry in import_path if entry not in sys.path]
        ray: Any = importlib.import_module("ray")
        here = str(ray.get_runtime_context().get_node_id())
        self._key = key
        if here == node and hasattr(socket, "AF_UNIX"):
            self._listener = Listener(family="AF_UNIX", authkey=key)
        else:
            self._listener = Listener((ray.util.get_node_ip_address(), 0), authkey=key)
        return here, self._listener.address

    def serve(self, *arguments: Any) -> None:
        """Until the connection ends; see :func:`envs.vector.worker.serve`."""
        assert self._listener is not None
        connection = self._listener.accept()
        self._listener.close()
        without_delay(connection)
        worker.serve(connection, *arguments)


def without_delay(connection: Connection) -> None:
    """A message goes out at once, and does not wait for the answer to the one before."""
    with socket.socket(fileno=os.dup(connection.fileno())) as link:
        if link.family != getattr(socket, "AF_UNIX", None):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
