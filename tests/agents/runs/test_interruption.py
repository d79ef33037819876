"""Signals end a run between two updates, and at once where they must."""

import signal
import threading
import time
from typing import Any

import pytest

from agents import RecurrentPPO
from agents.runs.interruption import Interrupted, Interruption


def test_a_signal_ends_training_on_a_whole_update(agent: RecurrentPPO) -> None:
    interruption = Interruption()

    def train() -> None:
        with interruption.listening():
            signal.raise_signal(signal.SIGTERM)
            agent.learn(10_000, interruption)

    with pytest.raises(Interrupted) as caught:
        train()
    assert (agent.num_timesteps, caught.value.exit_code) == (0, 143)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_where_no_update_ends_in_time_the_signal_ends_it_at_once() -> None:
    interruption = Interruption(grace=0.05)

    def wait() -> None:
        with interruption.listening():
            signal.raise_signal(signal.SIGINT)
            time.sleep(600)

    with pytest.raises(Interrupted, match="SIGINT"):
        wait()


def test_what_is_protected_ends_before_a_second_signal_counts_and_what_can_be_broken_in_it_does_not() -> None:
    interruption, done = Interruption(), []

    def save() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        done.append("saved")
        with pytest.raises(Interrupted, match="SIGTERM; saved here"):
            interruption.breakable(lambda: signal.raise_signal(signal.SIGINT))
        done.append("went on")

    interruption.saved = "here"
    with pytest.raises(Interrupted) as caught, interruption.listening():
        interruption.protected(save)
    assert (done, caught.value.exit_code) == (["saved", "went on"], 143)


def test_what_fails_after_a_signal_is_the_interruption() -> None:
    def fail() -> None:
        with Interruption().listening():
            signal.raise_signal(signal.SIGINT)
            raise EOFError("a worker is gone")

    with pytest.raises(Interrupted):
        fail()


def test_signals_outside_the_main_thread_and_the_timer_of_others_are_left_alone() -> None:
    before, timer = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)

    def listen() -> None:
        with Interruption().listening():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[Any] = []
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]
    with Interruption().listening():
        assert signal.getsignal(signal.SIGALRM) is timer
    assert signal.getsignal(signal.SIGALRM) is timer
