"""Imports models saved by ``sb3_contrib.RecurrentPPO``, without running what is pickled in them.

Such a file is a zip of one JSON document, ``data``, and state dicts written by ``torch.save``. Most fields of ``data``
are plain JSON; the others carry a pickle, and beside it, as text, what their attributes look like. The pickles are left
alone; schedules and classes that are known here are recognized by that text. The state dicts are read by
``agents.checkpoint.torch_file``.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from agents.checkpoint.agent import (
    COUNTERS,
    attribute_name,
    check_parameters,
    setting_names,
    undisturbed,
    use_own_kernels,
    with_memory_imported,
)
from agents.checkpoint.budget import building
from agents.checkpoint.container import MALFORMED, CheckpointError, PathOrFile, existing, name_of, parsed_json
from agents.checkpoint.torch_file import check_stored, read_state
from agents.checkpoint.values import SCHEDULES, known_classes
from agents.memory import registered_only

if TYPE_CHECKING:
    from agents.algorithms.ppo import RecurrentPPO

RENAMED = (("lstm_actor.", "memory_actor."), ("lstm_critic.", "memory_critic."), ("critic.", "memory_critic.linear."))
NUMBER = r"([-+0-9.e]+)"
CONSTANT = re.compile(rf"ConstantSchedule\(val={NUMBER}\)")
LINEAR = re.compile(rf"LinearSchedule\(start={NUMBER}, end={NUMBER}, end_fraction={NUMBER}\)")
PICKLED = ":serialized:"


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
) -> "RecurrentPPO":
    """The agent that ``sb3_contrib.RecurrentPPO`` saved, as one of ours: same actions, values and log-probabilities.

    Weights, the optimizer's state, settings and counters come along. A ``VecNormalize`` is not part of such a file:
    load it from its own and wrap ``env`` in it first.

    Args:
        env: to go on training in. It, or both spaces, must be given unless ``allow_pickle``.
        allow_pickle: False reads only the plain fields and the tensors, and asks for what is left: ``policy_kwargs``
            with classes of one's own now, a schedule that is a function when the agent is to learn. **True loads the
            file with sb3-contrib, which executes whatever code is in the file**: only for files that you trust as you
            trust a program.
        policy: name of the policy; by default seen from the spaces and the weights.
        policy_kwargs: those that the agent was made with, where the file only has them pickled.
        custom_objects: handed to sb3-contrib's ``load``; only with ``allow_pickle``.
        kwargs: further settings, in place of the stored ones.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no such file, or something must be given that cannot be read without unpickling.
    """
    from agents.algorithms.ppo import RecurrentPPO  # here, since the algorithms import this package

    file = str(existing(Path(path))) if isinstance(path, str | os.PathLike) else name_of(path)
    unknown = sorted(set(kwargs) - set(setting_names(RecurrentPPO)))
    if unknown:
        raise CheckpointError(f"RecurrentPPO has no setting {', '.join(unknown)} to change on importing {file}")
    if policy_kwargs is not None:
        kwargs["policy_kwargs"] = with_memory_imported(policy_kwargs)
    if custom_objects and not allow_pickle:
        raise CheckpointError("custom_objects are for allow_pickle=True; give settings by name, as learning_rate=1e-4")
    read = _unpickled if allow_pickle else _plain
    data, parameters, missing = read(path, file, kwargs, custom_objects)
    venv = None if env is None else RecurrentPPO._wrap_env(maybe_make_env(env, 0))
    observation_space, action_space = _spaces(file, data, venv, observation_space, action_space)
    policy = policy or _policy_name(observation_space, parameters["policy"])
    names = set(setting_names(RecurrentPPO)) - {"tensorboard_log"}  # a file does not say where to write
    settings = {name: data[name] for name in sorted(names & data.keys())} | kwargs
    with undisturbed():
        bounded = venv is None or "n_steps" not in kwargs
        model = _built(file, policy, settings, observation_space, action_space, device, data, venv, parameters, bounded)
        model.not_restored = missing
        _restore(model, parameters, file)
        if model.use_sde:
            model.policy.reset_noise(model.n_envs)
    vars(model).update({name: data[name] for name in COUNTERS if isinstance(data.get(name), int | float)})
    if venv is not None:
        model.env, model._vec_normalize_env = venv, unwrap_vec_normalize(venv)
        model.set_random_seed(model.seed)
    return model


def _plain(
    path: PathOrFile, file: str, given: Mapping[str, Any], custom_objects: Any
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """What can be read without unpickling: the fields that are data, the state dicts, and the settings that are not."""
    with _opened(path, file) as archive:
        stored = parsed_json(archive.read("data"), "data", file)
        parameters = {
            name: read_state(archive.read(f"{name}.pth"), f"{name}.pth", file)
            for name in ("policy", "policy.optimizer")
        }
    _check_weights(parameters["policy"], file)
    data, missing = {}, {}
    for name, value in stored.items():
        if isinstance(value, dict) and PICKLED in value:
            try:
                data[name] = _recognised(name, value)
            except MALFORMED as error:
                missing[name] = str(error.args[0])
        elif name not in ("observation_space", "action_space"):
            data[name] = value
    from agents.algorithms.ppo import RecurrentPPO

    needed = [name for name in setting_names(RecurrentPPO) if name in missing and name not in given]
    looks = "; ".join(f"{name} looks like {missing[name]}" for name in needed)
    asked = f"import_contrib(path, env, {', '.join(f'{name}=...' for name in needed)}) ({looks})"
    if "policy_kwargs" in needed:
        raise CheckpointError(
            f"{file} has {', '.join(needed)} only pickled, and unpickling runs code from the file. Give them: {asked}; "
            "or trust the file with allow_pickle=True"
        )
    if needed:
        warnings.warn(
            f"{file} has {', '.join(needed)} only pickled, and unpickling runs code from the file: the agent acts, and "
            f"to learn on you give them: {asked}",
            UserWarning,
            stacklevel=4,
        )
    return data, parameters, tuple(needed)


def _check_weights(weights: Mapping[str, Any], file: str) -> None:
    wrong = [name for name, part in weights.items() if not (isinstance(name, str) and isinstance(part, Tensor))]
    if wrong or not weights:
        what = f"{wrong[0]!r} is a {type(weights[wrong[0]]).__name__}" if wrong else "there are none"
        raise CheckpointError(f"{file}: policy.pth holds no weights by name ({what}); use another copy")


def _unpickled(
    path: PathOrFile, file: str, given: Mapping[str, Any], custom_objects: Any
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """What sb3-contrib makes of the file. Executes what is in it."""
    import sb3_contrib

    where: Any = path
    model = sb3_contrib.RecurrentPPO.load(where, device="cpu", custom_objects=custom_objects)
    return dict(vars(model)), model.get_parameters(), ()


@contextmanager
def _opened(path: PathOrFile, file: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file if isinstance(path, str | os.PathLike) else path) as archive:
            check_stored(archive, file)
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, KeyError) as error:
        raise CheckpointError(
            f"{file} is no model that sb3_contrib.RecurrentPPO saved, or damaged ({error})"
        ) from error


def _recognised(name: str, field: Mapping[str, Any]) -> Any:
    """A pickled field, where the text beside the pickle says what it is; else LookupError with what it looks like."""
    kind = str(field.get(":type:", ""))
    plain = {key: value for key, value in field.items() if key not in (":type:", PICKLED)}
    if name == "policy_kwargs" and kind == "<class 'dict'>":
        return {key: _recognised_class(value, plain) for key, value in plain.items()}
    for known, fields in SCHEDULES.values():
        if kind == str(known) and plain.keys() == set(fields):
            return known(*(float(plain[field]) for field in fields))
    schedule = str(plain.get("value_schedule", ""))
    if match := CONSTANT.fullmatch(schedule):
        return ConstantSchedule(float(match[1]))
    if match := LINEAR.fullmatch(schedule):
        return LinearSchedule(float(match[1]), float(match[2]), float(match[3]))
    raise LookupError(schedule or kind)


def _recognised_class(value: Any, beside: Mapping[str, Any]) -> Any:
    """Values in a pickled dict are as they are where they are JSON, and else as ``str()`` shows them."""
    if not isinstance(value, str):
        return value
    for known in known_classes().values():
        for cls in known.values():
            if str(cls) == value:
                return cls
    raise LookupError(dict(beside))


def _spaces(
    file: str, data: Mapping[str, Any], venv: VecEnv | None, observation_space: Any, action_space: Any
) -> tuple[Any, Any]:
    if venv is not None:
        observation_space, action_space = venv.observation_space, venv.action_space
    observation_space = observation_space or data.get("observation_space")
    action_space = action_space or data.get("action_space")
    if observation_space is None or action_space is None:
        raise CheckpointError(
            f"{file} has its spaces only pickled, and unpickling runs code from the file. Give the environment: "
            "import_contrib(path, env), or observation_space=... and action_space=...; or trust the file with "
            "allow_pickle=True"
        )
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        if name in data and data[name] != space:
            raise CheckpointError(f"{file}: {name} does not match: {data[name]} (saved) != {space} (given)")
    return observation_space, action_space


def _policy_name(observation_space: spaces.Space[Any], weights: Mapping[str, Any]) -> str:
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputLstmPolicy"
    return "CnnLstmPolicy" if any(name.startswith("features_extractor.cnn.") for name in weights) else "MlpLstmPolicy"


def _built(
    file: str,
    policy: str,
    settings: dict[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    device: torch.device | str,
    data: Mapping[str, Any],
    venv: VecEnv | None,
    parameters: Mapping[str, Any],
    bounded: bool,
) -> "RecurrentPPO":
    from agents.algorithms.ppo import RecurrentPPO

    n_weights = sum(tensor.numel() for tensor in parameters["policy"].values())
    try:
        with registered_only(), building(n_weights, file, bounded=bounded):
            model = RecurrentPPO(policy, None, device=device, _init_setup_model=False)
            vars(model).update({attribute_name(name): value for name, value in settings.items()})
            model.observation_space, model.action_space = observation_space, action_space
            model.n_envs = int(data.get("n_envs", 1)) if venv is None else venv.num_envs
            model._setup_model()
    except CheckpointError:
        raise
    except MALFORMED as error:
        raise CheckpointError(f"{file}: no RecurrentPPO can be built from its settings ({error})") from error
    return model


def _restore(model: "RecurrentPPO", parameters: Mapping[str, Any], file: str) -> None:
    weights = {_our_name(name): tensor for name, tensor in parameters["policy"].items()}
    theirs, ours = weights.keys(), model.policy.state_dict().keys()
    if theirs != ours:
        raise CheckpointError(
            f"{file}: the weights are not those of {type(model.policy).__name__} with these policy_kwargs "
            f"(missing: {', '.join(sorted(ours - theirs)) or 'none'}; too many: "
            f"{', '.join(sorted(theirs - ours)) or 'none'}); give policy=... and policy_kwargs=... as it was made with"
        )
    try:
        state = {
            "policy": weights,
            "policy.optimizer": _optimizer_state(model, weights, parameters["policy.optimizer"]),
        }
        check_parameters(model, state, file)
        use_own_kernels(model, state)
        state_dicts: Any = state
        model.set_parameters(state_dicts, exact_match=True, device=model.device)
    except CheckpointError:
        raise
    except MALFORMED as error:
        raise CheckpointError(
            f"{file}: its weights do not fit ({error}); give policy_kwargs=... as the agent was made with"
        ) from error


def _our_name(name: str) -> str:
    for theirs, ours in RENAMED:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _optimizer_state(model: "RecurrentPPO", weights: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Their optimizer's state in the order of our parameters. Optimizers number parameters as the policy lists them."""
    names = [name for name, _ in model.policy.named_parameters()]
    theirs = {name: index for index, name in enumerate(name for name in weights if name in set(names))}
    (group,) = state["param_groups"]
    if len(group["params"]) != len(names):
        raise ValueError(f"an optimizer of {len(group['params'])} parameters, expected {len(names)}")
    slots = {ours: state["state"][theirs[name]] for ours, name in enumerate(names) if theirs[name] in state["state"]}
    return {"state": slots, "param_groups": [{**group, "params": list(range(len(names)))}]}
