"""Ctrl-C and SIGTERM end a training run after a complete update, or at once where none ends in time."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from agents.checkpoint import CheckpointError
from agents.distributed import group
from agents.runs.callbacks import BetweenUpdates

Result = TypeVar("Result")

AGAIN = 2.0  # seconds in which torchrun sends its processes the Ctrl-C that they have got from the terminal already


class Interrupted(KeyboardInterrupt):
    """Raised where Ctrl-C or SIGTERM ends training; ``between_updates`` says whether after a complete update."""

    def __init__(self, number: int, saved: str | None = None, *, between_updates: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f"; saved {saved}" if saved else ""))
        self.exit_code, self.between_updates = 128 + number, between_updates


class Interruption(BetweenUpdates):
    """Lets Ctrl-C and SIGTERM end training after a complete update.

    The first signal requests it; a second one, or ``grace`` seconds, ends at once what is being done. What must be
    completed is run by :meth:`protected`, and in it what may take long by :meth:`breakable`.
    """

    def __init__(self, grace: float = 10.0) -> None:
        super().__init__()
        self._grace = grace
        self._received: int | None = None
        self._received_at = 0.0
        self._listens = self._timed = False
        self._alarm_before: Any = None
        self.saved: str | None = None
        """Where the agent is that a run can go on from, for the message of the end."""

    def act(self) -> None:
        if group.size() > 1:  # a signal to one process stops all, after the same update
            received = max(int(number) for (number,) in group.numbers(float(self._received or 0)))
            self._received = self._received or received or None
        if self._received is not None:
            raise Interrupted(self._received, between_updates=True)

    def check(self) -> None:
        """Raises :class:`Interrupted` where a signal has come."""
        if self._received is not None:
            raise self._interrupted()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over inside, in the main thread, once.

        Raises:
            Interrupted: whatever ends or fails after a signal, unless it failed in saving.
        """
        if self._listens or not _in_main_thread():
            yield
            return
        self._listens = True
        try:
            with _handled_by(self._receive):
                yield
        except (Interrupted, CheckpointError, OSError, group.PeerLost, group.PeerFailed):
            raise
        except Exception as error:
            # A signal reaches worker processes too; what fails once they are gone is the interruption's doing.
            if self._received is not None:
                raise self._interrupted() from error
            raise
        finally:
            if self._timed:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                signal.signal(signal.SIGALRM, self._alarm_before)
            self._listens = self._timed = False
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal ends at once what is done inside, except where :meth:`listening` takes it over."""
        with _handled_by(self._end):
            yield

    def protected(self, act: Callable[[], Result]) -> Result:
        """No signal ends what is done in here; it is noted."""
        return act()

    def breakable(self, act: Callable[[], Result]) -> Result:
        """A signal ends this, be it within something protected: at once, where one came before."""
        if self._received is not None:
            self._alarm()
        return act()

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
        raise self._interrupted()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = number, time.monotonic()
            with suppress(Exception):  # a stream may be in the middle of a line
                if group.is_first():
                    print("\nstopping after this update; once more to stop at once", file=sys.stderr, flush=True)
            self._alarm()
        elif group.size() > 1 and time.monotonic() < self._received_at + AGAIN:
            return
        elif not self._is_protected(frame):
            raise self._interrupted()

    def _is_protected(self, frame: FrameType | None) -> bool:
        """Whether the innermost of the two methods on the stack is ``protected``.

        A flag would be set an instruction too late or too early: what is raised while ``breakable`` is on the stack its
        caller can catch.
        """
        while frame is not None:
            if frame.f_code in (Interruption.protected.__code__, Interruption.breakable.__code__):
                return frame.f_code is Interruption.protected.__code__
            frame = frame.f_back
        return False

    def _interrupted(self) -> Interrupted:
        assert self._received is not None
        return Interrupted(self._received, self.saved)

    def _alarm(self) -> None:
        """After the grace once a second: what was raised in a destructor, say, Python only prints."""
        if hasattr(signal, "setitimer") and self._listens:
            if not self._timed:
                self._timed = True
                self._alarm_before = signal.signal(signal.SIGALRM, self._receive)
            signal.setitimer(signal.ITIMER_REAL, self._grace, 1.0)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go there inside; not outside the main thread, where Python lets nobody take signals over."""
    numbers = (signal.SIGINT, signal.SIGTERM) if _in_main_thread() else ()
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, former in before:
            signal.signal(number, former)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
