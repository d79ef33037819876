"""Which callbacks act at every step, and which only between two rollouts."""

from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    ProgressBarCallback,
)


def all_callbacks(callback: Any) -> Iterator[BaseCallback]:
    """A callback, list of callbacks or None, and all that they call."""
    if isinstance(callback, list):
        for each in callback:
            yield from all_callbacks(each)
    elif isinstance(callback, BaseCallback):
        yield callback
        for name in ("callbacks", "callback", "callback_on_new_best"):
            yield from all_callbacks(getattr(callback, name, None))


def needs_steps(callback: BaseCallback) -> bool:
    """Whether a callback does anything at a step; one that does not may say so by ``needs_steps = False``."""
    if type(callback) is CallbackList:
        return any(needs_steps(child) for child in callback.callbacks)
    if isinstance(callback, ConvertCallback):
        return callback.callback is not None
    return bool(getattr(callback, "needs_steps", True))


def skip_steps(callback: BaseCallback, n_calls: int, num_timesteps: int) -> None:
    """Moves the counters as so many calls of ``on_step`` would have."""
    callback.n_calls += n_calls
    callback.num_timesteps = num_timesteps
    for child in callback.callbacks if isinstance(callback, CallbackList) else []:
        skip_steps(child, n_calls, num_timesteps)


def without_reports(callback: Any) -> Any:
    """A callback, list of callbacks or None, without those of Stable-Baselines3 that evaluate, save or show, which of
    processes that train together the first one does."""
    if isinstance(callback, list):
        return [without_reports(each) for each in callback]
    if isinstance(callback, CallbackList):
        return CallbackList([without_reports(each) for each in callback.callbacks])
    is_report = isinstance(callback, EvalCallback | CheckpointCallback | ProgressBarCallback)
    return CallbackList([]) if is_report else callback
