"""Proximal policy optimization with memory (Schulman et al. 2017): what an update is.

Axes: L steps of a sequence, S sequences of a minibatch, N valid steps of a minibatch.
"""

from functools import partial
from typing import Any, TypeVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor

from agents.algorithms.losses import Figures, ppo_objective
from agents.algorithms.on_policy import RecurrentOnPolicyAlgorithm, settings_of
from agents.checks.arguments import check_count, check_positive, check_range, check_switch
from agents.encoders.auxiliary import AuxiliaryTerms
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.buffer import SequenceBatch

SelfRecurrentPPO = TypeVar("SelfRecurrentPPO", bound="RecurrentPPO")


class RecurrentPPO(RecurrentOnPolicyAlgorithm):
    """PPO for policies with memory: a drop-in for ``sb3_contrib.RecurrentPPO``.

    Args:
        policy: ``"MlpLstmPolicy"``, ``"CnnLstmPolicy"``, ``"MultiInputLstmPolicy"`` as in sb3-contrib,
            ``"MlpGruPolicy"``, ``"MlpRnnPolicy"``, the general ``"RecurrentPolicy"``, or a
            ``RecurrentActorCriticPolicy`` class.
        env: a Gymnasium environment or id, or a Stable-Baselines3 vector environment.
        learning_rate, clip_range: a number, or a function of the progress remaining (from 1 to 0). ``clip_range`` is
            how far the probability ratio may leave one.
        n_steps: steps of each environment per update.
        batch_size: steps of a minibatch, of all processes together where ``torchrun`` starts several; minibatches are
            whole sequences. None for the whole rollout.
        n_epochs: passes over a rollout per update.
        gamma, gae_lambda: discount factor, and bias against variance in the advantage estimate; in [0, 1].
        clip_range_vf: how far the value may move in an update, None for no limit. Depends on the scale of rewards.
        normalize_advantage: "batch": to mean 0 and standard deviation 1 in each minibatch; "rollout": once for the
            whole rollout, with a floor under the deviation (``agents.rollout.returns.advantage_scale``). True: by
            minibatch for sb3-contrib's policies, as there, else by rollout.
        ent_coef: weight of the entropy, a number or a function of the progress remaining.
        vf_coef: weight of the value loss.
        max_grad_norm: the gradient's norm is clipped here.
        use_sde, sde_sample_freq: generalized state-dependent exploration for Box actions, and the steps after which its
            noise is drawn again (-1: once a rollout).
        target_kl: stops an update's epochs early at 1.5 times this divergence; None for never.
        stats_window_size: episodes that the logged mean return is over.
        tensorboard_log: folder for TensorBoard, None for none.
        policy_kwargs: arguments of the policy class.
        verbose: 0 nothing, 1 information, 2 debugging.
        seed: of networks, actions, shuffles and environments.
        device: ``"cpu"``, ``"cuda"``, ``"auto"``.
        sequence_length: steps that gradients flow back through (truncated backpropagation through time); divides
            n_steps. None for the whole rollout, or for as much of it as a minibatch holds.
        noise_correlation: of the noise of actions from one step to the next while collecting, in one environment of
            eight; from 0 to below 1, a number or a function of the progress remaining. Noise that lasts finds a rare
            reward where independent noise cancels out; where actions are choices or bits, whose noise is then often
            that of the step before, a memory learns what actions are like without noise (``agents.rollout.noise``).
            ``predict`` samples independently.
        autocast: ``"bfloat16"`` computes encoder, memory and hidden layers under ``torch.autocast``; None in float32.
            RNN, LSTM and GRU keep float32, and so do last layers, losses, returns, weights and optimizer. A rollout's
            values and log-probabilities are recomputed by the pass that learns, so that ratios start at one; the policy
            that acted differs from it by its rounding, about one part in 250 of a hidden layer's outputs.
        refresh_states: before every epoch but the first, the states that sequences start from are recomputed with the
            weights as they then are, from the rollout's start. Ratios stay relative to the policy that acted.
        burn_in: from 0 to sequence_length. The state a sequence starts from is kept this many steps before it, and
            taken through them with the current weights, without gradient, whenever the sequence is learned from
            (Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning"). The first
            sequence of a rollout starts from its kept state.
    """

    n_epochs: int
    clip_range: float | Schedule
    clip_range_vf: float | Schedule | None
    target_kl: float | None
    refresh_states: bool

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | str = True,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
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
        refresh_states: bool = False,
        burn_in: int = 0,
    ) -> None:
        super().__init__(**settings_of(locals()))

    def _check_settings(self) -> None:
        super()._check_settings()
        check_count("n_epochs", self.n_epochs)
        if not callable(self.clip_range):
            check_positive("clip_range", self.clip_range)
        if self.clip_range_vf is not None and not callable(self.clip_range_vf):
            check_positive("clip_range_vf", self.clip_range_vf)
        if self.target_kl is not None:
            check_positive("target_kl", self.target_kl)
            check_range("target_kl", self.target_kl)
        check_switch("refresh_states", self.refresh_states)
        check_count("burn_in", self.burn_in, low=0)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.refresh_states and self.rollout_buffer.sequence_length == self.n_steps:
            raise ValueError(
                "refresh_states=True recomputes the states that sequences inside a rollout start from, and here a "
                f"sequence is the whole rollout of {self.n_steps} steps: set a sequence_length below it, or "
                "refresh_states=False"
            )
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def train(self) -> None:
        """One update: epochs of minibatches of whole sequences."""
        self._watch_scale()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        history: list[Figures] = []
        auxiliary = AuxiliaryTerms(self.policy)
        with self.policy.planned(), self._watching_weights():
            for epoch in range(self.n_epochs):
                if self.refresh_states and epoch > 0:
                    self.rollout_buffer.recompute_states(partial(self.policy.states_along, at_once=self.own_batch_size))
                first_of_epoch = len(history)
                goes_on = self._train_epoch(history, auxiliary)
                self._n_updates += 1
                if not goes_on:
                    if self.verbose >= 1:
                        kl = float(history[-1].approx_kl) if history else float("nan")
                        print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                    break
        if history:  # else no step of the rollout was a transition
            self._record(history, first_of_epoch, auxiliary)
        elif self._together is not None:
            self._record_update({})

    def _train_epoch(self, history: list[Figures], auxiliary: AuxiliaryTerms) -> bool:
        """Steps through the rollout once. Returns False where the divergence from the old policy got too large."""
        advantages, together = self._normalized_advantages(), self._together
        parameters = list(self.policy.parameters())
        with_gradients = {
            *parameters,
            *(part for group in self.policy.optimizer.param_groups for part in group["params"]),
        }
        for batch in self._minibatches(self.own_batch_size):
            batch, n_steps = batch._replace(advantages=advantages(batch)), batch.n_steps
            if n_steps:
                loss, figures = self._loss(batch)
                loss = auxiliary.add_to(loss)
                history.append(figures._replace(loss=loss.detach()))
            if self.target_kl is not None:
                kl = float(figures.approx_kl) if n_steps else 0.0
                if (kl if together is None else together.mean(kl, n_steps)) > 1.5 * self.target_kl:
                    return False
            for parameter in with_gradients:
                parameter.grad = None
            if n_steps:
                loss.backward()  # type: ignore[no-untyped-call]
            self._learn_from_gradients(parameters, n_steps)
        return True

    def _loss(self, batch: SequenceBatch) -> tuple[Tensor, Figures]:
        """The loss of one minibatch, and what is logged of it; no value leaves the device."""
        batch = batch._replace(state=self.state_before(batch), burn_in=None)
        clip_range, clip_range_vf = self._clip_ranges()
        settings: dict[str, Any] = dict(
            normalize=self._objective_normalizes,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            ent_coef=self.entropy_coefficient(),
            vf_coef=self.vf_coef,
        )
        if batch.valid is None and self._compiles("objective"):
            return self._compiled_policy().objective(batch, **settings)
        values, log_probs, entropy = self.policy.evaluate_actions(
            batch.observations, batch.actions, batch.state, batch.episode_starts
        )
        return ppo_objective(
            batch.steps(log_probs),
            None if entropy is None else batch.steps(entropy),
            batch.steps(values),
            batch.steps(batch.old_log_probs),
            batch.steps(batch.old_values),
            batch.steps(batch.advantages),
            batch.steps(batch.returns),
            **settings,
        )

    def _clip_ranges(self) -> tuple[float, float | None]:
        progress = self._current_progress_remaining
        # A script may set a number, after loading for example, where a schedule was.
        clip_range = FloatSchedule(self.clip_range)(progress)
        return clip_range, None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)(progress)

    def _record(self, history: list[Figures], first_of_epoch: int, auxiliary: AuxiliaryTerms) -> None:
        """Logs an update under Stable-Baselines3's names; the one place where figures leave the device."""
        figures = Figures(*torch.stack([torch.stack(terms) for terms in history]).cpu().T)
        clip_range, clip_range_vf = self._clip_ranges()
        terms = {
            "entropy_loss": figures.entropy_loss.mean().item(),
            "policy_gradient_loss": figures.policy_loss.mean().item(),
            "value_loss": figures.value_loss.mean().item(),
            "approx_kl": figures.approx_kl[first_of_epoch:].mean().item(),
            "clip_fraction": figures.clip_fraction.mean().item(),
            "loss": figures.loss[-1].item(),
            "clip_range": clip_range,
            **({} if clip_range_vf is None else {"clip_range_vf": clip_range_vf}),
            **auxiliary.means(),
        }
        self._record_update(terms)

    def learn(
        self: SelfRecurrentPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "RecurrentPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrentPPO:
        """Trains for at least ``total_timesteps`` environment steps; see Stable-Baselines3's ``learn``."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
