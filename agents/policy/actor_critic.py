"""Actor-critic policies with memory: observation -> encoder -> memory -> heads.

Axes: B environments (or sequences), L steps of a sequence, N steps of a minibatch.

The policy is a Stable-Baselines3 ``ActorCriticPolicy`` with a memory between its features extractor and its heads. Its
state is one flat tuple of tensors, batch first: the parts of the actor's memory, then those of the critic's, if the
critic has one of its own. State comes in and goes out; the policy hides none.
"""

import functools
import inspect
import operator
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    MlpExtractor,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from agents.checks.arguments import check_mapping
from agents.checks.observations import leaves, map_observations
from agents.checks.spaces import check_observation_space
from agents.encoders import Choice, default_encoder, observation_lines
from agents.encoders.combined import CombinedOfAnyKeys, FlattenedParts, can_name_a_layer
from agents.encoders.kinds import parts_of
from agents.encoders.preprocessing import as_arrays, flat_choices, flatten_choices, preprocessed, with_flat_choices
from agents.kernels import heads as fused
from agents.kernels.aside import Part
from agents.kernels.devices import to_device
from agents.kernels.plan import (
    Acting,
    Encoders,
    Heads,
    Plan,
    acting_of,
    encoders_of,
    heads_of,
    images_of,
    memories_called,
    objective_of,
    plan_of,
    policy_layers_of,
    predicting_of,
    value_layers_of,
)
from agents.memory import Memory, NoMemory, NumpyStep, State, make_memory
from agents.memory.layers import numpy_linear
from agents.memory.recurrent import unroll_together
from agents.policy.heads import HEADS, ActionHead, Parameters, make_action_head, number_of_choices
from agents.policy.state_layouts import Given, Of, StateReader, read_episode_starts, takes_states

CRITIC_MEMORIES = ("shared", "detached", "separate", "none")
NOT_FINITE = (
    "the policy's output is not finite, as its weights or the observation; where training diverged, lower "
    "learning_rate, or scale observations and rewards (VecNormalize)"
)
RENAMED = {
    "remember": "encode and unroll",
    "judge": "evaluate_heads",
    "_encode": "encode",
    "_unroll": "unroll",
    "_value": "values",
    "_step": "step_hidden",
    "_actor_step": "actor_hidden",
    "_distribution_parameters": "distribution_parameters",
}
"""Methods of a policy by the names they had."""


class Projection(NoMemory):
    """A critic without memory: a linear map to the width of the actor's memory, so that the heads fit both."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size)
        self.output_size = output_size
        self.linear = nn.Linear(input_size, output_size)

    def step(self, features: Tensor, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        return self.linear(features), ()

    def unroll(self, features: Tensor, state: State, episode_starts: Tensor) -> Tensor:
        output: Tensor = self.linear(features)
        return output

    def numpy_step(self) -> NumpyStep:
        projected = numpy_linear(self.linear.weight, self.linear.bias)
        return lambda features, state, episode_starts: (projected(features), ())


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
    """The same tensor or (nested) tuple of tensors, with float32 in place of ``narrow``."""
    if isinstance(result, Tensor):
        return result.float() if result.dtype == narrow else result
    return tuple(_widened(part, narrow) for part in result)


class RecurrentActorCriticPolicy(ActorCriticPolicy):
    """The general policy with memory, ``"RecurrentPolicy"``.

    Args:
        memory: a name in ``agents.memory.MEMORIES``, ``"module:Class"``, or a ``Memory`` class.
        memory_kwargs: arguments of the memory other than its input size, e.g. ``dict(hidden_size=128)``.
        critic_memory: what the critic remembers with. ``"shared"``: the actor's memory, shaped by both losses;
            ``"detached"``: the actor's memory without the critic's gradient; ``"separate"``: one of its own;
            ``"none"``: nothing, a linear layer in its place.
        action_mask: the key of a Dict observation that says which actions are allowed, (n,) true where allowed for
            Discrete(n), the choices of all axes in a row for MultiDiscrete, the bits that may be 1 for MultiBinary.
            Forbidden actions get probability 0.
        privileged: keys of a Dict observation that only the critic sees, in training; the actor needs none of them, and
            ``predict`` may leave them out. The critic then has an extractor of its own, and ``critic_memory`` is
            ``"separate"`` or ``"none"``.

    The other arguments are those of ``stable_baselines3.common.policies.ActorCriticPolicy``, in its order or by name;
    ``features_extractor_class`` None, the default, chooses by the observation space, and the optimizer is Adam with
    ``dict(amsgrad=True)`` where ``optimizer_kwargs`` is None.
    """

    autocast: torch.dtype | None = None
    """What encoder, memory and hidden layers compute in under ``torch.autocast``; None: as their weights are. The last
    layers and the distribution are always in float32, where a value of 100 keeps its digits. Set by the algorithm."""

    compiles_on_gpu: bool = False
    """Experimental: whether acting and the objective are compiled by ``torch.compile`` on a GPU."""

    _adam: ClassVar[Mapping[str, Any]] = {"amsgrad": True}
    """Arguments of Adam where none are given. Once a task is solved its gradients are small noise, which Adam would
    soon scale to full steps again, until what was learned is lost. AMSGrad keeps the steps as small as the gradients
    became (Reddi et al. 2018, "On the Convergence of Adam and Beyond")."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses an override that would never be called."""
        super().__init_subclass__(**kwargs)
        for name in RENAMED.keys() & vars(cls).keys():
            raise TypeError(f"{cls.__name__} overrides {name}, which is called {RENAMED[name]} now: rename it")

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        memory: str | type[Memory] = "lstm",
        memory_kwargs: dict[str, Any] | None = None,
        critic_memory: str = "shared",
        action_mask: str | None = None,
        privileged: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        given = _arguments_of_stable_baselines3(observation_space, action_space, lr_schedule, *args, **kwargs)
        check_observation_space(observation_space)
        check_mapping("memory_kwargs", memory_kwargs)
        make_action_head(action_space)  # before anything is built on a space that it refuses
        share_features_extractor = given.get("share_features_extractor", True) and not privileged
        _check_privileged(privileged, observation_space)
        _check_critic_memory(critic_memory, share_features_extractor)
        _check_action_mask(action_mask, observation_space, action_space)
        self.privileged = tuple(privileged)
        self._preprocessed_space = with_flat_choices(observation_space)
        self.memory, self.memory_kwargs = memory, dict(memory_kwargs or {})
        self.critic_memory, self.action_mask = critic_memory, action_mask
        self._warned_of_lost_memory, self._calls_without_state = False, 0
        self._heads: Heads | None = None
        self._encoders: Encoders | None = None
        given["share_features_extractor"] = share_features_extractor
        self.chosen_encoder: Choice | None = None
        if given.get("features_extractor_class") is None:
            self.chosen_encoder = default_encoder(observation_space, not given.get("normalize_images", True))
            given["features_extractor_class"] = self.chosen_encoder.encoder
            further = given.get("features_extractor_kwargs") or {}
            given["features_extractor_kwargs"] = self.chosen_encoder.kwargs | further
        given["optimizer_kwargs"] = self._optimizer_arguments(
            given.get("optimizer_class", torch.optim.Adam), given.get("optimizer_kwargs")
        )
        super().__init__(**given)
        exploration = self.action_dist if isinstance(self.action_dist, StateDependentNoiseDistribution) else None
        self.head: ActionHead = make_action_head(action_space, exploration, self.squash_output)

    def _optimizer_arguments(
        self, optimizer_class: type[torch.optim.Optimizer], kwargs: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Those given, or ``_adam``; with Adam's fused kernel, which takes half the time of the default one."""
        is_adam = optimizer_class in (torch.optim.Adam, torch.optim.AdamW)
        chosen = dict(self._adam if kwargs is None and optimizer_class is torch.optim.Adam else kwargs or {})
        if is_adam and not {"fused", "foreach", "capturable", "differentiable"} & chosen.keys():
            chosen["fused"] = True
        return chosen

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Stable-Baselines3 asks first for the actor's extractor, then for the critic's if it is to have its own."""
        space = self.observation_space
        is_actors = "features_extractor" not in self._modules
        kwargs = dict(self.features_extractor_kwargs)
        if self.privileged and is_actors:
            assert isinstance(space, spaces.Dict)
            space = spaces.Dict({key: part for key, part in space.spaces.items() if key not in self.privileged})
            if by_part := kwargs.get("encoders"):
                names = {part.name for part in parts_of(space, apart=by_part)}
                kwargs["encoders"] = {name: encoder for name, encoder in by_part.items() if name in names}
        # Stable-Baselines3's own knows no key that is no attribute's name, such as "arm.joint" or "items".
        chosen = self.features_extractor_class
        if chosen is CombinedExtractor and isinstance(space, spaces.Dict) and not all(map(can_name_a_layer, space)):
            chosen = CombinedOfAnyKeys
        if chosen is FlattenExtractor and isinstance(space, spaces.Dict):
            chosen = FlattenedParts
        try:
            return chosen(with_flat_choices(space), **kwargs)
        except AssertionError as error:  # how Stable-Baselines3's own refuse a space
            reason = " ".join(map(str, error.args)) or "it refuses the space"
            raise ValueError(f"{chosen.__name__} does not read this observation space: {reason}") from error

    def _build(self, lr_schedule: Schedule) -> None:
        """Stable-Baselines3's hook after the features extractor: here the memories come in, then the heads."""
        # Some of Stable-Baselines3's extractors count their features in NumPy's integers.
        self.memory_actor = self._make_memory(int(self.features_dim))
        self.memory_critic: Memory | None = None
        critic_features = int(self.vf_features_extractor.features_dim)
        if self.critic_memory == "separate":
            self.memory_critic = self._make_memory(critic_features)
        elif self.critic_memory == "none":
            self.memory_critic = self._make_projection(critic_features)
        actor = self.memory_actor.initial_state(1)
        self._n_actor_parts = len(actor)
        self._states = StateReader(actor, self.initial_state(1)[len(actor) :], self._batch_first)
        super()._build(lr_schedule)

    def _make_memory(self, input_size: int) -> Memory:
        return make_memory(self.memory, input_size, self.memory_kwargs)

    def _make_projection(self, input_size: int) -> Memory:
        return Projection(input_size, self.memory_actor.output_size)

    def _build_mlp_extractor(self) -> None:
        """Stable-Baselines3's hook after the memories, which a subclass may replace."""
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
        state = self.read_state(state, len(episode_starts)).state
        return _joined(memory.reset(part, episode_starts) for memory, part in self._memories(state))

    def renew(self, state: State) -> State:
        """The state with what is random but constant through a rollout (dropout masks) drawn again."""
        return _joined(memory.renew(part) for memory, part in self._memories(state))

    def _memories(self, state: State) -> list[tuple[Memory, State]]:
        """The actor's memory and its part of a state, then the critic's if it has one of its own."""
        memories = [(self.memory_actor, state[: self._n_actor_parts])]
        if self.memory_critic is not None:
            memories.append((self.memory_critic, state[self._n_actor_parts :]))
        return memories

    def plan(self) -> Plan:
        """How each part is computed as the policy is now (compiled, in NumPy, by torch), and why: to be printed."""
        return plan_of(self, RecurrentActorCriticPolicy, HEADS)

    def acting_plan(self) -> Acting:
        """How a rollout that starts now acts."""
        return acting_of(self, RecurrentActorCriticPolicy, HEADS)

    def predicting_plan(self) -> Acting:
        """How ``predict`` can be computed while the policy stays as it is, with what it takes."""
        return predicting_of(self, RecurrentActorCriticPolicy, HEADS)

    def objective_plan(self) -> Part:
        """How PPO's objective is computed."""
        return objective_of(self, RecurrentActorCriticPolicy)

    @contextmanager
    def planned(self) -> Iterator[None]:
        """Within it the policy is taken to stay as it is, and is not inspected for every pass: for an update."""
        outer = self._heads, self._encoders
        self._heads, self._encoders = heads_of(self), encoders_of(self)
        try:
            yield
        finally:
            self._heads, self._encoders = outer

    @takes_states("both")
    def forward(
        self, obs: Any, state: State, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Acting: observations (B, ...), state before the step, (B,) -> actions, values, log-probabilities, state.

        Actions are as the buffer stores them, (B,) or (B, A); values and log-probabilities are (B,). The state comes as
        ``initial_state`` gives it, or in another layout of ``agents.policy.state_layouts``, and leaves in the same.
        """
        actor, critic, state = self.step_hidden(obs, state, episode_starts)
        parameters = self.distribution_parameters(actor, obs)
        actions = self.head.mode(parameters) if deterministic else self.head.sample(parameters)
        log_probs, _ = self.head.evaluate(parameters, actions)
        return actions, self.values(critic), log_probs, state

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
        state = self.read_state(state if lstm_states is None else lstm_states, shape[1]).state
        flat = _flatten_time(obs)
        hidden = self.unroll(*self.encode(flat, shape), state, read_episode_starts(episode_starts, shape))
        values, log_probs, entropy = self.evaluate_heads(hidden, flat, actions.flatten(0, 1))
        return values.view(shape), log_probs.view(shape), None if entropy is None else entropy.view(shape)

    @_in_autocast
    def encode(self, obs: Any, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Observations (N, ...), all steps at once -> features of actor and critic in a leading ``shape``, (*, F)."""
        pi_features = vf_features = self._features(self.seen_by_actor(obs), self.pi_features_extractor)
        if not self.share_features_extractor:
            vf_features = self._features(obs, self.vf_features_extractor)
        return pi_features.view(*shape, -1), vf_features.view(*shape, -1)

    @_in_autocast
    def unroll(
        self, pi_features: Tensor, vf_features: Tensor, state: State, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (L, B, F), the state before them, (L, B) -> what the memories of actor and critic give, (N, H)."""
        features, memories = (pi_features, vf_features), self._memories(state)
        if self.memory_critic is not None:
            owners = (self.memory_actor, self.memory_critic)
            called = memories_called(self) if self._heads is None else self._heads.memories_called
            states = (memories[0][1], memories[1][1])
            if not called and (both := unroll_together(owners, features, states, episode_starts)) is not None:
                return both[0].flatten(0, 1), both[1].flatten(0, 1)
        hidden = [
            memory(each, part, episode_starts if memory.starts_on_host else to_device(episode_starts, each.device))
            for each, (memory, part) in zip(features, memories, strict=False)
        ]
        return self._of_actor_and_critic([output.flatten(0, 1) for output in hidden])

    def evaluate_heads(
        self, hidden: tuple[Tensor, Tensor], obs: Any, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What ``unroll`` gave, observations (N, ...), actions (N, A) -> values, log-probabilities, entropies, (N,)."""
        actor, critic = hidden
        log_probs, entropies = self.head.evaluate(self.distribution_parameters(actor, obs), actions)
        return self.values(critic), log_probs, entropies

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
        state = self.read_state(state, n_sequences).state
        stride = n_steps if at_once is None else max(at_once // n_sequences, 1)
        parts = [slice(first, min(first + stride, n_steps)) for first in range(0, n_steps, stride)]
        encoded = [
            self.encode(_flatten_time(map_observations(operator.itemgetter(part), obs)), episode_starts[part].shape)
            for part in parts
        ]
        features = [torch.cat(of_parts) for of_parts in zip(*encoded, strict=True)]
        states: State = self._states_along(features, state, episode_starts, at)
        return states

    @takes_states("critic")
    def predict_values(self, obs: Any, state: State, episode_starts: Tensor) -> Tensor:
        """V of observations (B, ...) through the state before them -> (B,). The state that came in stays as it was.

        ``state`` may hold the parts of both memories, or of the critic's own alone.
        """
        _, critic, _ = self.step_hidden(obs, state, episode_starts)
        return self.values(critic)

    @takes_states("actor")
    def get_distribution(self, obs: Any, state: State, episode_starts: Tensor) -> tuple[Distribution, State]:
        """Stable-Baselines3's distribution over actions after one step, and the actor's state after it.

        ``state`` may hold the actor's parts alone or those of the critic too.
        """
        hidden, state = self.actor_hidden(obs, state, episode_starts)
        distribution: Distribution = self.action_dist.proba_distribution(*self.distribution_parameters(hidden, obs))
        return distribution, state

    def _predict(  # type: ignore[override]
        self, observation: Any, state: State, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, State]:
        """One step of the actor alone: actions as the buffer stores them, and its state."""
        hidden, state = self.actor_hidden(observation, state, episode_starts)
        parameters = self.distribution_parameters(hidden, observation)
        if not bool(parameters[0].isfinite().all()):
            raise FloatingPointError(NOT_FINITE)
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
            deterministic: the mode of the distribution in place of a sample.

        Called again and again without a state it warns once: the policy then acts without its memory.

        Raises:
            ValueError: the state is not that of so many environments, or the observation is what a Gymnasium
                environment's ``reset`` returns, a tuple.
            FloatingPointError: what the policy computes is not finite.
        """
        if isinstance(observation, tuple) and len(observation) == 2 and self._is_what_reset_returns(*observation):
            raise ValueError(
                "observation is a tuple: Gymnasium's reset() returns the observation and an info; write "
                "observation, info = env.reset() and hand in the observation alone"
            )
        self.set_training_mode(False)
        observation = as_arrays(observation, self.observation_space, self.privileged)
        tensors, vectorized = self.obs_to_tensor(observation)
        batch_size = len(next(leaves(tensors)))
        self._warn_of_lost_memory(state, episode_start)
        starts = np.zeros(batch_size, dtype=bool) if episode_start is None else np.asarray(episode_start, dtype=bool)
        if starts.size != batch_size:
            raise ValueError(f"episode_start has {starts.size} entries for a batch of {batch_size} observations")
        with torch.no_grad():
            actor_state = self.import_state(state, batch_size)
            episode_starts = torch.as_tensor(starts.reshape(-1), device=self.device)
            actions, actor_state = self._predict(tensors, actor_state, episode_starts, deterministic)
        for_environment = self.head.to_environment(actions.cpu().numpy())
        if not vectorized:
            for_environment = for_environment.squeeze(axis=0)
        return for_environment, self.export_state(actor_state)

    def _is_what_reset_returns(self, observation: Any, info: Any) -> bool:
        """Whether two values are an observation and its info, and not the parts of a Tuple space."""
        space = self.observation_space
        keys = space.spaces.keys() if isinstance(space, spaces.Dict) else set[str]()
        are_parts = info and all(any(f"{key}/".startswith(f"1/{part}/") for key in keys) for part in info)
        return isinstance(info, dict) and not are_parts

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """Stable-Baselines3's, which knows choices along one axis only: those of several come flattened."""
        if self._preprocessed_space is self.observation_space:
            return super().obs_to_tensor(observation)
        flat = flat_choices(observation, self.observation_space)
        stand_in: Any = SimpleNamespace(observation_space=self._preprocessed_space, device=self.device)
        tensors, vectorized = ActorCriticPolicy.obs_to_tensor(stand_in, flat)
        return tensors, vectorized

    def import_state(self, state: Any, batch_size: int) -> State:
        """The actor's state from what ``predict`` returned last; None: the initial one."""
        if state is None:
            return self.memory_actor.initial_state(batch_size)
        return self._states.read(state, batch_size, self.device, "actor", as_predict=True).state

    def export_state(self, state: State) -> tuple[NDArray[Any], ...]:
        """The actor's state as ``predict`` returns it."""
        return tuple(part.cpu().numpy() for part in self._batch_first(state))

    def read_state(self, state: Any, batch_size: int, of: Of = "both") -> Given:
        """The state of both memories, or what one of them needs, from any layout of ``agents.policy.state_layouts``."""
        return self._states.read(state, batch_size, self.device, of)

    def _batch_first(self, state: State) -> State:
        """Between a memory's layout and that of ``predict``; its own inverse. Here they are the same."""
        return state

    def _warn_of_lost_memory(self, state: Any, episode_start: Any) -> None:
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

    def _features(self, obs: Any, extractor: BaseFeaturesExtractor) -> Tensor:
        """Preprocessing (one-hot, images to [0, 1]) and the extractor, for a flat batch of observations."""
        if any(part.dtype is torch.uint8 for part in leaves(obs)):  # images, perhaps
            if self._encoders is None:
                images, _ = images_of(self, extractor)
            else:
                images = self._encoders.actor if extractor is self.pi_features_extractor else self._encoders.critic
            if images is not None and images.takes(obs):
                return images(obs)
        features: Tensor = extractor(self.prepared(obs, getattr(extractor, "unprocessed", ())))
        return features

    def prepared(self, obs: Any, untouched: Container[str] = ()) -> Any:
        """What encoders read, of a flat batch: one-hot categories, images in [0, 1]. `untouched`: keys that stay."""
        flat = flatten_choices(obs, self.observation_space)
        return preprocessed(flat, self._preprocessed_space, self.normalize_images, untouched)

    def observation_lines(self) -> list[str]:
        """What each part of an observation is and what reads it, for the user; those only the critic sees left out."""
        space, keys = self.observation_space, self.privileged
        if keys and isinstance(space, spaces.Dict):
            space = spaces.Dict({key: part for key, part in space.spaces.items() if key not in keys})
        return observation_lines(space, self.pi_features_extractor, not self.normalize_images)

    def seen_by_actor(self, obs: Any) -> Any:
        """Observations without what only the critic sees."""
        if not self.privileged:
            return obs
        return {key: part for key, part in obs.items() if key not in self.privileged}

    @_in_autocast
    def step_hidden(self, obs: Any, state: State, episode_starts: Tensor) -> tuple[Tensor, Tensor, State]:
        """(B, ...) -> what the memories of actor and critic give, (B, H), and the state after."""
        features = self.encode(obs, episode_starts.shape)
        steps = [
            memory(each, part, episode_starts)
            for each, (memory, part) in zip(features, self._memories(state), strict=False)
        ]
        return *self._of_actor_and_critic([hidden for hidden, _ in steps]), _joined(after for _, after in steps)

    @_in_autocast
    def _states_along(
        self, features: Sequence[Tensor], state: State, episode_starts: Tensor, at: Sequence[int]
    ) -> State:
        return _joined(
            memory.states_along(each, part, episode_starts, at)
            for each, (memory, part) in zip(features, self._memories(state), strict=False)
        )

    def _of_actor_and_critic(self, hidden: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What each memory gave; one serves both, and the critic's loss shapes it or not."""
        return hidden[0], hidden[-1].detach() if self.critic_memory == "detached" else hidden[-1]

    @_in_autocast
    def actor_hidden(self, obs: Any, state: State, episode_starts: Tensor) -> tuple[Tensor, State]:
        features = self._features(self.seen_by_actor(obs), self.pi_features_extractor)
        hidden, after = self.memory_actor(features, state[: self._n_actor_parts], episode_starts)
        return hidden, after

    def values(self, hidden: Tensor) -> Tensor:
        """(N, H) of the critic's memory -> (N,)"""
        layers = value_layers_of(self)[0] if self._heads is None else self._heads.value_layers
        if layers is not None and fused.takes(hidden):
            return fused.perceptron(layers, hidden).squeeze(-1)
        values: Tensor = self.value_net(_hidden_layers(self, self.mlp_extractor.forward_critic, hidden))
        return values.squeeze(-1)

    def distribution_parameters(self, hidden: Tensor, obs: Any) -> Parameters:
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
        own = ("memory", "memory_kwargs", "critic_memory", "action_mask", "privileged", "share_features_extractor")
        return {**super()._get_constructor_parameters(), **{name: getattr(self, name) for name in own}}


class RnnPolicy(RecurrentActorCriticPolicy):
    """``"MlpRnnPolicy"``: the general policy with a vanilla RNN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"memory": "rnn", **kwargs})


class GruPolicy(RecurrentActorCriticPolicy):
    """``"MlpGruPolicy"``: the general policy with a GRU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"memory": "gru", **kwargs})


@_in_autocast
def _hidden_layers(policy: RecurrentActorCriticPolicy, layers: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return layers(hidden)


def _arguments_of_stable_baselines3(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Arguments of its actor-critic policy by name."""
    return dict(inspect.signature(ActorCriticPolicy).bind(*args, **kwargs).arguments)


def _joined(states: Iterable[State]) -> State:
    """The states of the memories, one after the other."""
    return tuple(part for state in states for part in state)


def _sequence_shape(obs: Any, actions: Tensor, episode_starts: Tensor) -> torch.Size:
    """(L, B) of sequences, time first."""
    shape, first = episode_starts.shape, next(leaves(obs))
    if len(shape) != 2 or first.shape[:2] != shape or actions.shape[:2] != shape:
        raise ValueError(
            "evaluate_actions takes sequences, time first: episode_starts (L, B), observations and actions "
            f"(L, B, ...); got {tuple(shape)}, {tuple(first.shape)} and {tuple(actions.shape)}"
        )
    return shape


def _flatten_time(obs: Any) -> Any:
    """(L, B, ...) -> (L * B, ...)"""
    return map_observations(lambda part: part.flatten(0, 1), obs)


def _check_critic_memory(critic_memory: str, share_features_extractor: bool) -> None:
    if critic_memory not in CRITIC_MEMORIES:
        raise ValueError(f"critic_memory is one of {', '.join(CRITIC_MEMORIES)}; got {critic_memory!r}")
    if critic_memory in ("shared", "detached") and not share_features_extractor:
        raise ValueError(
            "with share_features_extractor=False or privileged keys the critic has features of its own and cannot read "
            'the actor\'s memory; use critic_memory="separate" (or enable_critic_lstm=True), or share the extractor'
        )


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
    expected = number_of_choices(action_space)
    size = int(np.prod(observation_space.spaces[key].shape or ()))
    if size != expected:
        raise ValueError(
            f"the action mask {key!r} has {size} entries, the action space {action_space} needs {expected}"
        )
