"""The infos of a step, made only for who asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What passes from these environments to who steps them, among infos that belong to the user's environments.
RESET_STEP = "recurl.reset_step"
"""True where a vector environment spent the step on a reset: no transition."""
FAILED = "recurl.environment_failed"
"""Why an environment was restarted in this step, its episode truncated."""


class Infos(Sequence[dict[str, Any]]):
    """One dict an environment, as Stable-Baselines3 expects, each made when it is first looked at.

    For most environments in most steps nobody looks: with a thousand of them, a list of empty dicts costs as much as
    the physics. `batched` is what a gymnasium vector environment returned: name -> (N, ...), with a mask under "_name".
    """

    def __init__(self, num_envs: int, batched: dict[str, Any] | None = None) -> None:
        self._rows, self._batched = range(num_envs), batched
        self._made: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in self._rows[index]]
        row = self._rows[index]
        if row not in self._made:
            self._made[row] = info_of(self._batched, row)
        return self._made[row]

    def __setitem__(self, index: int, info: dict[str, Any]) -> None:
        self._made[self._rows[index]] = info

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> Any:
        return list, (list(self),)

    def copy(self) -> list[dict[str, Any]]:
        return list(self)


def info_of(batched: dict[str, Any] | None, row: int) -> dict[str, Any]:
    """What a gymnasium vector environment's infos, name -> (N, ...), say of environment `row`."""
    info = {}
    for name, values in (batched or {}).items():
        if name.startswith("_"):
            continue
        mask = batched.get(f"_{name}")  # type: ignore[union-attr]
        if mask is None or mask[row]:
            info[name] = info_of(values, row) if isinstance(values, dict) else values[row]
    return info
