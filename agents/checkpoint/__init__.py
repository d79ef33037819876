"""Saving and loading agents. A file is data: nothing in it is ever executed, and no pickle is read or written.

``save`` writes one zip, uncompressed, of

- ``manifest.json``: the format, its version, and size and SHA-256 of every other member;
- ``agent.json``: what the agent is, as names and numbers: algorithm, policy, spaces, settings, schedules, counters,
  random states, settings of the normalizer, whether it sees its last action and reward;
- ``policy.safetensors``, ``policy.optimizer.safetensors``: the weights and the optimizer's state;
- ``run.safetensors``: every other array: the normalizer's statistics, the last observation, the carried memory.

Classes appear by name, and only names of a fixed list are understood (layers of ``torch.nn``, optimizers, schedules
and extractors of Stable-Baselines3, ``agents.encoders.ENCODERS``, ``agents.memory.MEMORIES``). What is a user's own has
to be handed to ``load``.
"""

from collections.abc import Callable
from typing import Any

from agents.checkpoint.agent import SavableAlgorithm, SavedAgent, check_parameters
from agents.checkpoint.container import CheckpointError
from agents.checkpoint.loading import (
    as_learned,
    load_algorithm,
    normalizer,
    normalizer_state,
    previous_inputs,
    read_parameters,
)
from agents.checkpoint.normalizer import NormalizerState, RestoredNormalizer
from agents.checkpoint.previous import PreviousInputs
from agents.checkpoint.random_states import undisturbed
from agents.checkpoint.saving import Captured, capture_algorithm, save_algorithm

__all__ = [
    "Captured",
    "CheckpointError",
    "NormalizerState",
    "PreviousInputs",
    "RestoredNormalizer",
    "SavableAlgorithm",
    "SavedAgent",
    "as_learned",
    "capture_algorithm",
    "check_parameters",
    "load_algorithm",
    "normalizer",
    "normalizer_state",
    "previous_inputs",
    "read_parameters",
    "save_algorithm",
    "undisturbed",
]

import_contrib: Callable[..., Any]
"""``agents.import_contrib``, which builds an agent and so lies above this package; it is set by ``agents``."""
