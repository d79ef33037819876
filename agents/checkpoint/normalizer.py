"""The running statistics of a ``VecNormalize`` as data, and back around an environment.

An agent that learned from normalised observations is blind without the statistics, so they are saved and loaded with
it. Axes: B environments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.checkpoint.container import MALFORMED, CheckpointError
from agents.checkpoint.values import Decoder

FRESH_COUNT = RunningMeanStd().count
SETTINGS = ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


class RestoredNormalizer(VecNormalize):
    """The normalizer that came with a saved agent, around an environment that was given without one.

    While the agent learns it is what it was in training. At all other times it shows observations as the agent knows
    them, gives the true rewards, and its statistics stand still: who looks at the environment need not know of it.
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


class Moments(NamedTuple):
    """Mean and variance of what was seen, float64, and how many that were."""

    mean: NDArray[np.float64]
    var: NDArray[np.float64]
    seen: float

    @classmethod
    def of(cls, statistics: RunningMeanStd) -> "Moments":
        mean, var = np.array(statistics.mean, np.float64), np.array(statistics.var, np.float64)
        return cls(mean, var, float(statistics.count))

    def write_to(self, statistics: RunningMeanStd) -> None:
        statistics.mean, statistics.var, statistics.count = self.mean.copy(), self.var.copy(), self.seen


@dataclass(frozen=True)
class NormalizerState:
    """Everything a ``VecNormalize`` knows.

    Args:
        settings: its constructor's arguments.
        observation_space: that of the environments inside it, before normalisation.
        observations: moments of each key of a Dict observation, under ``""`` those of a plain one; empty where
            observations are not normalised.
        rewards: moments of the discounted return, by which rewards are scaled.
        returns: (B,) the discounted return of each running episode.
        last_observations: the last ones, unnormalised, as ``get_original_obs`` gives them; None before the first.
    """

    settings: dict[str, Any]
    observation_space: spaces.Space[Any]
    observations: dict[str, Moments]
    rewards: Moments
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
            observations={key: Moments.of(part) for key, part in _statistics(wrapper).items()},
            rewards=Moments.of(wrapper.ret_rms),
            returns=np.array(wrapper.returns, np.float64),
            last_observations=getattr(wrapper, "old_obs", None),
        )

    def to_data(self) -> dict[str, Any]:
        """Plain values, arrays and a space, for :class:`agents.checkpoint.values.Encoder`."""
        return {
            "settings": self.settings,
            "observation_space": self.observation_space,
            "observations": {key: list(part) for key, part in self.observations.items()},
            "rewards": list(self.rewards),
            "returns": self.returns,
            "last_observations": self.last_observations,
        }

    @classmethod
    def from_data(cls, data: Any, decoder: Decoder, file: str) -> "NormalizerState":
        """The inverse, on what was read from a file; every shape is checked against the space."""
        read = decoder.decode(data, "normalizer")
        try:
            state = cls(
                settings=dict(read["settings"]),
                observation_space=read["observation_space"],
                observations={key: Moments(*part) for key, part in read["observations"].items()},
                rewards=Moments(*read["rewards"]),
                returns=read["returns"],
                last_observations=read["last_observations"],
            )
            if set(state.settings) != set(SETTINGS) or not isinstance(state.observation_space, spaces.Space):
                raise ValueError(f"expected the settings {', '.join(SETTINGS)}")
            _check_settings(state.settings)
            _check_moments(state)
        except MALFORMED as error:
            raise CheckpointError(f"{file}: the normaliser cannot be understood ({error}); use another copy") from error
        return state

    def wrap(self, venv: VecEnv) -> RestoredNormalizer:
        """``venv`` in a new normalizer with these settings and statistics, at rest.

        Raises:
            CheckpointError: its observations are not of the kind that were normalised.
        """
        if not same_shapes(venv.observation_space, self.observation_space):
            raise CheckpointError(
                f"the saved normaliser was around an environment with observations {self.observation_space}, the one "
                f"given has {venv.observation_space}; give an environment as it was before normalisation, or wrap it "
                "in VecNormalize yourself, where it belongs among the other wrappers"
            )
        try:
            wrapper = RestoredNormalizer(venv, **self.settings)
        except MALFORMED as error:
            raise CheckpointError(
                f"no VecNormalize can be made with the saved settings {self.settings}: {error}"
            ) from error
        self.load_into(wrapper)
        return wrapper

    def load_into(self, wrapper: VecNormalize) -> None:
        """Gives a wrapper these statistics, and leaves its settings.

        Raises:
            CheckpointError: it normalises other observations than the agent learned from.
        """
        statistics = _statistics(wrapper)
        ours = {key: part.mean.shape for key, part in self.observations.items()}
        theirs = {key: part.mean.shape for key, part in statistics.items()}
        if ours != theirs:
            raise CheckpointError(
                f"the agent learned with normalised observations {_described(ours)}, the VecNormalize given normalises "
                f"{_described(theirs)}; give it norm_obs={self.settings['norm_obs']} and "
                f"norm_obs_keys={self.settings['norm_obs_keys']}, or give the environment without it and it is wrapped"
            )
        for key, part in self.observations.items():
            part.write_to(statistics[key])
        self.rewards.write_to(wrapper.ret_rms)

    def resume(self, wrapper: VecNormalize) -> None:
        """Also gives a wrapper what belongs to the episodes in progress, if there are as many environments."""
        if self.returns.shape == (wrapper.num_envs,):
            wrapper.returns = self.returns.copy()
            if self.last_observations is not None:
                wrapper.old_obs = self.last_observations

    def normalize(self, observation: Any) -> Any:
        """Raw observations, one or a batch (B, ...), as the agent learned to see them: ``normalize_obs``."""
        if not self.observations:
            return observation
        if not isinstance(observation, dict):
            return self._normalized(observation, self.observations[""])
        return {
            key: self._normalized(part, self.observations[key]) if key in self.observations else part
            for key, part in observation.items()
        }

    def _normalized(self, observation: NDArray[Any], moments: Moments) -> NDArray[np.float32]:
        limit = self.settings["clip_obs"]
        scaled = (observation - moments.mean) / np.sqrt(moments.var + self.settings["epsilon"])
        clipped: NDArray[np.float32] = np.clip(scaled, -limit, limit).astype(np.float32)
        return clipped


def is_fresh(wrapper: VecNormalize) -> bool:
    """Whether it has seen nothing yet."""
    statistics = [*_statistics(wrapper).values(), wrapper.ret_rms]
    return all(part.count == FRESH_COUNT for part in statistics)


def same_shapes(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether observations of two spaces have the same keys and shapes, whatever their bounds."""
    if isinstance(one, spaces.Dict) or isinstance(other, spaces.Dict):
        return (
            isinstance(one, spaces.Dict)
            and isinstance(other, spaces.Dict)
            and one.spaces.keys() == other.spaces.keys()
            and all(same_shapes(one.spaces[key], other.spaces[key]) for key in one.spaces)
        )
    return one.shape == other.shape


def _statistics(wrapper: VecNormalize) -> dict[str, RunningMeanStd]:
    if not wrapper.norm_obs:
        return {}
    statistics: Any = wrapper.obs_rms
    return dict(statistics) if isinstance(statistics, dict) else {"": statistics}


def _described(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key or 'of shape'} {shape}" for key, shape in shapes.items()) or "not at all"


def _check_settings(settings: dict[str, Any]) -> None:
    keys = settings["norm_obs_keys"]
    if not (keys is None or (isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys))):
        raise ValueError(f"norm_obs_keys {keys!r}")
    for name, value in settings.items():
        switch = name in ("training", "norm_obs", "norm_reward")
        if name != "norm_obs_keys" and not isinstance(value, bool if switch else int | float | np.number):
            raise ValueError(f"{name} is {value!r}")


def _check_moments(state: NormalizerState) -> None:
    space = state.observation_space
    shapes = [space.spaces[key].shape if isinstance(space, spaces.Dict) else space.shape for key in state.observations]
    for moments, shape in zip((*state.observations.values(), state.rewards), (*shapes, ()), strict=True):
        if moments.mean.shape != shape or moments.var.shape != shape or not isinstance(moments.seen, float):
            raise ValueError(f"statistics of shape {moments.mean.shape} for observations of shape {shape}")
    if state.returns.ndim != 1:
        raise ValueError(f"returns of shape {state.returns.shape}")
