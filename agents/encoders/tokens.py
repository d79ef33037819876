"""Observations read as tokens: the steps of a window, the entities of a set, the words of an instruction.

Axes: N observations of a batch, K tokens in each, F numbers of a token, C numbers of context, H features.

    Box (K, ...)          K tokens, the other axes flattened; all are valid
    MultiDiscrete([n]*K)  K one-hot tokens, for encoders of words
    Dict                  every part of at least two axes, (K, ...), concatenated; "mask" (K,), 1 for a valid token;
                          all other parts, images too, are flattened: context of the observation

Valid tokens are moved to the front in their order and padding is replaced by zeros, so that nothing of it can be seen,
be it NaN. On a CPU, columns that are padding in every observation of the batch are left out.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import Tensor

ADVICE = {
    "window": "add the history wrapper: --env.wrappers '{history: {length: 8, mask: true}}' "
    "(wrappers= of envs.make in a script); for a Sequence, 'pad_sequence'",
    "set": "give the entities as Box (E, F), or as a Dict of such a Box and a MultiBinary 'mask' (E,), 1 where valid",
}


class Tokens(NamedTuple):
    """The tokens of a batch of observations, the valid ones first.

    values: (N, K, F), zero for padding.
    lengths: (N,) the number of valid tokens.
    valid: (N, K); None if all tokens are valid.
    slots: (N or 1, K) the place of each token in the observation.
    context: (N, C); C may be 0.
    """

    values: Tensor
    lengths: Tensor
    valid: Tensor | None
    slots: Tensor
    context: Tensor


class TokenReader:
    """Reads the observations of a space as :class:`Tokens`.

    Args:
        encoder: its name, for messages.
        space: the observation space.
        mask_key: the key of the mask in a Dict; None: every token is valid.
        kind: "window" or "set", for messages.
        words: read MultiDiscrete of equal choices as tokens.

    Attributes:
        length: K in the observation.
        token_size: F.
        context_size: C.

    Raises:
        ValueError: the space has no tokens, or its parts do not fit together.
    """

    def __init__(
        self, encoder: str, space: spaces.Space[Any], mask_key: str | None, kind: str = "window", words: bool = False
    ) -> None:
        self._expected = f'encoder "{encoder}" reads a {kind} of tokens, Box (K, F) or a Dict with one'
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        self._mask_key = self._find_mask(parts, mask_key)
        shapes = {key: tuple(part.shape or ()) for key, part in parts.items()}
        images = [key for key, part in parts.items() if is_image_space(part)]
        self._keys = [key for key in parts if len(shapes[key]) >= 2 and key not in (self._mask_key, *images)]
        if not self._keys and words:
            self._keys = [key for key, part in parts.items() if _has_equal_choices(part)]
        if not self._keys:
            advice = 'use "nature_cnn", "impala" or "combined"' if images else ADVICE[kind]
            raise self._refusal(f"got {space}, which has none" + " but an image" * bool(images), advice)
        token_shapes = {key: shapes[key] for key in self._keys}
        if any(0 in shape for shape in token_shapes.values()):
            raise self._refusal(f"got shapes {token_shapes} with an axis of 0", ADVICE[kind])
        if len({shape[0] for shape in token_shapes.values()}) > 1:
            raise self._refusal(f"got parts of different K: {token_shapes}", "flatten in a wrapper what is no token")
        self._context_keys = [key for key in parts if key not in (*self._keys, self._mask_key)]
        self.length = shapes[self._keys[0]][0]
        self.token_size = sum(get_flattened_obs_dim(parts[key]) for key in self._keys) // self.length
        self.context_size = sum(get_flattened_obs_dim(parts[key]) for key in self._context_keys)
        if self._mask_key is not None:
            self._check_mask(parts[self._mask_key])

    def __call__(self, observations: Any) -> Tokens:
        """Observations (N, ...) as Stable-Baselines3 gives them to an extractor, a tensor or a dict of them."""
        parts = observations if isinstance(observations, dict) else {"": observations}
        n = len(parts[self._keys[0]])
        values = torch.cat([parts[key].reshape(n, self.length, -1) for key in self._keys], dim=2)
        context = torch.cat([values.new_zeros(n, 0), *(parts[key].flatten(1) for key in self._context_keys)], dim=1)
        valid = None if self._mask_key is None else parts[self._mask_key].reshape(n, self.length) > 0.5
        on_cpu = values.device.type == "cpu"  # elsewhere, reading a mask would wait for the device
        if valid is None or (on_cpu and bool(valid.all())):
            slots = torch.arange(self.length, device=values.device)
            return Tokens(values, slots.new_full((n,), self.length), None, slots.unsqueeze(0), context)
        lengths = valid.sum(dim=1)
        slots = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        if on_cpu:
            slots = slots[:, : max(1, int(lengths.max()))]
        valid = first_places(lengths, slots.shape[1])
        return Tokens(take(values, slots).masked_fill(~valid.unsqueeze(2), 0.0), lengths, valid, slots, context)

    def _find_mask(self, parts: dict[str, spaces.Space[Any]], mask_key: str | None) -> str | None:
        if mask_key is None or mask_key in parts:
            return mask_key
        if mask_key == "mask" and not any("mask" in key and key != "action_mask" for key in parts):
            return None
        found = f"got the keys {sorted(parts)}" if "" not in parts else "got no Dict"
        raise self._refusal(
            f"the mask is looked for under {mask_key!r}, {found}", "set mask_key to the mask's key, or to None for none"
        )

    def _check_mask(self, mask: spaces.Space[Any]) -> None:
        got, advice = f"its mask {self._mask_key!r} is {mask}", f"give MultiBinary({self.length}), one entry a token"
        if not isinstance(mask, spaces.MultiBinary | spaces.Box) or mask.shape != (self.length,):
            raise self._refusal(got, advice)
        if isinstance(mask, spaces.Box) and mask.dtype.kind not in "iub":
            raise self._refusal(f"{got}, whose numbers a normalizer would change", advice)

    def _refusal(self, got: str, advice: str) -> ValueError:
        return ValueError(f"{self._expected}; {got}; {advice}")


def first_places(lengths: Tensor, size: int) -> Tensor:
    """(N,) -> (N, size), true for the first ``lengths`` places of each."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def take(values: Tensor, places: Tensor) -> Tensor:
    """(N, K, ...), (N, M) -> (N, M, ...)."""
    index = places.view(*places.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def last(values: Tensor, lengths: Tensor) -> Tensor:
    """The last valid token: (N, K, H), (N,) -> (N, H), zero if there is none."""
    newest = take(values, (lengths - 1).clamp(min=0).unsqueeze(1))[:, 0]
    return newest.masked_fill((lengths == 0).unsqueeze(1), 0.0)


def mean(values: Tensor, lengths: Tensor) -> Tensor:
    """The mean of the valid tokens: (N, K, H), (N,) -> (N, H), zero if there is none."""
    padding = ~first_places(lengths, values.shape[1]).unsqueeze(2)
    return values.masked_fill(padding, 0.0).sum(dim=1) / lengths.clamp(min=1).unsqueeze(1)


def mirrored(values: Tensor, lengths: Tensor) -> Tensor:
    """(N, K, F) with the order of the valid tokens reversed; its own inverse."""
    places = torch.arange(values.shape[1], device=values.device)
    reverse = lengths.unsqueeze(1) - 1 - places
    return take(values, torch.where(reverse >= 0, reverse, places))


def at_slots(values: Tensor, tokens: Tokens, length: int) -> Tensor:
    """Numbers of each token back at its place in the observation: (N, ..., K) -> (N, ..., length), else zero."""
    slots = tokens.slots.view(len(tokens.slots), *[1] * (values.dim() - 2), -1).expand_as(values)
    return values.new_zeros(*values.shape[:-1], length).scatter(-1, slots, values)


def _has_equal_choices(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim != 1 or not space.nvec.size:
        return False
    return bool(np.all(space.nvec == space.nvec[0]))
