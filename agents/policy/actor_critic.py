"""Actor-critic policies with memory: observation -> encoder -> memory -> heads.

Axes: B environments (or sequences), L steps of a sequence, N steps of a minibatch.

The policy is a Stable-Baselines3 ``ActorCriticPolicy`` with a memory between its features extractor and its heads. Its
state is one flat tuple of tensors, batch first: the parts of the actor's memory, then those of the critic's, if the
critic has one of its own. State comes in and goes out; the policy hides none.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from agents.checks.arguments import check_mapping, check_observation_space
from agents.encoders import default_encoder
from agents.encoders.choices import flat_choices, with_flat_choices
from agents.encoders.combined import CombinedOfAnyKeys, can_name_a_layer
from agents.kernels import heads as fused
from agents.kernels.aside import Part
from agents.kernels.devices import to_device
from agents.kernels.plan import (
    Acting,
    Heads,
    Plan,
    acting_of,
    heads_of,
    memories_called,
    objective_of,
    plan_of,
    policy_layers_of,
    value_layers_of,
)
from agents.memory import Memory, NumpyStep, State, make_memory
from agents.memory.recurrent import unroll_together
from agents.policy.heads import HEADS, ActionHead, Parameters, make_action_head
from agents.policy.state_layouts import Given, is_own, is_pair, parts_of, read_episode_starts, read_state

CRITIC_MEMORIES = ("shared", "detached", "separate", "none")


class Projection(Memory):
    """A critic without memory: a linear map to the width of the actor's memory, so that the heads fit both."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size)
        self.linear = nn.Linear(input_size, output_size)

    def initial_state(self, batch_size: int) -> State:
        return ()

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        return self.linear(features), ()

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        output: Tensor = self.linear(features)
        return output

    def numpy_step(self) -> NumpyStep | None:
        weight, bias = self.linear.weight.detach(), self.linear.bias.detach()
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return None
        by_column, offset = np.ascontiguousarray(weight.numpy().T), bias.numpy()
        return lambda features, state, episode_starts: (features @ by_column + offset, ())


class Remembered(NamedTuple):
    """What the memories of actor and critic give, (N, H) each."""

    actor: Tensor
    critic: Tensor


def _in_autocast(compute: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a policy that computes in the policy's ``autocast``; what comes out is in float32 all the same."""

    @functools.wraps(compute)
    def run(policy: "RecurrentActorCriticPolicy", *args: Any) -> Any:
        if policy.autocast is None:
            return compute(policy, *args)
        with torch.autocast(policy.device.type, policy.autocast):
            return _widened(compute(policy, *args), policy.autocast)

    return run


def _widened(result: Any, narrow: torch.dtype) -> Any:
    """The same tensor or (nested, named) tuple of tensors, with float32 in place of ``narrow``."""
    if isinstance(result, Tensor):
        return result.float() if result.dtype == narrow else result
    parts = [_widened(part, narrow) for part in result]
    return type(result)(*parts) if isinstance(result, Remembered) else tuple(parts)


def _takes_states(of: Literal["both", "actor", "critic"]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method of one step, (observations, state, episode starts, ...) -> (..., state after): a public entrance.

    The state of both memories, or of one, comes in any layout of ``agents.policy.state_layouts``, goes out in the same;
    under sb3-contrib's name ``lstm_states`` too. Episode starts are truth values or numbers.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(
            policy: "RecurrentActorCriticPolicy",
            obs: Any,
            state: Any = None,
            episode_starts: Any = None,
            *args: Any,
            lstm_states: Any = None,
            **kwargs: Any,
        ) -> Any:
            batch_size = _batch_size(obs)
            starts = read_episode_starts(episode_starts, (batch_size,), policy.device)
            given = policy._read_state(state if lstm_states is None else lstm_states, batch_size, of)
            result = method(policy, obs, given.state, starts, *args, **kwargs)
            return result if of == "critic" else (*result[:-1], given.returned(result[-1]))

        return run

    return decorate


class RecurrentActorCriticPolicy(ActorCriticPolicy):
    """The general policy with memory, ``"RecurrentPolicy"``.

    Args:
        memory: a name in ``agents.memory.MEMORIES``, ``"module:Class"``, or a ``Memory`` class.
        memory_kwargs: arguments of the memory beside its input size, e.g. ``dict(hidden_size=128)``.
        critic_memory: what the critic remembers with. ``"shared"``: the actor's memory, shaped by both losses;
            ``"detached"``: the actor's memory without the critic's gradient; ``"separate"``: one of its own;
            ``"none"``: nothing, a linear layer in its place.
        action_mask: the key of a Dict observation that says which actions are allowed, (n,) true where allowed for
            Discrete(n), the choices of all axes side by side for MultiDiscrete. Forbidden actions get probability 0.
        privileged: keys of a Dict observation that only the critic sees, in training; the actor needs none of them, and
            ``predict`` may leave them out. The critic then has an extractor of its own, and ``critic_memory`` is
            ``"separate"`` or ``"none"``.
        features_extractor_class: None chooses by the observation space.

    The other arguments are those of ``stable_baselines3.common.policies.ActorCriticPolicy``.
    """

    autocast: torch.dtype | None = None
    """What encoder, memory and hidden layers compute in under ``torch.autocast``; None: as their weights are. The last
    layers and the distribution are always in float32, where a value of 100 keeps its digits. Set by the algorithm."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        memory: str | type[Memory] = "lstm",
        memory_kwargs: dict[str, Any] | None = None,
        critic_memory: str = "shared",
        action_mask: str | None = None,
        privileged: Sequence[str] = (),
    ) -> None:
        check_observation_space(observation_space)
        check_mapping("memory_kwargs", memory_kwargs)
        make_action_head(action_space)  # before anything is built on a space that it refuses
        share_features_extractor = share_features_extractor and not privileged
        _check_privileged(privileged, observation_space)
        _check_critic_memory(critic_memory, share_features_extractor)
        self.privileged = tuple(privileged)
        self._preprocessed_space = with_flat_choices(observation_space)
        _check_action_mask(action_mask, observation_space, action_space)
        self.memory, self.memory_kwargs = memory, dict(memory_kwargs or {})
        self.critic_memory, self.action_mask = critic_memory, action_mask
        self._warned_of_lost_memory, self._calls_without_state = False, 0
        self._heads: Heads | None = None
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            ortho_init,
            use_sde,
            log_std_init,
            full_std,
            use_expln,
            squash_output,
            features_extractor_class or default_encoder(observation_space),
            features_extractor_kwargs,
            share_features_extractor,
            normalize_images,
            optimizer_class,
            _with_fused_adam(optimizer_class, optimizer_kwargs),
        )
        exploration = self.action_dist if isinstance(self.action_dist, StateDependentNoiseDistribution) else None
        self.head: ActionHead = make_action_head(action_space, exploration, squash_output)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Stable-Baselines3 asks first for the actor's extractor, then for the critic's if it is to have its own."""
        space = self.observation_space
        is_actors = "features_extractor" not in self._modules
        if self.privileged and is_actors:
            assert isinstance(space, spaces.Dict)
            space = spaces.Dict({key: part for key, part in space.spaces.items() if key not in self.privileged})
        # Stable-Baselines3's own knows no key that is no attribute's name, such as "arm.joint" or "items".
        chosen = self.features_extractor_class
        if chosen is CombinedExtractor and isinstance(space, spaces.Dict) and not all(map(can_name_a_layer, space)):
            chosen = CombinedOfAnyKeys
        return chosen(with_flat_choices(space), **self.features_extractor_kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Stable-Baselines3's hook behind the features extractor: here the memories come in, then the heads."""
        # Some of Stable-Baselines3's extractors count their features in NumPy's integers.
        self.memory_actor = make_memory(self.memory, int(self.features_dim), self.memory_kwargs)
        self.memory_critic: Memory | None = None
        critic_features = int(self.vf_features_extractor.features_dim)
        if self.critic_memory == "separate":
            self.memory_critic = make_memory(self.memory, critic_features, self.memory_kwargs)
        elif self.critic_memory == "none":
            self.memory_critic = Projection(critic_features, self.memory_actor.output_size)
        self._n_actor_parts = len(self.memory_actor.initial_state(1))
        self._state_parts = parts_of(self.initial_state(1))
        super()._build(lr_schedule)

    def _build_mlp_extractor(self) -> None:
        """Stable-Baselines3's hook behind the memories, which a subclass may replace: heads on ``lstm_output_dim``."""
        self.mlp_extractor = self._make_heads(self.memory_actor.output_size)
        if self.memory_critic is not None and self.memory_critic.output_size != self.memory_actor.output_size:
            # The critic sees more than the actor, and its memory is as wide as what it sees.
            of_critic = self._make_heads(self.memory_critic.output_size)
            self.mlp_extractor.value_net = of_critic.value_net
            self.mlp_extractor.latent_dim_vf = of_critic.latent_dim_vf

    @property
    def lstm_output_dim(self) -> int:
        """Size of what the actor's memory gives, and its heads read: sb3-contrib's name for it."""
        return self.memory_actor.output_size

    def _make_heads(self, size: int) -> MlpExtractor:
        return MlpExtractor(size, self.net_arch, self.activation_fn, device=self.device)

    def initial_state(self, batch_size: int) -> State:
        """The state of every memory before an episode's first step, (B, ...) each."""
        state = self.memory_actor.initial_state(batch_size)
        return state if self.memory_critic is None else state + self.memory_critic.initial_state(batch_size)

    def reset_state(self, state: State, episode_starts: Tensor) -> State:
        """The state with the initial one where ``episode_starts`` (B,) is true."""
        state = self._read_state(state, len(episode_starts)).state
        return self._of_each_memory(state, lambda memory, part: memory.reset(part, episode_starts))

    def renew(self, state: State) -> State:
        """What is random but constant through a rollout (dropout masks), drawn anew."""
        return self._of_each_memory(state, lambda memory, part: memory.renew(part))

    def _of_each_memory(self, state: State, function: Callable[[Memory, State], State]) -> State:
        actor_state = function(self.memory_actor, state[: self._n_actor_parts])
        if self.memory_critic is None:
            return actor_state
        return actor_state + function(self.memory_critic, state[self._n_actor_parts :])

    def plan(self) -> Plan:
        """How each part is computed as the policy is now (compiled, in NumPy, by torch), and why: to be printed."""
        return plan_of(self, RecurrentActorCriticPolicy, HEADS)

    def acting_plan(self, captured: bool | None = None) -> Acting:
        """How a rollout that starts now acts; ``captured`` is whether by a CUDA graph, None for: on a GPU."""
        captured = self.device.type == "cuda" if captured is None else captured
        return acting_of(self, RecurrentActorCriticPolicy, HEADS, captured)

    def objective_plan(self) -> Part:
        """How PPO's objective is computed."""
        return objective_of(self, RecurrentActorCriticPolicy)

    @contextmanager
    def planned(self) -> Iterator[None]:
        """Within it the policy is taken to stay as it is, and is not looked at anew for every pass: for an update."""
        outer, self._heads = self._heads, heads_of(self)
        try:
            yield
        finally:
            self._heads = outer

    @_takes_states("both")
    def forward(
        self, obs: Any, state: State, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Acting: observations (B, ...), state before the step, (B,) -> actions, values, log-probabilities, state.

        Actions are as the buffer stores them, (B,) or (B, A); values and log-probabilities are (B,). The state comes as
        ``initial_state`` gives it, or in another layout of ``agents.policy.state_layouts``, and leaves in the same.
        """
        hidden, state = self._step(obs, state, episode_starts)
        parameters = self._distribution_parameters(hidden.actor, obs)
        actions = self.head.mode(parameters) if deterministic else self.head.sample(parameters)
        log_probs, _ = self.head.evaluate(parameters, actions)
        return actions, self._value(hidden.critic), log_probs, state

    def evaluate_actions(
        self, obs: Any, actions: Tensor, state: Any = None, episode_starts: Any = None, *, lstm_states: Any = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Learning: sequences (L, B, ...), the state before them -> values, log-probabilities, entropies, (L, B) each.

        ``episode_starts`` may lie on the CPU or on the policy's device; from the CPU no recurrent memory need fetch it.
        Entropies are None where the distribution has no closed form (squashed state-dependent exploration).

        Raises:
            ValueError: the state is not that of B sequences, or observations and actions are not (L, B, ...).
        """
        shape = _sequence_shape(obs, actions, episode_starts)
        state = self._read_state(state if lstm_states is None else lstm_states, shape[1]).state
        hidden = self.remember(obs, state, read_episode_starts(episode_starts, shape))
        values, log_probs, entropy = self.judge(hidden, _flatten_time(obs), actions.flatten(0, 1))
        return values.view(shape), log_probs.view(shape), None if entropy is None else entropy.view(shape)

    def remember(self, obs: Any, state: State, episode_starts: Tensor) -> Remembered:
        """The first half of learning: sequences (L, B, ...), the state before them -> what memories give, (N, H)."""
        state = self._read_state(state, episode_starts.shape[1]).state
        pi_features, vf_features = self._encode(_flatten_time(obs), episode_starts.shape)
        hidden: Remembered = self._unroll(pi_features, vf_features, state, episode_starts)
        return hidden

    def judge(self, hidden: Remembered, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The second half: what the memories gave, observations (N, ...), actions (N, A) -> values, log-probabilities,
        entropies, (N,) each."""
        parameters = self._distribution_parameters(hidden.actor, obs)
        log_probs, entropies = self.head.evaluate(parameters, actions)
        return self._value(hidden.critic), log_probs, entropies

    @torch.no_grad()
    def states_along(
        self, obs: Any, state: State, episode_starts: Tensor, at: Sequence[int], at_once: int | None = None
    ) -> State:
        """The states before the steps ``at`` of sequences, with the weights as they are now and without gradient.

        (L, B, ...), the state before them, (L, B) -> (C, B, ...) each; ``at`` holds C steps from 0 to L, and L stands
        for the state after the sequences. Where a step starts an episode its state is the initial one.

        Args:
            at_once: observations that the encoder may see at once, at least one step's; None: all.
        """
        if not state:
            return ()
        n_steps, n_sequences = max(*at, 1), episode_starts.shape[1]
        state = self._read_state(state, n_sequences).state
        stride = n_steps if at_once is None else max(at_once // n_sequences, 1)
        parts = [slice(first, min(first + stride, n_steps)) for first in range(0, n_steps, stride)]
        encoded = [self._encode(_flatten_time(_steps(obs, part)), episode_starts[part].shape) for part in parts]
        features = [torch.cat(of_parts) for of_parts in zip(*encoded, strict=True)]
        states: State = self._states_along(*features, state, episode_starts, at)
        return states

    @_takes_states("critic")
    def predict_values(self, obs: Any, state: State, episode_starts: Tensor) -> Tensor:
        """V of observations (B, ...) through the state before them -> (B,). The state that came in stays as it was.

        ``state`` may hold the parts of both memories, or of the critic's own alone.
        """
        hidden, _ = self._step(obs, state, episode_starts)
        return self._value(hidden.critic)

    @_takes_states("actor")
    def get_distribution(self, obs: Any, state: State, episode_starts: Tensor) -> tuple[Distribution, State]:
        """Stable-Baselines3's distribution over actions after one step, and the actor's state after it.

        ``state`` may hold the actor's parts alone or those of the critic too.
        """
        hidden, state = self._actor_step(obs, state, episode_starts)
        parameters = self._distribution_parameters(hidden, obs)
        distribution: Any = self.action_dist
        by_name = {"action_logits": parameters[0]} if len(parameters) == 1 else None
        made: Distribution = (
            distribution.proba_distribution(**by_name) if by_name else distribution.proba_distribution(*parameters)
        )
        return made, state

    def _predict(  # type: ignore[override]
        self, observation: Any, state: State, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, State]:
        """One step of the actor alone: actions as the buffer stores them, and its state."""
        hidden, state = self._actor_step(observation, state, episode_starts)
        parameters = self._distribution_parameters(hidden, observation)
        if not bool(parameters[0].isfinite().all()):
            raise FloatingPointError(
                "the policy's output is not finite, as its weights or the observation; where training diverged, "
                "lower learning_rate, or scale observations and rewards (VecNormalize)"
            )
        return (self.head.mode(parameters) if deterministic else self.head.sample(parameters)), state

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """Actions for one observation or a batch, and the actor's state, to be handed in with the next call.

        Args:
            observation: one observation, or a batch (B, ...).
            state: what the last call returned; None starts from the initial state.
            episode_start: (B,), true where the observation starts an episode; the memory is reset there.
            deterministic: the most probable action in place of a sample.

        Called again and again without a state it warns once: the policy then acts without its memory.

        Raises:
            ValueError: the state is not that of so many environments, or the observation is what a Gymnasium
                environment's ``reset`` returns, a tuple.
            FloatingPointError: what the policy computes is not finite.
        """
        if isinstance(observation, tuple):
            raise ValueError(
                "observation is a tuple: Gymnasium's reset() returns the observation and an info; write "
                "observation, info = env.reset() and hand in the observation alone"
            )
        self.set_training_mode(False)
        tensors, vectorized = self.obs_to_tensor(observation)
        batch_size = len(next(iter(tensors.values()))) if isinstance(tensors, dict) else len(tensors)
        self._notice_lost_memory(state, episode_start)
        with torch.no_grad():
            actor_state = self._import_state(state, batch_size)
            episode_starts = self._import_episode_start(episode_start, batch_size)
            actions, actor_state = self._predict(tensors, actor_state, episode_starts, deterministic)
        for_environment = self.head.to_environment(actions.cpu().numpy())
        if not vectorized:
            for_environment = for_environment.squeeze(axis=0)
        return for_environment, self._export_state(actor_state)

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """Stable-Baselines3's, which knows choices along one axis only: those of several come flattened."""
        if self._preprocessed_space is self.observation_space:
            return super().obs_to_tensor(observation)
        flat = flat_choices(observation, self.observation_space)
        stand_in: Any = SimpleNamespace(observation_space=self._preprocessed_space, device=self.device)
        tensors, vectorized = ActorCriticPolicy.obs_to_tensor(stand_in, flat)
        return tensors, vectorized

    def _import_state(self, state: Any, batch_size: int) -> State:
        """The actor's state from what the last ``predict`` returned."""
        if state is None:
            return self.memory_actor.initial_state(batch_size)
        return self._read_state(state, batch_size, "actor", as_predict=True).state

    def _read_state(
        self,
        state: Any,
        batch_size: int,
        of: Literal["both", "actor", "critic"] = "both",
        as_predict: bool = False,
    ) -> Given:
        """The state of both memories, of the actor's, or of both with no care for the actor's, from any layout."""
        n = self._n_actor_parts
        actors, critics = self._state_parts[:n], self._state_parts[n:]
        parts = actors if of == "actor" else self._state_parts
        if not as_predict and is_own(state, parts, batch_size):
            return Given(state, _as_it_is)
        read = functools.partial(read_state, batch_size=batch_size, flip=self._batch_first, device=self.device)
        if is_pair(state):
            actor = read(state[0], actors, as_predict=True)
            if of == "actor":
                return actor
            critic = read(state[1], critics, as_predict=True) if critics else actor
            make = getattr(type(state), "_make", type(state))
            return Given(
                actor.state + (critic.state if critics else ()),
                lambda after: make((actor.returned(after[:n]), critic.returned(after[n:] if critics else after))),
            )
        length = len(state) if isinstance(state, tuple | list) else None
        if of == "actor":
            given = read(state, actors if length == n else self._state_parts, as_predict=as_predict)
            return given._replace(state=given.state[:n])
        if of == "critic" and critics and length == len(critics):
            given = read(state, critics)
            return given._replace(state=self.memory_actor.initial_state(batch_size) + given.state)
        return read(state, parts)

    def _import_episode_start(self, episode_start: NDArray[Any] | None, batch_size: int) -> Tensor:
        starts = np.zeros(batch_size, dtype=bool) if episode_start is None else np.asarray(episode_start, dtype=bool)
        if starts.size != batch_size:
            raise ValueError(f"episode_start has {starts.size} entries for a batch of {batch_size} observations")
        return torch.as_tensor(starts.reshape(-1), device=self.device)

    def _export_state(self, state: State) -> tuple[NDArray[Any], ...]:
        return tuple(part.cpu().numpy() for part in self._batch_first(state))

    def _batch_first(self, state: State) -> State:
        """Between a memory's layout and that of ``predict``; its own inverse. Here they are the same."""
        return state

    def _notice_lost_memory(self, state: Any, episode_start: Any) -> None:
        at_start = episode_start is not None and np.asarray(episode_start).all()
        if state is not None or at_start or not self._n_actor_parts:
            self._calls_without_state = 0
            return
        self._calls_without_state += 1
        if self._calls_without_state == 2 and not self._warned_of_lost_memory:
            self._warned_of_lost_memory = True
            warnings.warn(
                "predict() was called again without a state, so the policy acts without its memory. Hand in the state "
                "that the last call returned, and episode_start: "
                "actions, state = model.predict(obs, state=state, episode_start=dones)",
                UserWarning,
                stacklevel=4,
            )

    @_in_autocast
    def _encode(self, obs: Any, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Features for actor and critic, in the leading shape given: the encoder sees all steps at once."""
        pi_features = vf_features = self._features(self._seen_by_actor(obs), self.pi_features_extractor)
        if not self.share_features_extractor:
            vf_features = self._features(obs, self.vf_features_extractor)
        return pi_features.view(*shape, -1), vf_features.view(*shape, -1)

    def _features(self, obs: Any, extractor: BaseFeaturesExtractor) -> Tensor:
        """Preprocessing (one-hot, images to [0, 1]) and the extractor, for a flat batch of observations."""
        flat = flat_choices(obs, self.observation_space)
        seen = preprocess_obs(flat, self._preprocessed_space, normalize_images=self.normalize_images)
        features: Tensor = extractor(seen)
        return features

    def _seen_by_actor(self, obs: Any) -> Any:
        if not self.privileged:
            return obs
        return {key: part for key, part in obs.items() if key not in self.privileged}

    @_in_autocast
    def _step(self, obs: Any, state: State, episode_starts: Tensor) -> tuple[Remembered, State]:
        pi_features, vf_features = self._encode(obs, episode_starts.shape)
        actor_state, critic_state = state[: self._n_actor_parts], state[self._n_actor_parts :]
        hidden, actor_state = self.memory_actor(pi_features, actor_state, episode_starts)
        if self.memory_critic is None:
            return self._of_both(hidden), actor_state
        critic_hidden, critic_state = self.memory_critic(vf_features, critic_state, episode_starts)
        return Remembered(hidden, critic_hidden), actor_state + critic_state

    @_in_autocast
    def _unroll(self, pi_features: Tensor, vf_features: Tensor, state: State, episode_starts: Tensor) -> Remembered:
        actor_state, critic_state = state[: self._n_actor_parts], state[self._n_actor_parts :]
        if self.memory_critic is None:
            return self._of_both(_unrolled(self.memory_actor, pi_features, actor_state, episode_starts))
        memories, features = (self.memory_actor, self.memory_critic), (pi_features, vf_features)
        called = memories_called(self) if self._heads is None else self._heads.memories_called
        states = (actor_state, critic_state)
        if not called and (both := unroll_together(memories, features, states, episode_starts)):
            return Remembered(both[0].flatten(0, 1), both[1].flatten(0, 1))
        hidden = _unrolled(self.memory_actor, pi_features, actor_state, episode_starts)
        return Remembered(hidden, _unrolled(self.memory_critic, vf_features, critic_state, episode_starts))

    @_in_autocast
    def _states_along(
        self, pi_features: Tensor, vf_features: Tensor, state: State, episode_starts: Tensor, at: Sequence[int]
    ) -> State:
        actor_state, critic_state = state[: self._n_actor_parts], state[self._n_actor_parts :]
        states = self.memory_actor.states_along(pi_features, actor_state, episode_starts, at)
        if self.memory_critic is None:
            return states
        return states + self.memory_critic.states_along(vf_features, critic_state, episode_starts, at)

    def _of_both(self, hidden: Tensor) -> Remembered:
        """One memory, which the critic's loss shapes or not."""
        return Remembered(hidden, hidden.detach() if self.critic_memory == "detached" else hidden)

    @_in_autocast
    def _actor_step(self, obs: Any, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        features = self._features(self._seen_by_actor(obs), self.pi_features_extractor)
        hidden, after = self.memory_actor(features, state[: self._n_actor_parts], episode_starts)
        return hidden, after

    def _value(self, hidden: Tensor) -> Tensor:
        """(N, H) of the critic's memory -> (N,)"""
        layers = value_layers_of(self)[0] if self._heads is None else self._heads.value_layers
        if layers is not None and fused.takes(hidden):
            return fused.perceptron(layers, hidden).squeeze(-1)
        values: Tensor = self.value_net(_hidden_layers(self, self.mlp_extractor.forward_critic, hidden))
        return values.squeeze(-1)

    def _distribution_parameters(self, hidden: Tensor, obs: Any) -> Parameters:
        """(N, H) of the actor's memory, and the observations for their mask -> the parameters of the action head."""
        layers = policy_layers_of(self)[0] if self._heads is None else self._heads.policy_layers
        if layers is None or not fused.takes(hidden):
            latent = _hidden_layers(self, self.mlp_extractor.forward_actor, hidden)
            output = self.action_net(latent)
        elif self.use_sde:
            latent = fused.perceptron(layers, hidden)
            output = self.action_net(latent)
        else:
            output = fused.perceptron(layers, hidden)
        if self.use_sde:
            return output, self.log_std, latent
        if isinstance(self.action_space, spaces.Box):
            return output, self.log_std
        if self.action_mask is None:
            return (output,)
        allowed = obs[self.action_mask].reshape(output.shape).bool()
        return (output.masked_fill(~allowed, torch.finfo(output.dtype).min),)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        parameters.update(
            memory=self.memory,
            memory_kwargs=self.memory_kwargs,
            critic_memory=self.critic_memory,
            action_mask=self.action_mask,
            privileged=self.privileged,
            share_features_extractor=self.share_features_extractor,
        )
        return parameters


class RnnPolicy(RecurrentActorCriticPolicy):
    """``"MlpRnnPolicy"``: the general policy with a vanilla RNN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"memory": "rnn", **kwargs})


class GruPolicy(RecurrentActorCriticPolicy):
    """``"MlpGruPolicy"``: the general policy with a GRU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"memory": "gru", **kwargs})


class LstmPolicy(RecurrentActorCriticPolicy):
    """``"MlpLstmPolicy"``: the policy of ``sb3_contrib.RecurrentPPO``, argument by argument.

    Args:
        lstm_hidden_size: units of each layer.
        n_lstm_layers: layers.
        shared_lstm: the critic reads the actor's LSTM without shaping it (our ``critic_memory="detached"``).
        enable_critic_lstm: the critic has an LSTM of its own (``"separate"``).
        lstm_kwargs: ``bias`` and ``dropout`` of ``torch.nn.LSTM``. Dropout masks are drawn once a rollout and used in
            acting and learning alike, so that probability ratios start at one (Hausknecht & Wagener 2022).

    The state of ``predict`` is (hidden, cell), each (layers, B, units), as there. Initial weights are torch's own; the
    general policy with ``memory="lstm"`` initializes with more care.
    """

    _default_extractor: type[BaseFeaturesExtractor] = FlattenExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        shared_lstm: bool = False,
        enable_critic_lstm: bool = True,
        lstm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.lstm_hidden_size, self.n_lstm_layers = lstm_hidden_size, n_lstm_layers
        self.shared_lstm, self.enable_critic_lstm = shared_lstm, enable_critic_lstm
        self.lstm_kwargs = dict(lstm_kwargs or {})
        if features_extractor_class is None:
            _check_extractor_fits(type(self), self._default_extractor, observation_space, not normalize_images)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            ortho_init,
            use_sde,
            log_std_init,
            full_std,
            use_expln,
            squash_output,
            features_extractor_class or self._default_extractor,
            features_extractor_kwargs,
            share_features_extractor,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            memory="lstm",
            memory_kwargs=dict(
                hidden_size=lstm_hidden_size,
                num_layers=n_lstm_layers,
                initialization="torch",
                chrono_horizon=None,
                **_checked_lstm_kwargs(self.lstm_kwargs),
            ),
            critic_memory=_critic_memory_of(shared_lstm, enable_critic_lstm),
        )

    @property
    def lstm_actor(self) -> Memory:
        """sb3-contrib's name for the actor's memory."""
        return self.memory_actor

    @property
    def lstm_critic(self) -> Memory | None:
        """sb3-contrib's name for the critic's own LSTM, None where it has none."""
        return self.memory_critic if self.enable_critic_lstm else None

    @property
    def lstm_hidden_state_shape(self) -> tuple[int, int, int]:
        """(layers, 1, units): of one environment's hidden or cell state in ``predict``."""
        return (self.n_lstm_layers, 1, self.lstm_hidden_size)

    def _batch_first(self, state: State) -> State:
        return tuple(part.transpose(0, 1) for part in state)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for ours in ("memory", "memory_kwargs", "critic_memory", "action_mask", "privileged"):
            del parameters[ours]
        names = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")
        parameters.update({name: getattr(self, name) for name in names})
        return parameters


MlpLstmPolicy = LstmPolicy


class CnnLstmPolicy(LstmPolicy):
    """``"CnnLstmPolicy"``: the same for images."""

    _default_extractor = NatureCNN


class MultiInputLstmPolicy(LstmPolicy):
    """``"MultiInputLstmPolicy"``: the same for Dict observations."""

    _default_extractor = CombinedExtractor


def _as_it_is(state: State) -> State:
    return state


def _batch_size(obs: Any) -> int:
    """B of observations (B, ...)."""
    while isinstance(obs, dict):
        obs = next(iter(obs.values()))
    if obs.dim() == 0:
        raise ValueError("observations must have a leading axis of environments, (B, ...); got a single number")
    return len(obs)


def _sequence_shape(obs: Any, actions: Tensor, episode_starts: Tensor) -> torch.Size:
    """(L, B) of sequences, time first."""
    while isinstance(obs, dict):
        obs = next(iter(obs.values()))
    shape = episode_starts.shape
    if len(shape) != 2 or obs.shape[:2] != shape or actions.shape[:2] != shape:
        raise ValueError(
            "evaluate_actions takes sequences, time first: episode_starts (L, B), observations and actions "
            f"(L, B, ...); got {tuple(shape)}, {tuple(obs.shape)} and {tuple(actions.shape)}"
        )
    return shape


@_in_autocast
def _hidden_layers(policy: RecurrentActorCriticPolicy, layers: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return layers(hidden)


def _unrolled(memory: Memory, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
    """(L, B, F) -> (L * B, H), the episode starts where the memory reads them."""
    starts = episode_starts if memory.starts_on_host else to_device(episode_starts, features.device)
    outputs: Tensor = memory(features, state, starts)
    return outputs.flatten(0, 1)


def _flatten_time(obs: Any) -> Any:
    """(L, B, ...) -> (L * B, ...), for a tensor or a (nested) dict of tensors."""
    return {key: _flatten_time(part) for key, part in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)


def _steps(obs: Any, chosen: slice) -> Any:
    """(L, B, ...) -> some of the steps, for a tensor or a (nested) dict of tensors."""
    return {key: _steps(part, chosen) for key, part in obs.items()} if isinstance(obs, dict) else obs[chosen]


def _with_fused_adam(optimizer_class: type[torch.optim.Optimizer], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Adam's fused kernel, which takes half the time of the default one; else what Stable-Baselines3 does."""
    chosen = dict(kwargs or {})
    if kwargs is None and optimizer_class is torch.optim.Adam:
        chosen["eps"] = 1e-5
    chosen_kernel = {"fused", "foreach", "capturable", "differentiable"} & chosen.keys()
    if optimizer_class in (torch.optim.Adam, torch.optim.AdamW) and not chosen_kernel:
        chosen["fused"] = True
    return chosen


def _check_critic_memory(critic_memory: str, share_features_extractor: bool) -> None:
    if critic_memory not in CRITIC_MEMORIES:
        raise ValueError(f"critic_memory is one of {', '.join(CRITIC_MEMORIES)}; got {critic_memory!r}")
    if critic_memory in ("shared", "detached") and not share_features_extractor:
        raise ValueError(
            "with share_features_extractor=False or privileged keys the critic has features of its own and cannot read "
            'the actor\'s memory; use critic_memory="separate" (or enable_critic_lstm=True), or share the extractor'
        )


def _check_extractor_fits(
    policy: type[LstmPolicy], extractor: type[BaseFeaturesExtractor], space: spaces.Space[Any], normalized_image: bool
) -> None:
    """sb3-contrib's policies each have an extractor of their own, for one kind of observation."""
    fits = CombinedExtractor if isinstance(space, spaces.Dict) else FlattenExtractor
    if extractor is not fits and not (extractor is NatureCNN and _is_image(space, normalized_image)):
        name = "MultiInputLstmPolicy" if fits is CombinedExtractor else "MlpLstmPolicy"
        hint = ", normalize_images=False if these are images of any type and range," if extractor is NatureCNN else ""
        raise ValueError(
            f'{policy.__name__} is not for observations of {space}; use "{name}"{hint} or give an extractor'
        )


def _is_image(space: spaces.Space[Any], normalized_image: bool) -> bool:
    return is_image_space(space, check_channels=False, normalized_image=normalized_image)


def _check_privileged(keys: Sequence[str], observation_space: spaces.Space[Any]) -> None:
    if not keys:
        return
    if isinstance(keys, str) or not isinstance(observation_space, spaces.Dict):
        raise ValueError(f"privileged is a list of keys of a Dict observation; got {keys!r} for {observation_space}")
    unknown = set(keys) - observation_space.spaces.keys()
    if unknown or len(set(keys)) == len(observation_space.spaces):
        raise ValueError(
            f"privileged keys {sorted(keys)} must be some, not all, of the observation's {sorted(observation_space)}"
        )


def _check_action_mask(key: str | None, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    if key is None:
        return
    if not isinstance(observation_space, spaces.Dict) or key not in observation_space.spaces:
        raise ValueError(f"action_mask names a key of a Dict observation; {key!r} is not in {observation_space}")
    if isinstance(action_space, spaces.Discrete):
        expected = int(action_space.n)
    elif isinstance(action_space, spaces.MultiDiscrete):
        expected = int(np.sum(action_space.nvec))
    else:
        raise ValueError(f"actions can be masked for Discrete and MultiDiscrete spaces, not for {action_space}")
    size = int(np.prod(observation_space.spaces[key].shape or ()))
    if size != expected:
        raise ValueError(
            f"the action mask {key!r} has {size} entries, the action space {action_space} needs {expected}"
        )


def _critic_memory_of(shared_lstm: bool, enable_critic_lstm: bool) -> str:
    if shared_lstm and enable_critic_lstm:
        raise ValueError(
            "shared_lstm=True and enable_critic_lstm=True exclude each other: the critic reads the actor's LSTM or has "
            "its own; set enable_critic_lstm=False to share"
        )
    return "detached" if shared_lstm else "separate" if enable_critic_lstm else "none"


def _checked_lstm_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    reasons = {
        "proj_size": "the hidden and cell state would differ in size; set lstm_hidden_size instead",
        "bidirectional": "a policy cannot read the future; encoders over a window can",
        "batch_first": "the layout is the policy's own affair",
        "device": "use the algorithm's device argument",
        "dtype": "policies are float32",
    }
    for name, value in kwargs.items():
        if name in ("bias", "dropout"):
            continue
        if name in reasons and not value:
            continue
        reason = reasons.get(name, "it is no argument of an LSTM memory")
        raise ValueError(f"lstm_kwargs: {name}={value!r} is not supported: {reason}. Supported are bias and dropout")
    return {name: value for name, value in kwargs.items() if name in ("bias", "dropout")}
