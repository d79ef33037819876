"""Environments as a user has them, in a module of their own; no torch, since worker processes import it."""

import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Frail(gymnasium.Env[Any, Any]):
    """Observation (episode's seed modulo 1000, step), episodes of ten steps; fails at a step of its life.

    Args:
        fault: what happens there.
        once: a folder of files, each of which stands for one fault; empty: always.
        marks: a folder in which a file says that it hangs.
        closes: whether it can be closed when it hangs.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        fault: str = "none",
        at: int = 5,
        once: str = "",
        marks: str = "",
        closes: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.fault, self.at, self.once, self.marks, self.closes = fault, at, once, marks, closes
        self.render_mode, self.steps = render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed, self.t = (seed or 0) % 1000, 0
        return np.array([self.seed, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.t += 1
        fault = self.fault if self.is_time() else "none"
        observation = np.array([self.seed, np.inf if fault == "observation" else self.t], np.float32)
        if fault == "raise":
            raise ZeroDivisionError("the wheel came off")
        if fault == "interrupt":
            raise KeyboardInterrupt
        if fault == "exit":
            sys.exit(0)
        if fault == "die":
            os._exit(7)
        if fault == "hang":
            self.hang("stepping")
        if fault == "remove":
            shutil.rmtree(self.marks)
        if fault.startswith("SIG"):
            signal.raise_signal(signal.Signals[fault])
        return observation, float("-inf") if fault == "reward" else 1.0, self.t == 10, False, {}

    def is_time(self) -> bool:
        if self.steps != self.at or not self.once:
            return self.steps == self.at
        for file in sorted(pathlib.Path(self.once).iterdir()):
            try:
                file.unlink()
                return True
            except FileNotFoundError:  # another environment has just failed instead
                pass
        return False

    def hang(self, what: str) -> None:
        if self.marks:
            (pathlib.Path(self.marks) / what).touch()
        while True:
            time.sleep(0.01)

    def close(self) -> None:
        if self.steps >= self.at and not self.closes:
            self.hang("closing")

    def render(self) -> Any:
        import pygame

        pygame.display.init()
        pygame.display.set_mode((4, 4))
        return np.zeros((4, 4, 3), np.uint8)


class Walk(gymnasium.Env[Any, Any]):
    """Shows a number that its own generator moves; with ``free``, the system's randomness moves it."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, free: bool = False, render_mode: str | None = None) -> None:
        self.free = free

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.free:
            self.np_random = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
        self.place, self.length, self.t = 0.0, int(self.np_random.integers(5, 40)), 0
        return np.array([self.place, self.t], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.place += float(self.np_random.normal()) + int(action) - 1
        observation = np.array([self.place, self.t], np.float32)
        return observation, -abs(self.place), abs(self.place) > 8, self.t >= self.length, {}


SPACES: dict[str, spaces.Space[Any]] = {
    "picture": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "mixed": spaces.Dict(numbers=spaces.Box(-5, 5, (3,)), inner=spaces.Dict(choice=spaces.Discrete(3))),
    "choices": spaces.MultiDiscrete([2, 3]),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "text": spaces.Text(4),
    "bits": spaces.MultiBinary(3),
    "numbers": spaces.Box(-2, 2, (2, 2)),
    "choice": spaces.Discrete(2),
}


class Shown(gymnasium.Env[Any, Any]):
    """Observations and actions of any space; episodes of ten steps, all of them successes."""

    def __init__(self, seen: str, done: str, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space, self.steps = SPACES[seen], SPACES[done], 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 10, False, {"is_success": True}


for _kind in (Frail, Walk, Shown):
    gymnasium.register(f"{_kind.__name__}-v0", entry_point=_kind)
