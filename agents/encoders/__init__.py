"""Encoders: one observation -> one feature vector.

    flatten             numbers
    combined            a Dict of numbers and images
    nature_cnn, impala  images
    sequence            RNN, LSTM or GRU over a window of past observations
    attention           attention over a window, or over a set of entities
    transformer         self-attention over a window, a set or words
    seq2seq             a recurrent encoder and a decoder that attends to it, over a window
    graph               gated message passing over a graph

Every encoder is a Stable-Baselines3 ``BaseFeaturesExtractor`` and carries nothing from step to step, so it serves
Stable-Baselines3's own algorithms too. ``ENCODERS`` maps names to classes; to add one, write a class and a line here.
What observations those of windows and sets take, ``agents.encoders.tokens`` says.
"""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN

from agents.encoders.attention import AttentionEncoder
from agents.encoders.combined import CombinedEncoder
from agents.encoders.graph import GraphEncoder
from agents.encoders.seq2seq import SequenceToSequenceEncoder
from agents.encoders.sequence import SequenceEncoder
from agents.encoders.transformer import TransformerEncoder
from agents.encoders.vision import ImpalaCNN, cnn_for

ENCODERS: dict[str, type[BaseFeaturesExtractor]] = {
    "flatten": FlattenExtractor,
    "nature_cnn": NatureCNN,
    "combined": CombinedEncoder,
    "sequence": SequenceEncoder,
    "attention": AttentionEncoder,
    "transformer": TransformerEncoder,
    "impala": ImpalaCNN,
    "seq2seq": SequenceToSequenceEncoder,
    "graph": GraphEncoder,
}


def default_encoder(space: spaces.Space[Any]) -> type[BaseFeaturesExtractor]:
    """The encoder that fits an observation space.

    Images get a CNN: Stable-Baselines3's, or the residual one below the 36 x 36 that it needs; a Dict gets one encoder
    a key; all else, and images too small for any, is flattened.
    """
    if isinstance(space, spaces.Dict):
        return CombinedEncoder
    return (cnn_for(space) if is_image_space(space) else None) or FlattenExtractor
