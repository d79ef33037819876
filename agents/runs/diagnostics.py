"""What becomes of the memory while it learns, and where the time goes: logged with Stable-Baselines3's metrics.

Axes: B environments, L steps of a training sequence, S sequences of a sample, F features, H units.

    memory/gradient_lag_0, _1, _2, _4, ...   norm of the gradient of the log-probability of a sequence's last action
                                             with respect to what went into the memory so many steps before; mean over
                                             the sequences whose episode reaches that far back
    memory/state_norm                        root mean square of what is carried, at a rollout's end; not for a gated
                                             transformer, whose slots are normalized
    memory/output_norm                       the same of what comes out of the memory
    memory/output_saturated                  share of its outputs beyond 0.9, where they lie within 1 by construction
    memory/ratio_drift_1, ..., _4            mean |log pi_new - log pi_old| after an update, in the four quarters of a
                                             training sequence
    time/collecting, time/training           shares of the time; the rest went into evaluation, saving and logging
    time/environment                         the share of collecting that was waiting for environments

Sampled: one small minibatch every few updates, drawn by a generator of its own, so that a run with and one without
diagnostics are the same run, bit for bit. What share of a minibatch is padding is not logged: sequences are split
here and not padded, so it is zero by construction.
"""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm
from agents.analysis.recording import without_passing
from agents.checks.observations import map_observations
from agents.memory import RNN, AttentionMemory, GTrXL, Memory, State
from agents.memory.recurrent import Recurrent
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.buffer import Observations, SequenceRolloutBuffer
from agents.runs.callbacks import BetweenUpdates

STEPS = 256
COST = 0.005  # of the steps that updates pass through
QUARTERS = 4
SATURATED = 0.9


class MemoryDiagnostics(BetweenUpdates):
    """Logs the figures under ``memory/``, where the agent has a memory.

    Nothing of the agent moves, and no random number of the run is used. Of ``every`` so many updates one is sampled;
    None: as few as keep the steps of samples under 0.5 % of those that updates pass through.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        self._every = every
        self._sample: Sample | None = None

    def _on_rollout_end(self) -> None:
        agent = self._agent
        # By the count of steps, so that a run that is resumed samples what it would have sampled.
        update = agent.num_timesteps // (agent.n_steps * agent.n_envs_of_all) - 1
        if update % self._interval(agent) == 0 and agent.policy.memory_actor.initial_state(1):
            self._sample = draw(agent.rollout_buffer, STEPS, np.random.default_rng(update))
            if state := carried(agent.policy.memory_actor, agent.carried_state):
                self.logger.record("memory/state_norm", _root_mean_square(torch.cat([x.flatten() for x in state])))

    def act(self) -> None:
        """After the update that the sample's rollout was for."""
        sample, self._sample = self._sample, None
        if sample is not None:
            for name, value in figures(self._agent.policy, sample).items():
                self.logger.record(f"memory/{name}", value)

    def _interval(self, agent: RecurrentOnPolicyAlgorithm) -> int:
        if self._every is not None:
            return self._every
        buffer = agent.rollout_buffer
        n_sequences = min(buffer.n_envs, max(1, STEPS // buffer.sequence_length))
        passed = getattr(agent, "n_epochs", 1) * buffer.buffer_size * buffer.n_envs
        return math.ceil(n_sequences * buffer.sequence_length / (COST * passed))

    @property
    def _agent(self) -> RecurrentOnPolicyAlgorithm:
        assert isinstance(self.model, RecurrentOnPolicyAlgorithm)
        return self.model


class Sample(NamedTuple):
    """S sequences of a rollout, time first, before the update: (L, S, ...) each, the state before them (S, ...)."""

    observations: Observations
    actions: Tensor
    old_log_probs: Tensor
    episode_starts: Tensor
    valid: Tensor
    state: State


def draw(buffer: SequenceRolloutBuffer, steps: int, rng: np.random.Generator) -> Sample:
    """Complete sequences of one stretch of time, as many as hold ``steps`` steps; the buffer's order stays."""
    length = buffer.sequence_length
    stretch = int(rng.integers(buffer.buffer_size // length))
    n_sequences = min(buffer.n_envs, max(1, steps // length))
    chosen = torch.from_numpy(np.sort(rng.choice(buffer.n_envs, size=n_sequences, replace=False)))

    def take(field: Tensor) -> Tensor:
        return field[stretch * length : (stretch + 1) * length].index_select(1, chosen.to(field.device))

    return Sample(
        map_observations(take, buffer.observations),
        take(buffer.actions),
        take(buffer.log_probs),
        take(buffer.episode_starts),
        take(buffer.valid),
        tuple(part[stretch].index_select(0, chosen.to(part.device)) for part in buffer.states),
    )


def figures(policy: RecurrentActorCriticPolicy, sample: Sample) -> dict[str, float]:
    """What is logged of a sample after an update, by name; the module's docstring says what each is."""
    was_training = policy.training
    policy.set_training_mode(False)  # layers that draw or count in training must not do so here
    try:
        inputs, outputs, log_probs = _passed(policy, sample)
    finally:
        policy.set_training_mode(was_training)
    (gradient,) = torch.autograd.grad(log_probs[-1].sum(), inputs, allow_unused=True)
    found = {} if gradient is None else _gradient_by_lag(gradient, sample)
    outputs = outputs.detach()[..., : without_passing(policy.memory_actor).output_size]
    found["output_norm"] = _root_mean_square(outputs)
    if _is_bounded(policy.memory_actor):
        found["output_saturated"] = float((outputs.abs() > SATURATED).float().mean())
    return {**found, **_drift_by_position(log_probs.detach(), sample)}


def carried(memory: Memory, state: State) -> State:
    """What of the policy's state the actor's memory recomputes at every step: no masks, no counts, no windows."""
    memory = without_passing(memory)
    recurrent = memory.recurrent if isinstance(memory, AttentionMemory) else memory
    if isinstance(recurrent, Recurrent):
        return state[: recurrent.carried_parts]
    return () if isinstance(memory, GTrXL) else state[: len(memory.initial_state(1))]


def _passed(policy: RecurrentActorCriticPolicy, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Into the actor's memory (L, S, F), out of it (L, S, H), log-probabilities (L, S), by the pass that learns."""
    shape = sample.episode_starts.shape
    observations = map_observations(lambda part: part.flatten(0, 1), sample.observations)
    with torch.no_grad():
        features, critic_features = policy.encode(observations, shape)
    inputs = features.detach().clone().requires_grad_()
    hidden, _ = policy.unroll(inputs, critic_features, sample.state, sample.episode_starts)
    parameters = policy.distribution_parameters(hidden, observations)
    log_probs, _ = policy.head.evaluate(parameters, sample.actions.flatten(0, 1))
    return inputs, hidden.view(*shape, -1), log_probs.view(shape)


def _gradient_by_lag(gradient: Tensor, sample: Sample) -> dict[str, float]:
    """(L, S, F) -> the norm at lags 0, 1, 2, 4, ..., as far as an episode in the sample reaches back."""
    norms = gradient.float().norm(dim=-1).flip(0).cpu()
    episode = sample.episode_starts.cpu().cumsum(0)
    reaches = (episode == episode[-1]).flip(0) & sample.valid.cpu()[-1]
    lags = [0, *(2**i for i in range(len(norms).bit_length()) if 2**i < len(norms))]
    return {f"gradient_lag_{lag}": float(norms[lag][reaches[lag]].mean()) for lag in lags if reaches[lag].any()}


def _drift_by_position(log_probs: Tensor, sample: Sample) -> dict[str, float]:
    """(L, S) -> the mean |log ratio| in each quarter of the sequences."""
    drift, valid = (log_probs - sample.old_log_probs).abs().cpu(), sample.valid.cpu()
    n_parts = min(QUARTERS, len(drift))
    parts = zip(drift.tensor_split(n_parts), valid.tensor_split(n_parts), strict=True)
    return {f"ratio_drift_{i + 1}": float(part[taken].mean()) for i, (part, taken) in enumerate(parts) if taken.any()}


def _root_mean_square(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def _is_bounded(memory: Memory) -> bool:
    memory = without_passing(memory)
    is_relu = isinstance(memory, RNN) and memory.nonlinearity == "relu"
    return isinstance(memory, Recurrent | AttentionMemory) and not is_relu


class UpdateEnds(BetweenUpdates):
    """Goes before all other callbacks: notes when an update has ended."""

    at = 0.0

    def act(self) -> None:
        self.at = time.perf_counter()


class Phases(BetweenUpdates):
    """Logs the shares of collecting and training under ``time/``, each the mean since the last row of metrics.

    Goes after all other callbacks, so that what these do between ``update_ends`` and this counts for neither.
    """

    def __init__(self, update_ends: UpdateEnds) -> None:
        super().__init__()
        self._update_ends = update_ends
        self._collected_at: float | None = None
        self._collecting_since = self._waited_before = 0.0

    def _on_training_start(self) -> None:
        self._collected_at = None

    def act(self) -> None:
        self._collecting_since = time.perf_counter()

    def _on_rollout_end(self) -> None:
        now, before = time.perf_counter(), self._collected_at
        waited: float = getattr(self.model, "environment_seconds", 0.0)
        if before is not None:  # the first rollout follows no update
            total = max(now - before, 1e-9)
            self.logger.record_mean("time/collecting", (now - self._collecting_since) / total)
            self.logger.record_mean("time/training", (self._update_ends.at - before) / total)
            self.logger.record_mean("time/environment", (waited - self._waited_before) / total)
        self._collected_at, self._waited_before = now, waited
