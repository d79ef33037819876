"""Acting while collecting: one step of all environments, again and again.

A step of a small network on a CPU is bound by the overhead of calls, and NumPy has a fraction of torch's. So where
every part of a policy is of a kind known here, its acting step runs in NumPy on the parameters as they are when a
rollout starts; they do not change before it ends. Everything else acts through the policy itself. Both give the same
numbers up to rounding, which a test holds them to.

Axes: B environments, F features, A components of an action.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn

from agents import fused
from agents.buffer import map_observations
from agents.memory import State
from agents.memory.core import NumpyState, NumpyStep
from agents.policy import RecurrentActorCriticPolicy

Array = NDArray[np.float32]
Layers = Callable[[Array], Array]
Sample = Callable[[Array, Array], tuple[NDArray[Any], Array]]  # last layer's output, its input -> actions, log-probs


Finish = Callable[[], tuple[Any, Any, Any]]  # -> values (B,), log-probabilities (B,), state after the step


class Actor(Protocol):
    """Chooses actions for a rollout, with the state in its own kind of array."""

    def begin(self, state: State) -> Any:
        """The state a rollout starts with, as this actor carries it."""

    def end(self, state: Any) -> State:
        """What this actor carries, as tensors."""

    def act(self, observations: Any, state: Any, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        """(B, ...), state before, (B,) -> actions (B, A), and what to call for the rest while the environments step."""


class TorchActor:
    """Acts through the policy, whatever it is made of."""

    def __init__(self, policy: RecurrentActorCriticPolicy) -> None:
        self._policy = policy
        self._on_cpu = policy.device.type == "cpu"

    def begin(self, state: State) -> State:
        return state

    def end(self, state: State) -> State:
        return state

    def act(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        with torch.no_grad():
            actions, values, log_probs, state = self._policy(
                map_observations(lambda part: torch.as_tensor(part, device=self._policy.device), observations),
                state,
                torch.as_tensor(episode_starts, device=self._policy.device),
            )
        if self._on_cpu:
            return actions.numpy(), lambda: (values.numpy(), log_probs.numpy(), state)
        return actions, lambda: (values, log_probs, state)


class NumpyActor:
    """Acts in NumPy with the parameters as they are at construction: build one for every rollout."""

    def __init__(self, policy: RecurrentActorCriticPolicy, rng: np.random.Generator) -> None:
        self._features = _features_of(policy)
        self._actor_step = _step_of(policy.memory_actor)
        self._critic_step = None if policy.memory_critic is None else _step_of(policy.memory_critic)
        self._n_actor_parts = len(policy.memory_actor.initial_state(1))
        heads = policy.mlp_extractor
        self._reads_latent = isinstance(policy.action_dist, StateDependentNoiseDistribution)
        self._latent = _layers_of(heads.policy_net) if self._reads_latent else None
        self._output = _layers_of(*() if self._reads_latent else (heads.policy_net,), policy.action_net)
        self._values = _layers_of(heads.value_net, policy.value_net)
        self._sample = _sampler_of(policy, rng)

    def begin(self, state: State) -> NumpyState:
        return tuple(part.numpy() for part in state)

    def end(self, state: NumpyState) -> State:
        return tuple(torch.from_numpy(np.array(part)) for part in state)

    def act(
        self, observations: Any, state: NumpyState, episode_starts: NDArray[np.bool_]
    ) -> tuple[NDArray[Any], Finish]:
        features = self._features(observations)
        if self._critic_step is not None:
            features = features.copy()  # environments at work may write over what they gave
        hidden, actor_state = self._actor_step(features, state[: self._n_actor_parts], episode_starts)
        latent = hidden if self._latent is None else self._latent(hidden)
        actions, log_probs = self._sample(self._output(latent), latent)

        def finish() -> tuple[Array, Array, NumpyState]:
            if self._critic_step is None:
                return self._values(hidden)[:, 0].copy(), log_probs, actor_state
            critic_hidden, critic_state = self._critic_step(features, state[self._n_actor_parts :], episode_starts)
            return self._values(critic_hidden)[:, 0].copy(), log_probs, actor_state + critic_state

        return actions, finish


def make_actor(policy: RecurrentActorCriticPolicy, rng: np.random.Generator) -> Actor:
    """The actor with the least overhead for this policy, as it is now."""
    return NumpyActor(policy, rng) if acts_in_numpy(policy) else TorchActor(policy)


def acts_in_numpy(policy: RecurrentActorCriticPolicy) -> bool:
    """Whether every part of the policy has its NumPy form: float32 on a CPU, flat observations, plain layers."""
    parameters = list(policy.parameters())
    return (
        all(parameter.dtype == torch.float32 and parameter.device.type == "cpu" for parameter in parameters)
        and type(policy.features_extractor) is FlattenExtractor
        and type(policy.vf_features_extractor) is FlattenExtractor
        and isinstance(policy.observation_space, spaces.Box | spaces.Discrete)
        and not is_image_space(policy.observation_space)
        and not policy.squash_output
        and not _has_code_of_its_own(policy)
        and type(policy.mlp_extractor) is MlpExtractor
        and isinstance(policy.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.Box | spaces.MultiBinary)
        and all(memory is None or _has_step(memory) for memory in (policy.memory_actor, policy.memory_critic))
        and _are_plain(policy.mlp_extractor.policy_net, policy.action_net)
        and _are_plain(policy.mlp_extractor.value_net, policy.value_net)
    )


def _has_code_of_its_own(policy: RecurrentActorCriticPolicy) -> bool:
    """Whether a subclass or a hook changes how the policy acts, which a copy of its layers would pass by."""
    ours = ("forward", "extract_features", "_encode", "_features", "_step", "_value")
    return any(
        getattr(type(policy), name) is not getattr(RecurrentActorCriticPolicy, name)
        for name in (*ours, "_distribution_parameters")
    ) or any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())


def _has_step(memory: nn.Module) -> bool:
    """Whether the memory steps in NumPy, and no subclass has changed the step that this stands for."""
    defining = [cls for cls in type(memory).__mro__ if {"step", "numpy_step"} & vars(cls).keys()]
    return "numpy_step" in vars(defining[0]) and memory.numpy_step() is not None  # type: ignore[operator]


def _step_of(memory: Any) -> NumpyStep:
    step: NumpyStep | None = memory.numpy_step()
    assert step is not None  # acts_in_numpy has asked
    return step


def _features_of(policy: RecurrentActorCriticPolicy) -> Callable[[Any], Array]:
    if isinstance(policy.observation_space, spaces.Discrete):
        one_hot = np.eye(int(policy.observation_space.n), dtype=np.float32)
        return lambda observations: one_hot[observations.reshape(-1)]
    return lambda observations: observations.reshape(len(observations), -1).astype(np.float32, copy=False)


_ACTIVATIONS: dict[type[nn.Module], Callable[[Array, Array], object]] = {
    nn.Tanh: lambda x, out: np.tanh(x, out=out),
    nn.ReLU: lambda x, out: np.maximum(x, np.float32(0.0), out=out),
}


def _are_plain(hidden: nn.Sequential, last: nn.Module) -> bool:
    return all(type(layer) is nn.Linear or type(layer) in _ACTIVATIONS for layer in (*hidden, last))


def _layers_of(*networks: nn.Module) -> Layers:
    """Networks one after the other as one function on arrays, whose result the next call may write over."""
    compiled = fused.layers_of(*networks)
    if compiled is not None:
        return fused.PackedPerceptron(compiled)
    steps: list[Any] = []
    for network in networks:
        for layer in network if isinstance(network, nn.Sequential) else [network]:
            if isinstance(layer, nn.Linear):
                # Transposed once, so that a step is a plain matrix product.
                weight = np.ascontiguousarray(layer.weight.detach().numpy().T)
                steps.append((weight, None if layer.bias is None else layer.bias.detach().numpy(), None))
            else:
                steps.append((None, None, _ACTIVATIONS[type(layer)]))

    def run(x: Array) -> Array:
        fresh = False  # the memory's output is not ours to write over
        for weight, bias, activation in steps:
            if activation is not None:
                x = x if fresh else x.copy()
                activation(x, x)
            else:
                x = x @ weight
                if bias is not None:
                    x += bias
            fresh = True
        return x

    return run


def _sampler_of(policy: RecurrentActorCriticPolicy, rng: np.random.Generator) -> Sample:
    space = policy.action_space
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and fused.available:
        return _compiled_sampler(space, rng)
    if isinstance(space, spaces.Discrete):
        return lambda logits, latent: _sample_categorical(logits, rng)
    if isinstance(space, spaces.MultiDiscrete):
        edges = np.cumsum([int(n) for n in space.nvec])[:-1]
        return lambda logits, latent: _sample_several(np.split(logits, edges, axis=1), rng)
    if isinstance(space, spaces.MultiBinary):
        return lambda logits, latent: _sample_bits(logits, rng)
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        return _state_dependent_sampler(policy.action_dist, policy.log_std)
    return _gaussian_sampler(policy.log_std.detach().numpy(), rng)


def _compiled_sampler(space: spaces.Discrete | spaces.MultiDiscrete, rng: np.random.Generator) -> Sample:
    if isinstance(space, spaces.MultiDiscrete):
        several = fused.CategoricalSampler([int(n) for n in space.nvec])
        return lambda logits, latent: several(logits, rng)
    one = fused.CategoricalSampler([int(space.n)])

    def sample(logits: Array, latent: Array) -> tuple[NDArray[np.int64], Array]:
        actions, log_probs = one(logits, rng)
        return actions[:, 0], log_probs

    return sample


def _sample_categorical(logits: Array, rng: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
    """(B, n) -> (B,) by Gumbel-max, and log softmax there."""
    noise = np.maximum(rng.standard_exponential(logits.shape, dtype=np.float32), np.float32(1e-45))  # may be 0
    actions = (logits - np.log(noise)).argmax(axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(actions)), actions]
    return actions, chosen - np.log(np.exp(shifted).sum(axis=1))


def _sample_several(logits: list[Array], rng: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
    choices = [_sample_categorical(part, rng) for part in logits]
    log_probs: Array = np.sum([log_prob for _, log_prob in choices], axis=0, dtype=np.float32)
    return np.stack([action for action, _ in choices], axis=1), log_probs


def _sample_bits(logits: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """(B, n) -> bits, and their log-probability: -log(1 + e^-x) for a one, -log(1 + e^x) for a zero."""
    probabilities = np.float32(0.5) * np.tanh(np.float32(0.5) * logits) + np.float32(0.5)
    bits: Array = (rng.random(logits.shape, dtype=np.float32) < probabilities).astype(np.float32)
    log_probs: Array = -np.logaddexp(np.float32(0), logits * (1 - 2 * bits)).sum(axis=1)
    return bits, log_probs


def _gaussian_sampler(log_std: Array, rng: np.random.Generator) -> Sample:
    std = np.exp(log_std)
    log_norm = np.float32(log_std.sum() + 0.5 * np.log(2 * np.pi) * len(log_std))

    def sample(mean: Array, latent: Array) -> tuple[Array, Array]:
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        log_probs: Array = np.float32(-0.5) * np.square(noise).sum(axis=1) - log_norm
        return np.add(mean, std * noise, dtype=np.float32), log_probs

    return sample


def _state_dependent_sampler(distribution: StateDependentNoiseDistribution, log_std: Tensor) -> Sample:
    """Noise that is a function of the state, by matrices that the policy's ``reset_noise`` draws anew."""
    variances = distribution.get_std(log_std.detach()).square().numpy()  # (features, A)

    def sample(mean: Array, latent: Array) -> tuple[Array, Array]:
        matrices = distribution.exploration_matrices
        if len(latent) == 1 or len(latent) != len(matrices):
            noise = latent @ distribution.exploration_mat.detach().numpy()
        else:
            noise = np.matmul(latent[:, None, :], matrices.detach().numpy())[:, 0]
        variance = np.square(latent) @ variances + np.float32(distribution.epsilon)
        terms = np.square(noise) / variance + np.log(variance) + np.float32(np.log(2 * np.pi))
        log_probs: Array = np.float32(-0.5) * terms.sum(axis=1)
        return mean + noise, log_probs

    return sample


def to_array(values: Any) -> NDArray[Any]:
    """An actor's actions as an array on the host."""
    return values.cpu().numpy() if isinstance(values, Tensor) else values
