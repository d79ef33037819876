"""Advantage actor-critic with memory (Mnih et al. 2016, synchronous): one step on the whole rollout per update."""

from typing import Any, ClassVar, TypeVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from agents.algorithms.losses import normalized, policy_gradient, value_error
from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm, settings_of
from agents.checks.arguments import check_mapping, check_positive
from agents.encoders.auxiliary import AuxiliaryTerms
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.buffer import SequenceBatch

SelfRecurrentA2C = TypeVar("SelfRecurrentA2C", bound="RecurrentA2C")


class RecurrentA2C(RecurrentOnPolicyAlgorithm):
    """A2C for policies with memory, with the arguments of ``stable_baselines3.A2C``.

    Args:
        n_steps: steps of each environment per update; gradients flow back through all of them, or ``sequence_length``.
        rms_prop_eps: RMSProp's epsilon.
        use_rms_prop: RMSProp, or else the policy's optimizer (Adam).

    All others are those of ``RecurrentPPO``.
    """

    adds_to_policy_kwargs: ClassVar[tuple[str, ...]] = ("optimizer_class", "optimizer_kwargs")

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 16,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rms_prop_eps: float = 1e-5,
        use_rms_prop: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        normalize_advantage: bool | str = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        sequence_length: int | None = None,
        noise_correlation: float | Schedule = 0.0,
        autocast: str | None = None,
    ) -> None:
        settings = settings_of(locals())
        del settings["rms_prop_eps"], settings["use_rms_prop"]
        check_mapping("policy_kwargs", policy_kwargs)
        settings["policy_kwargs"] = policy_kwargs = dict(policy_kwargs or {})
        if use_rms_prop and "optimizer_class" not in policy_kwargs:
            check_positive("rms_prop_eps", rms_prop_eps)
            policy_kwargs["optimizer_class"] = torch.optim.RMSprop
            policy_kwargs["optimizer_kwargs"] = dict(alpha=0.99, eps=rms_prop_eps, weight_decay=0)
        super().__init__(**settings)

    def train(self) -> None:
        """One update: a single gradient step on every sequence of the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        with self.policy.planned(), self._watching_weights():
            for batch in self._minibatches(None):
                self._step(batch)

    def _step(self, batch: SequenceBatch) -> None:
        batch = batch._replace(advantages=self._normalized_advantages()(batch))
        self.policy.optimizer.zero_grad()
        terms = self._backward(batch) if batch.n_steps else {}
        self._learn_from_gradients(self.policy.parameters(), batch.n_steps)
        self._n_updates += 1
        self._record_update(terms)

    def _backward(self, batch: SequenceBatch) -> dict[str, float]:
        """Gradients of the loss, and what is logged of it."""
        values, log_probs, entropy = self.policy.evaluate_actions(
            batch.observations, batch.actions, batch.state, batch.episode_starts
        )
        log_probs = batch.steps(log_probs)
        advantages = batch.steps(batch.advantages)
        if self._objective_normalizes:
            advantages = normalized(advantages)
        policy_loss = policy_gradient(log_probs, advantages)
        value_loss = value_error(batch.steps(values), batch.steps(batch.returns), batch.steps(batch.old_values), None)
        entropy_loss = log_probs.mean() if entropy is None else -batch.steps(entropy).mean()
        loss = policy_loss + self.entropy_coefficient() * entropy_loss + self.vf_coef * value_loss
        auxiliary = AuxiliaryTerms(self.policy)
        loss = auxiliary.add_to(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        return {
            "entropy_loss": entropy_loss.item(),
            "policy_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            **auxiliary.means(),
        }

    def learn(
        self: SelfRecurrentA2C,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "RecurrentA2C",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrentA2C:
        """Trains for at least ``total_timesteps`` environment steps; see Stable-Baselines3's ``learn``."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
