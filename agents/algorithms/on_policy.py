"""Collects rollouts for any policy with memory; what an update is, the algorithms say.

Axes: B environments.

A Stable-Baselines3 ``OnPolicyAlgorithm``: its learn, callbacks, logger, schedules and VecNormalize work here unchanged.
The memory's state travels with the last observation: it is exact across rollouts and across calls of ``learn``, and
reset only where an episode starts.
"""

import contextlib
import inspect
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, get_device
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecTransposeImage, unwrap_vec_normalize

from agents.algorithms.callbacks import all_callbacks, needs_steps, skip_steps, without_reports
from agents.algorithms.compiled import CompiledPolicy
from agents.algorithms.experience import (
    Step,
    Truncated,
    all_finite,
    as_bools,
    check_experience,
    check_last_observations,
    is_monitors,
    reset_steps,
    stack,
    steps_in_two_calls,
    truncated_episodes,
)
from agents.algorithms.losses import clip_gradients
from agents.algorithms.together import Together
from agents.checkpoint import (
    RestoredNormalizer,
    SavableAlgorithm,
    as_learned,
    check_parameters,
    hub,
    load_algorithm,
    previous_inputs,
    read_parameters,
    save_algorithm,
)
from agents.checks import arguments as checks
from agents.checks.devices import warn_of_fallback
from agents.checks.observations import map_observations
from agents.checks.spaces import check_observation_space
from agents.distributed import group
from agents.distributed.gradients import average_gradients
from agents.kernels.devices import to_device
from agents.memory import State
from agents.policy.actor_critic import GruPolicy, RecurrentActorCriticPolicy, RnnPolicy
from agents.policy.contrib import CnnLstmPolicy, LstmPolicy, MultiInputLstmPolicy, own_policy
from agents.policy.heads import check_action_space
from agents.policy.nodes import LinkActionPolicy, NodeActionPolicy
from agents.rollout.actor import Actor
from agents.rollout.buffer import (
    SequenceBatch,
    SequenceRolloutBuffer,
    check_sequence_length,
    number_of_minibatches,
)
from agents.rollout.masks import (
    ACTION_MASKS,
    ActionMaskVecEnv,
    as_shown,
    has_action_masks,
    shows_masks,
    with_masks,
)
from agents.rollout.noise import LastingNoise, lasting_noise
from agents.rollout.numpy_actor import make_actor
from agents.rollout.returns import FLOOR, Moments, advantage_scale

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="RecurrentOnPolicyAlgorithm")
LARGE_RETURNS = 10.0
"""Root mean square above which returns are too large for a memory that actor and critic share: of CartPole without
velocities it is 10 after 2,000 steps, and nothing is learned; with rewards normalized it is 1 to 3."""
AUTOCAST: dict[str | None, torch.dtype | None] = {None: None, "bfloat16": torch.bfloat16}


def settings_of(constructor_locals: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name, from its ``locals()`` at its first line."""
    return {name: value for name, value in constructor_locals.items() if name not in ("self", "__class__")}


class RecurrentOnPolicyAlgorithm(SavableAlgorithm):
    """What RecurrentPPO and RecurrentA2C share: a policy with memory, and rollouts that preserve its state.

    Args:
        settings: all other arguments of the subclass's constructor by name. Those of Stable-Baselines3's
            ``OnPolicyAlgorithm`` go to it, the others become attributes.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "RecurrentPolicy": RecurrentActorCriticPolicy,
        "MlpLstmPolicy": LstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
        "MlpGruPolicy": GruPolicy,
        "MlpRnnPolicy": RnnPolicy,
        "NodeActionPolicy": NodeActionPolicy,
        "LinkActionPolicy": LinkActionPolicy,
    }
    adapted: ClassVar[Callable[[Any], Any]] = staticmethod(lambda env: env)
    """From an environment to one that Stable-Baselines3 takes: ``envs.vector.vectorize.adapted``, handed in by
    ``agents.runs.environments``, since the environments are none of the agents' business."""
    policy: RecurrentActorCriticPolicy
    rollout_buffer: SequenceRolloutBuffer  # type: ignore[assignment]
    batch_size: int | None = None
    normalize_advantage: bool | str
    sequence_length: int | None
    autocast: str | None
    burn_in: int = 0
    noise_correlation: float | Schedule = 0.0
    _last_obs: Any
    _last_episode_starts: Any

    def __init__(
        self, policy: str | type[RecurrentActorCriticPolicy], env: GymEnv | str | None, **settings: Any
    ) -> None:
        is_complete = settings.pop("_init_setup_model")
        # Environments and files take Python's numbers only, not NumPy's.
        settings = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
        requested = settings["device"] = group.device(settings.get("device", "auto"))
        theirs = settings.keys() & inspect.signature(OnPolicyAlgorithm).parameters.keys()
        super().__init__(
            own_policy(policy),
            None,  # type: ignore[arg-type]  # what Stable-Baselines3 refuses without need is checked in _adopt
            **{name: settings.pop(name) for name in theirs},
            _init_setup_model=False,
        )
        warn_of_fallback(requested, self.device)
        vars(self).update(settings)
        self._last_state: State | None = None
        self._last_noise: NDArray[Any] | None = None
        self.environment_seconds = 0.0  # waited for environments while collecting, since this object was made
        self._warned_of_standstill = self._warned_of_scale = False
        self._returns_count, self._returns_mean, self._returns_squares = Moments()
        self._compiled: CompiledPolicy | None = None
        self._together: Together | None = None
        self._check_settings()
        if env is not None:
            self._adopt(env)
        if is_complete:
            if env is None:
                raise ValueError("env is None: give an environment, its id, or a vector environment to train on")
            self._setup_model()

    def _adopt(self, env: GymEnv | str) -> None:
        """The environments to train in, and their spaces."""
        env = type(self).find(env) if isinstance(env, str) else env
        wrapped = self._with_masks(self._wrap_env(maybe_make_env(env, self.verbose), self.verbose))
        check_observation_space(wrapped.observation_space)
        check_action_space(wrapped.action_space, self.use_sde, self.policy_kwargs.get("squash_output", False))
        self.observation_space, self.action_space = wrapped.observation_space, wrapped.action_space
        self.n_envs, self.env = wrapped.num_envs, wrapped
        self._vec_normalize_env = unwrap_vec_normalize(wrapped)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Stable-Baselines3's, of gymnasium's vector environments and observations of any space too."""
        env = RecurrentOnPolicyAlgorithm.adapted(env)
        if isinstance(env, gymnasium.Env | VecEnv):
            check_observation_space(env.observation_space)
            if _mixes_image_layouts(env.observation_space):
                env = VecTransposeImage(env if isinstance(env, VecEnv) else _monitored(env), skip=True)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _check_settings(self) -> None:
        """Raises ValueError for what could only fail, or mislead, later on. Subclasses add their own."""
        checks.check_range("gamma", self.gamma, 0.0, 1.0)
        checks.check_range("gae_lambda", self.gae_lambda, 0.0, 1.0)
        checks.check_range("vf_coef", self.vf_coef, 0.0)
        checks.check_schedule("ent_coef", self.ent_coef, -float("inf"))
        checks.check_positive("max_grad_norm", self.max_grad_norm)
        checks.check_schedule("learning_rate", self.learning_rate, 0.0)
        checks.check_schedule("noise_correlation", self.noise_correlation, 0.0)
        checks.check_count("n_steps", self.n_steps)
        checks.check_count("stats_window_size", self._stats_window_size)
        checks.check_switch("use_sde", self.use_sde)
        way, every, seed = self.normalize_advantage, self.sde_sample_freq, self.seed
        is_known = isinstance(way, bool | np.bool_) or way in ("batch", "rollout")
        checks.require(is_known, "normalize_advantage", "True, False, 'batch' or 'rollout'", way)
        is_known = checks.is_whole(every) and (every >= 1 or every == -1)
        checks.require(is_known, "sde_sample_freq", "-1 (once a rollout) or a number of steps", every)
        is_seed = seed is None or (checks.is_whole(seed) and 0 <= seed < 2**32)
        checks.require(is_seed, "seed", "None or a whole number from 0 to 2**32 - 1", seed)
        checks.check_mapping("policy_kwargs", self.policy_kwargs)
        checks.check_policy_class(self.policy_class, RecurrentActorCriticPolicy, self.policy_aliases)
        checks.check_choice("autocast", self.autocast, AUTOCAST)
        if self.batch_size is not None:
            checks.check_count("batch_size", self.batch_size)
        if self.sequence_length is not None:
            checks.check_count("sequence_length", self.sequence_length)
            check_sequence_length(self.n_steps, self.sequence_length)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        checks.check_policy_name(policy_name, self.policy_aliases)
        return super()._get_policy_from_name(policy_name)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds Python, NumPy, torch, the environments, and this algorithm's own source of samples and shuffles."""
        super().set_random_seed(None if seed is None else int(seed))
        if seed is not None:
            self.random_generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state

    def _setup_model(self) -> None:
        """Networks, buffer, random source."""
        keep_freed_memory()
        self._check_settings()
        self._setup_lr_schedule()
        # Without a seed of its own it follows torch's, which a script may have set.
        self.random_generator = np.random.default_rng(int(torch.randint(2**62, ())))
        self.set_random_seed(self.seed)
        policy: Any = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        )
        self.policy = policy.to(self.device)
        self.policy.autocast = AUTOCAST[self.autocast]
        self.policy.set_training_mode(True)
        self._check_noise()
        checks.check_acts_as_it_learns(self.policy)
        if self.verbose:
            print(*(f"Observation: {line}" for line in self.policy.observation_lines()), sep="\n")
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
            rng=self.random_generator,
            burn_in=self.burn_in,
        )
        length, own_batch = self.rollout_buffer.sequence_length, self.own_batch_size
        if own_batch is not None and own_batch < length and group.size() > 1:
            raise ValueError(
                f"batch_size ({self.batch_size}) is shared by {group.size()} processes, {own_batch} steps each, and a "
                f"sequence has {length}: use batch_size {length * group.size()}, or a sequence_length of {own_batch}"
            )
        warn_of_uneven_minibatches(self.n_steps, self.n_envs, length, own_batch)

    def _check_noise(self) -> None:
        """Raises a ValueError for a correlation out of range, or of gSDE's noise."""
        self._noise()  # which looks at its range
        wanted = bool(callable(self.noise_correlation) or self.noise_correlation)
        expected = "0 with gSDE (use_sde=True), whose noise lasts anyway"
        checks.require(not (self.use_sde and wanted), "noise_correlation", expected, self.noise_correlation)

    @property
    def own_batch_size(self) -> int | None:
        """This process's part of ``batch_size``; None for the whole rollout."""
        return None if self.batch_size is None else group.share(self.batch_size, "batch_size")

    @property
    def n_envs_of_all(self) -> int:
        """Environments of all processes that train together."""
        return self.n_envs * group.size()

    def _with_masks(self, venv: VecEnv) -> VecEnv:
        """``venv`` with what ``action_masks()`` gives in its observations, where a policy is to be made that reads it.

        Raises:
            ValueError: a normalizer that does not know of masks lies around them.
        """
        if "action_mask" in self.policy_kwargs or not has_action_masks(venv):
            return venv
        if issubclass(self.policy_class, LstmPolicy):  # with sb3-contrib's arguments, which have no masks
            warnings.warn(
                "the environment has action_masks(), as sb3-contrib's MaskablePPO and ActionMasker use it, and "
                f'{self.policy_class.__name__} has no effect of them, as in sb3-contrib; use "RecurrentPolicy", which '
                "obeys them",
                UserWarning,
                stacklevel=2,
            )
            return venv
        self.policy_kwargs = {**self.policy_kwargs, "action_mask": ACTION_MASKS}
        if shows_masks(venv.observation_space):
            return venv
        if unwrap_vec_normalize(venv) is not None:
            raise ValueError(
                "VecNormalize lies around environments with action_masks(), which it must not normalize; put them "
                "inside: VecNormalize(agents.ActionMaskVecEnv(venv), norm_obs_keys=['observation'])"
            )
        return ActionMaskVecEnv(venv)

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
        together = self._together
        if together is None:
            goes_on = self._collect(env, callback, rollout_buffer, n_rollout_steps)
        else:
            together.begin_rollout()
            try:
                goes_on = self._collect(env, callback, rollout_buffer, n_rollout_steps)
            except (Exception, SystemExit) as error:
                together.report_failure(error)
                raise
            goes_on = together.end_rollout(goes_on)
        if goes_on:
            callback.on_rollout_end()
        return goes_on

    def _collect(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: SequenceRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        calls_back = needs_steps(callback)
        noise = self._noise()
        compiled = self._compiled_policy().act if noise is None and self._compiles("acting") else None
        actor = make_actor(self.policy, self.random_generator, compiled, noise)
        carried = actor.begin(self._starting_state(env.num_envs))  # the state that belongs to self._last_obs
        truncated: list[Truncated] = []
        steps_of_all = env.num_envs * group.size()
        names = dict(self=self, env=env, callback=callback, rollout_buffer=rollout_buffer)
        callback.update_locals({**names, "n_rollout_steps": n_rollout_steps})
        try:
            for n_steps in range(n_rollout_steps):
                step = self._step_environments(env, rollout_buffer, actor, carried, n_steps)
                resets = reset_steps(step.episode_starts, step.infos)
                starts = step.dones.copy()
                if resets:
                    starts[resets] = True
                self.num_timesteps += steps_of_all
                goes_on = not calls_back or self._call_back(callback, rollout_buffer, step, n_steps)
                if goes_on:
                    self._keep_outcome(rollout_buffer, actor, step, n_steps, resets, truncated)
                # The environments have moved on, and so must what a later learn() starts from.
                self._last_obs, self._last_episode_starts, carried = step.new_obs, starts, step.lstm_states
                if not goes_on:
                    return False
        finally:  # after Ctrl-C too
            self._last_state = actor.end(carried)
            self._last_noise = None if noise is None else noise.last
        if not calls_back:
            skip_steps(callback, n_rollout_steps, self.num_timesteps)
            callback.update_locals({**step._asdict(), "n_steps": n_steps})
        self._close_rollout(rollout_buffer, truncated)
        return True

    def _noise(self) -> LastingNoise | None:
        """Of the actions of the next rollout; None for independent noise."""
        correlation = FloatSchedule(self.noise_correlation)(self._current_progress_remaining)
        checks.require(0.0 <= correlation < 1.0, "noise_correlation", "from 0 to below 1", correlation)
        if not correlation:
            return None
        return lasting_noise(self.policy.head, correlation, self.random_generator, self._last_noise)

    def _step_environments(
        self, env: VecEnv, buffer: SequenceRolloutBuffer, actor: Actor, state: Any, n_steps: int
    ) -> Step:
        """One step of acting, its first two parts kept. Values are computed while environments step, where they can."""
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            self.policy.reset_noise(env.num_envs)
        obs, episode_starts = self._last_obs, self._last_episode_starts
        kept = self._state_to_keep(state, episode_starts) if buffer.keeps_state() else ()
        buffer.add_observations(obs, episode_starts, kept)
        chosen, finish = actor.act(obs, state, episode_starts)
        actions = chosen.cpu().numpy() if isinstance(chosen, torch.Tensor) else chosen
        clipped_actions = self._to_environment(actions, n_steps)
        in_two_calls = steps_in_two_calls(type(env))
        if in_two_calls:
            env.step_async(clipped_actions)
        values, log_probs, state = finish()
        buffer.add_actions(chosen, values, log_probs)
        began = time.perf_counter()
        new_obs, rewards, dones, infos = env.step_wait() if in_two_calls else env.step(clipped_actions)
        self.environment_seconds += time.perf_counter() - began
        dones = as_bools(dones)
        infos = infos or [{} for _ in dones]  # some give none at all where no episode ends
        return Step(episode_starts, actions, clipped_actions, values, log_probs, state, new_obs, rewards, dones, infos)

    def _call_back(self, callback: BaseCallback, buffer: SequenceRolloutBuffer, step: Step, n_steps: int) -> bool:
        """Calls back after a step; its names and types in ``self.locals`` are Stable-Baselines3's interface."""
        callback.update_locals(
            {
                **step._asdict(),
                "n_steps": n_steps,
                "obs_tensor": map_observations(operator.itemgetter(n_steps), buffer.observations),
                "values": torch.as_tensor(step.values)[:, None],
                "log_probs": torch.as_tensor(step.log_probs),
            }
        )
        return callback.on_step()

    def _keep_outcome(
        self,
        buffer: SequenceRolloutBuffer,
        actor: Actor,
        step: Step,
        n_steps: int,
        resets: list[int],
        truncated: list[Truncated],
    ) -> None:
        """The last part of a step: rewards, and the episodes that ended."""
        buffer.add_rewards(step.rewards)
        if resets:
            buffer.mark_reset_step(resets)
        if np.count_nonzero(step.dones):
            self._update_info_buffer([step.infos[i] for i in np.flatnonzero(step.dones)], step.dones[step.dones])
            truncated += truncated_episodes(n_steps, step, actor)

    def _compiles(self, part: str) -> bool:
        """Whether "acting" or the "objective" is compiled for a GPU, which is experimental."""
        if not self.policy.compiles_on_gpu:
            return False
        plan = self.policy.acting_plan().part if part == "acting" else self.policy.objective_plan()
        return plan.how == "torch.compile"

    def _compiled_policy(self) -> CompiledPolicy:
        if self._compiled is None or self._compiled.policy is not self.policy:
            self._compiled = CompiledPolicy(self.policy)
        return self._compiled

    def _to_environment(self, actions: NDArray[Any], step: int) -> NDArray[Any]:
        """Actions as environments take them; where one is not finite, an error that names what it comes from."""
        try:
            return self.policy.head.to_environment(actions)
        except FloatingPointError:
            after = (
                f"the rollout of {self.n_steps} steps after time step {self.num_timesteps - step * self.n_envs_of_all}"
            )
            buffer = self.rollout_buffer
            seen = map_observations(operator.itemgetter(slice(step + 1)), buffer.observations)
            check_experience(seen, buffer.rewards[:step], after)
            raise

    def _close_rollout(self, buffer: SequenceRolloutBuffer, truncated: list[Truncated]) -> None:
        """From rewards and values to returns and advantages."""
        if not bool(buffer.rewards.isfinite().all()):  # while they are the environments', with no value in them
            check_experience(buffer.observations, buffer.rewards, self._rollout_before())
        if self.autocast is not None:
            self._recompute(buffer)
        self._bootstrap_time_limits(buffer, truncated)
        buffer.compute_returns_and_advantage(self._last_values(), self._last_episode_starts)
        self._check_finite(buffer, truncated)
        if self._together is None:
            self.count_returns(Moments.of(buffer.returns[buffer.valid]))

    def count_returns(self, returns: Moments) -> None:
        """Takes the returns of a rollout into account, where advantages are normalized by rollout."""
        if self._normalization == "rollout":
            seen = self._returns_seen().and_also(returns)
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

    def entropy_coefficient(self) -> float:
        """``ent_coef`` as it is now."""
        return FloatSchedule(self.ent_coef)(self._current_progress_remaining)

    def _normalized_advantages(self) -> Callable[[SequenceBatch], torch.Tensor]:
        """From a minibatch to the advantages (L, S) that an update learns from, but for what the objective does."""
        together = self._together
        if self._normalization == "batch" and together is not None:
            return lambda batch: _scaled(batch.advantages, *together.minibatch_scale(batch.steps(batch.advantages)))
        if self._normalization != "rollout":
            return lambda batch: batch.advantages
        if together is not None:
            shift, scale = together.advantages.scale(FLOOR * self._returns_seen().std)
        else:
            buffer = self.rollout_buffer
            shift, scale = advantage_scale(buffer.advantages[buffer.valid], self._returns_seen())
        return lambda batch: _scaled(batch.advantages, shift, scale)

    @property
    def _objective_normalizes(self) -> bool:
        """Whether advantages are normalized in the objective: with those of other processes that is done before."""
        return self._normalization == "batch" and self._together is None

    def _minibatches(self, batch_size: int | None) -> Iterator[SequenceBatch]:
        """One epoch; together with others as many as they have, also if one has no transition here."""
        return self.rollout_buffer.get(batch_size, also_empty=self._together is not None)

    def _learn_from_gradients(self, parameters: Iterable[torch.Tensor], n_steps: int) -> None:
        """The optimizer's step, by gradients that are the means over ``n_steps`` here: those of all processes."""
        parameters = list(parameters)
        if self._together is not None:
            of_the_optimizer = (part for each in self.policy.optimizer.param_groups for part in each["params"])
            n_of_all = average_gradients(list(dict.fromkeys([*parameters, *of_the_optimizer])), n_steps)
            if not self._together.all_valid and not float(n_of_all):
                return
        clip_gradients(parameters, self.max_grad_norm)
        self.policy.optimizer.step()

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
        if self._n_updates > updates and self.rollout_buffer.valid.any() and all(map(torch.equal, before, parameters)):
            self._warned_of_standstill = True
            warnings.warn(
                f"the update at time step {self.num_timesteps} changed no weight: gradients are zero, or so large that "
                f"clipping them to max_grad_norm ({self.max_grad_norm:g}) leaves nothing. Look at vf_coef "
                f"({self.vf_coef:g}), ent_coef and the scale of rewards (VecNormalize)",
                RuntimeWarning,
                stacklevel=2,
            )

    def _watch_scale(self) -> None:
        """Warns, once, where values are large and shape a memory that the actor needs."""
        buffer, normalizer = self.rollout_buffer, self._vec_normalize_env
        shares = self.policy.critic_memory == "shared" and self.vf_coef > 0 and buffer.states
        if self._warned_of_scale or not shares or (normalizer is not None and normalizer.norm_reward):
            return
        scale = float(buffer.returns[buffer.valid].square().mean().sqrt())
        if scale > LARGE_RETURNS:
            self._warned_of_scale = True
            warnings.warn(
                f"returns are large ({scale:.3g}, the root of their mean square), and actor and critic share a memory: "
                "the value's gradient leaves little for the policy. Normalize rewards, VecNormalize(env), or give the "
                'critic a memory of its own, policy_kwargs={"critic_memory": "separate"}',
                UserWarning,
                stacklevel=2,
            )

    def _starting_state(self, n_envs: int) -> State:
        """The carried state, with what is random for a rollout drawn again."""
        if self._last_state is None:
            self._last_state = self.policy.initial_state(n_envs)
        return tuple(part.detach() for part in self.policy.renew(self._last_state))

    def _state_to_keep(self, state: Any, episode_starts: NDArray[np.bool_]) -> Any:
        """The state before a step: the initial one where an episode starts, not the last of the episode before."""
        if not episode_starts.any():
            return state
        tensors = tuple(torch.as_tensor(part, device=self.device) for part in state)
        starts = to_device(episode_starts, self.device)
        return self.policy.reset_state(tensors, starts)

    def _recompute(self, buffer: SequenceRolloutBuffer) -> None:
        """Values and log-probabilities as learning will find them, in place of those that acting gave."""

        def evaluate(batch: SequenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
            values, log_probs, _ = self.policy.evaluate_actions(
                batch.observations, batch.actions, self.state_before(batch), batch.episode_starts
            )
            return values, log_probs

        # In training mode and with gradients, as in learning: without, layers may choose another way to compute.
        self.policy.set_training_mode(True)
        buffer.recompute(evaluate, self.own_batch_size)
        self.policy.set_training_mode(False)

    def state_before(self, batch: SequenceBatch) -> State:
        """The state before each sequence's first step, (S, ...), after its burn-in with the weights as they are."""
        if batch.burn_in is None:
            return batch.state
        before, sequences = batch.burn_in, batch.burn_in.sequences
        kept = tuple(part.index_select(0, sequences) for part in batch.state)
        n_steps = len(before.episode_starts)
        warmed = self.policy.states_along(before.observations, kept, before.episode_starts, [n_steps])
        return tuple(part.index_copy(0, sequences, after[0]) for part, after in zip(batch.state, warmed, strict=True))

    def _bootstrap_time_limits(self, buffer: SequenceRolloutBuffer, truncated: list[Truncated]) -> None:
        """Adds gamma * V(s_{t+1}) to the last reward of every episode truncated by a time limit, in one pass.

        V is that of the terminal observation, through the state after s_t; the carried state is not touched.
        """
        if not truncated:
            return
        steps, environments, observations, states = map(list, zip(*truncated, strict=True))
        state = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
        values = self._values_of(stack(observations), state, np.zeros(len(steps), dtype=bool))
        buffer.rewards[steps, environments] += self.gamma * values.cpu()

    def _last_values(self) -> torch.Tensor:
        assert self._last_state is not None
        return self._values_of(self._last_obs, self._last_state, self._last_episode_starts)

    def _values_of(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> torch.Tensor:
        with torch.no_grad():
            tensors = map_observations(lambda part: torch.as_tensor(part, device=self.device), observations)
            values: torch.Tensor = self.policy.predict_values(tensors, state, episode_starts)
            return values

    def _check_finite(self, buffer: SequenceRolloutBuffer, truncated: list[Truncated]) -> None:
        """Raises FloatingPointError, naming the source, before a number that is not finite reaches the weights."""
        # Observations too: a memory's gates turn infinite ones into finite numbers, with gradients that are not.
        if bool(
            buffer.advantages.isfinite().all()
            & buffer.log_probs.isfinite().all()
            & all_finite(buffer.observations, self.device)
        ):
            return
        rollout = self._rollout_before()
        check_experience(buffer.observations, buffer.rewards[:0], rollout)
        check_last_observations(truncated, self._last_obs, rollout)
        raise FloatingPointError(
            f"the policy's output is not finite in {rollout}, though all that it read is: training diverged; lower "
            "learning_rate or max_grad_norm, or scale observations and rewards (VecNormalize)"
        )

    def _record_update(self, terms: dict[str, float]) -> None:
        """Logs an update: its terms by name, and what every algorithm has."""
        buffer = self.rollout_buffer
        values, returns = (part[buffer.valid].cpu().numpy() for part in (buffer.values, buffer.returns))
        if self._together is None:
            explained = float(explained_variance(values, returns))
        else:
            terms, explained = self._together.of_all(terms, values, returns)
        terms = {**terms, "explained_variance": explained}
        if hasattr(self.policy, "log_std"):
            terms["std"] = self.policy.log_std.detach().exp().mean().item()
        for name, value in terms.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Stable-Baselines3's, on observations as the policy sees them.

        Args:
            action_masks: (N,) or (B, N), true where an action is allowed, as MaskablePPO takes them: in place of the
                part of the observation that ``action_mask`` of the policy names.

        Raises:
            ValueError: observations are of another shape; if the last action and reward or the masks are missing in
                them, the message says how an environment comes to show them.
        """
        observation = self._masked(observation, action_masks)
        try:
            return super().predict(observation, state, episode_start, deterministic)
        except (ValueError, LookupError) as error:
            previous = previous_inputs(self)
            if previous is None or not previous.missing_from(observation):
                raise
            raise ValueError(
                f"{error}. This agent sees its last action and reward with the observation: let it act on "
                "get_env(), on agents.checkpoint.normalizer(model, vec_env), or as a Player"
            ) from error

    def _masked(self, observation: Any, action_masks: Any) -> Any:
        """The observation with its masks, which MaskablePPO's convention hands in separately."""
        key = self.policy.action_mask
        if action_masks is None:
            if key == ACTION_MASKS and not isinstance(observation, dict | tuple):
                raise ValueError(
                    "this agent sees which actions are allowed: hand in action_masks=env.action_masks(), or act on "
                    "get_env(), which shows them"
                )
            return observation
        if key is None:
            raise ValueError(
                "this policy was made without action masks: train it in an environment with action_masks(), or with "
                'policy_kwargs=dict(action_mask="mask")'
            )
        return with_masks(observation, np.asarray(action_masks), key)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Stable-Baselines3's; environments with ``action_masks()`` show them to an agent that sees them."""
        super().set_env(as_shown(self._wrap_env(env, self.verbose), self.observation_space), force_reset)

    def _rollout_before(self) -> str:
        return f"the rollout of {self.n_steps} steps that ended at time step {self.num_timesteps}"

    def learn(self: SelfAlgorithm, *args: Any, **kwargs: Any) -> SelfAlgorithm:
        """Stable-Baselines3's; a normalizer that came with a saved agent is at work inside and rests outside."""
        wrapper = self._vec_normalize_env
        try:
            with wrapper.learning() if isinstance(wrapper, RestoredNormalizer) else contextlib.nullcontext():
                return super().learn(*args, **kwargs)
        finally:
            self._together = None

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """Stable-Baselines3's; what evaluates on plain environments sees them as the loaded agent learned to."""
        if not group.is_first():
            callback, progress_bar = without_reports(callback), False
        for each in all_callbacks(callback):
            if isinstance(each, EvalCallback) and unwrap_vec_normalize(each.eval_env) is None:
                each.eval_env = as_learned(self, each.eval_env)
        return super()._init_callback(callback, progress_bar)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        """Stable-Baselines3's, and a memory that fits the number of environments after ``set_env``."""
        is_right = checks.is_number(total_timesteps) and total_timesteps >= 0  # others would end it before it began
        checks.require(is_right, "total_timesteps", "a number of at least 0", total_timesteps)
        if self.not_restored:
            given = ", ".join(f"{name!r}: ..." for name in self.not_restored)
            raise ValueError(
                f"this agent was loaded to act: its file only names its {', '.join(self.not_restored)}. To learn on, "
                f"load it with them: load(path, env, custom_objects={{{given}}})"
            )
        self._check_mask_is_not_normalized()
        if group.size() > 1:
            self._together = Together(self)
            self._together.begin()
            if not group.is_first():  # which alone prints and writes
                self.verbose, self.tensorboard_log = 0, None
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        if self._together is not None:
            self._together.share_first_observations()
        assert self._last_episode_starts is not None
        self._last_episode_starts = np.asarray(self._last_episode_starts, dtype=bool)
        if self._last_state is not None and any(len(part) != self.n_envs for part in self._last_state):
            self._last_state = None
        if self._last_noise is not None and len(self._last_noise) != self.n_envs:
            self._last_noise = None
        return result

    def _check_mask_is_not_normalized(self) -> None:
        normalizer, key = self._vec_normalize_env, self.policy.action_mask
        if (
            key is not None
            and normalizer is not None
            and normalizer.norm_obs
            and key in (normalizer.norm_obs_keys or ())
        ):
            raise ValueError(
                f"VecNormalize would normalize the action mask {key!r}, and forbidden actions would count as allowed; "
                "name the other keys in its norm_obs_keys"
            )

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        """Stable-Baselines3's, from infos whose "episode" is a Monitor's: an environment may call other things so."""
        kept = [
            info if is_monitors(info.get("episode")) else {key: info[key] for key in info if key != "episode"}
            for info in infos
        ]
        if self._together is not None:
            self._together.keep_episodes(kept, dones)
        super()._update_info_buffer(kept, dones)

    def count_episodes(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_]) -> None:
        """Adds episodes to the recent ones, whose mean return is logged."""
        super()._update_info_buffer(infos, dones)

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
        """Saves the agent as data, with its normalizer and all it needs to go on: see ``agents.checkpoint``.

        ``path`` is a path, to which ``.zip`` is added where it has no suffix, or an open binary file. Of processes that
        train together the first one writes, and the others do nothing.
        """
        if not group.is_first():
            return
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

    @classmethod
    def from_hub(
        cls: type[SelfAlgorithm],
        source: Any,
        env: GymEnv | str | None = None,
        *,
        filename: str = hub.AGENT,
        revision: str | None = None,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """:meth:`load` of an agent that was shared; nothing in its file is executed.

        Args:
            source: ``"owner/name"`` of the Hugging Face Hub, or a local folder as ``evaluate.py RUN --card`` writes it.
            filename, revision: of the repository.
            kwargs: as for :meth:`load`.

        Raises:
            CheckpointError: it is not there, or no such file.
            ImportError: ``huggingface_hub`` is not installed.
        """
        return cls.load(hub.shared_file(source, filename, revision), env, **kwargs)

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
            "_last_noise",
            "random_generator",
            "_compiled",
            "_together",
            "_warned_of_standstill",
            "_warned_of_scale",
            "environment_seconds",
        ]


def _mixes_image_layouts(space: gymnasium.Space[Any]) -> bool:
    """Whether images of a Dict have their channels first and last: Stable-Baselines3 transposes all of them or none,
    and our encoders read either."""
    parts: Any = space.spaces.values() if isinstance(space, gymnasium.spaces.Dict) else ()
    return len({is_image_space_channels_first(part) for part in parts if is_image_space(part)}) > 1


def _monitored(env: gymnasium.Env[Any, Any]) -> VecEnv:
    return DummyVecEnv([lambda: Monitor(env)])


def _scaled(values: torch.Tensor, shift: float, scale: float) -> torch.Tensor:
    return (values - shift) / scale


def keep_freed_memory() -> None:
    """Has the C library keep what is freed for the next update, where it would give blocks of megabytes back at once.

    glibc raises its limits to the largest block that was ever freed, 32 MiB at most; without that an update with 256
    units and 32 environments takes some ten thousand page faults. The block here is never written and takes no memory.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def warn_of_uneven_minibatches(n_steps: int, n_envs: int, sequence_length: int, batch_size: int | None) -> None:
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
