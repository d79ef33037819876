"""Sums over processes of one machine, in memory that they share.

Each of P processes writes its part, they meet, each adds a P-th of all parts in the order of the processes, they meet
again, and each has the same sum, bit for bit.

They meet over sockets: the system wakes a process that waits, lets it handle signals, and ends its wait as soon as
another is gone. Memory and sockets have no names that a killed process would leave behind: process 0 makes them and
passes them on through a socket that has one only inside the kernel.

Axes: P processes, N numbers.
"""

import mmap
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PATIENCE = 60.0  # seconds for all to connect
ALIGNED = 64  # bytes

is_available = all(hasattr(*each) for each in ((os, "memfd_create"), (socket, "AF_UNIX"), (socket, "SO_PEERCRED")))
"""On Linux."""


class SharedMemory:
    """What one of ``n`` processes has of it. All are made at once, and called alike.

    ``from_first(make)`` gives in all processes what ``make()`` gives in process 0.

    Raises:
        ConnectionError: in every call, where another process is gone.
    """

    def __init__(self, rank: int, n: int, from_first: Callable[[Callable[[], Any]], Any]) -> None:
        self._rank = rank
        self._peers = _given_out(n, from_first) if rank == 0 else _received(rank, n, from_first)
        """Sockets, of the others in their order."""
        self._block: Any = bytearray()
        self._rows: Tensor = torch.empty(n + 1, 0)
        """The parts, and their sum."""

    def room(self, n_numbers: int, dtype: torch.dtype) -> Tensor:
        """(N,) where this process writes its part; the others ask for as much.

        A part has its place whatever N is: others may still be reading the sum while this one writes its next part.
        """
        n_rows = len(self._peers) + 2
        if len(self._block) < n_rows * n_numbers * dtype.itemsize:
            row = -(-n_numbers * dtype.itemsize // ALIGNED) * ALIGNED
            self._block = self._new_block(n_rows * row)
        self._rows = torch.frombuffer(self._block, dtype=dtype).view(n_rows, -1)[:, :n_numbers]
        return self._rows[self._rank]

    def holds(self, part: Tensor) -> bool:
        return part.data_ptr() == self._rows[self._rank].data_ptr()

    def sum(self) -> Tensor:
        """(N,) the sum of all parts, there until it sums again."""
        parts, total = self._rows[:-1], self._rows[-1]
        self.meet()
        first, last = (total.numel() * i // len(parts) for i in (self._rank, self._rank + 1))
        own = total[first:last]
        torch.add(parts[0, first:last], parts[1, first:last], out=own)
        for part in parts[2:, first:last]:
            own += part
        self.meet()
        return total

    def meet(self) -> None:
        """Returns when all processes have come here."""
        for peer in self._peers:
            peer.sendall(b".")
        for peer in self._peers:
            _read(peer, 1)

    def close(self) -> None:
        """The others miss this process."""
        for peer in self._peers:
            peer.close()

    def _new_block(self, n_bytes: int) -> mmap.mmap:
        if self._rank:
            descriptor = _taken(self._peers[0])
        else:
            descriptor = os.memfd_create("gradients")
            os.truncate(descriptor, n_bytes)
            for peer in self._peers:
                socket.send_fds(peer, [b"."], [descriptor])
        try:
            return mmap.mmap(descriptor, n_bytes)
        finally:
            os.close(descriptor)


def _given_out(n: int, from_first: Callable[[Callable[[], Any]], Any]) -> list[socket.socket]:
    """In process 0: connects all others with it and with each other."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # to a name that the kernel finds, and forgets
        listening.listen(n)
        listening.settimeout(PATIENCE)
        from_first(listening.getsockname)
        others: dict[int, socket.socket] = {}
        while len(others) < n - 1:
            other, _ = listening.accept()
            if _user(other) == os.geteuid():
                others[int.from_bytes(_read(other, 4), "little")] = other
    for i in range(1, n):
        for j in range(i + 1, n):
            ends = socket.socketpair()
            for each, end in zip((i, j), ends, strict=True):
                socket.send_fds(others[each], [b"."], [end.fileno()])
                end.close()
    return [others[i] for i in range(1, n)]


def _received(rank: int, n: int, from_first: Callable[[Callable[[], Any]], Any]) -> list[socket.socket]:
    first = socket.socket(socket.AF_UNIX)
    first.connect(from_first(lambda: b""))
    first.sendall(rank.to_bytes(4, "little"))
    return [first, *(socket.socket(fileno=_taken(first)) for _ in range(n - 2))]


def _taken(peer: socket.socket) -> int:
    """The descriptor that another process passes on."""
    _, descriptors, _, _ = socket.recv_fds(peer, 1, 1)
    if not descriptors:
        raise ConnectionResetError("another process is gone")
    return descriptors[0]


def _user(peer: socket.socket) -> int:
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def _read(peer: socket.socket, n_bytes: int) -> bytes:
    """Raises ConnectionResetError where the other process is gone."""
    found = peer.recv(n_bytes, socket.MSG_WAITALL)
    if len(found) < n_bytes:
        raise ConnectionResetError("another process is gone")
    return found
