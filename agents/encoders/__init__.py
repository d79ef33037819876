"""Encoders: one observation -> one feature vector.

    flatten, scaled            numbers as they are; integers by their bounds
    nature_cnn, impala, image  images; the last in any arrangement
    embedding, text            categories and grids of codes; texts
    sequence                   RNN, LSTM or GRU over a window of past observations
    attention                  attention over a window, or over a set of entities
    transformer                self-attention over a window, a set or words
    seq2seq                    a recurrent encoder and a decoder that attends to it, over a window
    graph                      gated message passing over a graph
    combined                   a Dict: each part by the encoder that fits it

Every encoder is a Stable-Baselines3 ``BaseFeaturesExtractor`` and carries nothing from step to step, so it serves
Stable-Baselines3's own algorithms too. ``ENCODERS`` maps names to classes; to add one, write a class and a line in
``agents.encoders.selection``. What a part of an observation is, ``agents.encoders.kinds`` says; what observations the
encoders of windows and sets take, ``agents.encoders.tokens``.
"""

from typing import Any, NamedTuple

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from agents.encoders.combined import CombinedEncoder, FlattenedParts
from agents.encoders.kinds import TEXT, Part, described, parts_of
from agents.encoders.selection import OF_PARTS, SCALES, encoder_of
from agents.encoders.vision import cnn_for

ENCODERS: dict[str, type[BaseFeaturesExtractor]] = {**OF_PARTS, "combined": CombinedEncoder}


class Choice(NamedTuple):
    """An encoder and its arguments."""

    encoder: type[BaseFeaturesExtractor]
    kwargs: dict[str, Any]


def default_encoder(space: spaces.Space[Any], normalized_image: bool = False) -> Choice:
    """The encoder that fits an observation space: that of its kind for one that is one part, else "combined".

    Args:
        normalized_image: as the policy's ``normalize_images=False`` asks for.
    """
    parts = parts_of(space, normalized_image)
    kwargs: dict[str, Any] = {"normalized_image": True} if normalized_image else {}
    if not _is_one_part(space, parts):
        return Choice(CombinedEncoder, {**kwargs, "encoders": {part.name: encoder_of(part) for part in parts}})
    name = encoder_of(parts[0])
    return Choice(ENCODERS[name], kwargs if name in SCALES else {})


def first_default_encoder(space: spaces.Space[Any]) -> Choice:
    """What fitted an observation space by default before files of agents said it."""
    if isinstance(space, spaces.Dict):
        return Choice(CombinedEncoder, {"encoders": {key: _first_of(part) for key, part in space.spaces.items()}})
    return Choice(ENCODERS[_first_of(space)], {})


def _first_of(space: spaces.Space[Any]) -> str:
    cnn = cnn_for(space) if is_image_space(space) else None
    return "flatten" if cnn is None else "nature_cnn" if cnn is OF_PARTS["nature_cnn"] else "impala"


def _is_one_part(space: spaces.Space[Any], parts: list[Part]) -> bool:
    return not isinstance(space, spaces.Dict) or (len(parts) == 1 and parts[0].name == "" and parts[0].keys is not None)


def observation_lines(
    space: spaces.Space[Any], extractor: BaseFeaturesExtractor, normalized_image: bool = False
) -> list[str]:
    """What each part of an observation is, and what reads it: "image 84 x 84, 4 frames -> nature_cnn"."""
    names = {cls: name for name, cls in ENCODERS.items()} | {FlattenedParts: "flatten"}
    name = names.get(type(extractor), type(extractor).__name__)
    if isinstance(extractor, CombinedEncoder):
        read = [(part, extractor.encoders[part.name]) for part in extractor.parts.values()]
    else:
        read = [(part, name) for part in parts_of(space, normalized_image)]
    lines = []
    for part, encoder in read:
        where = part.name.removesuffix(TEXT).rstrip("/")
        lines.append(f"{where}{': ' * bool(where)}{described(part)} -> {encoder}")
    return lines
