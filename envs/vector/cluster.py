"""Environments stepped by actors of a Ray cluster: for those that are slow, or need other machines.

What passes between the cluster and a worker is that of :mod:`envs.vector.processes`, restarts included: Ray places the
workers, tells of those that are lost, and ends them. A worker on this machine shares the arrays in memory; one on
another is sent the actions and sends the arrays, all at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Client
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.tasks.observations import tree_map
from envs.vector.actor import EnvironmentWorker, without_delay
from envs.vector.cpus import available_cpus
from envs.vector.errors import EnvError
from envs.vector.group import Maker
from envs.vector.processes import Lost, SubprocessVecEnv

OBJECT_STORE = 2**27
"""Bytes of shared memory that a cluster of this machine's own takes: what passes through it is small."""
STARTED = 3
"""Times that one of this machine's own is started before that is an error."""
CPUS = 0.5
"""Of a cluster's accounts, for each worker: those of training and those of evaluation never step at the same time."""
PLACED = 3
"""Times that a worker is placed before that is an error."""
PLACING = 120.0
"""Seconds that a cluster has to start the workers."""


def connect(address: str | None = None) -> Any:
    """The module ``ray``, connected to the cluster at the address, or as it is already.

    None: to that of the variable RAY_ADDRESS; without it, to one of this machine's own, which ends with this process.

    Raises ImportError where Ray is not installed, EnvError where nothing answers at the address.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(f"the package ray is needed ({error}); install it with: pip install 'ray>=2.50'") from error
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The defaults take a third of the memory and start a web server.
    own = {"object_store_memory": OBJECT_STORE, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    for left in reversed(range(STARTED if address == "local" else 1)):
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", **(own if address == "local" else {}))
            break
        except Exception as error:  # one of its own has thirty seconds to start, which a busy machine may not give it
            ray.shutdown()
            if not left:
                raise EnvError(f"no Ray cluster answers at {address}: {error}") from error
    return ray


class RayVecEnv(SubprocessVecEnv):
    """N environments in actors of a Ray cluster, stepped at the same time; see :class:`SubprocessVecEnv`.

    Workers are spread over the nodes. Those that a node is lost with are restarted on another, as those that die.
    """

    def __init__(self, makers: Sequence[Maker], *, workers: int | None = None, address: str | None = None, **more: Any):
        """`address`: of the cluster, see :func:`connect`. `workers`: by default one a CPU of the cluster, at most N."""
        self._ray = connect(address)
        context = self._ray.get_runtime_context()
        self._node = str(context.get_node_id())
        self._is_own = address is None and not os.environ.get("RAY_ADDRESS")
        self._remote: set[int] = set()
        if workers is None:
            cpus = self._ray.cluster_resources().get("CPU", 1)
            workers = available_cpus() if self._is_own else max(1, int(cpus))
        super().__init__(makers, workers=workers, **more)

    def _start(self, workers: Iterable[int]) -> None:
        """Actors for these workers. One that dies before it serves, with a node that is about to, is placed again."""
        left, placed = dict.fromkeys(workers, ""), dict[int, tuple[Any, _Actor]]()
        for _ in range(PLACED):
            left = self._place(left, placed)
        if left:
            raise EnvError(f"a worker could not be started on the Ray cluster: {next(iter(left.values()))}")
        for w in sorted(placed):
            self._keep(w, *placed[w])

    def _place(self, workers: Iterable[int], placed: dict[int, tuple[Any, _Actor]]) -> dict[int, str]:
        """Starts actors, all of them before the first is waited for, into ``placed``; those that died, and how."""
        actor_class = self._ray.remote(EnvironmentWorker)
        chosen = {"num_cpus": 0 if self._is_own else CPUS, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        path = [os.path.abspath(entry) for entry in sys.path]
        actors = {w: actor_class.options(**chosen).remote() for w in workers}
        keys = {w: secrets.token_bytes(32) for w in actors}
        told = {w: actor.listen.remote(keys[w], self._node, path) for w, actor in actors.items()}
        serving = {
            w: actor.serve.remote(self._pickled[w], self._parts[w].start, self._max_restarts, self._request)
            for w, actor in actors.items()
        }
        died: dict[int, str] = {}
        for w, actor in actors.items():
            try:
                node, address = self._told(told[w])
                connection: Any = Client(address, authkey=keys[w])
            except (self._ray.exceptions.RayError, OSError, EOFError) as error:
                died[w] = str(error)
                continue
            without_delay(connection)
            self._remote = self._remote - {w} if node == self._node else self._remote | {w}
            placed[w] = connection, _Actor(self._ray, actor, serving[w])
        return died

    def _told(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference, timeout=PLACING)
        except self._ray.exceptions.GetTimeoutError:
            raise EnvError(
                f"the Ray cluster has not started a worker within {PLACING:g} seconds; it has "
                f"{self._ray.available_resources().get('CPU', 0):g} CPUs free: give fewer workers"
            ) from None

    def _step_request(self, w: int) -> Any:
        if w not in self._remote:
            return self._request
        return self._request, "step", np.array(self._shared.actions[self._parts[w]])

    def _memory_of(self, w: int, path: str) -> str | None:
        return None if w in self._remote else path

    def _unpacked(self, w: int, reply: Any) -> Any:
        if w not in self._remote or type(reply) is int or reply[1] not in ("stepped", "reset"):
            return reply
        kept = 3 if reply[1] == "reset" else 4
        arrays = self._shared
        ours = (arrays.observations, arrays.rewards, arrays.dones)
        for part, sent in zip(ours, reply[kept:], strict=False):
            tree_map(lambda array, new: _fill(array[self._parts[w]], new), part, sent)
        return reply[:kept]

    def _death(self, w: int, moment: str) -> Lost:
        reason = self._processes[w].reason()
        return Lost(f"{self._who(w)} died in {moment} ({reason})")

    def _who(self, w: int) -> str:
        return super()._who(w).replace("worker process", "Ray worker")


class _Actor:
    """An actor, as :class:`SubprocessVecEnv` handles a process."""

    def __init__(self, ray: Any, actor: Any, serving: Any) -> None:
        self._ray, self._actor, self._serving = ray, actor, serving

    def is_alive(self) -> bool:
        return self._waited(0.0)

    @property
    def exitcode(self) -> int | None:
        return None if self.is_alive() else 1

    def join(self, timeout: float) -> None:
        if not self._waited(timeout):
            self.kill()  # what it served is over, and its process waits for more

    def kill(self) -> None:
        if self._ray.is_initialized():
            with contextlib.suppress(Exception):  # it is gone, or of a cluster that is
                self._ray.kill(self._actor)

    def reason(self) -> str:
        """Why it ended, as Ray tells."""
        if self._waited(5.0):
            return "the connection was lost"
        try:
            self._ray.get(self._serving)
        except Exception as error:
            return " ".join(str(error).split())[:300]
        return "its connection ended"

    def _waited(self, seconds: float) -> bool:
        """Whether it still serves after so many seconds."""
        if not self._ray.is_initialized():  # Ray would start another
            return False
        try:
            ready, _ = self._ray.wait([self._serving], timeout=seconds)
        except ValueError:  # of a cluster that this was connected to before
            return False
        return not ready


def _fill(array: NDArray[Any], new: NDArray[Any]) -> None:
    array[...] = new
