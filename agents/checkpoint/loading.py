"""Loading an agent: built from what its file says, and given an environment as it learned to see it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_normalize

from agents.checkpoint.agent import (
    CARRIED,
    COUNTERS,
    STATISTICS,
    SavableAlgorithm,
    SavedAgent,
    attribute_name,
    setting_names,
)
from agents.checkpoint.budget import building
from agents.checkpoint.container import CheckpointError, PathOrFile, refused
from agents.checkpoint.normalizer import NormalizerState, RestoredNormalizer, is_fresh
from agents.checkpoint.previous import PreviousInputs
from agents.checkpoint.random_states import set_process_states, undisturbed
from agents.checks.text import printable
from agents.rollout.masks import as_shown

Algorithm = TypeVar("Algorithm", bound=SavableAlgorithm)


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
            without the last action and reward if the agent learned to see them: they are put around it. If the agent
            learned with ``VecNormalize``, an environment without is wrapped in one with the saved statistics and
            settings, which are at work while the agent learns; at other times observations are normalized, rewards
            are the true ones and nothing moves. A ``VecNormalize`` that has seen nothing gets the statistics, and any
            other is left as it is.
        custom_objects: classes, functions or settings to use in place of the stored ones, by name:
            ``{"features_extractor_class": MyExtractor, "learning_rate": my_schedule}``. What is not part of this
            package must be given, since a file holds only its name.
        print_system_info: prints the versions here and those that the file was written with.
        force_reset: starts new episodes. With False, and as many environments as before, training goes on from the
            last observation with the carried memory: for an environment that is handed over as it stands.
        kwargs: settings to change, such as ``learning_rate=1e-4``. With ``seed`` everything is seeded by it; else the
            random states are restored if an environment is given, and without one they are left as they are.
            ``tensorboard_log`` is never taken from a file: it says where to write.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or not known here, or does not fit what was given.
    """
    saved = SavedAgent(path, custom_objects)
    if print_system_info:
        _print_versions(saved)
    saved.check_algorithm(cls)
    check_changes(cls, kwargs, saved.file)
    settings, missing = saved.settings(cls, kwargs, to_learn=env is not None)
    settings |= {name: value for name, value in kwargs.items() if name != "policy_kwargs"}
    if env is not None:
        saved.warn_of_log(kwargs)
    venv, filled = (None, None) if env is None else _prepared(cls, env, saved)
    policy = settings.pop("policy_class", None) or saved.policy_class(cls.policy_aliases)
    settings["policy_kwargs"] = saved.with_encoder(settings.get("policy_kwargs") or {}, policy)
    bounded = venv is None or "n_steps" not in {*kwargs, *saved.custom_objects}
    with undisturbed():
        model = built(cls, policy, settings, saved, venv, device, bounded=bounded)
        model.not_restored = missing
        saved.restore(model)
        if model.use_sde:
            model.policy.reset_noise(model.n_envs)
    if venv is not None:
        _continue_in(model, venv, filled, saved, force_reset)
    if kwargs.get("seed") is None:
        _restore_random_states(model, saved, everywhere=venv is not None)
    elif venv is not None:
        model.set_random_seed(model.seed)
    return model


def _print_versions(saved: SavedAgent) -> None:
    print("== CURRENT SYSTEM INFO ==")
    get_system_info()
    lines = (printable(f"- {name}: {version}") for name, version in saved.versions.items())
    print("== SAVED MODEL SYSTEM INFO ==", *lines, sep="\n")


def check_changes(cls: type, kwargs: Mapping[str, Any], file: str) -> None:
    """Raises CheckpointError unless an algorithm has these settings."""
    known = {*setting_names(cls), *COUNTERS, *STATISTICS, *CARRIED, "policy_class"}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise CheckpointError(
            f"{cls.__name__} has no setting {', '.join(unknown)} to change on loading {file}; "
            f"there are {', '.join(sorted(setting_names(cls)))}"
        )


def built(
    cls: type[Algorithm],
    policy: Any,
    settings: Mapping[str, Any],
    saved: Any,
    venv: VecEnv | None,
    device: torch.device | str,
    *,
    bounded: bool,
) -> Algorithm:
    """An agent with these settings, its networks and buffer for ``venv`` or as many environments as its file says.

    Args:
        saved: what the file says: ``file``, ``n_weights``, ``n_envs``, ``observation_space`` and ``action_space``.
        bounded: as for :func:`agents.checkpoint.budget.building`.
    """
    made: Any = cls
    with building(cls.__name__, saved.file, saved.n_weights, bounded=bounded):
        model: Algorithm = made(policy, None, device=device, _init_setup_model=False)
        vars(model).update({attribute_name(name): value for name, value in settings.items()})
        model.observation_space, model.action_space = saved.observation_space, saved.action_space
        model.n_envs = saved.n_envs if venv is None else venv.num_envs
        model._setup_model()
    return model


def _prepared(cls: type[Algorithm], env: GymEnv | str, saved: SavedAgent) -> tuple[VecEnv, VecNormalize | None]:
    """The environment as the agent learned to see it, and the normalizer that was given its statistics, if any."""
    verbose = saved.setting("verbose", 0)
    if not isinstance(verbose, int | np.integer):
        raise CheckpointError(f"{saved.file}: verbose is {verbose!r}, expected 0, 1 or 2; use another copy")
    verbose, state = int(verbose), saved.normalizer
    env = cls.find(env) if isinstance(env, str) else env
    venv = as_shown(cls._wrap_env(maybe_make_env(env, verbose), verbose), saved.observation_space)
    own = unwrap_vec_normalize(venv)
    left_alone = state is None or (own is not None and not is_fresh(own))
    venv = completed(cls, venv, env, saved.previous, state, verbose)
    if state is not None and own is not None and not left_alone:
        state.load_into(own)
    for kind, ours, theirs in (
        ("Observation", saved.observation_space, venv.observation_space),
        ("Action", saved.action_space, venv.action_space),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{saved.file}: {kind} spaces do not match: {ours} (saved) != {theirs} (of the environment given)"
            )
    return venv, None if left_alone else unwrap_vec_normalize(venv)


def _continue_in(
    model: SavableAlgorithm, venv: VecEnv, filled: VecNormalize | None, saved: SavedAgent, force_reset: bool
) -> None:
    """Gives a loaded agent its environment."""
    model.env, model._vec_normalize_env = venv, unwrap_vec_normalize(venv)
    if force_reset:
        model._last_obs = None
        if model.seed is not None:
            venv.seed(model.seed)
    elif filled is not None and saved.normalizer is not None:
        saved.normalizer.resume(filled)


def _restore_random_states(model: SavableAlgorithm, saved: SavedAgent, *, everywhere: bool) -> None:
    states = saved.section("random")
    with refused(f"{saved.file}: the random states cannot be understood"):
        model.random_generator.bit_generator.state = states["model"]
        if everywhere:
            set_process_states(states)


def read_parameters(path: PathOrFile, device: torch.device | str = "cpu") -> dict[str, dict[str, Any]]:
    """The state dicts of a file by the name of what they belong to, for ``model.set_parameters``."""
    return SavedAgent(path).parameters(device)


def normalizer_state(source: Any) -> NormalizerState | None:
    """A copy of what an agent's normalizer knows, from the agent or its file; None if it learned without one."""
    if not hasattr(source, "get_vec_normalize_env"):
        return SavedAgent(source).normalizer
    wrapper = source.get_vec_normalize_env()
    kept: NormalizerState | None = getattr(source, "normalizer_state", None)
    return kept if wrapper is None else NormalizerState.of(wrapper)


def previous_inputs(source: Any) -> PreviousInputs | None:
    """What an agent, or that of a file, sees besides observations: last action and reward; None: neither."""
    if not hasattr(source, "get_vec_normalize_env"):
        return SavedAgent(source).previous
    kept: PreviousInputs | None = getattr(source, "previous_inputs", None)
    return kept if source.get_env() is None else PreviousInputs.of(source.get_env())


def normalizer(source: Any, venv: VecEnv) -> VecNormalize:
    """``venv`` as an agent (or its file) learned to see it, for evaluation.

    The statistics are a copy and stand still, and rewards are the true ones. If the agent sees its last action and
    reward and ``venv`` does not show them, it is wrapped so that it does. An agent that learned without a normalizer
    gets a ``VecNormalize`` that changes nothing.

    Raises:
        CheckpointError: ``venv`` is normalized already, or its observations do not fit the statistics.
    """
    if unwrap_vec_normalize(venv) is not None:
        raise CheckpointError("the environment is in a VecNormalize already; give it without, as envs.make() makes it")
    state, previous = normalizer_state(source), previous_inputs(source)
    if previous is not None and previous.missing_in(venv):
        venv = previous.wrap(venv)
    if state is None:
        return VecNormalize(venv, training=False, norm_obs=False, norm_reward=False)
    return replace(state, settings={**state.settings, "training": False, "norm_reward": False}).wrap(venv)


def as_learned(model: SavableAlgorithm, venv: VecEnv) -> VecEnv:
    """Plain environments for evaluation as a loaded agent learned to see its own, with the true rewards."""
    wrapper, venv = model.get_vec_normalize_env(), as_shown(venv, model.observation_space)
    state = NormalizerState.of(wrapper) if isinstance(wrapper, RestoredNormalizer) else None
    return completed(type(model), venv, venv, previous_inputs(model), state)


def completed(
    cls: type[SavableAlgorithm],
    venv: VecEnv,
    given: Any,
    previous: PreviousInputs | None,
    state: NormalizerState | None,
    verbose: int = 0,
) -> VecEnv:
    """``venv``, which was made from what was ``given``, with those of an agent's wrappers that it is without."""
    # Images are changed as they come and transposed after, so that the wrappers go below the transposition.
    inside = seen = venv.venv if isinstance(venv, VecTransposeImage) and venv is not given else venv
    if previous is not None and previous.missing_in(seen):
        seen = previous.wrap(seen)
    if state is not None and unwrap_vec_normalize(seen) is None:
        seen = state.wrap(seen)
    return venv if seen is inside else cls._wrap_env(seen, verbose)
