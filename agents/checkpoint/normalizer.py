"""The running statistics of a ``VecNormalize`` as data, and back around an environment.

An agent that learned from normalized observations is blind without the statistics, so they are saved and loaded with
it. Axes: B environments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.checkpoint.container import CheckpointError, refused
from agents.checkpoint.values import Decoder

FRESH_COUNT = RunningMeanStd().count
SWITCHES = ("training", "norm_obs", "norm_reward")
NUMBERS = ("clip_obs", "clip_reward", "gamma", "epsilon")
SETTINGS = (*SWITCHES, *NUMBERS, "norm_obs_keys")


class RestoredNormalizer(VecNormalize):
    """The normalizer that came with a saved agent, around an environment that was given without one.

    While the agent learns it is what it was in training. At all other times it normalizes observations alone, gives the
    true rewards, and its statistics stand still: who looks at the environment need not know of it.
    """

    def __init__(self, venv: VecEnv, **settings: Any) -> None:
        super().__init__(venv, **settings)
        self.learns_with = {"training": self.training, "norm_reward": self.norm_reward}
        self._rest()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The agent learns inside."""
        vars(self).update(self.learns_with)
        try:
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        self.training = self.norm_reward = False

    def __getstate__(self) -> dict[str, Any]:
        """In a file of Stable-Baselines3's it is an ordinary normalizer."""
        return {**super().__getstate__(), **self.learns_with}


@dataclass(frozen=True)
class NormalizerState:
    """Everything a ``VecNormalize`` knows.

    Args:
        settings: its constructor's arguments.
        observation_space: that of the environments inside it, before normalization.
        observations: statistics of each key of a Dict observation, under ``""`` those of a plain one; empty if
            observations are not normalized.
        rewards: statistics of the discounted return, by which rewards are scaled.
        returns: (B,) the discounted return of each running episode.
        last_observations: the last ones, unnormalized, as ``get_original_obs`` gives them; None before the first.
    """

    settings: dict[str, Any]
    observation_space: spaces.Space[Any]
    observations: dict[str, RunningMeanStd]
    rewards: RunningMeanStd
    returns: NDArray[np.float64]
    last_observations: Any = None

    @classmethod
    def of(cls, wrapper: VecNormalize) -> "NormalizerState":
        """A copy of a wrapper's state."""
        settings = {name: getattr(wrapper, name) for name in SETTINGS}
        if isinstance(wrapper, RestoredNormalizer):
            settings |= wrapper.learns_with
        return cls(
            settings=settings,
            observation_space=wrapper.venv.observation_space,
            observations={key: part.copy() for key, part in statistics_of(wrapper).items()},
            rewards=wrapper.ret_rms.copy(),
            returns=np.array(wrapper.returns, np.float64),
            last_observations=getattr(wrapper, "old_obs", None),
        )

    @property
    def reward_scale(self) -> float:
        """The standard deviation that rewards were divided by in training; 1 where they were not."""
        deviation = np.sqrt(self.rewards.var + self.settings["epsilon"])
        return float(deviation) if self.settings["norm_reward"] else 1.0

    def to_data(self) -> dict[str, Any]:
        """Plain values, arrays and a space, for :class:`agents.checkpoint.values.Encoder`."""
        return {
            **vars(self),
            "observations": {key: _moments(part) for key, part in self.observations.items()},
            "rewards": _moments(self.rewards),
        }

    @classmethod
    def from_data(cls, data: Any, decoder: Decoder, file: str) -> "NormalizerState | None":
        """The inverse, on what was read from a file; every shape is checked against the space."""
        read = decoder.decode(data, "normalizer")
        if read is None:
            return None
        with refused(f"{file}: the normalizer cannot be understood"):
            space = read["observation_space"]
            observations = {
                key: _running(part, (space.spaces[key] if isinstance(space, spaces.Dict) else space).shape)
                for key, part in read["observations"].items()
            }
            state = cls(**{**read, "observations": observations, "rewards": _running(read["rewards"], ())})
            state._check()
        return state

    def _check(self) -> None:
        keys = self.settings["norm_obs_keys"]
        if set(self.settings) != set(SETTINGS) or not isinstance(self.observation_space, spaces.Space):
            raise ValueError(f"expected the settings {', '.join(SETTINGS)}")
        if not (keys is None or (isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys))):
            raise ValueError(f"norm_obs_keys {keys!r}")
        for names, kind in ((SWITCHES, bool), (NUMBERS, int | float | np.number)):
            for name in names:
                if not isinstance(self.settings[name], kind):
                    raise ValueError(f"{name} is {self.settings[name]!r}")
        if self.returns.ndim != 1:
            raise ValueError(f"returns of shape {self.returns.shape}")

    def wrap(self, venv: VecEnv) -> RestoredNormalizer:
        """``venv`` in a new normalizer with these settings and statistics, at rest.

        Raises:
            CheckpointError: its observations are not of the kind that were normalized.
        """
        if shapes_of(venv.observation_space) != shapes_of(self.observation_space):
            raise CheckpointError(
                f"the saved normalizer was around an environment with observations {self.observation_space}, the one "
                f"given has {venv.observation_space}; give an environment as it was before normalization, or wrap it "
                "in VecNormalize yourself, where it belongs among the other wrappers"
            )
        with refused(f"no VecNormalize can be made with the saved settings {self.settings}"):
            wrapper = RestoredNormalizer(venv, **self.settings)
        self.load_into(wrapper)
        return wrapper

    def load_into(self, wrapper: VecNormalize) -> None:
        """Gives a wrapper these statistics, and leaves its settings.

        Raises:
            CheckpointError: it normalizes other observations than the agent learned from.
        """
        statistics = statistics_of(wrapper)
        ours = {key: part.mean.shape for key, part in self.observations.items()}
        theirs = {key: part.mean.shape for key, part in statistics.items()}
        if ours != theirs:
            raise CheckpointError(
                f"the agent learned with normalized observations {_described(ours)}, the VecNormalize given normalizes "
                f"{_described(theirs)}; give it norm_obs={self.settings['norm_obs']} and "
                f"norm_obs_keys={self.settings['norm_obs_keys']}, or give the environment without it and it is wrapped"
            )
        for key, part in self.observations.items():
            vars(statistics[key]).update(vars(part.copy()))
        vars(wrapper.ret_rms).update(vars(self.rewards.copy()))

    def resume(self, wrapper: VecNormalize) -> None:
        """Also gives a wrapper what belongs to the episodes in progress, if there are as many environments."""
        if self.returns.shape == (wrapper.num_envs,):
            wrapper.returns = self.returns.copy()
            if self.last_observations is not None:
                wrapper.old_obs = self.last_observations

    def normalize(self, observation: Any) -> Any:
        """``VecNormalize.normalize_obs``, of one observation or a batch (B, ...)."""
        if not isinstance(observation, dict):
            return self._normalized(observation, "")
        return {key: self._normalized(part, key) for key, part in observation.items()}

    def _normalized(self, observation: NDArray[Any], key: str) -> NDArray[Any]:
        if key not in self.observations:
            return observation
        seen, limit = self.observations[key], self.settings["clip_obs"]
        scaled = (observation - seen.mean) / np.sqrt(seen.var + self.settings["epsilon"])
        clipped: NDArray[np.float32] = np.clip(scaled, -limit, limit).astype(np.float32)
        return clipped


def is_fresh(wrapper: VecNormalize) -> bool:
    """Whether it has seen nothing yet."""
    statistics = [*statistics_of(wrapper).values(), wrapper.ret_rms]
    return all(part.count == FRESH_COUNT for part in statistics)


def shapes_of(space: spaces.Space[Any]) -> Any:
    """The shape of a space's observations, by key in a Dict: what spaces have in common whatever their bounds."""
    if isinstance(space, spaces.Dict):
        return {key: shapes_of(part) for key, part in space.spaces.items()}
    return space.shape


def statistics_of(wrapper: VecNormalize) -> dict[str, RunningMeanStd]:
    """Those of each key of a Dict observation, under ``""`` those of a plain one; empty if none are normalized."""
    if not wrapper.norm_obs:
        return {}
    statistics: Any = wrapper.obs_rms
    return dict(statistics) if isinstance(statistics, dict) else {"": statistics}


def _moments(statistics: RunningMeanStd) -> list[Any]:
    return [np.array(statistics.mean, np.float64), np.array(statistics.var, np.float64), float(statistics.count)]


def _running(moments: Any, shape: Any) -> RunningMeanStd:
    statistics = RunningMeanStd(shape=shape)
    statistics.mean, statistics.var, statistics.count = moments
    if statistics.mean.shape != shape or statistics.var.shape != shape or not isinstance(statistics.count, float):
        raise ValueError(f"statistics of shape {statistics.mean.shape} for observations of shape {shape}")
    return statistics


def _described(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key or 'of shape'} {shape}" for key, shape in shapes.items()) or "not at all"
