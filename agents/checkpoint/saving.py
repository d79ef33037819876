"""Saving an agent: its settings, spaces, weights, optimizer, normalizer, counters, statistics of recent episodes,
random states, and what is carried from step to step, the last observation and the memory. So training that is saved
and loaded goes on as if it had not been interrupted. The environment itself is not saved.
"""

import functools
import importlib.metadata
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import stable_baselines3
import torch
from torch import Tensor

from agents.checkpoint.agent import (
    CARRIED,
    COUNTERS,
    OWN_ATTRIBUTES,
    RUN,
    STATISTICS,
    SUMMARY,
    SavableAlgorithm,
    attribute_name,
    may_be_set,
    setting_names,
)
from agents.checkpoint.container import CheckpointError, PathOrFile, name_of, write_archive
from agents.checkpoint.loading import normalizer_state, previous_inputs
from agents.checkpoint.random_states import process_states
from agents.checkpoint.values import Encoder, custom_name
from agents.encoders import Choice


def save_algorithm(
    model: SavableAlgorithm,
    path: PathOrFile,
    exclude: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
) -> None:
    """Saves an agent as one zip of JSON and safetensors; see the package's docstring for the format.

    Args:
        path: a path, to which ``.zip`` is added if it has no suffix, or an open binary file. A path is replaced
            atomically.
        exclude: names of settings or attributes to leave out; loading takes their defaults.
        include: names of what is saved in any case, also if ``exclude`` has it.

    Attributes that are the user's own are kept if they are data. One warning names those that are none, and the
    classes and functions of which a file can hold but the name.

    Raises:
        CheckpointError: something in the agent is no data (the message names it), or the disk does not take the file.
            Nothing is then written.
    """
    captured = capture_algorithm(model, exclude, include)
    captured.save(path)
    if captured.not_kept:
        warnings.warn(f"{name_of(path)} was saved, but {'; '.join(captured.not_kept)}", UserWarning, stacklevel=3)


class Captured(NamedTuple):
    """An agent as it was at one moment, copied: nothing that happens to it later changes this.

    ``not_kept`` says what of it is no data, for the user.
    """

    agent: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    not_kept: tuple[str, ...] = ()

    def save(self, path: PathOrFile) -> None:
        """Writes the file that :func:`save_algorithm` would have written then, and raises what it does."""
        write_archive(path, self.agent, self.tensors, {name: self.agent[name] for name in SUMMARY})


def capture_algorithm(
    model: SavableAlgorithm, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
) -> Captured:
    """What :func:`save_algorithm` writes, kept in memory: a fraction of the time a file takes."""
    cls = type(model)
    if model.not_restored:
        raise CheckpointError(
            f"this {cls.__name__} was loaded to act, without {', '.join(model.not_restored)}, and a file of it "
            "would lack them: copy the file it came from, or load it with what it asks for. Nothing was written"
        )
    further = set(include or ())
    left_out = set(exclude or ()) - further
    encoder = Encoder(f"this {cls.__name__}")
    normalizer, previous = normalizer_state(model), previous_inputs(model)
    parameters, tensors = {}, {}
    for name, state in model.get_parameters().items():
        part = Encoder(f"this {cls.__name__}")
        parameters[name], tensors[name] = part.encode(dict(state), ""), part.tensors

    def values(names: Iterable[str]) -> dict[str, Any]:
        present = {name: attribute_name(name) for name in names if name not in left_out}
        return {name: getattr(model, attribute) for name, attribute in present.items() if hasattr(model, attribute)}

    own, lost = _own_attributes(encoder, model, left_out | further)
    asked_for = values(sorted(further - {*COUNTERS, *STATISTICS, *CARRIED}))
    # Amid a rollout the memory carried so far is the collector's, and belongs to another observation.
    collecting = model.rollout_buffer.pos > 0 and not model.rollout_buffer.full
    agent = {
        "algorithm": _registered_name(cls),
        "class": custom_name(cls),
        "policy": _policy_name(cls, model.policy_class),
        "versions": _versions(),
        "observation_space": encoder.encode(model.observation_space, "observation_space"),
        "action_space": encoder.encode(model.action_space, "action_space"),
        "n_envs": int(model.n_envs),
        "settings": encoder.encode_all(values(setting_names(cls))),
        "counters": encoder.encode_all(values(COUNTERS)),
        "statistics": encoder.encode_all({name: _plain_rows(rows) for name, rows in values(STATISTICS).items()}),
        "carried": None if collecting else encoder.encode_all(values(CARRIED)),
        "extras": own | encoder.encode_all(asked_for),
        "random": encoder.encode({**process_states(), "model": model.random_generator.bit_generator.state}, "random"),
        "normalizer": encoder.encode(normalizer and normalizer.to_data(), "normalizer"),
        "previous_action_reward": encoder.encode(previous and previous.to_data(), "previous_action_reward"),
        "encoder": encoder.encode(_chosen_encoder(model.policy), "encoder"),
        "parameters": parameters,
    }
    return Captured(agent, {RUN: encoder.tensors, **tensors}, tuple(_not_kept(encoder.named, lost)))


def _chosen_encoder(policy: Any) -> dict[str, Any] | None:
    """The encoder that was chosen by the observation space; None where the settings name it."""
    chosen: Choice | None = policy.chosen_encoder
    return None if chosen is None else {"class": chosen.encoder, "kwargs": chosen.kwargs}


def _own_attributes(encoder: Encoder, model: SavableAlgorithm, without: set[str]) -> tuple[dict[str, Any], list[str]]:
    """What a user has put on a model: the data of it, encoded, and the names of what is none."""
    ours = {attribute_name(name) for name in setting_names(type(model))} | OWN_ATTRIBUTES
    names = vars(model).keys() - ours - set(model._excluded_save_params()) - without
    kept, lost = {}, []
    for name in sorted(names):
        encoded = encoder.attempt(vars(model)[name], name) if may_be_set(type(model), name) else None
        if encoded is None:
            lost.append(name)
        else:
            kept[name] = encoded[name]
    return kept, lost


def _not_kept(named: Mapping[str, str], lost: list[str]) -> Iterator[str]:
    if lost:
        yield f"the attributes {', '.join(lost)} are no data and are not in it"
    if named:
        described = ", ".join(f"{place} ({name})" for place, name in named.items())
        given = ", ".join(f"{place.rpartition('.')[2]!r}: ..." for place in named)
        yield f"of {described} it holds the name alone: give it to load(..., custom_objects={{{given}}})"


_PACKAGE = __name__.removesuffix("checkpoint.saving")


def _registered_name(cls: type) -> str:
    """The name of the algorithm of this package that a class is or is made from."""
    ours = (ancestor.__name__ for ancestor in cls.__mro__ if ancestor.__module__.startswith(_PACKAGE))
    return next(ours, cls.__name__)


def _policy_name(cls: Any, policy_class: type) -> Any:
    """The policy's name among the algorithm's, or the marker of a class of the user's own."""
    names = (name for name, known in cls.policy_aliases.items() if known is policy_class)
    return next(names, None) or {"$custom": custom_name(policy_class)}


@functools.cache
def _versions() -> dict[str, str]:
    try:
        recurl = importlib.metadata.version("recurl")
    except importlib.metadata.PackageNotFoundError:
        recurl = "not installed"
    return {
        "recurl": recurl,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "stable-baselines3": stable_baselines3.__version__,
    }


def _plain_rows(rows: Any) -> Any:
    """Figures of recent episodes, without what an environment adds to them that is no data."""
    if rows is None:
        return None
    plain = bool | int | float | str | np.number
    return [
        {key: value for key, value in row.items() if isinstance(value, plain)} if isinstance(row, Mapping) else row
        for row in rows
    ]
