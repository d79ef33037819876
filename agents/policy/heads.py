"""What a policy does with its last layer: from the parameters of a distribution to actions and their probabilities.

Each space has one class of pure functions on tensors; no distribution object is made on the way. Probabilities are
joint over all the axes of an action, so a probability ratio is one number a step.

Axes: N steps, K parameters of the distribution, A components of an action as stored (one integer for Discrete).

``parameters`` is always a tuple of tensors: ``(logits,)``, ``(mean, log_std)`` or, for state-dependent exploration,
``(mean, log_std, latent)``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor

from agents.kernels import heads

Parameters = tuple[Tensor, ...]


class ActionHead(ABC):
    """Sampling, modes, log-probabilities and entropies for one kind of action space.

    Args:
        shape, dtype: of one action as stored in the buffer.
        n_outputs: K of the layer before.
    """

    has_kernel: ClassVar[bool] = False
    """Whether ``evaluate`` has a compiled form."""
    lasting: Callable[[Tensor], Tensor] | None = None
    """From independent noise (N, K) to the noise of a sample; None: as it is."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, n_outputs: int) -> None:
        self.shape, self.dtype, self.n_outputs = shape, dtype, n_outputs

    def check_outputs(self, n_outputs: int) -> None:
        """Raises a ValueError unless this many numbers a step are what the head takes."""
        if n_outputs != self.n_outputs:
            raise ValueError(
                f"the layer before the actions (action_net) must give {self.n_outputs} numbers a step; it gives "
                f"{n_outputs}"
            )

    def _first(self, parameters: Parameters) -> Tensor:
        """(N, K) checked: logits or means."""
        self.check_outputs(parameters[0].shape[-1])
        return parameters[0]

    @abstractmethod
    def sample(self, parameters: Parameters) -> Tensor:
        """(N, K) -> (N, A)"""

    @abstractmethod
    def mode(self, parameters: Parameters) -> Tensor:
        """(N, K) -> (N, A), the deterministic action."""

    @abstractmethod
    def evaluate(self, parameters: Parameters, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, K), (N, A) -> (N,) log-probabilities, (N,) entropies or None where they have no closed form."""

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """(N, A) as stored -> what the environment's ``step`` takes."""
        return actions


class CategoricalHead(ActionHead):
    """Discrete and MultiDiscrete: one choice or several at once, their log-probabilities added.

    An environment whose choices start at another number than 0 gets them shifted.
    """

    has_kernel = True

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        choices = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.asarray(space.n)
        self.sizes = tuple(int(n) for n in choices.ravel())
        self._start = np.asarray(space.start)
        super().__init__(choices.shape, torch.int64, sum(self.sizes))

    def sample(self, parameters: Parameters) -> Tensor:
        """By Gumbel-max: the arg max of logits - log(Exp(1) noise)."""
        logits = self._first(parameters)
        noise = torch.empty_like(logits).exponential_()
        return self._greatest(logits - (noise if self.lasting is None else self.lasting(noise)).log())

    def mode(self, parameters: Parameters) -> Tensor:
        return self._greatest(self._first(parameters))

    def evaluate(self, parameters: Parameters, actions: Tensor) -> tuple[Tensor, Tensor]:
        return heads.categorical(self._first(parameters), self.sizes, actions if self.shape else actions[:, None])

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        return actions + self._start if self._start.any() else actions

    def _greatest(self, scores: Tensor) -> Tensor:
        """(N, K) -> (N, A), of each choice the one of the greatest score."""
        choices = [part.argmax(-1) for part in torch.split(scores, list(self.sizes), dim=-1)]
        return torch.stack(choices, dim=-1) if self.shape else choices[0]


class _FlatHead(ActionHead):
    """Of an action of any shape: stored flat in float32, one output for each component."""

    def __init__(self, space: spaces.Box | spaces.MultiBinary) -> None:
        super().__init__((math.prod(space.shape),), torch.float32, math.prod(space.shape))
        self._space: Any = space


class BernoulliHead(_FlatHead):
    """MultiBinary: independent bits."""

    def sample(self, parameters: Parameters) -> Tensor:
        probabilities = torch.sigmoid(self._first(parameters))
        noise = torch.rand_like(probabilities)
        return ((noise if self.lasting is None else self.lasting(noise)) < probabilities).to(self.dtype)

    def mode(self, parameters: Parameters) -> Tensor:
        return (self._first(parameters) > 0).to(self.dtype)

    def evaluate(self, parameters: Parameters, actions: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._first(parameters)
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
        log_prob = -cross_entropy(logits, actions, reduction="none").sum(-1)
        return log_prob, cross_entropy(logits, torch.sigmoid(logits), reduction="none").sum(-1)

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        return actions.astype(np.int8).reshape(-1, *self._space.shape)


class GaussianHead(_FlatHead):
    """Box: a diagonal Gaussian with a standard deviation of its own; actions are clipped on their way out."""

    has_kernel = True

    def sample(self, parameters: Parameters) -> Tensor:
        mean, log_std = self._first(parameters), parameters[1]
        noise = torch.randn_like(mean)
        return mean + log_std.exp() * (noise if self.lasting is None else self.lasting(noise))

    def mode(self, parameters: Parameters) -> Tensor:
        return self._first(parameters)

    def evaluate(self, parameters: Parameters, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_std = self._first(parameters), parameters[1]
        log_norm = log_std.sum(-1) + 0.5 * math.log(2 * math.pi) * self.shape[0]
        entropy = (log_norm + 0.5 * self.shape[0]).expand(len(mean))
        return heads.gaussian(mean, log_std, actions), entropy

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        return _within(self._space, actions.reshape(-1, *self._space.shape))


class StateDependentHead(GaussianHead):
    """Box with generalized state-dependent exploration (Raffin et al. 2021), computed by Stable-Baselines3's class.

    With ``squash`` the action lies in [-1, 1] and is scaled to the space's bounds on its way out.
    """

    has_kernel = False

    def __init__(self, space: spaces.Box, distribution: StateDependentNoiseDistribution, squash: bool) -> None:
        super().__init__(space)
        self._distribution, self._squash = distribution, squash

    def sample(self, parameters: Parameters) -> Tensor:
        return self._distribution.proba_distribution(*parameters).sample()

    def mode(self, parameters: Parameters) -> Tensor:
        return self._distribution.proba_distribution(*parameters).mode()

    def evaluate(self, parameters: Parameters, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        distribution = self._distribution.proba_distribution(*parameters)
        return distribution.log_prob(actions), distribution.entropy()

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        if self._squash:
            low, high = self._space.low.ravel(), self._space.high.ravel()
            actions = low + 0.5 * (actions + 1.0) * (high - low)
        return super().to_environment(actions)


@contextmanager
def exploring_with(head: ActionHead, noise: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Within it samples have this noise; None: independent noise."""
    head.lasting = noise
    try:
        yield
    finally:
        head.lasting = None


def check_action_space(space: spaces.Space[Any], use_sde: bool = False, squash: bool = False) -> None:
    """Raises for a space, or a kind of exploration in it, that no head acts in.

    Raises:
        NotImplementedError: the space is none of those of :func:`make_action_head`.
        ValueError: state-dependent exploration of what is not continuous, or squashed between bounds that are infinite.
    """
    make_action_head(space)
    if use_sde and not isinstance(space, spaces.Box):
        raise ValueError(
            "generalized State-Dependent Exploration (gSDE) can only be used with continuous actions (Box); set "
            f"use_sde=False for {space}"
        )
    if squash and isinstance(space, spaces.Box) and not space.is_bounded("both"):
        raise ValueError(
            f"squash_output=True scales actions to the bounds of their space, and {space} has infinite ones; set "
            "squash_output=False, or bounds with gymnasium.wrappers.RescaleAction or a wrapper of yours"
        )


HEADS = (CategoricalHead, BernoulliHead, GaussianHead, StateDependentHead)


def make_action_head(
    space: spaces.Space[Any], exploration: StateDependentNoiseDistribution | None = None, squash: bool = False
) -> ActionHead:
    """The head for an action space; ``exploration`` where it is state-dependent.

    Raises:
        NotImplementedError: the space is none of Discrete, MultiDiscrete with one axis, MultiBinary and Box.
    """
    if isinstance(space, spaces.Box):
        return GaussianHead(space) if exploration is None else StateDependentHead(space, exploration, squash)
    if isinstance(space, spaces.Discrete) or (isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1):
        return CategoricalHead(space)
    if isinstance(space, spaces.MultiBinary):
        return BernoulliHead(space)
    raise NotImplementedError(
        f"action space {space} is not supported; use Discrete, MultiDiscrete, MultiBinary or Box, "
        "or wrap the environment"
    )


def number_of_choices(space: spaces.Space[Any]) -> int:
    """Entries of a mask of actions: the choices of all axes, or the bits.

    Raises:
        ValueError: no actions of this space can be masked.
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(np.sum(space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return int(np.prod(space.shape))
    raise ValueError(f"actions can be masked for Discrete, MultiDiscrete and MultiBinary, not for {space}")


def _within(space: spaces.Box, actions: NDArray[Any]) -> NDArray[Any]:
    """Actions clipped to their bounds, where there are any.

    Raises:
        FloatingPointError: one is not finite; clipping would make an infinite one look like any other.
    """
    # A sum of squares is finite only where all of it is: one call for nearly all actions.
    if not math.isfinite(np.vdot(actions, actions)) and not np.isfinite(actions).all():
        raise FloatingPointError(
            f"the policy chose an action that is not finite: {actions[~np.isfinite(actions)][0]}. Its weights or its "
            "standard deviation (log_std) diverged: lower learning_rate or max_grad_norm, or scale observations and "
            "rewards (VecNormalize)"
        )
    clipped: NDArray[Any] = np.maximum(actions, space.low)
    np.minimum(clipped, space.high, out=clipped)
    return clipped.astype(space.dtype, copy=False)
