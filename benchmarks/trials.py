"""Changes of the update that are no setting: each is a subclass that ``robustness.py --switch`` trains with.

What earns its place on the suite becomes a setting; what does not stays here, with its figures in docs/robustness.md.
"""

from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from agents import RecurrentPPO
from agents.memory import LSTM, MEMORIES
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.returns import generalized_advantages


class AdaptiveRate(RecurrentPPO):
    """The learning rate falls where an update changed the policy too much, and rises where it changed it too little
    (rsl_rl: towards a divergence of 0.01), on top of its schedule."""

    desired, step, range = 0.01, 1.5, (0.02, 10.0)
    _factors: ClassVar[WeakKeyDictionary[Any, float]] = WeakKeyDictionary()

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for group in self.policy.optimizer.param_groups:
            group["lr"] *= self._factors.get(self, 1.0)

    def train(self) -> None:
        super().train()
        divergence, factor = self.logger.name_to_value["train/approx_kl"], self._factors.get(self, 1.0)
        if divergence > 2 * self.desired:
            factor /= self.step
        elif divergence < self.desired / 2:
            factor *= self.step
        self._factors[self] = float(np.clip(factor, *self.range))


class MemoryRate(RecurrentPPO):
    """The memory's weights go a share of the way that the optimizer takes them."""

    share: float

    def _learn_from_gradients(self, parameters: Any, n_steps: int) -> None:
        moved = list(self.policy.memory_actor.parameters())
        before = [part.detach().clone() for part in moved]
        super()._learn_from_gradients(parameters, n_steps)
        with torch.no_grad():
            for part, old in zip(moved, before, strict=True):
                part.copy_(torch.lerp(old, part, self.share))


class MemoryRate03(MemoryRate):
    share = 0.3


class MemoryRate01(MemoryRate):
    share = 0.1


class Averaged(RecurrentPPO):
    """The last policy has the exponential average of the weights after each update."""

    decay = 0.95
    _averages: ClassVar[WeakKeyDictionary[Any, tuple[int, list[Tensor]]]] = WeakKeyDictionary()

    def train(self) -> None:
        super().train()
        weights = [part.detach() for part in self.policy.parameters()]
        count, average = self._averages.get(self, (0, [part.clone() for part in weights]))
        new = 1 - min(self.decay, (1 + count) / (10 + count))
        average = [torch.lerp(old, part, new) for old, part in zip(average, weights, strict=True)]
        self._averages[self] = count + 1, average
        if self.num_timesteps >= self._total_timesteps:
            for part, mean in zip(weights, average, strict=True):
                part.copy_(mean)


class LambdaDiscrepancy(RecurrentPPO):
    """A second value head learns returns of a smaller lambda, and what tells the two apart is a loss of the memory
    (Allen et al. 2024, "Mitigating Partial Observability in Sequential Decision Processes via the Lambda Discrepancy").
    """

    second_lambda, weight = 0.1, 0.25
    _seconds: ClassVar[WeakKeyDictionary[Any, tuple[nn.Module, torch.optim.Optimizer]]] = WeakKeyDictionary()
    _last_pass: ClassVar[tuple[Tensor, Tensor]]

    def _setup_model(self) -> None:
        super()._setup_model()
        head = nn.Sequential(nn.Linear(self.policy.memory_actor.output_size, 64), nn.Tanh(), nn.Linear(64, 1))
        self._seconds[self] = head, torch.optim.Adam(head.parameters())

    def train(self) -> None:
        buffer, (_, optimizer) = self.rollout_buffer, self._seconds[self]
        optimizer.param_groups[0]["lr"] = self.lr_schedule(self._current_progress_remaining)
        with torch.no_grad():
            (everything,) = buffer.get()
            self.policy.evaluate_actions(
                everything.observations, everything.actions, self.state_before(everything), everything.episode_starts
            )
            values = self._second_values().view(buffer.values.shape)
            starts = torch.as_tensor(self._last_episode_starts).bool()
            after = (buffer.rewards, values, buffer.episode_starts, values[-1], starts, self.gamma, self.second_lambda)
            buffer.values = generalized_advantages(*after) + values  # as "old values", that no loss here asks for
        super().train()

    def _second_values(self) -> Tensor:
        values: Tensor = self._seconds[self][0](type(self)._last_pass[0])[:, 0]
        return values

    def _loss(self, batch: Any) -> Any:
        loss, figures = super()._loss(batch)
        first, second = type(self)._last_pass[1], self._second_values()
        learned = (second - batch.old_values.flatten()).square().mean()
        apart = (first.flatten() - second).square().mean()
        return loss + self.vf_coef * learned + self.weight * apart, figures

    def _learn_from_gradients(self, parameters: Any, n_steps: int) -> None:
        super()._learn_from_gradients(parameters, n_steps)
        optimizer = self._seconds[self][1]
        optimizer.step()
        optimizer.zero_grad()


class NormalizedLSTM(LSTM):
    """Layer normalization between memory and heads."""

    def __init__(self, input_size: int, **kwargs: Any) -> None:
        super().__init__(input_size, **kwargs)
        self.norm = nn.LayerNorm(self.output_size)

    def step(self, features: Tensor, state: Any, episode_starts: Tensor) -> tuple[Tensor, Any]:
        output, state = super().step(features, state, episode_starts)
        return self.norm(output), state

    def unroll(self, features: Tensor, state: Any, episode_starts: Tensor) -> Tensor:
        output: Tensor = self.norm(super().unroll(features, state, episode_starts))
        return output

    def numpy_step(self) -> Any:
        return None


def _discrepancy() -> type[RecurrentPPO]:
    heads = RecurrentActorCriticPolicy.evaluate_heads

    def evaluate_heads(policy: Any, hidden: Any, obs: Any, actions: Tensor) -> Any:
        result = heads(policy, hidden, obs, actions)
        LambdaDiscrepancy._last_pass = hidden[1], result[0]
        return result

    RecurrentActorCriticPolicy.evaluate_heads = evaluate_heads  # type: ignore[method-assign]
    return LambdaDiscrepancy


def _normalized() -> type[RecurrentPPO]:
    MEMORIES["lstm"] = NormalizedLSTM
    return RecurrentPPO


TRIALS: dict[str, Callable[[], type[RecurrentPPO]]] = {
    "adaptive-rate": lambda: AdaptiveRate,
    "memory-rate-0.3": lambda: MemoryRate03,
    "memory-rate-0.1": lambda: MemoryRate01,
    "averaged-weights": lambda: Averaged,
    "lambda-discrepancy": _discrepancy,
    "layer-norm": _normalized,
}
"""What makes "ppo" the class of a trial, in a process of its own."""


def begin(name: str) -> None:
    """From here on "ppo" is the trial's."""
    from agents.runs.construction import ALGORITHMS

    ALGORITHMS["ppo"] = TRIALS[name]()
