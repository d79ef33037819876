"""Imports models saved by ``sb3_contrib.RecurrentPPO``, without running what is pickled in them, and writes such.

Such a file is a zip of one JSON document, ``data``, and state dicts written by ``torch.save``, which
``agents.checkpoint.torch_file`` reads. Most fields of ``data`` are plain JSON; the others carry a pickle with a text of
what its attributes look like. The pickles are left alone; schedules and classes that are known are recognized by that
text.
"""

import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from torch import Tensor

from agents.algorithms.ppo import RecurrentPPO
from agents.checkpoint import CheckpointError, undisturbed
from agents.checkpoint.agent import COUNTERS, imported_for_caller, set_weights, setting_names
from agents.checkpoint.container import MALFORMED, PathOrFile, name_of, opened, parsed_json, refused
from agents.checkpoint.loading import built, check_changes
from agents.checkpoint.torch_file import check_stored, read_state
from agents.checkpoint.values import SCHEDULES, known_classes
from agents.deploy.step import ExportError
from agents.memory import LSTM
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.policy.nodes import NodeActionPolicy

RENAMED = (("lstm_actor.", "memory_actor."), ("lstm_critic.", "memory_critic."), ("critic.", "memory_critic.linear."))
NUMBER = r"([-+0-9.e]+)"
CONSTANT = re.compile(rf"ConstantSchedule\(val={NUMBER}\)")
LINEAR = re.compile(rf"LinearSchedule\(start={NUMBER}, end={NUMBER}, end_fraction={NUMBER}\)")
PICKLED = ":serialized:"
AS_MADE = "give policy=... and policy_kwargs=... as the agent was made with"


def import_contrib(
    path: PathOrFile,
    env: GymEnv | str | None = None,
    *,
    allow_pickle: bool = False,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    policy: str | None = None,
    policy_kwargs: dict[str, Any] | None = None,
    device: torch.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    **kwargs: Any,
) -> RecurrentPPO:
    """The agent that ``sb3_contrib.RecurrentPPO`` saved, as one of ours: same actions, values and log-probabilities.

    Weights, the optimizer's state, settings and counters come along. A ``VecNormalize`` is not part of such a file:
    load it from its own and wrap ``env`` in it first.

    Args:
        env: to go on training in. It, or both spaces, must be given unless ``allow_pickle``.
        allow_pickle: False reads only plain fields and tensors, and asks for what is left. **True loads the file with
            sb3-contrib, which executes whatever code is in it**: only for files that you trust as a program.
        policy: name of the policy; by default seen from the spaces and the weights.
        policy_kwargs: those that the agent was made with, where the file only has them pickled.
        custom_objects: handed to sb3-contrib's ``load``; only with ``allow_pickle``.
        kwargs: further settings, in place of the stored ones.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no such file, or something must be given that cannot be read without unpickling.
    """
    if policy_kwargs is not None:
        kwargs["policy_kwargs"] = imported_for_caller(policy_kwargs)
    if custom_objects and not allow_pickle:
        raise CheckpointError("custom_objects are for allow_pickle=True; give settings by name, as learning_rate=1e-4")
    with opened(path) as stream:
        file = name_of(stream)
        check_changes(RecurrentPPO, kwargs, file)
        data, parameters, pickled = _unpickled(stream, custom_objects) if allow_pickle else _read(stream, file)
    missing = _ask_for({name: looks for name, looks in pickled.items() if name not in kwargs}, file)
    venv = None if env is None else RecurrentPPO._wrap_env(maybe_make_env(env, 0))
    if venv is not None:
        observation_space, action_space = venv.observation_space, venv.action_space
    observed, acted = _spaces(file, data, observation_space, action_space)
    names = set(setting_names(RecurrentPPO)) - {"tensorboard_log"}  # a file does not say where to write
    weights = {_our_name(name): tensor for name, tensor in parameters["policy"].items()}
    settings = {name: data[name] for name in sorted(names & data.keys())} | kwargs
    saved = SimpleNamespace(
        file=file,
        n_weights=sum(tensor.numel() for tensor in weights.values()),
        n_envs=data.get("n_envs", 1),
        observation_space=observed,
        action_space=acted,
    )
    policy, bounded = policy or _policy_name(observed, weights), venv is None or "n_steps" not in kwargs
    with undisturbed():
        model = built(RecurrentPPO, policy, settings, saved, venv, device, bounded=bounded)
        model.not_restored = missing
        _restore(model, weights, parameters["policy.optimizer"], file)
    vars(model).update({name: data[name] for name in COUNTERS if isinstance(data.get(name), int | float)})
    if venv is not None:
        model.env, model._vec_normalize_env = venv, unwrap_vec_normalize(venv)
        model.set_random_seed(model.seed)
    return model


Contents = tuple[dict[str, Any], dict[str, Any], dict[str, str]]
"""The fields of a file, its state dicts, and how the fields look that are only pickled."""


def _read(stream: IO[bytes], file: str) -> Contents:
    """What can be read without unpickling."""
    try:
        with zipfile.ZipFile(stream) as archive:
            check_stored(archive, file)
            stored = parsed_json(archive.read("data"), "data", file)
            parameters = {
                name: read_state(archive.read(f"{name}.pth"), f"{name}.pth", file)
                for name in ("policy", "policy.optimizer")
            }
    except (zipfile.BadZipFile, EOFError, NotImplementedError, KeyError) as error:
        reason = f"{file} is no model that sb3_contrib.RecurrentPPO saved, or damaged ({error})"
        raise CheckpointError(reason) from error
    weights = parameters["policy"].items()
    if not weights or not all(isinstance(name, str) and isinstance(part, Tensor) for name, part in weights):
        raise CheckpointError(f"{file}: policy.pth holds no weights by name; use another copy")
    if not any(name.startswith("lstm_actor.") for name in parameters["policy"]):
        raise CheckpointError(
            f"{file} holds no LSTM, so it is no model of sb3_contrib.RecurrentPPO; train one with that"
        )
    data, pickled = {}, {}
    for name, value in stored.items():
        try:
            data[name] = _recognized(name, value)
        except MALFORMED as error:
            pickled[name] = str(error.args[0])
    return data, parameters, pickled


def _unpickled(stream: IO[bytes], custom_objects: Any) -> Contents:
    """What sb3-contrib makes of the file. Executes what is in it."""
    import sb3_contrib  # half a second, which only this needs

    where: Any = stream
    model = sb3_contrib.RecurrentPPO.load(where, device="cpu", custom_objects=custom_objects)
    return dict(vars(model)), model.get_parameters(), {}


def _recognized(name: str, field: Any) -> Any:
    """A plain field, or a pickled one if the text with it says what it is; else LookupError with what it looks like."""
    if name in ("observation_space", "action_space"):
        raise LookupError("a space")
    if not (isinstance(field, dict) and PICKLED in field):
        return field
    kind = str(field.get(":type:", ""))
    plain = {key: value for key, value in field.items() if key not in (":type:", PICKLED)}
    if name == "policy_kwargs" and kind == "<class 'dict'>":
        return {key: _recognized_class(value, plain) for key, value in plain.items()}
    for known, fields in SCHEDULES.values():
        if kind == str(known) and plain.keys() == set(fields):
            return known(*(float(plain[field]) for field in fields))
    schedule = str(plain.get("value_schedule", ""))
    for pattern, made in ((CONSTANT, ConstantSchedule), (LINEAR, LinearSchedule)):
        if match := pattern.fullmatch(schedule):
            return made(*map(float, match.groups()))
    raise LookupError(schedule or kind)


def _recognized_class(value: Any, looks: Mapping[str, Any]) -> Any:
    """Values in a pickled dict are as they are if they are JSON, and else as ``str()`` shows them."""
    if not isinstance(value, str):
        return value
    found = (cls for known in known_classes().values() for cls in known.values() if str(cls) == value)
    if (cls := next(found, None)) is None:
        raise LookupError(dict(looks))
    return cls


def _ask_for(pickled: Mapping[str, str], file: str) -> tuple[str, ...]:
    """The settings that are missing: without ``policy_kwargs`` there is no agent, without others it can only act."""
    needed = tuple(name for name in setting_names(RecurrentPPO) if name in pickled)
    looks = "; ".join(f"{name} looks like {pickled[name]}" for name in needed)
    asked = f"import_contrib(path, env, {', '.join(f'{name}=...' for name in needed)}) ({looks})"
    found = f"{file} has {', '.join(needed)} only pickled, and unpickling runs code from the file"
    if "policy_kwargs" in needed:
        raise CheckpointError(f"{found}. Give them: {asked}; or trust the file with allow_pickle=True")
    if needed:
        warnings.warn(f"{found}: the agent acts, and to learn on you give them: {asked}", UserWarning, stacklevel=3)
    return needed


def _spaces(
    file: str, data: Mapping[str, Any], observation_space: Any, action_space: Any
) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    given = {"observation_space": observation_space, "action_space": action_space}
    for name, space in given.items():
        given[name] = space = space or data.get(name)
        if space is None:
            raise CheckpointError(
                f"{file} has its spaces only pickled, and unpickling runs code from the file. Give the environment: "
                "import_contrib(path, env), or observation_space=... and action_space=...; or trust the file with "
                "allow_pickle=True"
            )
        if data.get(name, space) != space:
            raise CheckpointError(f"{file}: {name} does not match: {data[name]} (saved) != {space} (given)")
    return given["observation_space"], given["action_space"]


def _policy_name(observation_space: spaces.Space[Any], weights: Mapping[str, Any]) -> str:
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputLstmPolicy"
    return "CnnLstmPolicy" if any(name.startswith("features_extractor.cnn.") for name in weights) else "MlpLstmPolicy"


def _restore(model: RecurrentPPO, weights: dict[str, Any], optimizer: Mapping[str, Any], file: str) -> None:
    theirs, ours = weights.keys(), model.policy.state_dict().keys()
    if theirs != ours:
        raise CheckpointError(
            f"{file}: the weights are not those of {type(model.policy).__name__} with these policy_kwargs (missing: "
            f"{', '.join(sorted(ours - theirs)) or 'none'}; too many: {', '.join(sorted(theirs - ours)) or 'none'}); "
            f"{AS_MADE}"
        )
    with refused(f"{file}: its weights do not fit", AS_MADE):
        parameters = {"policy": weights, "policy.optimizer": _optimizer_state(model, list(weights), optimizer)}
    set_weights(model, parameters, file, f"{file}: its weights do not fit", AS_MADE)
    if model.use_sde:
        model.policy.reset_noise(model.n_envs)


def _our_name(name: str) -> str:
    found = (ours + name.removeprefix(theirs) for theirs, ours in RENAMED if name.startswith(theirs))
    return next(found, name)


def _optimizer_state(model: RecurrentPPO, saved_names: list[str], state: Mapping[str, Any]) -> dict[str, Any]:
    """Their optimizer's state in the order of our parameters. Optimizers number parameters as the policy lists them."""
    names = [name for name, _ in model.policy.named_parameters()]
    theirs = {name: index for index, name in enumerate(name for name in saved_names if name in set(names))}
    (group,) = state["param_groups"]
    if len(group["params"]) != len(names):
        raise ValueError(f"an optimizer of {len(group['params'])} parameters, expected {len(names)}")
    slots = {ours: state["state"][theirs[name]] for ours, name in enumerate(names) if theirs[name] in state["state"]}
    return {"state": slots, "param_groups": [{**group, "params": list(range(len(names)))}]}


def to_sb3_zip(agent: Any, path: str | pathlib.Path) -> pathlib.Path:
    """Writes a file that ``sb3_contrib.RecurrentPPO.load`` reads: the way back of :func:`import_contrib`.

    Weights and settings that are numbers go along; schedules as the number they start with, and neither optimizer nor
    normalizer: save that with ``agent.get_vec_normalize_env().save("normalizer.pkl")``.

    Args:
        agent: a ``RecurrentPPO``, or a policy.
        path: a name that ends in .zip.

    Raises:
        ExportError: sb3-contrib has no such policy, or what it makes of the file acts otherwise; nothing is written.
        FileExistsError: there is such a file.
    """
    path = pathlib.Path(path)
    if path.suffix != ".zip":
        raise ExportError(f"{path}: expected a name that ends in .zip, got {path.suffix or 'none'}")
    if path.exists():
        raise FileExistsError(f"{path} is there already: remove it, or give another name")
    policy: RecurrentActorCriticPolicy = getattr(agent, "policy", agent)
    settings = {name: value for name in PLAIN if isinstance(value := getattr(agent, name, None), int | float | str)}
    with undisturbed():
        theirs = _their_model(policy, settings)
        _check_acts_alike(policy, theirs.policy)
    theirs.save(path)
    return path


PLAIN = (
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "vf_coef",
    "max_grad_norm",
    "ent_coef",
    "target_kl",
)
"""Settings that both have, where they are numbers."""
STEPS_COMPARED = 32


def _their_model(policy: RecurrentActorCriticPolicy, settings: dict[str, Any]) -> Any:
    """sb3-contrib's algorithm with a policy's weights."""
    import sb3_contrib  # half a second, which only this needs

    no_environment: Any = None
    theirs = sb3_contrib.RecurrentPPO(
        _their_policy(policy),
        no_environment,
        policy_kwargs=_their_kwargs(policy),
        use_sde=policy.use_sde,
        device="cpu",
        _init_setup_model=False,
        **settings,
    )
    theirs.observation_space, theirs.action_space, theirs.n_envs = policy.observation_space, policy.action_space, 1
    theirs._setup_model()
    weights = {_their_name(name): part.detach().cpu() for name, part in policy.state_dict().items()}
    if others := weights.keys() ^ theirs.policy.state_dict().keys():
        raise ExportError(f"sb3-contrib's policy has other weights ({', '.join(sorted(others))}): export it as .onnx")
    theirs.policy.load_state_dict(weights)
    return theirs


def _their_policy(policy: RecurrentActorCriticPolicy) -> str:
    """The name of sb3-contrib's policy.

    Raises:
        ExportError: there is none.
    """
    memory, extractor = policy.memory_actor, type(policy.pi_features_extractor)
    reasons = {
        f"the memory {type(memory).__name__}, where it has an LSTM alone": type(memory) is not LSTM,
        "a learned initial state": any(name.startswith("initial") for name, _ in memory.named_parameters()),
        "choices that start at another number than 0": bool(np.any(getattr(policy.action_space, "start", 0))),
        "dropout that is one mask through an episode": bool(getattr(memory, "dropout", 0.0)),
        "action masks": policy.action_mask is not None,
        "privileged observations": bool(policy.privileged),
        "actions about nodes or links": isinstance(policy, NodeActionPolicy),
        f"the encoder {extractor.__name__}": extractor not in THEIR_EXTRACTORS,
    }
    found = [reason for reason, is_so in reasons.items() if is_so]
    if found:
        raise ExportError(f"sb3-contrib has not {' nor '.join(found)}: export the agent as .onnx")
    return THEIR_EXTRACTORS[extractor]


THEIR_EXTRACTORS: dict[type, str] = {
    FlattenExtractor: "MlpLstmPolicy",
    NatureCNN: "CnnLstmPolicy",
    CombinedExtractor: "MultiInputLstmPolicy",
}


def _their_kwargs(policy: RecurrentActorCriticPolicy) -> dict[str, Any]:
    memory: Any = policy.memory_actor
    return {
        "net_arch": policy.net_arch,
        "activation_fn": policy.activation_fn,
        "features_extractor_kwargs": policy.features_extractor_kwargs,
        "share_features_extractor": policy.share_features_extractor,
        "normalize_images": policy.normalize_images,
        "squash_output": policy.squash_output,
        "lstm_hidden_size": memory.hidden_size,
        "n_lstm_layers": memory.num_layers,
        "shared_lstm": policy.critic_memory in ("shared", "detached"),  # alike in acting
        "enable_critic_lstm": policy.critic_memory == "separate",
        "lstm_kwargs": {"bias": memory.layer_parameters(0)[2] is not None},
    }


def _their_name(name: str) -> str:
    for theirs, ours in reversed(RENAMED):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _check_acts_alike(ours: RecurrentActorCriticPolicy, theirs: Any) -> None:
    """Raises ExportError unless both act alike on observations drawn from the space, an episode starting in between."""
    space, state, their_state = ours.observation_space, None, None
    space.seed(0)
    for step in range(STEPS_COMPARED):
        seen, starts = space.sample(), np.array([step % 10 == 0])
        one, state = ours.predict(seen, state, starts, deterministic=True)
        other, their_state = theirs.predict(seen, their_state, starts, deterministic=True)
        apart = float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max())
        if apart > 1e-5:
            raise ExportError(f"what sb3-contrib makes of the file acts otherwise ({apart:.3g} at step {step})")
