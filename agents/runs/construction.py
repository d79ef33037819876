"""From settings to environments, and to an agent that learns in them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

import configs
import envs
from agents.algorithms.a2c import RecurrentA2C
from agents.algorithms.ppo import RecurrentPPO
from agents.checks.arguments import imported
from agents.encoders import ENCODERS
from agents.encoders.kinds import kind_of
from agents.rollout.masks import ACTION_MASKS, ActionMaskVecEnv, has_action_masks, shows_masks
from agents.runs.defaults import fitted_to_episodes, fitted_to_family, fitted_to_spaces
from configs import EnvironmentFault, Settings, reported_as
from configs.settings import PPO_ONLY, SCHEDULED, EnvironmentSettings, PolicySettings

ALGORITHMS: dict[str, type[RecurrentPPO] | type[RecurrentA2C]] = {"ppo": RecurrentPPO, "a2c": RecurrentA2C}

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

# By what actions are about.
POLICIES = {"flat": "RecurrentPolicy", "nodes": "NodeActionPolicy", "links": "LinkActionPolicy"}


def make_environments(
    settings: Settings,
    n_envs: int,
    seed: int | None = None,
    render_mode: str | None = None,
    *,
    resumable: bool = False,
    first: int = 0,
) -> VecEnv:
    """The task as the settings describe it, before normalization; ``first``: the number of the first environment."""
    settings, _ = fitted_to_family(settings)
    task, is_rendered = settings.env, render_mode is not None
    with reported_as(EnvironmentFault, f"environment {task.id}"):
        env = envs.make(
            task.id,
            n_envs,
            seed=seed,
            env_kwargs=task.kwargs,
            wrappers=configs.wrappers(settings),
            backend="serial" if is_rendered else task.backend,
            render_mode=render_mode,
            workers=None if is_rendered else task.workers,
            timeout=None if is_rendered else task.timeout,
            address=None if is_rendered else task.address,
            max_restarts=task.max_restarts,
            resumable=resumable,
            first=first,
        )
        return ActionMaskVecEnv(env) if _shows_no_masks_yet(settings.policy, env) else env


def _shows_no_masks_yet(policy: PolicySettings, env: VecEnv) -> bool:
    """Whether the environments' ``action_masks()`` are to be obeyed, and their observations do not show them."""
    key = policy.kwargs.get("action_mask")
    is_meant = key == ACTION_MASKS or (key is None and policy.actions == "flat" and has_action_masks(env))
    return is_meant and not shows_masks(env.observation_space)


def make_agent(settings: Settings, env: VecEnv) -> RecurrentPPO | RecurrentA2C:
    """A new agent that learns in ``env``, normalized."""
    settings, _ = fitted_to_episodes(settings)
    settings, _ = fitted_to_spaces(settings, env.observation_space, env.action_space)
    arguments = dict(vars(settings.algorithm))
    name = arguments.pop("name")
    for scheduled in SCHEDULED:
        if arguments.pop(f"{scheduled}_schedule") == "linear":
            arguments[scheduled] = LinearSchedule(arguments[scheduled], 0.0, 1.0)
    if name == "a2c":
        arguments = {key: value for key, value in arguments.items() if key not in PPO_ONLY}
    chosen: Any = ALGORITHMS[name]
    agent: RecurrentPPO | RecurrentA2C = chosen(
        POLICIES[settings.policy.actions],
        normalize(env, settings.env, settings.algorithm.gamma),
        policy_kwargs=policy_arguments(settings.policy),
        seed=settings.seed,
        device=settings.device,
        **arguments,
    )
    return agent


def policy_arguments(policy: PolicySettings) -> dict[str, Any]:
    """``policy_kwargs`` of the general policy, with what names stand for in their place."""
    arguments = {name: getattr(policy, name) for name in ("memory", "memory_kwargs", "critic_memory", "log_std_init")}
    arguments["activation_fn"] = ACTIVATIONS[policy.activation]
    if policy.encoder is not None:
        arguments["features_extractor_class"] = encoder_class(policy.encoder)
    if policy.encoder_kwargs:
        arguments["features_extractor_kwargs"] = dict(policy.encoder_kwargs)
    if policy.actions == "nodes":
        arguments["first_node"] = policy.first_node
    if policy.net_arch is not None:
        critic = policy.net_arch if policy.critic_net_arch is None else policy.critic_net_arch
        arguments["net_arch"] = {"pi": list(policy.net_arch), "vf": list(critic)}
    return {**arguments, **policy.kwargs}


def own_classes(policy: PolicySettings) -> dict[str, Any]:
    """What of a policy is the user's own and so must be given to ``load``, which imports nothing for a file."""
    own: dict[str, Any] = {"memory": policy.memory} if ":" in policy.memory else {}
    if policy.encoder is not None and ":" in policy.encoder:
        own["features_extractor_class"] = encoder_class(policy.encoder)
    return own


def encoder_class(name: str) -> type[Any]:
    """The class a name of ``ENCODERS`` or ``"module:Class"`` stands for; the latter imports the module."""
    if name in ENCODERS:
        return ENCODERS[name]
    if ":" not in name:
        raise ValueError(f"no encoder is called {name!r}; there are {', '.join(ENCODERS)}, or give 'module:Class'")
    found: type[Any] = imported("encoder", name)
    return found


def normalize(env: VecEnv, task: EnvironmentSettings, gamma: float = 0.99) -> VecEnv:
    """``env`` in a ``VecNormalize`` over the parts of its observations for which a mean makes sense, and rewards.

    Images are scaled by the policy and discrete parts are categories: both are left alone.
    """
    space = env.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    keys = [key for key, part in parts.items() if task.normalize_observations and _is_measurement(part)]
    if not keys and not task.normalize_rewards:
        return env
    return VecNormalize(
        env,
        norm_obs=bool(keys),
        norm_reward=task.normalize_rewards,
        clip_obs=task.clip_observations,
        clip_reward=task.clip_rewards,
        gamma=gamma,
        norm_obs_keys=keys if keys and keys != [""] else None,
    )


def _is_measurement(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and kind_of(space) == "measurement"


class EvaluationEnvironments:
    """Environments of the evaluations' own: as many as play at once, recreated where that number changes."""

    def __init__(self, make: Callable[[int], VecEnv], most: int) -> None:
        self._make, self._most = make, most
        self._n = most
        self._env: VecEnv | None = make(most)

    def playing(self, episodes: int) -> VecEnv:
        """For so many episodes at once."""
        n = min(self._most, max(1, episodes))
        if self._env is None or n != self._n:
            self.close()
            self._n, self._env = n, self._make(n)
        return self._env

    def close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()
