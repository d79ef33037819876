"""A connection to Ray: to a cluster, or to one of this machine's own that ends with this process."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from envs.vector.errors import EnvError

OBJECT_STORE = 2**27
"""Bytes of shared memory that a cluster of this machine's own takes: what passes is small."""


def connect(address: str | None = None) -> Any:
    """The module ``ray``, connected to the cluster at the address, or as it is already; None: one on this machine.

    Raises ImportError where Ray is not installed, EnvError where nothing answers at the address.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(f"the backend 'ray' needs the package ray: pip install 'ray>=2.50' ({error})") from error
    if ray.is_initialized():
        return ray
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    own = {"object_store_memory": OBJECT_STORE, "_node_ip_address": "127.0.0.1"}
    where: dict[str, Any] = own if address is None else {"address": address}
    try:
        ray.init(**quiet if address is None else {"log_to_driver": False, "logging_level": "ERROR"}, **where)
    except (ConnectionError, RuntimeError, ValueError) as error:
        at = "on this machine" if address is None else f"at {address}"
        raise EnvError(f"there is no Ray cluster {at}, and none could be started: {error}") from error
    return ray


def disconnect() -> None:
    """From the cluster; one of this machine's own ends."""
    with contextlib.suppress(ImportError):
        importlib.import_module("ray").shutdown()
