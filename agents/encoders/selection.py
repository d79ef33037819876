"""The one place that chooses the encoder of each part of an observation, and says what it chose.

What a part is, ``agents.encoders.kinds`` says. A setting overrules: an encoder for the observation as a whole
(``features_extractor_class``, ``policy.encoder``), or for parts of it by their names
(``features_extractor_kwargs=dict(encoders={"camera": "impala"})``, ``policy.encoder_kwargs``).
"""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN

from agents.encoders.attention import AttentionEncoder
from agents.encoders.codes import EmbeddingEncoder, TextEncoder
from agents.encoders.graph import GraphEncoder
from agents.encoders.kinds import Part, layout_of
from agents.encoders.numbers import ScaledEncoder, is_bounded
from agents.encoders.seq2seq import SequenceToSequenceEncoder
from agents.encoders.sequence import SequenceEncoder
from agents.encoders.transformer import TransformerEncoder
from agents.encoders.vision import ImageEncoder, ImpalaCNN, cnn_for

OF_PARTS: dict[str, type[BaseFeaturesExtractor]] = {
    "flatten": FlattenExtractor,
    "scaled": ScaledEncoder,
    "nature_cnn": NatureCNN,
    "impala": ImpalaCNN,
    "image": ImageEncoder,
    "embedding": EmbeddingEncoder,
    "text": TextEncoder,
    "sequence": SequenceEncoder,
    "attention": AttentionEncoder,
    "transformer": TransformerEncoder,
    "seq2seq": SequenceToSequenceEncoder,
    "graph": GraphEncoder,
}
"""Encoders of one part."""

CNNS = ("nature_cnn", "impala", "image")
SCALES = (*CNNS, "embedding")
"""Those that need to know of ``normalize_images=False``."""

LARGEST_ONE_HOT = 512
"""More numbers of one-hot categories are embedded instead: a row of weights is looked up, and not multiplied."""

LARGEST_AS_IT_IS = 10.0
"""Integers that may be larger than this are scaled."""


def encoder_of(part: Part) -> str:
    """The name in ``OF_PARTS`` of the encoder that a part gets unless a setting says otherwise."""
    if part.kind == "image":
        return _cnn_of(part.space)
    if part.kind == "graph":
        return "graph"
    if part.kind == "token":
        return "text" if part.keys is None else "sequence"
    if part.kind == "category":
        return "flatten" if isinstance(part.space, spaces.MultiBinary) or _fits_one_hot(part.space) else "embedding"
    return "scaled" if _needs_scale(part.space) else "flatten"


def _fits_one_hot(space: spaces.Space[Any]) -> bool:
    return not isinstance(space, spaces.Box) and spaces.utils.flatdim(space) <= LARGEST_ONE_HOT


def _needs_scale(space: spaces.Space[Any]) -> bool:
    """Whether a Box holds large integers that Stable-Baselines3 does not scale as it does images."""
    if not isinstance(space, spaces.Box) or not is_bounded(space) or is_image_space(space):
        return False
    return bool(max(abs(float(space.low.min())), abs(float(space.high.max()))) > LARGEST_AS_IT_IS)


def _cnn_of(space: spaces.Space[Any]) -> str:
    """Stable-Baselines3's network where it takes the images as they are, or the residual one; else what rearranges
    them before."""
    if not is_image_space(space) or layout_of(space.shape or ()).order != (0, 1, 2):
        return "image"
    return "nature_cnn" if cnn_for(space) is NatureCNN else "impala"
