"""Observations read as tokens: the steps of a window, the entities of a set, the words of an instruction.

Axes: N observations of a batch, K tokens in each, F numbers of a token, C numbers of context, H features.

A space is read so:

    Box (K, ...)          K tokens of the rest flattened, all of them real
    MultiDiscrete([n]*K)  K tokens, one-hot, for encoders of words
    Dict                  every part of at least two axes, (K, ...), side by side; "mask" (K,), 1 where a token is real;
                          what else there is, flattened, is context: it concerns the observation as a whole

Real tokens are brought to the front in their order, and what lies in the others is replaced by zeros, so that nothing
of it can be seen, be it NaN. On a CPU, columns that are real in no observation of the batch are left out.
"""

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import Tensor

from agents.checks.arguments import check_count

ADVICE = {
    "window": "add the history wrapper: --env.wrappers '{history: {length: 8, mask: true}}' "
    "(envs.wrappers.transforms.wrap in a script)",
    "set": "give the entities as Box (E, F), or as a Dict of such a Box and a MultiBinary 'mask' (E,), 1 where real",
}


class Tokens(NamedTuple):
    """The tokens of a batch of observations, the real ones first.

    values: (N, K, F), zero where no token is real.
    lengths: (N,) how many are real; None where all are.
    slots: (N, K) where each stood in the observation; None where all stand where they stood.
    context: (N, C); C may be 0.
    """

    values: Tensor
    lengths: Tensor | None
    slots: Tensor | None
    context: Tensor

    @property
    def real(self) -> Tensor | None:
        """(N, K) true for real tokens; None where all are."""
        return None if self.lengths is None else _is_before(self.lengths, self.values.shape[1])


class TokenReader:
    """Reads the observations of a space as :class:`Tokens`.

    Args:
        encoder: who asks, for messages.
        space: the observation space.
        mask_key: the key of the mask in a Dict; None: there is none, every token is real.
        kind: "window" or "set": what is expected, for messages.
        words: read MultiDiscrete of equal choices as tokens. It may be one observation of several numbers instead, so
            an encoder that is meant for windows alone refuses it.

    Attributes:
        length: K in the observation.
        token_size: F.
        context_size: C.

    Raises:
        ValueError: the space has no tokens, or what it has does not fit together.
    """

    def __init__(
        self, encoder: str, space: spaces.Space[Any], mask_key: str | None, kind: str, words: bool = False
    ) -> None:
        self._expects = f'encoder "{encoder}" reads a {kind} of tokens, Box (K, F) or a Dict with one'
        self._advice = ADVICE[kind]
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        if any(is_image_space(part) for part in parts.values()):
            raise ValueError(f'{self._expects}; {space} is or has an image: use "nature_cnn", "impala" or "combined"')
        self._mask_key = self._find_mask(parts, mask_key)
        self._keys = [key for key, part in parts.items() if key != self._mask_key and len(part.shape or ()) >= 2]
        if not self._keys and words:
            self._keys = [key for key, part in parts.items() if _is_of_equal_choices(part)]
        if not self._keys:
            raise self._refusal(f"got {space}, which has none", self._advice)
        self._context_keys = [key for key in parts if key not in (*self._keys, self._mask_key)]
        self.length = self._common_length({key: parts[key] for key in self._keys})
        self.token_size = sum(get_flattened_obs_dim(parts[key]) for key in self._keys) // self.length
        self.context_size = sum(get_flattened_obs_dim(parts[key]) for key in self._context_keys)
        self._check_mask(parts)

    def __call__(self, observations: Any) -> Tokens:
        """Observations (N, ...) as Stable-Baselines3 hands them to an extractor, a tensor or a dict of them."""
        parts = observations if isinstance(observations, dict) else {"": observations}
        n_observations = len(parts[self._keys[0]])
        values = _joined([parts[key].reshape(n_observations, self.length, -1) for key in self._keys])
        context = _joined([parts[key].flatten(1) for key in self._context_keys] or [values.new_zeros(len(values), 0)])
        if self._mask_key is None:
            return Tokens(values, None, None, context)
        return _real_first(values, parts[self._mask_key].reshape(n_observations, self.length) > 0.5, context)

    def _find_mask(self, parts: dict[str, spaces.Space[Any]], mask_key: str | None) -> str | None:
        if mask_key is None or mask_key in parts:
            return mask_key
        likely = [key for key in parts if "mask" in key and key != "action_mask"]
        if mask_key != "mask" or likely:
            found = f"got the keys {sorted(parts)}" if "" not in parts else "got no Dict"
            raise self._refusal(
                f"the mask is looked for under {mask_key!r}, {found}", "set mask_key to the mask's, or to None for none"
            )
        return None

    def _common_length(self, parts: dict[str, spaces.Space[Any]]) -> int:
        shapes = {key: tuple(part.shape or ()) for key, part in parts.items()}
        if any(0 in shape for shape in shapes.values()):
            raise self._refusal(f"got shapes {shapes} with an axis of 0", self._advice)
        lengths = {shape[0] for shape in shapes.values()}
        if len(lengths) > 1:
            raise self._refusal(
                f"got parts of different K: {shapes}", "leave out or flatten those that are no tokens in a wrapper"
            )
        return lengths.pop()

    def _check_mask(self, parts: dict[str, spaces.Space[Any]]) -> None:
        if self._mask_key is None:
            return
        mask = parts[self._mask_key]
        if not isinstance(mask, spaces.MultiBinary | spaces.Box) or mask.shape != (self.length,):
            raise self._refusal(
                f"its mask {self._mask_key!r} is {mask}", f"give MultiBinary({self.length}), one entry a token"
            )
        if isinstance(mask, spaces.Box) and mask.dtype.kind not in "iub":
            raise self._refusal(
                f"its mask {self._mask_key!r} is {mask}, which a normaliser would move with the measurements",
                f"give MultiBinary({self.length}), which none touches",
            )

    def _refusal(self, got: str, advice: str) -> ValueError:
        return ValueError(f"{self._expects}; {got}; {advice}")


def last(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The last real one: (N, K, H), (N,) -> (N, H), zero where there is none."""
    if lengths is None:
        return values[:, -1]
    return _unless_empty(take(values, (lengths - 1).clamp(min=0)), lengths)


def mean(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean of the real ones: (N, K, H), (N,) -> (N, H), zero where there is none."""
    if lengths is None:
        return values.mean(dim=1)
    real = _is_before(lengths, values.shape[1]).unsqueeze(2)
    return values.masked_fill(~real, 0.0).sum(dim=1) / lengths.clamp(min=1).unsqueeze(1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """One of each: (N, K, H), (N,) -> (N, H)."""
    return values[torch.arange(len(values), device=values.device), index]


def at_slots(values: Tensor, tokens: Tokens, length: int) -> Tensor:
    """Numbers of each token back where it stood in the observation: (N, ..., K) -> (N, ..., length), else zero."""
    if tokens.slots is None:
        return values
    slots = tokens.slots.view(len(values), *[1] * (values.dim() - 2), -1).expand_as(values)
    return values.new_zeros(*values.shape[:-1], length).scatter(-1, slots, values)


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raises ValueError, with the nearest name, unless ``value`` is known."""
    names = list(known)
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be {', '.join(map(repr, names))}; got {value!r}{hint}")


def check_heads(width_name: str, width: int, heads: int) -> None:
    """Raises ValueError unless ``heads`` divide a width."""
    check_count(width_name, width)
    check_count("heads", heads)
    if width % heads:
        fitting = ", ".join(str(each) for each in range(1, width + 1) if width % each == 0)
        raise ValueError(f"heads ({heads}) must divide {width_name} ({width}); use one of {fitting}")


def _real_first(values: Tensor, real: Tensor, context: Tensor) -> Tokens:
    lengths = real.sum(dim=1)
    slots = real.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    if values.device.type == "cpu":  # elsewhere, to look at them would be to wait for the device
        if bool(real.all()):
            return Tokens(values, None, None, context)
        slots = slots[:, : max(1, int(lengths.max()))]
    moved = values.gather(1, slots.unsqueeze(2).expand(-1, -1, values.shape[2]))
    is_real = _is_before(lengths, moved.shape[1]).unsqueeze(2)
    return Tokens(moved.masked_fill(~is_real, 0.0), lengths, slots, context)


def _is_before(lengths: Tensor, longest: int) -> Tensor:
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def _unless_empty(values: Tensor, lengths: Tensor) -> Tensor:
    return values.masked_fill((lengths == 0).unsqueeze(1), 0.0)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _is_of_equal_choices(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim != 1 or not space.nvec.size:
        return False
    return bool(np.all(space.nvec == space.nvec[0]))
