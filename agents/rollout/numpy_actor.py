"""Acting while collecting: one step of all environments, again and again.

A step of a small network on a CPU is bound by the overhead of calls, and NumPy has a fraction of torch's. So where
memories and heads are of a kind known here, they step in NumPy on the parameters as they are when a rollout starts;
they do not change before it ends. Encoders that do more than flatten are called as torch's modules. Everything else
acts through the policy itself. Both give the same numbers up to rounding.

Axes: B environments, F features, A components of an action.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor, nn

from agents.checks.observations import map_observations
from agents.encoders.preprocessing import as_arrays
from agents.kernels import heads as fused
from agents.memory import State
from agents.memory.core import NumpyState, NumpyStep
from agents.memory.layers import numpy_linear
from agents.policy.actor_critic import NOT_FINITE, RecurrentActorCriticPolicy
from agents.policy.heads import BernoulliHead, CategoricalHead
from agents.rollout.actor import Actor, Finish, TorchActor
from agents.rollout.noise import LastingNoise

Array = NDArray[np.float32]
Layers = Callable[[Array], Array]
Predict = Callable[[Any, Any, Any, bool], tuple[NDArray[Any], Any]]  # observation, state, episode starts, deterministic
Sample = Callable[[Array, Array], tuple[NDArray[Any], Array]]  # last layer's output, its input -> actions, log-probs


class NumpyActor:
    """Acts in NumPy with the parameters as they are at construction: build one for every rollout.

    Args:
        steps: of the actor's memory and, if the critic has one of its own, of the critic's, as its plan has them.
        encoder: of observations that are not only flattened, in torch: (B, ...) -> (B, F).
        noise: of actions, in place of independent noise.
    """

    def __init__(
        self,
        policy: RecurrentActorCriticPolicy,
        rng: np.random.Generator,
        steps: Sequence[NumpyStep],
        encoder: Callable[[Any], Tensor] | None = None,
        noise: LastingNoise | None = None,
    ) -> None:
        self._features = _features_of(policy.observation_space) if encoder is None else _encoded_by(encoder)
        self._masked = _masking_of(policy)
        self._actor_step, self._critic_step = steps[0], steps[1] if len(steps) > 1 else None
        self._n_actor_parts = len(policy.memory_actor.initial_state(1))
        heads = policy.mlp_extractor
        self._reads_latent = isinstance(policy.action_dist, StateDependentNoiseDistribution)
        self._latent = _layers_of(heads.policy_net) if self._reads_latent else None
        self._output = _layers_of(*() if self._reads_latent else (heads.policy_net,), policy.action_net)
        self._values = _layers_of(heads.value_net, policy.value_net)
        policy.head.check_outputs(len(policy.action_net.get_parameter("weight")))
        self._sample = _sampler_of(policy, rng, noise)

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
        if hidden is features:
            hidden = hidden.copy()  # the same
        latent = hidden if self._latent is None else self._latent(hidden)
        actions, log_probs = self._sample(self._masked(self._output(latent), observations), latent)

        def finish() -> tuple[Array, Array, NumpyState]:
            if self._critic_step is None:
                return self._values(hidden)[:, 0].copy(), log_probs, actor_state
            critic_hidden, critic_state = self._critic_step(features, state[self._n_actor_parts :], episode_starts)
            return self._values(critic_hidden)[:, 0].copy(), log_probs, actor_state + critic_state

        return actions, finish


def make_actor(
    policy: RecurrentActorCriticPolicy,
    rng: np.random.Generator,
    forward: Callable[..., Any] | None = None,
    noise: LastingNoise | None = None,
) -> Actor:
    """The actor with the least overhead for this policy, as its plan says that it is now.

    Args:
        forward: the policy's step as it is compiled for a GPU, if it is.
        noise: of actions, in place of independent noise.
    """
    acting = policy.acting_plan()
    if acting.part.how != "NumPy":
        return TorchActor(policy, forward, noise)
    return NumpyActor(policy, rng, acting.steps, acting.encoder, noise)


def make_predict(policy: RecurrentActorCriticPolicy) -> Predict:
    """``policy.predict`` of batches on the parameters as they are now: in NumPy, where the plan of acting says so.

    The same up to rounding, with a state of its own kind. Samples are drawn from a source that starts from torch's.
    """
    acting = policy.predicting_plan()
    if acting.part.how != "NumPy":
        return policy.predict
    policy.set_training_mode(False)
    head, step, masked, mode = policy.head, acting.steps[0], _masking_of(policy), _mode_of(policy)
    encode = _features_of(policy.observation_space) if acting.encoder is None else _encoded_by(acting.encoder)
    output_of = _layers_of(policy.mlp_extractor.policy_net, policy.action_net)
    head.check_outputs(len(policy.action_net.get_parameter("weight")))
    sample = _sampler_of(policy, np.random.default_rng(int(torch.randint(2**63 - 1, ()))), None)
    initial = [part.numpy() for part in policy.memory_actor.initial_state(1)]

    def predict(
        observation: Any, state: NumpyState | None, episode_start: NDArray[np.bool_], deterministic: bool
    ) -> tuple[NDArray[Any], NumpyState]:
        if acting.encoder is not None:  # images come with channels first or last
            tensors, _ = policy.obs_to_tensor(as_arrays(observation, policy.observation_space))
            observation = map_observations(Tensor.numpy, tensors)
        if state is None:
            state = tuple(np.repeat(part, len(episode_start), axis=0) for part in initial)
        hidden, after = step(encode(observation), state, episode_start)
        output = output_of(hidden)
        if not np.isfinite(output).all():
            raise FloatingPointError(NOT_FINITE)
        output = masked(output, observation)
        actions = mode(output) if deterministic else sample(output, hidden)[0]
        return head.to_environment(actions), after

    return predict


def _encoded_by(encoder: Callable[[Any], Tensor]) -> Callable[[Any], Array]:
    def features(observations: Any) -> Array:
        with torch.no_grad():
            encoded = encoder(map_observations(torch.as_tensor, observations))
        return np.ascontiguousarray(encoded.numpy(), dtype=np.float32)

    return features


def _features_of(space: spaces.Space[Any]) -> Callable[[Any], NDArray[Any]]:
    """From observations to what a memory's step in NumPy takes: for Discrete the places of the ones in one-hot rows."""
    if isinstance(space, spaces.Discrete):
        return lambda observations: observations.reshape(-1)
    return lambda observations: observations.reshape(len(observations), -1).astype(np.float32, copy=False)


def _masking_of(policy: RecurrentActorCriticPolicy) -> Callable[[Array, Any], Array]:
    """From logits (B, K) and observations to logits that are least where an action is forbidden."""
    key = policy.action_mask
    if key is None:
        return lambda output, observations: output

    def masked(output: Array, observations: Any) -> Array:
        allowed = observations[key].reshape(output.shape).astype(bool)
        return np.where(allowed, output, np.finfo(np.float32).min)

    return masked


def _mode_of(policy: RecurrentActorCriticPolicy) -> Callable[[Array], NDArray[Any]]:
    """From the last layer's output to deterministic actions, as the buffer stores them."""
    head = policy.head
    if isinstance(head, CategoricalHead):
        edges = np.cumsum(head.sizes)[:-1]

        def choose(logits: Array) -> NDArray[Any]:
            choices = [part.argmax(axis=1) for part in np.split(logits, edges, axis=1)]
            return np.stack(choices, axis=1) if head.shape else choices[0]

        return choose
    if isinstance(head, BernoulliHead):
        return lambda logits: (logits > 0).astype(np.float32)
    return np.array


def _layers_of(*networks: nn.Module) -> Layers:
    """Networks one after the other as one function on arrays, whose result the next call may write over."""
    compiled = fused.layers_of(*networks)
    if compiled is not None:
        return fused.PackedPerceptron(compiled)
    layers = [_layer(layer) for network in networks for layer in network.modules() if type(layer) is not nn.Sequential]

    def run(x: Array) -> Array:
        for layer in layers:
            x = layer(x)
        return x

    return run


def _layer(layer: nn.Module) -> Layers:
    if isinstance(layer, nn.Linear):
        return numpy_linear(layer.weight, layer.bias)
    return np.tanh if isinstance(layer, nn.Tanh) else lambda x: np.maximum(x, np.float32(0))


def _sampler_of(policy: RecurrentActorCriticPolicy, rng: np.random.Generator, noise: LastingNoise | None) -> Sample:
    head = policy.head
    if isinstance(head, CategoricalHead):
        draw, one = _categorical_sampler(head.sizes, rng, noise), not head.shape

        def choose(logits: Array, latent: Array) -> tuple[NDArray[np.int64], Array]:
            actions, log_probs = draw(logits)
            return actions[:, 0] if one else actions, log_probs

        return choose
    if isinstance(head, BernoulliHead):
        return lambda logits, latent: _sample_bits(logits, rng, noise)
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        return _state_dependent_sampler(policy.action_dist, policy.log_std)
    return _gaussian_sampler(policy.log_std.detach().numpy(), rng, noise)


def _categorical_sampler(
    sizes: Sequence[int], rng: np.random.Generator, lasting: LastingNoise | None
) -> Callable[[Array], tuple[NDArray[np.int64], Array]]:
    """(B, K) logits of choices of these sizes -> a choice of each, and their joint log-probability."""
    if fused.available:
        sampler = fused.CategoricalSampler(sizes)
        return lambda logits: sampler(logits, rng, lasting)
    edges = np.cumsum(sizes)[:-1]

    def draw(logits: Array) -> tuple[NDArray[np.int64], Array]:
        noise = rng.standard_exponential(logits.shape, dtype=np.float32)
        noise = np.maximum(noise if lasting is None else lasting(noise), np.float32(1e-45))  # may be 0
        parts = (np.split(each, edges, axis=1) for each in (logits, noise))
        choices = [_chosen_by(*part) for part in zip(*parts, strict=True)]
        log_probs: Array = np.sum([log_prob for _, log_prob in choices], axis=0, dtype=np.float32)
        return np.stack([action for action, _ in choices], axis=1), log_probs

    return draw


def _chosen_by(logits: Array, noise: Array) -> tuple[NDArray[np.int64], Array]:
    """(B, n), Exp(1) noise (B, n) -> (B,) by Gumbel-max, and log softmax there."""
    actions = (logits - np.log(noise)).argmax(axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(actions)), actions]
    return actions, chosen - np.log(np.exp(shifted).sum(axis=1))


def _sample_bits(logits: Array, rng: np.random.Generator, lasting: LastingNoise | None) -> tuple[Array, Array]:
    """(B, n) -> bits, and their log-probability: -log(1 + e^-x) for a one, -log(1 + e^x) for a zero."""
    probabilities = np.float32(0.5) * np.tanh(np.float32(0.5) * logits) + np.float32(0.5)
    noise = rng.random(logits.shape, dtype=np.float32)
    bits: Array = ((noise if lasting is None else lasting(noise)) < probabilities).astype(np.float32)
    log_probs: Array = -np.logaddexp(np.float32(0), logits * (1 - 2 * bits)).sum(axis=1)
    return bits, log_probs


def _gaussian_sampler(log_std: Array, rng: np.random.Generator, lasting: LastingNoise | None) -> Sample:
    std = np.exp(log_std)
    log_norm = np.float32(log_std.sum() + 0.5 * np.log(2 * np.pi) * len(log_std))

    def sample(mean: Array, latent: Array) -> tuple[Array, Array]:
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        if lasting is not None:
            noise = lasting(noise)
        log_probs: Array = np.float32(-0.5) * np.square(noise).sum(axis=1) - log_norm
        return np.add(mean, std * noise, dtype=np.float32), log_probs

    return sample


def _state_dependent_sampler(distribution: StateDependentNoiseDistribution, log_std: Tensor) -> Sample:
    """Noise that is a function of the state, by matrices that the policy's ``reset_noise`` draws."""
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
