"""The infos of a step, made only for who asks."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Any

# What passes from these environments to who steps them, among infos that belong to the user's environments.
RESET_STEP = "recurl.reset_step"
"""True where a vector environment spent the step on a reset: no transition."""
FAILED = "recurl.environment_failed"
"""Why an environment was made anew in this step, its episode cut."""


class Infos(MutableSequence[dict[str, Any]]):
    """One dict an environment, as Stable-Baselines3 expects, each made when it is first looked at.

    For most environments in most steps nobody looks: with a thousand of them, a list of empty dicts costs as much as
    the physics. `batched` is what a gymnasium vector environment returned: name -> (N, ...), with a mask under "_name".
    """

    __slots__ = ("_batched", "_num_envs", "made")

    def __init__(self, num_envs: int, batched: dict[str, Any] | None = None) -> None:
        self._num_envs = num_envs
        self._batched = batched
        self.made: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return self._num_envs

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._num_envs))]
        index = self._position(index)
        info = self.made.get(index)
        if info is None:
            info = info_of(self._batched, index) if self._batched else {}
            self.made[index] = info
        return info

    def __setitem__(self, index: Any, info: Any) -> None:
        self.made[self._position(index)] = info

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(self._num_envs))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, MutableSequence | tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> Any:
        return list, (list(self),)

    def copy(self) -> list[dict[str, Any]]:
        return list(self)

    def __delitem__(self, index: Any) -> None:
        raise TypeError("the infos of a step have one entry for each environment: none can be removed")

    def insert(self, index: int, value: dict[str, Any]) -> None:
        raise TypeError("the infos of a step have one entry for each environment: none can be added")

    def _position(self, index: Any) -> int:
        position = index.__index__()
        if position < 0:
            position += self._num_envs
        if not 0 <= position < self._num_envs:
            raise IndexError(f"there are {self._num_envs} environments, none with index {index}")
        return int(position)


def info_of(batched: dict[str, Any], row: int) -> dict[str, Any]:
    """What a gymnasium vector environment's infos, name -> (N, ...), say of environment `row`."""
    info = {}
    for name, values in batched.items():
        if name.startswith("_"):
            continue
        mask = batched.get(f"_{name}")
        if mask is not None and not mask[row]:
            continue
        info[name] = info_of(values, row) if isinstance(values, dict) else values[row]
    return info
