"""What of an agent is saved, and how it is read back.

Saved are the settings, the spaces, the weights, the optimizer, the normaliser, the counters, the statistics of recent
episodes, the random states, and what is carried from step to step: the last observation and the memory. So training
that is saved and loaded goes on as if it had not been interrupted. The environment itself is not saved.
"""

import functools
import importlib.metadata
import inspect
import math
import platform
import random
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import gymnasium
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_device, get_system_info
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_normalize
from torch import Tensor

from agents.checkpoint.budget import Budget, building
from agents.checkpoint.container import (
    BUDGET,
    MALFORMED,
    CheckpointError,
    PathOrFile,
    name_of,
    read_archive,
    write_archive,
)
from agents.checkpoint.normalizer import NormalizerState, RestoredNormalizer, is_fresh
from agents.checkpoint.previous import PreviousInputs
from agents.checkpoint.values import Decoder, Encoder, NotGiven, custom_name
from agents.checks.text import printable
from agents.memory import MEMORIES, State, memory_class, registered_only
from agents.policy.actor_critic import RecurrentActorCriticPolicy


class SavableAlgorithm(OnPolicyAlgorithm):
    """An algorithm with what its file holds beside Stable-Baselines3's attributes."""

    policy: RecurrentActorCriticPolicy
    not_restored: tuple[str, ...] = ()
    """Settings that its file only names, so that it was loaded to act; empty: it can learn on."""
    _last_state: State | None
    _rng: np.random.Generator


Algorithm = TypeVar("Algorithm", bound=SavableAlgorithm)

PLAIN = (bool, int, float, str, tuple, list, dict)
NOT_SETTINGS = ("self", "policy", "env", "device", "_init_setup_model")
COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "_returns_count",
    "_returns_mean",
    "_returns_squares",
)
STATISTICS = ("ep_info_buffer", "ep_success_buffer")
CARRIED = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_state")
SECTIONS = {
    "algorithm",
    "class",
    "policy",
    "versions",
    "observation_space",
    "action_space",
    "n_envs",
    "settings",
    "counters",
    "statistics",
    "carried",
    "extras",
    "random",
    "normalizer",
    "previous_action_reward",
    "parameters",
}
LATER = {"previous_action_reward"}  # sections that the first files had not
RUN = "run"  # the member that holds every tensor which is no parameter
SUMMARY = ("algorithm", "class", "policy", "versions", "observation_space", "action_space", "n_envs", "settings")

# attributes that go into a run's checkpoints and no other file
OF_A_RUN = ("environment_state", "pending_figures", "computed_with")
FOR_LEARNING = ("optimizer_class", "optimizer_kwargs")  # of policy_kwargs; acting does without
# What an agent has beside its settings and what _excluded_save_params() names; any other attribute is its user's.
OWN_ATTRIBUTES = frozenset(
    {
        *("action_noise", "action_space", "batch_size", "burn_in", "lr_schedule", "n_envs", "normalizer_state"),
        *("previous_inputs",),
        *("observation_space", "policy_class", "rollout_buffer_class", "rollout_buffer_kwargs", "start_time"),
        *("not_restored", *COUNTERS, *STATISTICS, *CARRIED, *OF_A_RUN),
    }
)
KERNELS = (
    "fused",
    "foreach",
    "capturable",
    "differentiable",
)  # how an optimizer computes, not what it computes


def save_algorithm(
    model: SavableAlgorithm,
    path: PathOrFile,
    exclude: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
) -> None:
    """Saves an agent as one zip of JSON and safetensors; see the package's docstring for the format.

    Args:
        path: a path, to which ``.zip`` is added where it has no suffix, or an open binary file. A path is replaced
            whole or not at all.
        exclude: names of settings or attributes to leave out; loading takes their defaults.
        include: names of what is saved in any case, also where ``exclude`` has it.

    Attributes that are the user's own are kept where they are data. One warning names those that are none, and the
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
    if model.not_restored:
        raise CheckpointError(
            f"this {type(model).__name__} was loaded to act, without {', '.join(model.not_restored)}, and a file of it "
            "would lack them: copy the file it came from, or load it with what it asks for. Nothing was written"
        )
    further = set(include or ())
    left_out = set(exclude or ()) - further
    encoder = Encoder(f"this {type(model).__name__}")
    settings = {name: attribute for name, attribute in _settings_of(model).items() if name not in left_out}
    parameters, tensors = _encoded_parameters(model)

    def attributes(names: Iterable[str]) -> dict[str, Any]:
        return {name: getattr(model, name) for name in names if name not in left_out and hasattr(model, name)}

    normalizer, previous = normalizer_state(model), previous_inputs(model)
    own, lost = _own_attributes(encoder, model, left_out | further)
    agent = {
        "algorithm": _registered_name(type(model)),
        "class": custom_name(type(model)),
        "policy": _policy_name(type(model), model.policy_class),
        "versions": _versions(),
        "observation_space": encoder.encode(model.observation_space, "observation_space"),
        "action_space": encoder.encode(model.action_space, "action_space"),
        "n_envs": int(model.n_envs),
        "settings": {name: encoder.encode(value, name) for name, value in settings.items()},
        "counters": {name: encoder.encode(value, name) for name, value in attributes(COUNTERS).items()},
        "statistics": {name: _encoded_rows(encoder, rows) for name, rows in attributes(STATISTICS).items()},
        "carried": _encoded_carried(encoder, model, attributes(CARRIED)),
        "extras": own | {name: encoder.encode(value, name) for name, value in attributes(_new_names(further)).items()},
        "random": encoder.encode(_random_states(model), "random"),
        "normalizer": None if normalizer is None else encoder.encode(normalizer.to_data(), "normalizer"),
        "previous_action_reward": (
            None if previous is None else encoder.encode(previous.to_data(), "previous_action_reward")
        ),
        "parameters": parameters,
    }
    return Captured(agent, {RUN: encoder.tensors, **tensors}, tuple(_not_kept(encoder.named, lost)))


def _own_attributes(encoder: Encoder, model: SavableAlgorithm, without: set[str]) -> tuple[dict[str, Any], list[str]]:
    """What a user has put on a model: the data of it, encoded, and the names of what is none."""
    ours = {attribute_name(name) for name in setting_names(type(model))} | OWN_ATTRIBUTES
    names = vars(model).keys() - ours - set(model._excluded_save_params()) - without
    kept, lost = {}, []
    for name in sorted(names):
        try:
            if not _may_be_set(type(model), name):
                raise LookupError(name)
            kept[name] = encoder.attempt(vars(model)[name], name)
        except LookupError:
            lost.append(name)
    return kept, lost


def _may_be_set(cls: type, name: str) -> bool:
    """Whether a file may give an agent an attribute: none that the package or a class's methods go by."""
    known = getattr(cls, name, None)
    return name.isidentifier() and name not in OWN_ATTRIBUTES and (known is None or isinstance(known, PLAIN))


def _not_kept(named: Mapping[str, str], lost: list[str]) -> Iterator[str]:
    if lost:
        yield f"the attributes {', '.join(lost)} are no data and are not in it"
    if named:
        described = ", ".join(f"{place} ({name})" for place, name in named.items())
        given = ", ".join(f"{place.rpartition('.')[2]!r}: ..." for place in named)
        yield f"of {described} it holds the name alone: give it to load(..., custom_objects={{{given}}})"


def load_algorithm(
    cls: type[Algorithm],
    path: PathOrFile,
    env: GymEnv | str | None = None,
    device: torch.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    print_system_info: bool = False,
    force_reset: bool = True,
    **kwargs: Any,
) -> Algorithm:
    """A new agent from a file. Nothing in the file is executed or imported.

    Args:
        env: to go on training in; None for prediction alone, which needs no optimizer and no schedules: where those
            are missing the agent acts, and says so when it is to learn. Its spaces must be those of the file, with or
            without the last action and reward where the agent learned to see them: they are put around it. Where
            the agent learned with ``VecNormalize``, an environment without is wrapped in one with the saved statistics
            and settings, which are at work while the agent learns; at other times observations are normalized,
            rewards are the true ones and nothing moves. A ``VecNormalize`` that has seen nothing gets the statistics,
            and any other is left as it is.
        custom_objects: classes, functions or settings to use in place of the stored ones, by name:
            ``{"features_extractor_class": MyExtractor, "learning_rate": my_schedule}``. What is not part of this
            package must be given, since a file holds only its name.
        print_system_info: prints the versions here and those that the file was written with.
        force_reset: starts new episodes. With False, and as many environments as before, training goes on from the
            last observation with the carried memory: for an environment that is handed over as it stands.
        kwargs: settings to change, such as ``learning_rate=1e-4``. With ``seed`` everything is seeded anew; else the
            random states are restored where an environment is given, and with none they are left as they are.
            ``tensorboard_log`` is never taken from a file: it says where to write.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or not known here, or does not fit what was given.
    """
    if print_system_info:
        print("== CURRENT SYSTEM INFO ==")
        get_system_info()
    saved = SavedAgent(path, custom_objects)
    if print_system_info:
        lines = (printable(f"- {name}: {version}") for name, version in saved.versions.items())
        print("== SAVED MODEL SYSTEM INFO ==", *lines, sep="\n")
    saved.check_algorithm(cls)
    changes = _attributes(cls, kwargs, saved.file)
    settings, missing = saved.settings(cls, kwargs, to_learn=env is not None)
    venv, filled = (None, None) if env is None else _prepared(cls, env, saved)
    with undisturbed():
        n_envs = None if venv is None else venv.num_envs
        chosen = n_envs is not None and "n_steps" in {*kwargs, *saved.custom_objects}
        model = _built(cls, saved, device, settings | changes, n_envs, bounded=not chosen)
        model.not_restored = missing
        saved.restore(model)
        if model.use_sde:
            model.policy.reset_noise(model.n_envs)
    if venv is not None:
        _continue_in(model, venv, filled, saved, force_reset)
    _restore_random(model, saved, reseeded=kwargs.get("seed") is not None, everywhere=venv is not None)
    return model


def read_parameters(path: PathOrFile, device: torch.device | str = "cpu") -> dict[str, dict[str, Any]]:
    """The state dicts of a file by the name of what they belong to, for ``model.set_parameters``."""
    return SavedAgent(path).parameters(device)


def check_parameters(model: SavableAlgorithm, parameters: Mapping[str, Any], file: str = "parameters") -> None:
    """Checks an optimizer's state against its parameters: its kernels would read beyond a tensor that is too small.

    Raises:
        CheckpointError: it does not fit.
    """
    optimizer = model.policy.optimizer
    state = parameters.get("policy.optimizer")
    if state is None:
        return
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # Fused and compiled kernels trust what they are given; torch's others look for themselves.
    trusting = isinstance(optimizer, torch.optim.Adam) or any(group.get("fused") for group in optimizer.param_groups)
    try:
        for index, slots in state["state"].items():
            shape = owned[index].shape
            for name, slot in slots.items():
                if trusting and not _fits(slot, shape, name):
                    slot = torch.as_tensor(slot)
                    raise ValueError(
                        f"{name} of parameter {index} has shape {tuple(slot.shape)}, expected {tuple(shape)}"
                    )
        known = set().union(*(group.keys() for group in optimizer.param_groups)) | {"initial_lr", "param_names"}
        unknown = set().union(*(group.keys() for group in state["param_groups"])) - known
        if unknown:
            raise ValueError(f"{type(optimizer).__name__} has no {', '.join(sorted(map(str, unknown)))}")
    except MALFORMED as error:
        raise CheckpointError(
            f"{file}: the optimizer's state does not fit this agent's optimizer ({error}); give the optimizer_class it "
            "was trained with, or another file"
        ) from error


def normalizer_state(source: Any) -> NormalizerState | None:
    """A copy of what an agent's normaliser knows, from the agent or its file; None where it learned without one."""
    if not hasattr(source, "get_vec_normalize_env"):
        return SavedAgent(source).normalizer
    wrapper = source.get_vec_normalize_env()
    kept: NormalizerState | None = getattr(source, "normalizer_state", None)
    return kept if wrapper is None else NormalizerState.of(wrapper)


def previous_inputs(source: Any) -> PreviousInputs | None:
    """What an agent, or that of a file, sees beside observations: last action and reward; None: neither."""
    if not hasattr(source, "get_vec_normalize_env"):
        return SavedAgent(source).previous
    kept: PreviousInputs | None = getattr(source, "previous_inputs", None)
    return kept if source.get_env() is None else PreviousInputs.of(source.get_env())


def normalizer(source: Any, venv: VecEnv) -> VecNormalize:
    """``venv`` as an agent (or its file) learned to see it, for evaluation.

    The statistics are a copy and stand still, and rewards are the true ones. Where the agent sees its last action and
    reward and ``venv`` does not show them, it is wrapped so that it does. An agent that learned without a normaliser
    gets a ``VecNormalize`` that changes nothing.

    Raises:
        CheckpointError: ``venv`` is normalised already, or its observations do not fit the statistics.
    """
    if unwrap_vec_normalize(venv) is not None:
        raise CheckpointError("the environment is in a VecNormalize already; give it without, as envs.make() makes it")
    state, previous = normalizer_state(source), previous_inputs(source)
    if previous is not None and previous.missing_in(venv):
        venv = previous.wrap(venv)
    if state is None:
        return VecNormalize(venv, training=False, norm_obs=False, norm_reward=False)
    return replace(state, settings={**state.settings, "training": False, "norm_reward": False}).wrap(venv)


class SavedAgent:
    """What a file says, checked as data but not built yet.

    Args:
        custom_objects: see :func:`load_algorithm`.

    Raises:
        CheckpointError: it is no agent's file, or damaged.
    """

    def __init__(self, path: PathOrFile, custom_objects: Mapping[str, Any] | None = None) -> None:
        self.file = name_of(path)
        self.custom_objects = _imported_for_caller(custom_objects or {})
        self._agent, self._tensors = read_archive(path)
        if set(self._agent) | LATER != SECTIONS or not isinstance(self._agent["parameters"], dict):
            wrong = sorted(SECTIONS ^ (set(self._agent) | LATER))
            raise CheckpointError(f"{self.file}: agent.json does not hold what an agent is ({', '.join(wrong)})")
        _use_new_names(self._agent["settings"])
        listed = {RUN, *self._agent["parameters"]}
        if listed != set(self._tensors):
            raise CheckpointError(
                f"{self.file} holds tensors for {', '.join(sorted(self._tensors))}, expected them for "
                f"{', '.join(sorted(listed))}; use another copy"
            )
        self._budget = Budget(self.file, BUDGET + 4 * self._n_bytes)
        self._decoder = Decoder(self._tensors[RUN], self.file, self._custom, self._budget)
        self.observation_space = self._space("observation_space")
        self.action_space = self._space("action_space")
        self.n_envs = self._agent["n_envs"]
        if type(self.n_envs) is not int or self.n_envs < 1:
            raise CheckpointError(f"{self.file}: n_envs is {self.n_envs!r}, expected a whole number of at least 1")

    @property
    def versions(self) -> dict[str, str]:
        versions = self._agent["versions"]
        return {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}

    @functools.cached_property
    def normalizer(self) -> NormalizerState | None:
        data = self._agent["normalizer"]
        return None if data is None else NormalizerState.from_data(data, self._decoder, self.file)

    @functools.cached_property
    def previous(self) -> PreviousInputs | None:
        data = self._agent.get("previous_action_reward")
        if data is None:
            return None
        return PreviousInputs.from_data(data, self._decoder, self.file, self.observation_space, self.action_space)

    @property
    def n_weights(self) -> int:
        return sum(tensor.numel() for tensor in self._tensors.get("policy", {}).values())

    @property
    def _n_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for parts in self._tensors.values() for part in parts.values())

    def check_algorithm(self, cls: type) -> None:
        """Raises CheckpointError unless ``cls`` is the algorithm that wrote the file, or made from it."""
        name = str(self._agent["algorithm"])
        if name not in {ancestor.__name__ for ancestor in cls.__mro__}:
            raise CheckpointError(f"{self.file} was saved by {name}, not by {cls.__name__}; use {name}.load(...)")

    def policy_class(self, aliases: Mapping[str, type]) -> type:
        """The policy's class: by its name, or the user's own."""
        if "policy_class" in self.custom_objects:
            own: type = self.custom_objects["policy_class"]
            return own
        name = self._agent["policy"]
        if isinstance(name, str) and name in aliases:
            return aliases[name]
        found: type = self._decoder.decode(name if isinstance(name, dict) else {"$custom": name}, "policy_class")
        return found

    def setting(self, name: str, default: Any = None) -> Any:
        """One setting, decoded."""
        stored = self._section("settings")
        return self._decoder.decode(stored[name], name) if name in stored else default

    def policy_kwargs(self, *, to_learn: bool = False) -> dict[str, Any]:
        """``policy_kwargs``, decoded; where only acting is asked for without what it can do without."""
        stored = self._section("settings").get("policy_kwargs", {})
        if not to_learn and isinstance(stored, dict):
            stored = {name: value for name, value in stored.items() if name not in FOR_LEARNING}
        decoded = self._decoder.decode(stored, "policy_kwargs")
        if not isinstance(decoded, dict):
            raise CheckpointError(f"{self.file}: policy_kwargs are no dict; use another copy")
        memory = decoded.get("memory", "lstm")
        if not (inspect.isclass(memory) or (isinstance(memory, str) and memory in MEMORIES)):
            raise CheckpointError(
                f"{self.file}: policy_kwargs.memory is {memory!r}; expected {', '.join(MEMORIES)} or what "
                "custom_objects={'memory': ...} says"
            )
        return decoded

    def settings(
        self, cls: type, given: Mapping[str, Any], *, to_learn: bool = True
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The attributes that make the agent what it is, without those that are ``given`` anew; and what is missing.

        ``policy_kwargs`` that are given must equal the stored ones; they stand in for what the file only names. What
        only learning needs may be missing where nobody asks for it.
        """
        stored = self._section("settings")
        unknown = sorted(set(stored) - set(setting_names(cls)))
        if unknown:
            raise CheckpointError(f"{self.file}: {cls.__name__} has no setting {', '.join(unknown)}; upgrade recurl")
        decoded, missing = {}, []
        for name in stored.keys() - given.keys() - {"policy_kwargs", "tensorboard_log"}:
            try:
                decoded[name] = self._decoder.decode(stored[name], name)
            except NotGiven:
                if to_learn:
                    raise
                missing.append(name)
        if given.get("policy_kwargs") is not None:
            decoded["policy_kwargs"] = self._given_policy_kwargs(cls, given["policy_kwargs"])
        elif "policy_kwargs" in stored:
            try:
                decoded["policy_kwargs"] = self.policy_kwargs(to_learn=True)
            except NotGiven:
                decoded["policy_kwargs"] = self.policy_kwargs(to_learn=to_learn)
                missing.append("optimizer_class")
        self._leave_log(given, to_learn)
        return {attribute_name(name): value for name, value in decoded.items()}, tuple(missing)

    def parameters(self, device: torch.device | str = "cpu") -> dict[str, dict[str, Any]]:
        """State dicts by the name of what they belong to, on ``device``; single numbers on the CPU.

        Optimizers count their steps there, and move the count themselves where their kernels want it elsewhere.
        """
        device = get_device(device)
        decoded = {}
        for name, skeleton in self._agent["parameters"].items():
            tensors = {key: part.to(device) if part.ndim else part for key, part in self._tensors[name].items()}
            decoder = Decoder(tensors, self.file, budget=self._budget)
            decoded[name] = decoder.decode(skeleton, "")
            if not isinstance(decoded[name], dict) or decoder.used != set(self._tensors[name]):
                raise CheckpointError(f"{self.file}: the tensors of {name} are not those it lists; use another copy")
        return decoded

    def restore(self, model: SavableAlgorithm) -> None:
        """Gives a built agent its weights, its optimizer's state, counters, statistics and what it carries."""
        parameters = self.parameters(model.device)
        if "optimizer_class" in model.not_restored:
            parameters["policy.optimizer"] = model.policy.optimizer.state_dict()
        self.warn_of_numbers()
        check_parameters(model, parameters, self.file)
        use_own_kernels(model, parameters)
        try:
            state_dicts: Any = parameters
            model.set_parameters(state_dicts, exact_match=True, device=model.device)
        except CheckpointError:
            raise
        except MALFORMED as error:
            raise CheckpointError(
                f"{self.file}: the weights do not fit the policy that the settings describe ({error}); "
                "give the classes it was trained with, or another copy"
            ) from error
        counters = self._decoded("counters", COUNTERS)
        if not all(isinstance(value, int | float | np.number) for value in counters.values()):
            raise CheckpointError(f"{self.file}: a counter is no number ({counters}); use another copy")
        vars(model).update(counters)
        self._restore_statistics(model)
        self._restore_carried(model)
        for name, value in self._decoded("extras").items():
            if name not in OF_A_RUN and not _may_be_set(type(model), name):
                raise CheckpointError(f"{self.file}: {name!r} cannot be an attribute of its own; use another copy")
            setattr(model, name, value)
        model.normalizer_state = self.normalizer  # type: ignore[attr-defined]
        model.previous_inputs = self.previous  # type: ignore[attr-defined]

    def not_finite(self) -> list[str]:
        """The names of the weights that are not all finite."""
        weights = self._tensors.get("policy", {})
        return [name for name, part in weights.items() if part.is_floating_point() and not part.isfinite().all()]

    def random_states(self) -> dict[str, Any]:
        return self._decoded("random")

    def _section(self, name: str) -> dict[str, Any]:
        section = self._agent[name]
        if not isinstance(section, dict):
            raise CheckpointError(f"{self.file}: {name} is no object; use another copy")
        return section

    def _space(self, name: str) -> spaces.Space[Any]:
        space = self._decoder.decode(self._agent[name], name)
        if not isinstance(space, spaces.Space):
            raise CheckpointError(f"{self.file}: {name} is no space; use another copy")
        return space

    def _decoded(self, section: str, allowed: Iterable[str] | None = None) -> dict[str, Any]:
        stored = self._section(section)
        if allowed is not None and not set(stored) <= set(allowed):
            unknown = ", ".join(sorted(set(stored) - set(allowed)))
            raise CheckpointError(f"{self.file}: {section} holds {unknown}, which is not known here; upgrade recurl")
        return {name: self._decoder.decode(value, name) for name, value in stored.items()}

    def _custom(self, where: str, names_something: bool) -> Any:
        if where not in self.custom_objects and names_something and where.startswith("policy_kwargs."):
            where = where.rpartition(".")[2]
        return self.custom_objects[where]

    def _given_policy_kwargs(self, cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's ``policy_kwargs``, with what an algorithm adds to them, where they are those of the file."""
        stored = self._section("settings").get("policy_kwargs")
        added: set[str] = set(getattr(cls, "adds_to_policy_kwargs", ())) - given.keys()
        rest = {k: v for k, v in stored.items() if k not in added} if isinstance(stored, dict) else stored
        encoder = Encoder("the policy_kwargs given")
        if not _same_data(encoder.encode(dict(given), "policy_kwargs"), rest, encoder.tensors, self._tensors[RUN]):
            raise CheckpointError(
                f"{self.file}: The specified policy kwargs do not equal the stored policy kwargs. "
                f"Stored kwargs: {stored}, specified kwargs: {dict(given)}"
            )
        kept = {
            name: self._decoder.decode(value, f"policy_kwargs.{name}")
            for name, value in (stored or {}).items()
            if name in added
        }
        return with_memory_imported(given) | kept

    def _leave_log(self, given: Mapping[str, Any], to_learn: bool) -> None:
        """A file does not say where to write: that its agent once logged somewhere is told where it is to learn."""
        stored = self._section("settings").get("tensorboard_log")
        if stored is not None and to_learn and not {"tensorboard_log"} & (given.keys() | self.custom_objects.keys()):
            warnings.warn(
                f"{self.file} was saved with tensorboard_log={printable(str(stored))!r}, which is not taken from a "
                "file: to log, say load(..., tensorboard_log=...)",
                UserWarning,
                stacklevel=5,
            )

    def warn_of_numbers(self) -> None:
        """Warns where the weights are not all finite: nothing that the agent does means anything then."""
        if names := self.not_finite():
            warnings.warn(
                f"{self.file}: the weights {', '.join(map(printable, names[:3]))} are not finite, so what this agent "
                "does means nothing; use an earlier file",
                UserWarning,
                stacklevel=4,
            )

    def _restore_statistics(self, model: SavableAlgorithm) -> None:
        for name, rows in self._decoded("statistics", STATISTICS).items():
            if rows is not None and not isinstance(rows, list):
                raise CheckpointError(f"{self.file}: {name} is no list; use another copy")
            setattr(model, name, None if rows is None else deque(rows, maxlen=model._stats_window_size))

    def _restore_carried(self, model: SavableAlgorithm) -> None:
        """What is carried from step to step, where the number of environments is the same."""
        if self._agent["carried"] is None or model.n_envs != self.n_envs:
            return
        carried = self._decoded("carried", CARRIED)
        if "_last_state" in carried:
            model._last_state = self._checked_state(model, carried.pop("_last_state"))
        observation = carried.get("_last_obs")
        if observation is not None and not _is_batch(observation, model.observation_space, self.n_envs):
            raise CheckpointError(f"{self.file}: the last observation is none of {model.observation_space}")
        starts = carried.get("_last_episode_starts")
        if starts is not None and getattr(starts, "shape", None) != (self.n_envs,):
            raise CheckpointError(f"{self.file}: the last episode starts are not {self.n_envs} flags; use another copy")
        vars(model).update(carried)

    def _checked_state(self, model: SavableAlgorithm, state: Any) -> Any:
        if state is None:
            return None
        expected = model.policy.initial_state(model.n_envs)
        if not isinstance(state, tuple) or not all(isinstance(part, Tensor) for part in state):
            raise CheckpointError(f"{self.file}: the carried memory is no tuple of tensors; use another copy")
        if [(part.shape, part.dtype) for part in state] != [(part.shape, part.dtype) for part in expected]:
            raise CheckpointError(
                f"{self.file}: the carried memory has shapes {[tuple(part.shape) for part in state]}, the agent's has "
                f"{[tuple(part.shape) for part in expected]}; use another copy"
            )
        return tuple(part.to(model.device) for part in state)


def _imported_for_caller(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller hands over, a memory that is named as ``"module:Class"`` imported on the caller's word."""
    objects = dict(given)
    for place in ("memory", "policy_kwargs.memory"):
        if isinstance(objects.get(place), str):
            objects[place] = memory_class(objects[place])
    if isinstance(objects.get("policy_kwargs"), Mapping):
        objects["policy_kwargs"] = with_memory_imported(objects["policy_kwargs"])
    return objects


def _use_new_names(settings: Any) -> None:
    """Arguments of memories that have been renamed since a file was written."""
    policy_kwargs = settings.get("policy_kwargs") if isinstance(settings, dict) else None
    kwargs = policy_kwargs.get("memory_kwargs") if isinstance(policy_kwargs, dict) else None
    known = isinstance(policy_kwargs, dict) and policy_kwargs.get("memory", "lstm") in ("rnn", "lstm", "gru")
    if known and isinstance(kwargs, dict) and "initialisation" in kwargs:
        kwargs["initialization"] = kwargs.pop("initialisation")


def with_memory_imported(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A caller's ``policy_kwargs``, a memory that is named as ``"module:Class"`` imported on the caller's word."""
    memory = policy_kwargs.get("memory")
    if isinstance(memory, str) and memory not in MEMORIES:
        return {**policy_kwargs, "memory": memory_class(memory)}
    return dict(policy_kwargs)


def setting_names(cls: type) -> list[str]:
    """Constructor arguments of an algorithm.

    A constructor that takes ``**kwargs`` or ``*args`` hands them on, so its parent's arguments count too.
    """
    names: dict[str, None] = {}
    for ancestor in cls.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        rest = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names.update({p.name: None for p in parameters if p not in rest and p.name not in NOT_SETTINGS})
        if not rest:
            break
    return list(names)


def _settings_of(model: Any) -> dict[str, Any]:
    attributes = {name: attribute_name(name) for name in setting_names(type(model))}
    return {name: vars(model)[attribute] for name, attribute in attributes.items() if attribute in vars(model)}


def attribute_name(setting: str) -> str:
    return "_stats_window_size" if setting == "stats_window_size" else setting


def _attributes(cls: type, kwargs: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The user's changes as attributes."""
    known = {*setting_names(cls), *COUNTERS, *STATISTICS, *CARRIED, "policy_class"}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise CheckpointError(
            f"{cls.__name__} has no setting {', '.join(unknown)} to change on loading {file}; "
            f"there are {', '.join(sorted(setting_names(cls)))}"
        )
    return {attribute_name(name): value for name, value in kwargs.items() if name != "policy_kwargs"}


def _new_names(names: Iterable[str]) -> list[str]:
    return sorted(set(names) - {*COUNTERS, *STATISTICS, *CARRIED})


_PACKAGE = __name__.removesuffix("checkpoint.agent")


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


def _encoded_parameters(model: SavableAlgorithm) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    skeletons, tensors = {}, {}
    for name, state in model.get_parameters().items():
        encoder = Encoder(f"this {type(model).__name__}")
        skeletons[name] = encoder.encode(dict(state), "")
        tensors[name] = encoder.tensors
    return skeletons, tensors


def _encoded_rows(encoder: Encoder, rows: Any) -> Any:
    """Figures of recent episodes, without what an environment adds to them that is no data."""
    return None if rows is None else [_encoded_row(encoder, row) for row in rows]


def _encoded_row(encoder: Encoder, row: Any) -> Any:
    if not isinstance(row, Mapping):
        return encoder.encode(row, "ep_success_buffer")
    plain = {key: value for key, value in row.items() if isinstance(value, bool | int | float | str | np.number)}
    if all(type(value) is int or (type(value) is float and math.isfinite(value)) for value in plain.values()):
        return plain  # as it would be encoded: there are a hundred of these, all of them like this
    return encoder.encode(plain, "ep_info_buffer")


def _encoded_carried(encoder: Encoder, model: SavableAlgorithm, carried: dict[str, Any]) -> Any:
    """None amid a rollout: the memory carried so far is the collector's, and belongs to another observation."""
    buffer = model.rollout_buffer
    if buffer.pos > 0 and not buffer.full:
        return None
    return {name: encoder.encode(value, name) for name, value in carried.items()}


def _random_states(model: SavableAlgorithm) -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (what Stable-Baselines3 seeds)
    numpy["state"]["key"] = numpy["state"]["key"].astype(np.int64)  # older safetensors know no uint32
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if used else []
    return {
        "python": [version, np.array(numbers, np.int64), gauss],
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "model": model._rng.bit_generator.state,
    }


def _restore_random(model: SavableAlgorithm, saved: SavedAgent, *, reseeded: bool, everywhere: bool) -> None:
    if reseeded:
        if everywhere:
            model.set_random_seed(model.seed)
        return
    states = saved.random_states()
    try:
        model._rng.bit_generator.state = states["model"]
        if everywhere:
            _set_random_states(states)
    except MALFORMED as error:
        raise CheckpointError(f"{saved.file}: the random states cannot be understood ({error})") from error


def _set_random_states(states: Mapping[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(int(number) for number in numbers), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leaves the process's random states as they were: loading an agent does not change what others draw."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if used else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _built(
    cls: type[Algorithm],
    saved: SavedAgent,
    device: Any,
    attributes: Mapping[str, Any],
    n_envs: int | None,
    *,
    bounded: bool,
) -> Algorithm:
    """An agent with these settings, its networks as they come."""
    policy_class = attributes.get("policy_class") or saved.policy_class(cls.policy_aliases)
    try:
        with registered_only(), building(saved.n_weights, saved.file, bounded=bounded):
            made: Any = cls
            model: Algorithm = made(policy=policy_class, env=None, device=device, _init_setup_model=False)
            vars(model).update(attributes)
            model.observation_space, model.action_space = saved.observation_space, saved.action_space
            model.n_envs = n_envs or saved.n_envs
            model._setup_model()
    except CheckpointError:
        raise
    except MALFORMED as error:
        raise CheckpointError(f"{saved.file}: no {cls.__name__} can be built from its settings ({error})") from error
    return model


def _prepared(cls: type[Algorithm], env: GymEnv | str, saved: SavedAgent) -> tuple[VecEnv, VecNormalize | None]:
    """The environment as the agent learned to see it, and the normaliser that was given its statistics, if any."""
    verbose = saved.setting("verbose", 0)
    if not isinstance(verbose, int | np.integer):
        raise CheckpointError(f"{saved.file}: verbose is {verbose!r}, expected 0, 1 or 2; use another copy")
    verbose = int(verbose)
    venv = _with_previous(cls, saved.previous, cls._wrap_env(maybe_make_env(env, verbose), verbose), env, verbose)
    state, wrapper = saved.normalizer, unwrap_vec_normalize(venv)
    if state is not None and wrapper is None:
        venv, wrapper = _normalized(cls, state, venv, env, verbose)
    elif state is not None and wrapper is not None and is_fresh(wrapper):
        state.load_into(wrapper)
    else:
        wrapper = None
    for kind, ours, theirs in (
        ("Observation", saved.observation_space, venv.observation_space),
        ("Action", saved.action_space, venv.action_space),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{saved.file}: {kind} spaces do not match: {ours} (saved) != {theirs} (of the environment given)"
            )
    return venv, wrapper


def _normalized(
    cls: type[Algorithm], state: NormalizerState, venv: VecEnv, given: Any, verbose: int = 0
) -> tuple[VecEnv, RestoredNormalizer]:
    """``venv``, which was made from what was ``given``, as the agent learned to see it, and the normalizer in it."""
    wrapper = state.wrap(_untransposed(venv, given))
    return cls._wrap_env(wrapper, verbose), wrapper


def _with_previous(
    cls: type[Algorithm], previous: PreviousInputs | None, venv: VecEnv, given: Any, verbose: int = 0
) -> VecEnv:
    """``venv``, which was made from what was ``given``, with the last action and reward where an agent sees them."""
    inside = _untransposed(venv, given)
    if previous is None or not previous.missing_in(inside):
        return venv
    return cls._wrap_env(previous.wrap(inside), verbose)


def _untransposed(venv: VecEnv, given: Any) -> VecEnv:
    """Images are changed as they come and transposed after, so that a wrapper goes below the transposition."""
    return venv.venv if isinstance(venv, VecTransposeImage) and venv is not given else venv


def as_learned(model: SavableAlgorithm, venv: VecEnv) -> VecEnv:
    """Plain environments for evaluation as a loaded agent learned to see its own, with the true rewards."""
    seen = _with_previous(type(model), previous_inputs(model), venv, venv)
    wrapper = model.get_vec_normalize_env()
    if isinstance(wrapper, RestoredNormalizer):
        seen = _normalized(type(model), NormalizerState.of(wrapper), seen, venv)[0]
    return seen


def _continue_in(
    model: SavableAlgorithm,
    venv: VecEnv,
    filled: VecNormalize | None,
    saved: SavedAgent,
    force_reset: bool,
) -> None:
    """Gives a loaded agent its environment."""
    model.env, model._vec_normalize_env = venv, unwrap_vec_normalize(venv)
    if force_reset:
        model._last_obs = None
        if model.seed is not None:
            venv.seed(model.seed)
    elif filled is not None and saved.normalizer is not None:
        saved.normalizer.resume(filled)


def use_own_kernels(model: SavableAlgorithm, parameters: dict[str, dict[str, Any]]) -> None:
    """How the optimizer computes is chosen for this device, whatever it was where the file was written."""
    state = parameters.get("policy.optimizer")
    if state is None:
        return
    for stored, own in zip(state["param_groups"], model.policy.optimizer.param_groups, strict=False):
        for name in KERNELS:
            stored.pop(name, None)
            if name in own:
                stored[name] = own[name]


def _fits(slot: Any, shape: torch.Size, name: str) -> bool:
    return isinstance(slot, Tensor) and (slot.numel() == 1 if name == "step" else slot.shape == shape)


def _is_batch(observations: Any, space: spaces.Space[Any], n_envs: int) -> bool:
    if isinstance(space, spaces.Dict):
        return (
            isinstance(observations, dict)
            and observations.keys() == space.spaces.keys()
            and all(_is_batch(observations[key], part, n_envs) for key, part in space.spaces.items())
        )
    return isinstance(observations, np.ndarray) and observations.shape == (n_envs, *(space.shape or ()))


def _same_data(
    given: Any, stored: Any, given_tensors: Mapping[str, Tensor], stored_tensors: Mapping[str, Tensor]
) -> bool:
    """Whether two encoded values are equal; where the file only names a class or function, any will do."""

    def same(one: Any, other: Any) -> bool:
        return _same_data(one, other, given_tensors, stored_tensors)

    if type(given) is not type(stored):
        return False
    if isinstance(given, list):
        return len(given) == len(stored) and all(map(same, given, stored))
    if not isinstance(given, dict):
        return bool(given == stored)
    if "$custom" in stored:
        return bool({"$custom", "$class"} & given.keys())
    if given.keys() != stored.keys():
        return False
    if given.keys() & {"$array", "$tensor"}:
        (one,), (other,) = given.values(), stored.values()
        return (
            one in given_tensors and other in stored_tensors and torch.equal(given_tensors[one], stored_tensors[other])
        )
    return all(same(given[key], stored[key]) for key in given)
