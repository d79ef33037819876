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
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from agents import fused
from agents.actions import HEADS, ActionHead, Parameters, make_action_head
from agents.checks import check_mapping, check_observation_space
from agents.devices import to_device
from agents.encoders import default_encoder
from agents.kernels.aside import Part
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
from agents.memory.together import unroll_together, worth_unrolling_together

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
        return self.features_extractor_class(space, **self.features_extractor_kwargs)

    def _build_mlp_extractor(self) -> None:
        """Stable-Baselines3's hook between features extractor and heads: here the memories come in."""
        # Some of Stable-Baselines3's extractors count their features in NumPy's integers.
        self.memory_actor = make_memory(self.memory, int(self.features_dim), self.memory_kwargs)
        self.memory_critic: Memory | None = None
        critic_features = int(self.vf_features_extractor.features_dim)
        if self.critic_memory == "separate":
            self.memory_critic = make_memory(self.memory, critic_features, self.memory_kwargs)
        elif self.critic_memory == "none":
            self.memory_critic = Projection(critic_features, self.memory_actor.output_size)
        self._n_actor_parts = len(self.memory_actor.initial_state(1))
        self.mlp_extractor = self._make_heads(self.memory_actor.output_size)
        if self.memory_critic is not None and self.memory_critic.output_size != self.memory_actor.output_size:
            # The critic sees more than the actor, and its memory is as wide as what it sees.
            of_critic = self._make_heads(self.memory_critic.output_size)
            self.mlp_extractor.value_net = of_critic.value_net
            self.mlp_extractor.latent_dim_vf = of_critic.latent_dim_vf

    def _make_heads(self, size: int) -> MlpExtractor:
        return MlpExtractor(size, self.net_arch, self.activation_fn, device=self.device)

    def initial_state(self, batch_size: int) -> State:
        """The state of every memory before an episode's first step, (B, ...) each."""
        state = self.memory_actor.initial_state(batch_size)
        return state if self.memory_critic is None else state + self.memory_critic.initial_state(batch_size)

    def reset_state(self, state: State, episode_starts: Tensor) -> State:
        """The state with the initial one where ``episode_starts`` (B,) is true."""
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

    def forward(  # type: ignore[override]
        self, obs: Any, state: State, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Acting: observations (B, ...), state before the step, (B,) -> actions, values, log-probabilities, state.

        Actions are as the buffer stores them, (B,) or (B, A); values and log-probabilities are (B,).
        """
        hidden, state = self._step(obs, state, episode_starts)
        parameters = self._distribution_parameters(hidden.actor, obs)
        actions = self.head.mode(parameters) if deterministic else self.head.sample(parameters)
        log_probs, _ = self.head.evaluate(parameters, actions)
        return actions, self._value(hidden.critic), log_probs, state

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: Tensor, state: State, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Learning: sequences (L, B, ...), the state before them -> values, log-probabilities, entropies, (L, B) each.

        ``episode_starts`` may lie on the CPU or on the policy's device; from the CPU no recurrent memory need fetch it.
        Entropies are None where the distribution has no closed form (squashed state-dependent exploration).
        """
        shape = episode_starts.shape
        hidden = self.remember(obs, state, episode_starts)
        values, log_probs, entropy = self.judge(hidden, _flatten_time(obs), actions.flatten(0, 1))
        return values.view(shape), log_probs.view(shape), None if entropy is None else entropy.view(shape)

    def remember(self, obs: Any, state: State, episode_starts: Tensor) -> Remembered:
        """The first half of learning: sequences (L, B, ...), the state before them -> what memories give, (N, H)."""
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
        stride = n_steps if at_once is None else max(at_once // n_sequences, 1)
        parts = [slice(first, min(first + stride, n_steps)) for first in range(0, n_steps, stride)]
        encoded = [self._encode(_flatten_time(_steps(obs, part)), episode_starts[part].shape) for part in parts]
        features = [torch.cat(of_parts) for of_parts in zip(*encoded, strict=True)]
        states: State = self._states_along(*features, state, episode_starts, at)
        return states

    def predict_values(self, obs: Any, state: State, episode_starts: Tensor) -> Tensor:  # type: ignore[override]
        """V of observations (B, ...) through the state before them -> (B,). The state that came in stays as it was."""
        hidden, _ = self._step(obs, state, episode_starts)
        return self._value(hidden.critic)

    def get_distribution(  # type: ignore[override]
        self, obs: Any, state: State, episode_starts: Tensor
    ) -> tuple[Distribution, State]:
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
        """
        self.set_training_mode(False)
        tensors, vectorized = self.obs_to_tensor(observation)
        batch_size = len(next(iter(tensors.values()))) if isinstance(tensors, dict) else len(tensors)
        self._notice_lost_memory(state, episode_start)
        with torch.no_grad():
            actor_state = self._import_state(state, batch_size)
            episode_starts = self._import_episode_start(episode_start, batch_size)
            actions, actor_state = self._predict(tensors, actor_state, episode_starts, deterministic)
        for_environment = self.head.to_environment(actions.cpu().numpy())
        return (for_environment if vectorized else for_environment[0]), self._export_state(actor_state)

    def _import_state(self, state: tuple[NDArray[Any], ...] | None, batch_size: int) -> State:
        """The actor's state from the arrays of the last ``predict``."""
        initial = self.memory_actor.initial_state(batch_size)
        if state is None:
            return initial
        given = self._batch_first(tuple(torch.as_tensor(part, device=self.device) for part in state))
        if [part.shape for part in given] != [part.shape for part in initial]:
            raise ValueError(
                f"state has shapes {[tuple(part.shape) for part in given]} (batch first), expected "
                f"{[tuple(part.shape) for part in initial]}; hand in what the last predict() returned, and None when "
                "the number of environments changes"
            )
        return tuple(part.to(like.dtype) for part, like in zip(given, initial, strict=True))

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
        at_start = episode_start is not None and np.all(episode_start)
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
        features: Tensor = super(ActorCriticPolicy, self).extract_features(obs, extractor)
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
        if not called and worth_unrolling_together(memories, features):
            both = unroll_together(memories, features, (actor_state, critic_state), episode_starts.cpu())
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
    general policy with ``memory="lstm"`` initialises with more care.
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
            _check_extractor_fits(type(self), self._default_extractor, observation_space)
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
                initialisation="torch",
                forget_bias=None,
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


class CnnLstmPolicy(LstmPolicy):
    """``"CnnLstmPolicy"``: the same for images."""

    _default_extractor = NatureCNN


class MultiInputLstmPolicy(LstmPolicy):
    """``"MultiInputLstmPolicy"``: the same for Dict observations."""

    _default_extractor = CombinedExtractor


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
    policy: type[LstmPolicy], extractor: type[BaseFeaturesExtractor], space: spaces.Space[Any]
) -> None:
    """sb3-contrib's policies each have an extractor of their own, for one kind of observation."""
    fits = CombinedExtractor if isinstance(space, spaces.Dict) else FlattenExtractor
    if extractor is not fits and not (extractor is NatureCNN and is_image_space(space)):
        name = "MultiInputLstmPolicy" if fits is CombinedExtractor else "MlpLstmPolicy"
        raise ValueError(f'{policy.__name__} is not for observations of {space}; use "{name}", or give an extractor')


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
