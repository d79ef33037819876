"""The last action and reward among an agent's inputs as data, and back around an environment that does not show them.

Who learned with the wrapper ``previous_action_reward`` outermost cannot act without it, so its settings are saved and
loaded with the agent, as the normalizer's are. The wrapper is the environments', which agents do not import: it is
handed in by ``agents.runs.environments``. Axes: B environments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common import vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.checkpoint.container import refused
from agents.checkpoint.normalizer import shapes_of
from agents.checkpoint.values import Decoder
from agents.checks.observations import map_observations

Added = Callable[[Any, Any, NDArray[np.float32], NDArray[np.bool_]], Any]
# Wrappers that leave an observation's entries in place.
AROUND = (vec_env.VecNormalize, vec_env.VecTransposeImage, vec_env.VecMonitor, vec_env.VecCheckNan)


@dataclass(frozen=True)
class PreviousInputs:
    """What an agent sees besides what its environment shows: last action and reward, whether an episode starts.

    Args:
        observation_space: that of the environment, without them.
        action_space: that of the environment.
        start: whether episode starts are among them.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    start: bool

    transform: ClassVar[Any]
    """The wrapper's arithmetic, ``envs.wrappers.transforms.PreviousActionReward``."""
    vectorized: ClassVar[Any]
    """What puts it around a ``VecEnv``, ``envs.vector.vectorize.WrappedVecEnv``."""

    @classmethod
    def of(cls, venv: VecEnv | None) -> "PreviousInputs | None":
        """Those of an environment; None if it has none, or something else lies around them."""
        while isinstance(venv, AROUND):
            venv = venv.venv
        if not (isinstance(venv, cls.vectorized) and type(venv.transform) is cls.transform):
            return None
        return cls(venv.venv.observation_space, venv.venv.action_space, venv.transform.start)

    def to_data(self) -> dict[str, Any]:
        """Plain values and a space, for :class:`agents.checkpoint.values.Encoder`."""
        return {"observation_space": self.observation_space, "start": self.start}

    @classmethod
    def from_data(
        cls,
        data: Any,
        decoder: Decoder,
        file: str,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
    ) -> "PreviousInputs | None":
        """The inverse, on what was read from a file of an agent that sees and acts in these spaces."""
        read = decoder.decode(data, "previous_action_reward")
        if read is None:
            return None
        with refused(f"{file}: the previous actions and rewards cannot be understood"):
            inside, start = read["observation_space"], read["start"]
            if not isinstance(inside, spaces.Space) or not isinstance(start, bool):
                raise ValueError("expected a space, and whether episode starts are seen")
            # One-hot, a choice takes as many entries as it has values: not more than the agent sees.
            if spaces.flatdim(inside) > spaces.flatdim(observation_space):
                raise ValueError(f"observations of {inside} would be more than the agent sees")
            return cls(inside, action_space, start)

    def adding(self, num_envs: int) -> Added:
        """What adds them: observations (B, ...), the actions (B, ...) and rewards (B,) before, and whose episode starts
        (B,) -> what the agent sees, (B, ...)."""
        transform = self.transform(self.observation_space, self.action_space, num_envs, start=self.start)

        def added(observations: Any, actions: Any, rewards: NDArray[np.float32], starts: NDArray[np.bool_]) -> Any:
            started = starts.nonzero()[0]
            if len(started) == num_envs:
                return transform.begin(observations, started)
            seen = transform.follow(observations, actions, rewards)
            if len(started):
                first = transform.begin(map_observations(lambda part: part[started], observations), started)
                for key in seen if isinstance(seen, dict) else ():
                    seen[key][started] = first[key]
                if not isinstance(seen, dict):
                    seen[started] = first
            return seen

        return added

    def missing_from(self, observation: Any) -> bool:
        """Whether an observation, or a batch of them, is as the environment gives it, without the inputs."""
        if isinstance(self.observation_space, spaces.Dict):
            return isinstance(observation, dict) and observation.keys() == self.observation_space.spaces.keys()
        shape = tuple(self.observation_space.shape or ())
        return not isinstance(observation, dict) and np.shape(observation) in (shape, (len(observation), *shape))

    def missing_in(self, venv: VecEnv) -> bool:
        """Whether these environments show what is inside, without the inputs."""
        return bool(shapes_of(venv.observation_space) == shapes_of(self.observation_space))

    def wrap(self, venv: VecEnv) -> VecEnvWrapper:
        """``venv`` with the inputs around it."""
        wrapped: VecEnvWrapper = self.vectorized(venv, self.transform, {"start": self.start})
        return wrapped
