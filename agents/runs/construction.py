"""From settings to environments, and to an agent that learns in them."""

import importlib
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

import configs
import envs
from agents.algorithms.a2c import RecurrentA2C
from agents.algorithms.ppo import RecurrentPPO
from agents.encoders import ENCODERS
from agents.runs.threads import available_cpus
from configs import EnvironmentFault, Settings, reported_as

ALGORITHMS: dict[str, type[RecurrentPPO] | type[RecurrentA2C]] = {"ppo": RecurrentPPO, "a2c": RecurrentA2C}

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

POLICIES = {"flat": "RecurrentPolicy", "nodes": "NodeActionPolicy"}  # by what actions are about

PPO_ONLY = {"batch_size", "n_epochs", "clip_range", "clip_range_vf", "target_kl", "refresh_states", "burn_in"}


def make_environments(
    settings: Settings, n_envs: int, seed: int | None = None, render_mode: str | None = None, *, resumable: bool = False
) -> VecEnv:
    """The task as the settings describe it, before normalization."""
    task, is_rendered = settings.env, render_mode is not None
    workers = task.workers
    if task.backend == "subprocess" and workers is None:
        workers = available_cpus()  # within a container's share of the processors
    with reported_as(EnvironmentFault, f"environment {task.id}"):
        return envs.make(
            task.id,
            n_envs,
            seed=seed,
            env_kwargs=task.kwargs,
            wrappers=configs.wrappers(settings),
            backend="serial" if is_rendered else task.backend,
            render_mode=render_mode,
            workers=None if is_rendered else workers,
            timeout=None if is_rendered else task.timeout,
            max_restarts=task.max_restarts,
            resumable=resumable,
        )


def make_agent(
    env: VecEnv, algorithm: Mapping[str, Any], policy: Mapping[str, Any], *, seed: int, device: str
) -> RecurrentPPO | RecurrentA2C:
    """An agent that learns in ``env``.

    Args:
        algorithm: its ``name`` and arguments; ``learning_rate_schedule`` and ``clip_range_schedule`` are "constant" or
            "linear" (falling to 0).
        policy: see :func:`policy_arguments`.

    Raises:
        ValueError, TypeError, NotImplementedError: a setting cannot be used with another, or with the spaces.
    """
    arguments = dict(algorithm)
    name = arguments.pop("name")
    for scheduled in ("learning_rate", "clip_range"):
        if arguments.pop(f"{scheduled}_schedule") == "linear":
            arguments[scheduled] = LinearSchedule(arguments[scheduled], 0.0, 1.0)
    if name == "a2c":
        arguments = {key: value for key, value in arguments.items() if key not in PPO_ONLY}
    chosen: Any = ALGORITHMS[name]
    agent: RecurrentPPO | RecurrentA2C = chosen(
        POLICIES[policy["actions"]], env, policy_kwargs=policy_arguments(policy), seed=seed, device=device, **arguments
    )
    return agent


def policy_arguments(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Names to what they name: ``policy_kwargs`` of the general policy.

    Args:
        policy: ``memory``, ``memory_kwargs``, ``critic_memory``, ``encoder``, ``encoder_kwargs``, ``net_arch``,
            ``critic_net_arch``, ``activation``, ``log_std_init``, ``actions`` and for those about nodes ``first_node``,
            and further ``kwargs`` as they are.
    """
    arguments: dict[str, Any] = {key: policy[key] for key in ("memory", "critic_memory", "log_std_init")}
    arguments["memory_kwargs"] = dict(policy["memory_kwargs"])
    arguments["activation_fn"] = ACTIVATIONS[policy["activation"]]
    if policy["encoder"] is not None:
        arguments["features_extractor_class"] = encoder_class(policy["encoder"])
    if policy["actions"] == "nodes":
        arguments["first_node"] = policy["first_node"]
    if policy["encoder_kwargs"]:
        arguments["features_extractor_kwargs"] = dict(policy["encoder_kwargs"])
    if policy["net_arch"] is not None:
        critic = policy["net_arch"] if policy["critic_net_arch"] is None else policy["critic_net_arch"]
        arguments["net_arch"] = {"pi": list(policy["net_arch"]), "vf": list(critic)}
    return {**arguments, **policy["kwargs"]}


def own_classes(policy: Mapping[str, Any]) -> dict[str, Any]:
    """What of a policy is the user's own and so must be handed to ``load``, which imports nothing for a file."""
    own = {"memory": policy["memory"]} if ":" in policy["memory"] else {}
    if policy["encoder"] is not None and ":" in policy["encoder"]:
        own["features_extractor_class"] = encoder_class(policy["encoder"])
    return own


def encoder_class(name: str) -> type[Any]:
    """The class a name of ``ENCODERS`` or ``"module:Class"`` stands for; the latter imports the module."""
    if name in ENCODERS:
        return ENCODERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"no encoder is called {name!r}; there are {', '.join(ENCODERS)}, or give 'module:Class'")
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"encoder {name!r} cannot be imported ({error})") from error
    return found
