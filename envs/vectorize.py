"""From an id and wrappers to a fast vector environment behind Stable-Baselines3's VecEnv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gymnasium
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from envs.vector import VectorEnvAdapter

Backend = Literal["auto", "vector", "serial", "subprocess"]


def make(
    id: str | Callable[[], gymnasium.Env[Any, Any]],
    n_envs: int = 8,
    *,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Any] = (),
    backend: Backend = "auto",
    render_mode: str | None = None,
) -> VecEnv:
    """`n_envs` environments `id` that step together."""
    if not isinstance(id, str):
        raise TypeError(f"expected the id of an environment, not {id!r}")
    env = gymnasium.make_vec(
        id, n_envs, vectorization_mode="vector_entry_point", render_mode=render_mode, **dict(env_kwargs or {})
    )
    venv = VectorEnvAdapter(env)
    if seed is not None:
        venv.seed(seed)
    return venv
