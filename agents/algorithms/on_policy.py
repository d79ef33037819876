"""Collects rollouts for any policy with memory; what an update is, the algorithms say.

Axes: B environments.

A Stable-Baselines3 ``OnPolicyAlgorithm``: its learn, callbacks, logger, schedules and VecNormalize work here unchanged.
The memory's state travels beside the last observation: it is exact across rollouts and across calls of ``learn``, and
reset only where an episode starts.
"""

import contextlib
import inspect
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EvalCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from agents.checkpoint import (
    RestoredNormalizer,
    SavableAlgorithm,
    as_learned,
    check_parameters,
    load_algorithm,
    previous_inputs,
    read_parameters,
    save_algorithm,
)
from agents.checks.arguments import (
    check_acts_as_it_learns,
    check_choice,
    check_count,
    check_mapping,
    check_normalization,
    check_observation_space,
    check_policy_class,
    check_policy_name,
    check_positive,
    check_range,
    check_schedule,
    check_sde_sample_freq,
    check_seed,
    check_switch,
    check_total_timesteps,
)
from agents.kernels.devices import to_device
from agents.memory import State
from agents.policy.actor_critic import (
    CnnLstmPolicy,
    GruPolicy,
    LstmPolicy,
    MultiInputLstmPolicy,
    RecurrentActorCriticPolicy,
    RnnPolicy,
)
from agents.policy.heads import check_action_space
from agents.policy.nodes import NodeActionPolicy
from agents.rollout.actor import Actor
from agents.rollout.buffer import (
    SequenceBatch,
    SequenceRolloutBuffer,
    check_sequence_length,
    map_observations,
    number_of_minibatches,
)
from agents.rollout.capture import GraphActor
from agents.rollout.numpy_actor import make_actor
from agents.rollout.returns import Moments, advantage_scale

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="RecurrentOnPolicyAlgorithm")
AUTOCAST: dict[str | None, torch.dtype | None] = {None: None, "bfloat16": torch.bfloat16}
Terminal = tuple[int, list[int], list[Any], State]  # step, environments, their last observations, states after the step


class RecurrentOnPolicyAlgorithm(SavableAlgorithm):
    """What RecurrentPPO and RecurrentA2C share: a policy with memory, and rollouts that preserve its state.

    Args beyond Stable-Baselines3's:
        sequence_length: steps that gradients flow back through; a divisor of n_steps. None for the whole rollout, or
            for as much of it as a minibatch holds.
        batch_size: steps of a minibatch, None for the whole rollout.
        autocast: ``"bfloat16"`` lets encoder, memory and hidden layers compute in it (``torch.autocast``); weights,
            optimizer, distribution, losses and returns stay in float32, and so do RNN, LSTM and GRU. Acting and
            learning then round differently, so when a rollout is complete its values and log-probabilities are computed
            anew by the very pass that learns: probability ratios start at exactly one. What remains is that an action
            was drawn from logits that were rounded elsewhere than those of its log-probability: the policy that behaved
            differs from the one that is learned from by about one part in 250 of a hidden layer's outputs.
    """

    captures_acting: ClassVar[bool] = True
    """Whether acting on a GPU is captured as one CUDA graph; set False on an agent to act eagerly there."""

    numbers: ClassVar[tuple[str, ...]] = ()
    """Arguments of a subclass that are numbers, and may come as NumPy's."""

    burn_in: int = 0
    """Steps before a sequence that warm the state it starts from: a setting of ``RecurrentPPO``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "RecurrentPolicy": RecurrentActorCriticPolicy,
        "MlpLstmPolicy": LstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
        "MlpGruPolicy": GruPolicy,
        "MlpRnnPolicy": RnnPolicy,
        "NodeActionPolicy": NodeActionPolicy,
    }
    policy: RecurrentActorCriticPolicy
    rollout_buffer: SequenceRolloutBuffer  # type: ignore[assignment]
    _last_obs: Any
    _last_episode_starts: Any

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule,
        n_steps: int,
        batch_size: int | None,
        gamma: float,
        gae_lambda: float,
        ent_coef: float,
        vf_coef: float,
        max_grad_norm: float,
        use_sde: bool,
        sde_sample_freq: int,
        normalize_advantage: bool | str,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: torch.device | str,
        sequence_length: int | None,
        autocast: str | None,
        _init_setup_model: bool,
    ) -> None:
        super().__init__(
            _own_policy(policy),
            None,  # type: ignore[arg-type]  # what Stable-Baselines3 refuses without need is checked in _adopt
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.normalize_advantage = normalize_advantage
        self.sequence_length = sequence_length
        self.autocast = autocast
        self._last_state: State | None = None
        self._warned_of_standstill = False
        self._returns_count, self._returns_mean, self._returns_squares = Moments()
        self._captured_actor: GraphActor | None = None
        for name in ("learning_rate", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", *self.numbers):
            if isinstance(value := getattr(self, name), np.generic):
                setattr(self, name, value.item())
        self._check_settings()
        if env is not None:
            self._adopt(env)
        # Environments and files take Python's integers only, not NumPy's.
        for name in ("n_steps", "batch_size", "sequence_length", "burn_in", "seed"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else int(value))
        if _init_setup_model:
            if env is None:
                raise ValueError("env is None: give an environment, its id, or a vector environment to train on")
            self._setup_model()

    def _adopt(self, env: GymEnv | str) -> None:
        """The environments to train in, and their spaces."""
        wrapped = self._wrap_env(maybe_make_env(env, self.verbose), self.verbose)
        check_observation_space(wrapped.observation_space)
        check_action_space(wrapped.action_space, self.use_sde, self.policy_kwargs.get("squash_output", False))
        self.observation_space, self.action_space = wrapped.observation_space, wrapped.action_space
        self.n_envs, self.env = wrapped.num_envs, wrapped
        self._vec_normalize_env = unwrap_vec_normalize(wrapped)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Stable-Baselines3's, after a look at what it would fail on without naming a cure."""
        if isinstance(env, VectorEnv):
            raise ValueError(
                f"{env} is a Gymnasium vector environment; make the environments with envs.make(id, n_envs), or wrap "
                "this one: envs.vector.vectorize.VectorEnvAdapter(env)"
            )
        if isinstance(env, gymnasium.Env | VecEnv):
            check_observation_space(env.observation_space)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _check_settings(self) -> None:
        """Raises ValueError for what could only fail, or mislead, later on. Subclasses add their own."""
        check_range("gamma", self.gamma, 0.0, 1.0)
        check_range("gae_lambda", self.gae_lambda, 0.0, 1.0)
        check_range("vf_coef", self.vf_coef, 0.0)
        check_range("ent_coef", self.ent_coef)
        check_positive("max_grad_norm", self.max_grad_norm)
        check_schedule("learning_rate", self.learning_rate, 0.0)
        check_count("n_steps", self.n_steps)
        check_count("stats_window_size", self._stats_window_size)
        check_switch("use_sde", self.use_sde)
        check_normalization("normalize_advantage", self.normalize_advantage)
        check_sde_sample_freq(self.sde_sample_freq)
        check_seed(self.seed)
        check_mapping("policy_kwargs", self.policy_kwargs)
        check_policy_class(self.policy_class, RecurrentActorCriticPolicy, self.policy_aliases)
        check_choice("autocast", self.autocast, AUTOCAST)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        if self.sequence_length is not None:
            check_count("sequence_length", self.sequence_length)
            check_sequence_length(self.n_steps, self.sequence_length)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        check_policy_name(policy_name, self.policy_aliases)
        return super()._get_policy_from_name(policy_name)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds Python, NumPy, torch, the environments, and this algorithm's own source of samples and shuffles."""
        super().set_random_seed(None if seed is None else int(seed))
        if seed is not None:
            self._rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state

    def _setup_model(self) -> None:
        """Networks, buffer, random source."""
        _keep_freed_memory()
        self._check_settings()
        self._setup_lr_schedule()
        # Without a seed of its own it follows torch's, which a script may have set.
        self._rng = np.random.default_rng(int(torch.randint(2**62, ())))
        self.set_random_seed(self.seed)
        policy: Any = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        )
        self.policy = policy.to(self.device)
        self.policy.autocast = AUTOCAST[self.autocast]
        self.policy.set_training_mode(True)
        check_acts_as_it_learns(self.policy)
        self._mention_masks()
        state = self.policy.initial_state(self.n_envs)
        self._last_state = state
        self.rollout_buffer = SequenceRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.policy.head,
            state,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            sequence_length=resolve_sequence_length(self.n_steps, self.batch_size, self.sequence_length),
            rng=self._rng,
            burn_in=self.burn_in,
        )
        mention_uneven_minibatches(self.n_steps, self.n_envs, self.rollout_buffer.sequence_length, self.batch_size)

    def _mention_masks(self) -> None:
        """Warns where an environment is made for MaskablePPO, whose way of masking actions is not looked at here."""
        has_masks = False
        with contextlib.suppress(Exception):  # not every vector environment answers
            has_masks = self.env is not None and self.env.has_attr("action_masks")
        if has_masks and self.policy.action_mask is None:
            warnings.warn(
                "the environment has action_masks(), as sb3-contrib's MaskablePPO and ActionMasker use it; here it has "
                'no effect. Make the mask a part of a Dict observation and name it: policy "RecurrentPolicy" with '
                'policy_kwargs=dict(action_mask="mask")',
                UserWarning,
                stacklevel=2,
            )

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: SequenceRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fills the buffer with ``n_rollout_steps`` steps of every environment.

        Returns:
            False if a callback ended training.
        """
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()  # before anything random, so that an agent saved here goes on as if never stopped
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        steps_call_back, steps_alone = needs_steps(callback), _steps_alone(env)
        actor = make_actor(self.policy, self._rng, self._captured_actor, self.captures_acting)
        self._captured_actor = actor if isinstance(actor, GraphActor) else None
        lstm_states = actor.begin(self._starting_state(env.num_envs))
        terminals: list[Terminal] = []

        carried = lstm_states  # the state that belongs to self._last_obs
        # Local names are part of the interface: callbacks read them in self.locals, under Stable-Baselines3's names.
        try:
            for n_steps in range(n_rollout_steps):
                if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                    self.policy.reset_noise(env.num_envs)
                obs, episode_starts = self._last_obs, self._last_episode_starts
                kept = self._state_to_keep(lstm_states, episode_starts) if rollout_buffer.keeps_state() else ()
                rollout_buffer.add_observations(obs, episode_starts, kept)
                chosen, finish = actor.act(obs, lstm_states, episode_starts)
                actions = actor.on_host(chosen)
                clipped_actions = self._to_environment(actions, n_steps)
                if steps_alone:
                    env.step_async(clipped_actions)
                values, log_probs, lstm_states = finish()
                rollout_buffer.add_actions(chosen, values, log_probs)
                new_obs, rewards, dones, infos = env.step_wait() if steps_alone else env.step(clipped_actions)
                dones = _as_truths(dones)
                infos = infos or [{} for _ in dones]  # some say nothing at all where no episode ends
                resets = reset_steps(episode_starts, infos)
                starts = dones.copy()
                if resets:
                    starts[resets] = True
                self.num_timesteps += env.num_envs
                if steps_call_back:
                    obs_tensor = map_observations(operator.itemgetter(n_steps), rollout_buffer.observations)
                    values, log_probs = torch.as_tensor(values)[:, None], torch.as_tensor(log_probs)
                    callback.update_locals(locals())
                    if not callback.on_step():
                        # The environments have moved on, and so must what a later learn() starts from.
                        self._last_obs, self._last_episode_starts = new_obs, starts
                        self._last_state = actor.end(lstm_states)
                        return False
                rollout_buffer.add_rewards(rewards)
                if resets:
                    rollout_buffer.mark_reset_step(resets)
                if np.count_nonzero(dones):
                    self._update_info_buffer([infos[i] for i in np.flatnonzero(dones)], dones[dones])
                    if cut := _cut_by_time_limit(dones, infos):
                        terminals.append(_terminal(n_steps, cut, infos, actor, lstm_states))
                self._last_obs, self._last_episode_starts, carried = new_obs, starts, lstm_states
        except BaseException:  # Ctrl-C too: a later learn() goes on from here
            self._last_state = actor.end(carried)
            raise

        self._last_state = actor.end(lstm_states)
        if not steps_call_back:
            _catch_up(callback, n_rollout_steps, self.num_timesteps)
        self._close_rollout(rollout_buffer, terminals)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _to_environment(self, actions: NDArray[Any], step: int) -> NDArray[Any]:
        """Actions as environments take them; where one is not finite, an error that names what it comes from."""
        try:
            return self.policy.head.to_environment(actions)
        except FloatingPointError:
            after = f"the rollout of {self.n_steps} steps after time step {self.num_timesteps - step * self.n_envs}"
            buffer = self.rollout_buffer
            seen = map_observations(operator.itemgetter(slice(step + 1)), buffer.observations)
            _check_experience(seen, buffer.rewards[:step], after)
            raise

    def _close_rollout(self, buffer: SequenceRolloutBuffer, terminals: list[Terminal]) -> None:
        """From rewards and values to returns and advantages."""
        if not bool(buffer.rewards.isfinite().all()):  # while they are the environments', with no value in them
            _check_experience(buffer.observations, buffer.rewards, self._rollout_before())
        if self.autocast is not None:
            self._recompute(buffer)
        self._bootstrap_time_limits(buffer, terminals)
        buffer.compute_returns_and_advantage(self._last_values(), self._last_episode_starts)
        self._check_finite(buffer, terminals)
        if self._normalization == "rollout":
            seen = self._returns_seen().with_more(buffer.returns[buffer.real])
            self._returns_count, self._returns_mean, self._returns_squares = seen

    @property
    def _normalization(self) -> str | None:
        """ "batch", "rollout", or None for none."""
        if isinstance(self.normalize_advantage, str):
            return self.normalize_advantage
        as_there = issubclass(self.policy_class, LstmPolicy)
        return ("batch" if as_there else "rollout") if self.normalize_advantage else None

    def _returns_seen(self) -> Moments:
        """The returns of all rollouts so far, where advantages are normalized by rollout."""
        return Moments(self._returns_count, self._returns_mean, self._returns_squares)

    def _normalized_by_rollout(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """From the rollout's advantages to those that an update learns from, (...) -> (...)."""
        if self._normalization != "rollout":
            return lambda advantages: advantages
        buffer = self.rollout_buffer
        shift, scale = advantage_scale(buffer.advantages[buffer.real], self._returns_seen())
        return lambda advantages: (advantages - shift) / scale

    @contextlib.contextmanager
    def _watching_weights(self) -> Iterator[None]:
        """Around an update: warns, once, where it changed no weight though it should have."""
        stops_early = getattr(self, "target_kl", None) is not None  # perhaps before the first step
        if self._warned_of_standstill or stops_early or not self.lr_schedule(self._current_progress_remaining):
            yield
            return
        parameters = [part for part in self.policy.parameters() if part.requires_grad]
        before, updates = [part.detach().clone() for part in parameters], self._n_updates
        yield
        if self._n_updates > updates and self.rollout_buffer.real.any() and all(map(torch.equal, before, parameters)):
            self._warned_of_standstill = True
            warnings.warn(
                f"the update at time step {self.num_timesteps} changed no weight: gradients are zero, or so large that "
                f"clipping them to max_grad_norm ({self.max_grad_norm:g}) leaves nothing. Look at vf_coef "
                f"({self.vf_coef:g}), ent_coef and the scale of rewards (VecNormalize)",
                RuntimeWarning,
                stacklevel=2,
            )

    def _starting_state(self, n_envs: int) -> State:
        """The carried state, with what is random for a rollout drawn anew."""
        if self._last_state is None:
            self._last_state = self.policy.initial_state(n_envs)
        return tuple(part.detach() for part in self.policy.renew(self._last_state))

    def _state_to_keep(self, state: Any, episode_starts: NDArray[np.bool_]) -> Any:
        """The state before a step: the initial one where an episode starts, not the dead episode's last."""
        if not episode_starts.any():
            return state
        tensors = tuple(torch.as_tensor(part, device=self.device) for part in state)
        starts = to_device(episode_starts, self.device)
        return self.policy.reset_state(tensors, starts)

    def _recompute(self, buffer: SequenceRolloutBuffer) -> None:
        """Values and log-probabilities as learning will find them, in place of those that acting gave."""

        def evaluate(batch: SequenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
            values, log_probs, _ = self.policy.evaluate_actions(
                batch.observations, batch.actions, self._state_before(batch), batch.episode_starts
            )
            return values, log_probs

        # In training mode and with gradients, as in learning: without, layers may choose another way to compute.
        self.policy.set_training_mode(True)
        buffer.recompute(evaluate, self.batch_size)
        self.policy.set_training_mode(False)

    def _state_before(self, batch: SequenceBatch) -> State:
        """The state before each sequence's first step, (S, ...), after its burn-in with the weights as they are."""
        if batch.burn_in is None:
            return batch.state
        before, sequences = batch.burn_in, batch.burn_in.sequences
        kept = tuple(part.index_select(0, sequences) for part in batch.state)
        n_steps = len(before.episode_starts)
        warmed = self.policy.states_along(before.observations, kept, before.episode_starts, [n_steps])
        return tuple(part.index_copy(0, sequences, after[0]) for part, after in zip(batch.state, warmed, strict=True))

    def _bootstrap_time_limits(self, buffer: SequenceRolloutBuffer, terminals: list[Terminal]) -> None:
        """Adds gamma * V(s_{t+1}) to the last reward of every episode cut by a time limit, in one pass of the network.

        V is that of the terminal observation, through the state after s_t; the carried state is not touched.
        """
        if not terminals:
            return
        steps = [step for step, environments, _, _ in terminals for _ in environments]
        environments = [i for _, chosen, _, _ in terminals for i in chosen]
        observations = _stack([observation for _, _, last, _ in terminals for observation in last])
        state = tuple(torch.cat(parts) for parts in zip(*(state for _, _, _, state in terminals), strict=True))
        values = self._values_of(observations, state, np.zeros(len(steps), dtype=bool))
        buffer.rewards[steps, environments] += self.gamma * values.cpu()

    def _last_values(self) -> torch.Tensor:
        assert self._last_state is not None
        return self._values_of(self._last_obs, self._last_state, self._last_episode_starts)

    def _values_of(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> torch.Tensor:
        with torch.no_grad():
            tensors = map_observations(lambda part: torch.as_tensor(part, device=self.device), observations)
            values: torch.Tensor = self.policy.predict_values(tensors, state, episode_starts)
            return values

    def _check_finite(self, buffer: SequenceRolloutBuffer, terminals: list[Terminal]) -> None:
        """Raises FloatingPointError, naming the source, before a number that is not finite reaches the weights."""
        # Observations too: a memory's gates turn infinite ones into finite numbers, with gradients that are not.
        if bool(
            buffer.advantages.isfinite().all()
            & buffer.log_probs.isfinite().all()
            & _all_finite(buffer.observations, self.device)
        ):
            return
        rollout = self._rollout_before()
        _check_experience(buffer.observations, buffer.rewards[:0], rollout)
        for t, environments, observations, _ in terminals:
            for (i,) in _not_finite(_stack(observations), axes=1):
                raise FloatingPointError(
                    f"the last observation of the episode of environment {environments[i]} that ended at step {t} of "
                    f"{rollout} is not finite"
                )
        for (i,) in _not_finite(self._last_obs, axes=1):
            raise FloatingPointError(f"the observation of environment {i} after {rollout} is not finite")
        raise FloatingPointError(
            f"the policy's output is not finite in {rollout}, though all that it read is: training diverged; lower "
            "learning_rate or max_grad_norm, or scale observations and rewards (VecNormalize)"
        )

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Stable-Baselines3's, on observations as the policy sees them.

        Raises:
            ValueError: they are of another shape; where the last action and reward are missing in them, it is said how
                an environment comes to show them.
        """
        try:
            return super().predict(observation, state, episode_start, deterministic)
        except (ValueError, LookupError) as error:
            previous = previous_inputs(self)
            if previous is None or not previous.missing_from(observation):
                raise
            raise ValueError(
                f"{error}. This agent sees its last action and reward beside the observation: let it act on "
                "get_env(), on agents.checkpoint.normalizer(model, vec_env), or as a Player"
            ) from error

    def _rollout_before(self) -> str:
        return f"the rollout of {self.n_steps} steps that ended at time step {self.num_timesteps}"

    def learn(self: SelfAlgorithm, *args: Any, **kwargs: Any) -> SelfAlgorithm:
        """Stable-Baselines3's; a normalizer that came with a saved agent is at work inside and rests outside."""
        wrapper = self._vec_normalize_env
        with wrapper.learning() if isinstance(wrapper, RestoredNormalizer) else contextlib.nullcontext():
            return super().learn(*args, **kwargs)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """Stable-Baselines3's; what evaluates on plain environments sees them as the loaded agent learned to."""
        for each in _all_callbacks(callback):
            if isinstance(each, EvalCallback) and unwrap_vec_normalize(each.eval_env) is None:
                each.eval_env = as_learned(self, each.eval_env)
        return super()._init_callback(callback, progress_bar)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        """Stable-Baselines3's, and a memory that fits the number of environments after ``set_env``."""
        check_total_timesteps(total_timesteps)
        if self.not_restored:
            given = ", ".join(f"{name!r}: ..." for name in self.not_restored)
            raise ValueError(
                f"this agent was loaded to act: its file only names its {', '.join(self.not_restored)}. To learn on, "
                f"load it with them: load(path, env, custom_objects={{{given}}})"
            )
        self._check_mask_is_not_normalised()
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        assert self._last_episode_starts is not None
        self._last_episode_starts = np.asarray(self._last_episode_starts, dtype=bool)
        if self._last_state is not None and any(len(part) != self.n_envs for part in self._last_state):
            self._last_state = None
        return result

    def _check_mask_is_not_normalised(self) -> None:
        normaliser, key = self._vec_normalize_env, self.policy.action_mask
        if (
            key is not None
            and normaliser is not None
            and normaliser.norm_obs
            and key in (normaliser.norm_obs_keys or ())
        ):
            raise ValueError(
                f"VecNormalize would normalise the action mask {key!r}, and forbidden actions would count as allowed; "
                "name the other keys in its norm_obs_keys"
            )

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        """Stable-Baselines3's, from infos whose "episode" is a Monitor's: an environment may call other things so."""
        kept = [
            info if _is_monitors(info.get("episode")) else {key: info[key] for key in info if key != "episode"}
            for info in infos
        ]
        super()._update_info_buffer(kept, dones)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """From 1 to 0, and not below where the last rollout overshoots: no schedule may turn negative."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def save(
        self,
        path: Any,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Saves the agent as data, with its normaliser and all it needs to go on: see ``agents.checkpoint``.

        ``path`` is a path, to which ``.zip`` is added where it has no suffix, or an open binary file.
        """
        save_algorithm(self, path, exclude, include)

    @classmethod
    def load(
        cls: type[SelfAlgorithm],
        path: Any,
        env: GymEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """A new agent from a file, of which nothing is executed: see ``agents.checkpoint.load_algorithm``."""
        return load_algorithm(cls, path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Sets weights and optimizer state, from a saved agent or as ``get_parameters`` gives them."""
        parameters = load_path_or_dict
        if not isinstance(parameters, dict):
            parameters = read_parameters(load_path_or_dict, get_device(device))
        check_parameters(self, parameters)
        super().set_parameters(parameters, exact_match, device)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_last_state",
            "_rng",
            "_captured_actor",
            "_compiled",
            "_warned_of_standstill",
        ]


def _own_policy(policy: Any) -> Any:
    """Our name for a policy class of sb3-contrib; anything else as it is, a subclass of one too."""
    if not inspect.isclass(policy) or policy.__module__ != "sb3_contrib.common.recurrent.policies":
        return policy
    return _THEIR_POLICIES.get(policy.__name__, policy)


_THEIR_POLICIES = {
    "RecurrentActorCriticPolicy": "MlpLstmPolicy",
    "RecurrentActorCriticCnnPolicy": "CnnLstmPolicy",
    "RecurrentMultiInputActorCriticPolicy": "MultiInputLstmPolicy",
}


RESET_STEP = "recurl.reset_step"
"""The key under which our vector environments mark a reset step: a name of its own, for infos are the user's."""


def reset_steps(episode_starts: NDArray[np.bool_], infos: Any) -> list[int]:
    """The environments that in this step only reset themselves: no transition; the episode starts with the next.

    Vector environments that reset on the next step mark that step in their infos; it follows an episode's end.
    """
    if not np.count_nonzero(episode_starts):  # a quarter of the time of any()
        return []
    return [int(i) for i in np.flatnonzero(episode_starts) if infos[i].get(RESET_STEP)]


def _as_truths(dones: Any) -> NDArray[np.bool_]:
    """The ends of episodes (B,) as bools, of environments that say 0 and 1 too.

    Raises:
        ValueError: one is neither.
    """
    said: NDArray[Any] = np.asarray(dones)
    if said.dtype == np.bool_:
        return said
    if not np.isin(said, (0, 1)).all():
        raise ValueError(f"dones of a vector environment must be true or false, got {said}")
    return said.astype(np.bool_)


def _is_monitors(episode: Any) -> bool:
    return isinstance(episode, Mapping) and all(
        isinstance(episode.get(name), int | float | np.number | np.ndarray) for name in ("r", "l")
    )


def _steps_alone(env: VecEnv) -> bool:
    """Whether steps may be asked for and fetched apart: not where a subclass has put something into ``step`` itself."""
    for cls in type(env).__mro__:
        if {"step_async", "step_wait"} & vars(cls).keys():
            return True
        if "step" in vars(cls):
            return False
    return True


def _cut_by_time_limit(dones: NDArray[np.bool_], infos: Any) -> list[int]:
    """The environments whose episode ended at this step without a terminal state."""
    return [
        int(i)
        for i in np.flatnonzero(dones)
        if infos[i].get("TimeLimit.truncated", False) and infos[i].get("terminal_observation") is not None
    ]


def _keep_freed_memory() -> None:
    """Has the C library keep what is freed for the next update, where it would give blocks of megabytes back at once.

    glibc raises its limits to the largest block that was ever freed, 32 MiB at most; without that an update with 256
    units and 32 environments faults in some ten thousand pages. The block here is never touched and takes no memory.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _terminal(step: int, environments: list[int], infos: Any, actor: Actor, state: Any) -> Terminal:
    """What the bootstrap of episodes cut at a step needs, from what the actor carries after it."""
    last = [infos[i]["terminal_observation"] for i in environments]
    return step, environments, last, actor.end(tuple(part[environments] for part in state))


def _stack(observations: list[Any]) -> Any:
    """Single observations -> a batch, for arrays and (nested) dicts of them."""
    if isinstance(observations[0], dict):
        return {key: _stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


def _all_finite(observations: Any, device: torch.device) -> torch.Tensor:
    """Whether all numbers of a tensor or (nested) dict of them are finite, as a tensor () on the device."""
    parts = list(observations.values()) if isinstance(observations, dict) else None
    if parts is None:
        return (
            observations.isfinite().all() if observations.is_floating_point() else torch.ones((), device=device).bool()
        )
    return torch.stack([_all_finite(part, device) for part in parts]).all()


def _check_experience(observations: Any, rewards: torch.Tensor, rollout: str) -> None:
    """Raises FloatingPointError for the first number that is not finite in observations and rewards (T, B, ...).

    A reward comes before the next observation, which may show it.
    """
    found = [(t, 0, i, "observation") for t, i in _not_finite(observations, axes=2)]
    found += [(t, 1, i, "reward") for t, i in _not_finite(rewards, axes=2)]
    if found:
        t, _, i, what = min(found)
        raise FloatingPointError(f"the {what} of environment {i} at step {t} of {rollout} is not finite") from None


def _not_finite(observations: Any, axes: int) -> list[list[int]]:
    """Where numbers are not finite: indices along the leading axes of an array, tensor or (nested) dict of them."""
    if isinstance(observations, dict):
        return sorted(index for part in observations.values() for index in _not_finite(part, axes))
    tensor = torch.as_tensor(observations)
    leading = tensor.shape[:axes]
    bad = (~tensor.isfinite()).reshape(*leading, math.prod(tensor.shape[axes:])).any(-1)
    indices: list[list[int]] = bad.nonzero().tolist()
    return indices


def _all_callbacks(callback: Any) -> Iterator[BaseCallback]:
    """A callback, list of callbacks or None, and all that they call."""
    if isinstance(callback, list):
        for each in callback:
            yield from _all_callbacks(each)
    elif isinstance(callback, BaseCallback):
        yield callback
        for name in ("callbacks", "callback", "callback_on_new_best"):
            yield from _all_callbacks(getattr(callback, name, None))


def needs_steps(callback: BaseCallback) -> bool:
    """Whether a callback does anything at a step; one that does not may say so by ``needs_steps = False``."""
    if type(callback) is CallbackList:
        return any(needs_steps(child) for child in callback.callbacks)
    if isinstance(callback, ConvertCallback):
        return callback.callback is not None
    return bool(getattr(callback, "needs_steps", True))


def _catch_up(callback: BaseCallback, n_calls: int, num_timesteps: int) -> None:
    """The counters that ``on_step`` would have moved."""
    callback.n_calls += n_calls
    callback.num_timesteps = num_timesteps
    for child in callback.callbacks if isinstance(callback, CallbackList) else []:
        _catch_up(child, n_calls, num_timesteps)


def mention_uneven_minibatches(n_steps: int, n_envs: int, sequence_length: int, batch_size: int | None) -> None:
    """Warns where minibatches hold another number of steps than ``batch_size``, and an epoch so has other updates."""
    if batch_size is None:
        return
    in_all = n_steps * n_envs
    n_batches = number_of_minibatches(in_all // sequence_length, sequence_length, batch_size)
    if n_batches * batch_size == in_all or batch_size > in_all:
        return
    warnings.warn(
        f"a rollout of {in_all} steps in sequences of {sequence_length} cannot be divided into minibatches of "
        f"batch_size={batch_size}: an epoch has {n_batches} of {in_all / n_batches:g} steps on average. For even ones "
        "let batch_size be a multiple of sequence_length that divides n_steps * n_envs",
        UserWarning,
        stacklevel=2,
    )


def resolve_sequence_length(n_steps: int, batch_size: int | None, sequence_length: int | None) -> int:
    """The length of a training sequence: as given, else the whole rollout, or what of it fits into a minibatch.

    A minibatch smaller than a rollout's steps needs shorter sequences, which must tile the rollout: the longest divisor
    of n_steps that fits. Where that is under half the batch, whole rollouts are taken, one a minibatch, with a warning.
    """
    if sequence_length is not None:
        return sequence_length
    if batch_size is None or batch_size >= n_steps:
        return n_steps
    longest = next(length for length in range(batch_size, 0, -1) if n_steps % length == 0)
    if 2 * longest >= batch_size:
        return longest
    warnings.warn(
        f"no sequence length near batch_size ({batch_size}) divides n_steps ({n_steps}): each minibatch takes one "
        f"whole rollout of {n_steps} steps. Set sequence_length, or an n_steps that is a multiple of batch_size",
        UserWarning,
        stacklevel=2,
    )
    return n_steps
