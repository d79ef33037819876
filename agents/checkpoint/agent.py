"""What a file says of an agent, checked as data: read here, given to an agent that is built from it."""

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pprint import pformat
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import get_device
from torch import Tensor

from agents.checkpoint.budget import Budget
from agents.checkpoint.container import BUDGET, CheckpointError, PathOrFile, name_of, read_archive, refused
from agents.checkpoint.normalizer import NormalizerState
from agents.checkpoint.previous import PreviousInputs
from agents.checkpoint.values import Decoder, NotGiven
from agents.checks.text import printable
from agents.encoders import Choice, default_encoder, first_default_encoder
from agents.memory import MEMORIES, State, memory_class
from agents.policy.actor_critic import GruPolicy, RecurrentActorCriticPolicy, RnnPolicy


class SavableAlgorithm(OnPolicyAlgorithm):
    """An algorithm with what its file holds besides Stable-Baselines3's attributes."""

    find: ClassVar[Callable[[str], str]] = staticmethod(lambda id: id)
    """From an id to one that gymnasium knows, or an error that says what to install; the environments' own, handed in
    by ``agents.runs.environments``."""
    policy: RecurrentActorCriticPolicy
    not_restored: tuple[str, ...] = ()
    """Settings that its file only names, so that it was loaded to act; empty: it can learn on."""
    random_generator: np.random.Generator
    """Of samples and shuffles."""
    _last_state: State | None

    @property
    def carried_state(self) -> State:
        """The memory's state that belongs to the last observation; () if there is none yet."""
        return self._last_state or ()


PLAIN = (bool, int, float, str, tuple, list, dict)
NOT_SETTINGS = ("self", "policy", "env", "device", "_init_setup_model")
COUNTERS = (
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates"),
    *("_current_progress_remaining", "_returns_count", "_returns_mean", "_returns_squares"),
)
STATISTICS = ("ep_info_buffer", "ep_success_buffer")
CARRIED = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_state", "_last_noise")
SUMMARY = ("algorithm", "class", "policy", "versions", "observation_space", "action_space", "n_envs", "settings")
OBJECTS = ("settings", "counters", "statistics", "extras", "random", "parameters")  # sections that are JSON objects
SECTIONS = {*SUMMARY, *OBJECTS, "carried", "normalizer", "previous_action_reward", "encoder"}
LATER = {"previous_action_reward", "encoder"}  # sections that the first files had not
RUN = "run"  # the member that holds every tensor which is no parameter

OF_A_RUN = ("environment_state", "pending_figures", "computed_with", "process_parts")
"""Attributes that go into a run's checkpoints and no other file."""
FOR_LEARNING = ("optimizer_class", "optimizer_kwargs")  # of policy_kwargs; acting does without
OWN_ATTRIBUTES = frozenset(
    {
        *("action_noise", "action_space", "batch_size", "burn_in", "lr_schedule", "n_envs", "normalizer_state"),
        *("observation_space", "policy_class", "previous_inputs", "rollout_buffer_class", "rollout_buffer_kwargs"),
        *("start_time", "not_restored", *COUNTERS, *STATISTICS, *CARRIED, *OF_A_RUN),
    }
)
"""What an agent has besides its settings and ``_excluded_save_params()``; any other attribute is its user's."""
KERNELS = ("fused", "foreach", "capturable", "differentiable")  # how an optimizer computes, not what it computes


class SavedAgent:
    """What a file says, checked as data but not built yet.

    Args:
        custom_objects: see :func:`agents.checkpoint.load_algorithm`.

    Raises:
        CheckpointError: it is no agent's file, or damaged.
    """

    def __init__(self, path: PathOrFile, custom_objects: Mapping[str, Any] | None = None) -> None:
        self.file = name_of(path)
        self.custom_objects = imported_for_caller(custom_objects or {})
        agent, tensors = self._agent, self._tensors = read_archive(path)
        wrong = SECTIONS ^ (set(agent) | LATER) or {name for name in OBJECTS if not isinstance(agent[name], dict)}
        if wrong:
            raise CheckpointError(
                f"{self.file}: agent.json does not hold what an agent is ({', '.join(sorted(wrong))}); use another copy"
            )
        _use_new_names(agent["settings"])
        listed = {RUN, *agent["parameters"]}
        if listed != set(tensors):
            raise CheckpointError(
                f"{self.file} holds tensors for {', '.join(sorted(tensors))}, expected them for "
                f"{', '.join(sorted(listed))}; use another copy"
            )
        n_bytes = sum(part.numel() * part.element_size() for parts in tensors.values() for part in parts.values())
        self._budget = Budget(self.file, BUDGET + 4 * n_bytes)
        self._decoder = Decoder(tensors[RUN], self.file, self.custom_objects, self._budget)
        self.observation_space: Any = self._decoder.decode(agent["observation_space"], "observation_space")
        self.action_space: Any = self._decoder.decode(agent["action_space"], "action_space")
        self.n_envs: int = agent["n_envs"]
        self.n_weights = sum(tensor.numel() for tensor in tensors.get("policy", {}).values())
        versions = agent["versions"] if isinstance(agent["versions"], dict) else {}
        self.versions = {str(name): str(version) for name, version in versions.items()}
        self.normalizer = NormalizerState.from_data(agent["normalizer"], self._decoder, self.file)
        self.previous = PreviousInputs.from_data(
            agent.get("previous_action_reward"), self._decoder, self.file, self.observation_space, self.action_space
        )

    def check_algorithm(self, cls: type) -> None:
        """Raises CheckpointError unless ``cls`` is the algorithm that wrote the file, or a subclass of it."""
        name = str(self._agent["algorithm"])
        if name not in {ancestor.__name__ for ancestor in cls.__mro__}:
            raise CheckpointError(f"{self.file} was saved by {name}, not by {cls.__name__}; use {name}.load(...)")

    def policy_class(self, aliases: Mapping[str, type]) -> Any:
        """The policy's class: by its name, or the user's own."""
        name = self._agent["policy"]
        if isinstance(name, str) and name in aliases and "policy_class" not in self.custom_objects:
            return aliases[name]
        return self._decoder.decode(name if isinstance(name, dict) else {"$custom": name}, "policy_class")

    def setting(self, name: str, default: Any = None) -> Any:
        """One setting, decoded."""
        stored = self._agent["settings"]
        return self._decoder.decode(stored[name], name) if name in stored else default

    def policy_kwargs(self) -> Any:
        """``policy_kwargs``, decoded, without what only learning needs."""
        stored = self._agent["settings"].get("policy_kwargs", {})
        if isinstance(stored, dict):
            stored = {name: value for name, value in stored.items() if name not in FOR_LEARNING}
        return self._decoder.decode(stored, "policy_kwargs")

    def with_encoder(self, kwargs: dict[str, Any], policy_class: type) -> dict[str, Any]:
        """``policy_kwargs`` with the encoder that the agent learned with, where today another one fits by default."""
        says_it = not isinstance(kwargs, Mapping) or kwargs.get("features_extractor_class") is not None
        if says_it or not isinstance(self.observation_space, spaces.Space):  # which is refused where it is built on
            return kwargs
        space, scaled = self.observation_space, not kwargs.get("normalize_images", True)
        record = self._decoder.decode(self._agent.get("encoder"), "encoder")
        with refused(f"{self.file}: the encoder cannot be understood"):
            if record is not None:
                chosen = Choice(record["class"], record["kwargs"])
            elif policy_class in (RecurrentActorCriticPolicy, GruPolicy, RnnPolicy) and "encoder" not in self._agent:
                chosen = first_default_encoder(space)
            else:
                return kwargs
            if chosen == default_encoder(space, scaled):
                return kwargs
            further = kwargs.get("features_extractor_kwargs") or {}
            arguments = {**chosen.kwargs, **further}
        return {**kwargs, "features_extractor_class": chosen.encoder, "features_extractor_kwargs": arguments}

    def settings(
        self, cls: type, given: Mapping[str, Any], *, to_learn: bool = True
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The settings of the agent without those that are ``given`` instead, and the names of those missing.

        ``policy_kwargs`` that are given must equal the stored ones; they stand in for what the file only names. What
        only learning needs may be missing unless the agent is to learn.
        """
        stored = self._agent["settings"]
        unknown = sorted(set(stored) - set(setting_names(cls)))
        if unknown:
            raise CheckpointError(f"{self.file}: {cls.__name__} has no setting {', '.join(unknown)}; upgrade recurl")
        decoded: dict[str, Any] = {}
        missing = []
        own_kwargs = given.get("policy_kwargs")
        replaced = given.keys() if own_kwargs is not None else given.keys() - {"policy_kwargs"}
        for name in sorted(stored.keys() - replaced - {"tensorboard_log"}):
            try:
                decoded[name] = self._decoder.decode(stored[name], name)
            except NotGiven:
                if to_learn:
                    raise
                if name == "policy_kwargs":
                    decoded[name] = self.policy_kwargs()
                missing.append("optimizer_class" if name == "policy_kwargs" else name)
        if own_kwargs is not None:
            decoded["policy_kwargs"] = self._given_policy_kwargs(cls, own_kwargs)
        return decoded, tuple(missing)

    def _given_policy_kwargs(self, cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's ``policy_kwargs``, if they are those of the file, with what an algorithm adds to them."""
        stored = self._agent["settings"].get("policy_kwargs")
        stored = stored if isinstance(stored, dict) else {}
        added: set[str] = (set(getattr(cls, "adds_to_policy_kwargs", ())) & stored.keys()) - given.keys()
        decoded: dict[str, Any] = {}
        for name, value in stored.items():
            try:
                decoded[name] = self._decoder.decode(value, f"policy_kwargs.{name}")
            except NotGiven:  # what the file only names is the caller's to give
                decoded[name] = given.get(name)
        kept = {name: decoded.pop(name) for name in added}
        if pformat(decoded) != pformat(dict(given)):  # which tells types apart and is the same for any order of keys
            raise CheckpointError(
                f"{self.file}: The specified policy kwargs do not equal the stored policy kwargs. "
                f"Stored kwargs: {decoded}, specified kwargs: {dict(given)}"
            )
        return imported_for_caller(given) | kept

    def warn_of_log(self, given: Iterable[str]) -> None:
        """A file does not say where to write: warns where its agent once logged somewhere and nothing else is given."""
        stored = self._agent["settings"].get("tensorboard_log")
        if stored is not None and "tensorboard_log" not in {*given, *self.custom_objects}:
            warnings.warn(
                f"{self.file} was saved with tensorboard_log={printable(str(stored))!r}, which is not taken from a "
                "file: to log, say load(..., tensorboard_log=...)",
                UserWarning,
                stacklevel=4,
            )

    def warn_of_numbers(self) -> None:
        """Warns where the weights are not all finite: nothing that the agent does means anything then."""
        weights = self._tensors.get("policy", {})
        names = [name for name, part in weights.items() if part.is_floating_point() and not part.isfinite().all()]
        if names:
            warnings.warn(
                f"{self.file}: the weights {', '.join(map(printable, names[:3]))} are not finite, so what this agent "
                "does means nothing; use an earlier file",
                UserWarning,
                stacklevel=4,
            )

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
        what = f"{self.file}: the weights do not fit the policy that the settings describe"
        set_weights(model, parameters, self.file, what, "give the classes it was trained with, or another copy")
        with refused(f"{self.file}: the state of its training cannot be understood"):
            counters = self.section("counters", COUNTERS)
            if not all(isinstance(value, int | float | np.number) for value in counters.values()):
                raise TypeError("a counter is no number")
            vars(model).update(counters)
            for name, rows in self.section("statistics", STATISTICS).items():
                setattr(model, name, None if rows is None else deque(rows, maxlen=model._stats_window_size))
            if self._agent["carried"] is not None and model.n_envs == self.n_envs:
                vars(model).update(checked_carried(self.section("carried", CARRIED), model))
            for name, value in self.section("extras").items():
                if name not in OF_A_RUN and not may_be_set(type(model), name):
                    raise ValueError(f"{name!r} cannot be an attribute of its own")
                setattr(model, name, value)
        vars(model).update(normalizer_state=self.normalizer, previous_inputs=self.previous)

    def section(self, section: str, allowed: Iterable[str] = ()) -> dict[str, Any]:
        """A section of the file, decoded."""
        stored = self._agent[section]
        unknown = sorted(set(stored) - set(allowed)) if allowed else None
        if unknown:
            raise CheckpointError(
                f"{self.file}: {section} holds {', '.join(unknown)}, which is not known here; upgrade recurl"
            )
        return {name: self._decoder.decode(value, name) for name, value in stored.items()}


def set_weights(model: SavableAlgorithm, parameters: dict[str, Any], file: str, what: str, advice: str) -> None:
    """Gives an agent weights and the optimizer's state, which goes on computing as it does on this device.

    Raises:
        CheckpointError: they do not fit; ``what`` and ``advice`` say so.
    """
    check_parameters(model, parameters, file)
    groups = parameters.get("policy.optimizer", {}).get("param_groups", ())
    for stored, own in zip(groups, model.policy.optimizer.param_groups, strict=False):
        for name in KERNELS:
            stored.pop(name, None)
            if name in own:
                stored[name] = own[name]
    with refused(what, advice):
        model.set_parameters(parameters, exact_match=True, device=model.device)


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
    with refused(
        f"{file}: the optimizer's state does not fit this agent's optimizer",
        "give the optimizer_class it was trained with, or another file",
    ):
        for index, slots in state["state"].items():
            shape = owned[index].shape
            for name, slot in slots.items() if trusting else ():
                if not (isinstance(slot, Tensor) and (slot.numel() == 1 if name == "step" else slot.shape == shape)):
                    came = tuple(torch.as_tensor(slot).shape)
                    raise ValueError(f"{name} of parameter {index} has shape {came}, expected {tuple(shape)}")
        known = set().union(*(group.keys() for group in optimizer.param_groups)) | {"initial_lr", "param_names"}
        unknown = set().union(*(group.keys() for group in state["param_groups"])) - known
        if unknown:
            raise ValueError(f"{type(optimizer).__name__} has no {', '.join(sorted(map(str, unknown)))}")


def carried_by(model: SavableAlgorithm) -> dict[str, Any]:
    """What is carried from step to step, the memory's state on the CPU."""
    state = model._last_state
    on_cpu = None if state is None else tuple(part.cpu() for part in state)
    return {**{name: getattr(model, name) for name in CARRIED}, "_last_state": on_cpu}


def checked_carried(carried: dict[str, Any], model: SavableAlgorithm) -> dict[str, Any]:
    """What is carried from step to step, on the agent's device, if it is of the agent's spaces and memory."""
    expected = {
        "_last_obs": create_empty_array(model.observation_space, model.n_envs),
        "_last_episode_starts": np.zeros(model.n_envs),
        "_last_state": model.policy.initial_state(model.n_envs),
        "_last_noise": np.zeros((model.n_envs, model.policy.head.n_outputs)),
    }
    for name in expected.keys() & carried.keys():
        came, should = _shapes(carried[name]), _shapes(expected[name])
        if carried[name] is not None and came != should:
            raise ValueError(f"{name} has the shape {came}, expected {should}")
    state = carried.get("_last_state")
    return carried if state is None else {**carried, "_last_state": tuple(part.to(model.device) for part in state)}


def _shapes(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shapes(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_shapes, value))
    return (*value.shape, value.dtype) if isinstance(value, Tensor) else np.shape(value)


def imported_for_caller(objects: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller hands over, a memory that is named as ``"module:Class"`` imported on the caller's word."""
    result = dict(objects)
    for place in ("memory", "policy_kwargs.memory"):
        if isinstance(result.get(place), str) and result[place] not in MEMORIES:
            result[place] = memory_class(result[place])
    if isinstance(result.get("policy_kwargs"), Mapping):
        result["policy_kwargs"] = imported_for_caller(result["policy_kwargs"])
    return result


def _use_new_names(settings: Any) -> None:
    """Arguments of memories that have been renamed since a file was written."""
    policy_kwargs = settings.get("policy_kwargs") if isinstance(settings, dict) else None
    kwargs = policy_kwargs.get("memory_kwargs") if isinstance(policy_kwargs, dict) else None
    known = isinstance(policy_kwargs, dict) and policy_kwargs.get("memory", "lstm") in ("rnn", "lstm", "gru")
    if known and isinstance(kwargs, dict) and "initialisation" in kwargs:
        kwargs["initialization"] = kwargs.pop("initialisation")


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


def attribute_name(setting: str) -> str:
    return "_stats_window_size" if setting == "stats_window_size" else setting


def may_be_set(cls: type, name: str) -> bool:
    """Whether a file may give an agent an attribute: none that the package or a class's methods go by."""
    known = getattr(cls, name, None)
    return name.isidentifier() and name not in OWN_ATTRIBUTES and (known is None or isinstance(known, PLAIN))
