"""Environments whose numbers say where they come from, for the tests of what carries them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import envs  # noqa: F401  (registers the tasks)
from envs.vector.worker import THREAD_VARIABLES

IDS = [id for id, spec in gymnasium.registry.items() if str(spec.entry_point).startswith("envs.")]


def assert_same(one: Any, other: Any) -> None:
    """Equal arrays, in dicts and sequences of them."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for ours, theirs in zip(one, other, strict=True):
            assert_same(ours, theirs)
    else:
        np.testing.assert_array_equal(one, other)


class Counting(gymnasium.Env[Any, Any]):
    """Observation (number of the environment, episode, step); reward 100 * number + 10 * episode + step.

    Episode e, from 1, lasts `length` + e - 1 steps; odd ones are terminated, even ones truncated.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, number: int = 0, length: int = 2, render_mode: str | None = None) -> None:
        self.number, self.length, self.render_mode = number, length, render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(3, start=5)
        self.episode = self.t = 0
        self.actions: list[int] = []
        self.seeds: list[int | None] = []
        self.options: list[Any] = []

    def observe(self) -> Any:
        return np.array([self.number, self.episode, self.t], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.options.append(options)
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {"started": self.episode}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(int(action))
        self.t += 1
        over = self.t == self.length + self.episode - 1
        odd = self.episode % 2 == 1
        reward = 100.0 * self.number + 10.0 * self.episode + self.t
        return self.observe(), reward, over and odd, over and not odd, {"t": self.t}

    def render(self) -> Any:
        return np.full((4, 6, 3), 10 * self.number + self.t, np.uint8)

    def process(self) -> int:
        return os.getpid()

    def threads(self) -> dict[str, Any]:
        """On how many threads libraries compute in this process."""
        import torch

        return {"torch": torch.get_num_threads(), "variables": {os.environ[name] for name in THREAD_VARIABLES}}

    def double(self, value: int, plus: int = 0) -> int:
        return 2 * value + self.number + plus


class Composed(Counting):
    """The same in a nested observation."""

    def __init__(self, number: int = 0, length: int = 2) -> None:
        super().__init__(number, length)
        whole = self.observation_space
        self.observation_space = spaces.Dict(
            {
                "where": spaces.Dict({"count": whole, "parity": spaces.Discrete(2)}),
                "pair": spaces.Tuple((spaces.Discrete(50), spaces.MultiBinary(2))),
            }
        )

    def observe(self) -> Any:
        return {
            "where": {"count": super().observe(), "parity": np.int64(self.t % 2)},
            "pair": (np.int64(self.number + self.t), np.array([self.t % 2, 1], np.int8)),
        }


class Waiting(Counting):
    """Its steps end when a file allows it, and files say how far it is."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(number, length=100)
        self.folder = folder

    def step(self, action: Any) -> Any:
        (self.folder / f"inside {self.number}").touch()
        while not (self.folder / "go on").exists():
            time.sleep(0.01)
        result = super().step(action)
        (self.folder / f"done {self.number}").touch()
        return result


class Broken(Counting):
    """Cannot even be made."""

    def __init__(self) -> None:
        raise OSError("no such simulator")


class Faulty(Counting):
    """Fails in its third step, or another `moment`: always, or as often as the folder has files "fault NUMBER*"."""

    def __init__(self, number: int, how: str, folder: Path | None = None, moment: str = "step") -> None:
        self.how, self.folder, self.moment = how, folder, moment
        self.fail_if_due("start", number)
        super().__init__(number, length=100)

    def fail_if_due(self, moment: str, number: int) -> None:
        if moment != self.moment:
            return
        if self.folder is not None:
            due = sorted(self.folder.glob(f"fault {number}*"))
            if not due:
                return
            due[0].unlink()
        if self.how == "raise":
            raise ZeroDivisionError("the wheel came off")
        if self.how == "exit":
            sys.exit(0)
        if self.how == "hang":
            time.sleep(600)
        while self.how == "compute":
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, **arguments: Any) -> Any:
        self.fail_if_due("reset", self.number)
        return super().reset(**arguments)

    def step(self, action: Any) -> Any:
        if self.t == 2:
            self.fail_if_due("step", self.number)
        return super().step(action)

    def close(self) -> None:
        if self.moment == "close" and self.folder is not None:
            (self.folder / f"closing {self.number}").touch()
            time.sleep(600)


class Slow(Counting):
    """Takes a while to be made, to begin an episode and for each step."""

    def __init__(self, number: int, seconds: float) -> None:
        super().__init__(number, length=100)
        self.seconds = seconds
        time.sleep(seconds)

    def reset(self, **arguments: Any) -> Any:
        time.sleep(self.seconds)
        return super().reset(**arguments)
