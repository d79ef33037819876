"""Environments: their ids are registered with gymnasium when this package is imported.

    make                   an id, how many, wrappers -> a fast vector environment behind SB3's VecEnv
    as_arrays              an environment with observations of any space -> one with arrays
    tasks.control          classic control without velocities
    tasks.recall           tasks whose best return is known
    tasks.sequences        sequences to be remembered
    tasks.graphs           a graph seen in part
    tasks.search           what lies where, found out bit by bit
    tasks.routing          a network whose loads are seen one node at a time
    tasks.batch            dynamics written once, for a batch and for one
    wrappers.transforms    what hides, garbles or adds to observations
    wrappers.padding       graphs and sequences as arrays of one size
    wrappers.arrays        observations of any space as arrays
    wrappers.frames        the frames of Atari games
    vector.families        which package has which ids, and what they train well with
    vector                 the ways to step: one NumPy program, one after the other, workers, gymnasium's

`gymnasium.make` and `gymnasium.make_vec` know the ids too. Importing this package imports neither torch nor
Stable-Baselines3; asking for `make` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import WrapperSpec

if TYPE_CHECKING:
    from envs.vector.vectorize import make as make
    from envs.wrappers.transforms import as_arrays as as_arrays

__all__ = ["as_arrays", "make"]


def _register(id: str, module: str, name: str, **settings: Any) -> None:
    # RL Baselines3 Zoo registers some of the same ids for the same tasks: without this, gymnasium warns of it.
    gymnasium.registry.pop(id, None)
    entry = f"{__name__}.tasks.{module}:{name}"
    gymnasium.register(id, entry_point=f"{entry}Env", vector_entry_point=entry, **settings)


def _hide(id: str, of: str, indices: Iterable[int], **kwargs: Any) -> None:
    """Another id for an environment that gymnasium has, without some entries of its observation."""
    gymnasium.registry.pop(id, None)
    spec = gymnasium.registry[of]
    settings = {"transform": "mask", "settings": {"indices": list(indices), "remove": True}}
    gymnasium.register(
        id,
        spec.entry_point,
        reward_threshold=spec.reward_threshold,
        max_episode_steps=spec.max_episode_steps,
        additional_wrappers=(WrapperSpec("WrappedEnv", f"{__name__}.wrappers.transforms:WrappedEnv", settings),),
        kwargs={**spec.kwargs, **kwargs},
    )


_register("CartPoleNoVel-v1", "control", "CartPole", max_episode_steps=500, reward_threshold=475.0)
_register("PendulumNoVel-v1", "control", "Pendulum", max_episode_steps=200)
_register(
    "MountainCarContinuousNoVel-v0", "control", "MountainCarContinuous", max_episode_steps=999, reward_threshold=90.0
)
_register("AcrobotNoVel-v1", "control", "Acrobot", max_episode_steps=500, reward_threshold=-100.0)
_register("TMaze-v0", "recall", "TMaze", reward_threshold=0.95)
_register("RepeatPrevious-v0", "recall", "RepeatPrevious", reward_threshold=0.95)
_register("RepeatFirst-v0", "recall", "RepeatFirst", reward_threshold=0.95)
_register("Copy-v0", "sequences", "Copy", reward_threshold=0.95)
_register("AssociativeRecall-v0", "sequences", "AssociativeRecall", reward_threshold=0.95)
_register("CountRecall-v0", "sequences", "CountRecall", reward_threshold=0.9)
_register("PhaseForecast-v0", "sequences", "PhaseForecast", reward_threshold=0.9)
_register("Recall-v0", "sequences", "Recall", reward_threshold=0.95)
_register("GraphSearch-v0", "graphs", "GraphSearch", reward_threshold=0.95)
_register("RockSample-v0", "search", "RockSample", max_episode_steps=1000)
_register("Battleship-v0", "search", "Battleship", max_episode_steps=1000)
_register("PacketRouting-v0", "routing", "PacketRouting", reward_threshold=0.95)

# Robots of other packages without a part of what they observe: "NoVel" where and how they are, "VelOnly" how they move.
_hide("HopperNoVel-v5", "Hopper-v5", range(5, 11))
_hide("HopperVelOnly-v5", "Hopper-v5", range(5))
_hide("Walker2dNoVel-v5", "Walker2d-v5", range(8, 17))
_hide("Walker2dVelOnly-v5", "Walker2d-v5", range(8))
_hide("HalfCheetahNoVel-v5", "HalfCheetah-v5", range(8, 17))
_hide("HalfCheetahVelOnly-v5", "HalfCheetah-v5", range(8))
_hide("AntNoVel-v5", "Ant-v5", range(13, 27), include_cfrc_ext_in_observation=False)
_hide("AntVelOnly-v5", "Ant-v5", range(13), include_cfrc_ext_in_observation=False)
_hide("LunarLanderNoVel-v3", "LunarLander-v3", (2, 3, 5))
_hide("BipedalWalkerNoVel-v3", "BipedalWalker-v3", (1, 2, 3, 5, 7, 10, 12))


def __getattr__(name: str) -> Any:
    if name == "make":
        from envs.vector.vectorize import make

        return make
    if name == "as_arrays":
        from envs.wrappers.transforms import as_arrays

        return as_arrays
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
