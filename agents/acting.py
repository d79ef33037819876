"""Acting while collecting: one step of all environments, again and again.

A step of a small network on a CPU is bound by the overhead of calls, and NumPy has a fraction of torch's. So where
every part of a policy is of a kind known here, its acting step runs in NumPy on the parameters as they are when a
rollout starts; they do not change before it ends. On a GPU the step is bound by the launches of its kernels, so it is
captured once as a CUDA graph and replayed with one launch. Everything else acts through the policy itself. All give the
same numbers up to rounding, which a test holds them to.

Axes: B environments, F features, A components of an action.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn

from agents.actions import BernoulliHead, CategoricalHead, GaussianHead, MultiCategoricalHead, StateDependentHead
from agents.buffer import map_observations
from agents.kernels import heads as fused
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

    def on_host(self, actions: Any) -> NDArray[Any]:
        """The actions that ``act`` returned last, as an array."""


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

    def on_host(self, actions: Any) -> NDArray[Any]:
        return actions.cpu().numpy() if isinstance(actions, Tensor) else actions


class GraphActor:
    """Acts through the policy by one CUDA graph a step, captured at the first one.

    Inputs are written into pinned memory of the host and outputs are read from buffers that stay where they are; the
    graph holds everything between: the copies to the device, the policy's ``forward`` with its sampling (torch's
    generator goes on as if it had run eagerly), the state's way back to where the next step finds it, and the copy of
    the actions to the host. The host waits for these alone, in ``on_host``.

    The graph reads the parameters where the learner writes them, so an optimizer's step is seen by the next replay;
    where a parameter has moved in memory, or inputs have another shape, ``begin`` or ``act`` capture anew. What comes
    out of ``act`` is written over by the next call; ``end`` copies the state.

    A policy that cannot be captured acts eagerly, after one warning that says why: its code is run once and not again,
    so it must not be changed by hooks or a subclass, draw exploration noise by state (whose matrices are replaced now
    and then), or ask the device for a number.

    Args:
        capture: makes of a function without arguments one that does the same on the same memory; None for a CUDA graph
            on a GPU, and for the function itself elsewhere.
    """

    def __init__(self, policy: RecurrentActorCriticPolicy, capture: "Capture | None" = None) -> None:
        self._policy = policy
        self._capture = capture or (_captured if policy.device.type == "cuda" else _as_it_is)
        self._step: _Step | None = None
        self._eager: TorchActor | None = None

    def acts_for(self, policy: RecurrentActorCriticPolicy) -> bool:
        """Whether this is the actor of a policy, so that what it captured serves again."""
        return self._policy is policy

    def begin(self, state: State) -> State:
        if self._eager is None and (reason := _why_not_captured(self._policy)):
            self._act_eagerly(reason)
        if self._step is not None and self._step.parameters_moved():
            self._step = None
        return state

    def end(self, state: State) -> State:
        return tuple(part.clone() for part in state)

    def act(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        if self._eager is None and (self._step is None or not self._step.fits(observations, state)):
            self._start(observations, state, episode_starts)
        if self._step is not None:
            return self._step(observations, state, episode_starts)
        assert self._eager is not None  # one of the two there always is
        return self._eager.act(observations, state, episode_starts)

    def on_host(self, actions: Any) -> NDArray[Any]:
        if self._step is not None:
            return self._step.actions_on_host()
        assert self._eager is not None
        return self._eager.on_host(actions)

    def _start(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> None:
        """Captures a step of these shapes; the random state stays as if nothing had been run for it."""
        device = self._policy.device
        with _current(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                self._step = _Step(self._policy, observations, state, episode_starts, self._capture)
            except (RuntimeError, NotImplementedError) as error:
                self._act_eagerly(f"{type(error).__name__}: {error}".splitlines()[0])

    def _act_eagerly(self, reason: str) -> None:
        self._step, self._eager = None, TorchActor(self._policy)
        warnings.warn(f"acting is not captured as a CUDA graph and so slower: {reason}", stacklevel=2)

    def __reduce__(self) -> tuple[Any, ...]:
        """A graph belongs to its memory: a copy captures its own."""
        return GraphActor, (self._policy, self._capture)


Capture = Callable[[Callable[[], None]], Callable[[], None]]


class _Step:
    """One step of B environments between buffers that stay where they are: a function of no arguments, to be captured.

    Raises:
        RuntimeError: it cannot be captured.
    """

    def __init__(
        self,
        policy: RecurrentActorCriticPolicy,
        observations: Any,
        state: State,
        episode_starts: NDArray[np.bool_],
        capture: Capture,
    ) -> None:
        self._policy, self._device = policy, policy.device
        self._inputs = map_observations(self._on_host_like, observations)
        self._starts = self._on_host_like(episode_starts)
        self._state = tuple(part.detach().clone() for part in state)
        self._write(observations, episode_starts)
        actions, values, log_probs, _ = self._forward()  # tells the shapes
        self._actions, self._values, self._log_probs = (part.clone() for part in (actions, values, log_probs))
        self._actions_on_host = self._on_host_like(actions)
        self._replay = capture(self._run)
        self._done = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._addresses = self._where_parameters_are()

    def __call__(self, observations: Any, state: State, episode_starts: NDArray[np.bool_]) -> tuple[Any, Finish]:
        self._wait()  # the last step's copies out of the inputs are then done
        self._write(observations, episode_starts)
        if state is not self._state:
            for kept, part in zip(self._state, state, strict=True):
                kept.copy_(part)
        with _current(self._device):
            self._replay()
            if self._done is not None:
                self._done.record()
        return self._actions, lambda: (self._values, self._log_probs, self._state)

    def actions_on_host(self) -> NDArray[Any]:
        """A copy, since environments may keep what they are given."""
        self._wait()
        return self._actions_on_host.numpy().copy()

    def fits(self, observations: Any, state: State) -> bool:
        """Whether the buffers take these inputs."""
        known = [(part.shape, part.dtype) for part in self._state]
        return known == [(part.shape, part.dtype) for part in state] and _same_kind(self._inputs, observations)

    def parameters_moved(self) -> bool:
        """Whether a parameter or buffer of the policy has other memory than when this was captured."""
        return self._addresses != self._where_parameters_are()

    def _run(self) -> None:
        """All that is captured."""
        actions, values, log_probs, state = self._forward()
        self._actions.copy_(actions)
        self._values.copy_(values)
        self._log_probs.copy_(log_probs)
        for kept, part in zip(self._state, state, strict=True):
            kept.copy_(part)
        self._actions_on_host.copy_(actions, non_blocking=True)

    @torch.no_grad()
    def _forward(self) -> tuple[Tensor, Tensor, Tensor, State]:
        observations = map_observations(self._on_device, self._inputs)
        before = tuple(part.clone() for part in self._state)  # a memory may hand a part of it on as it came
        actions, values, log_probs, state = self._policy(observations, before, self._on_device(self._starts))
        return actions, values, log_probs, state

    def _write(self, observations: Any, episode_starts: NDArray[np.bool_]) -> None:
        _copy_into(self._inputs, observations)
        _copy_into(self._starts, episode_starts)

    def _on_host_like(self, part: Any) -> Tensor:
        tensor = torch.as_tensor(part)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._device.type == "cuda")

    def _on_device(self, part: Tensor) -> Tensor:
        # On a CPU a copy too: a policy may pass its observations on, and they are written over.
        return part.clone() if self._device.type == "cpu" else part.to(self._device, non_blocking=True)

    def _wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()

    def _where_parameters_are(self) -> list[int]:
        return [part.data_ptr() for part in (*self._policy.parameters(), *self._policy.buffers())]


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, where streams, events and graphs belong."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _as_it_is(function: Callable[[], None]) -> Callable[[], None]:
    return function


def _captured(function: Callable[[], None]) -> Callable[[], None]:
    """The function as a CUDA graph on the current device.

    It is first run on a stream of its own, as torch asks for, the last time with synchronisations forbidden: one inside
    a capture would leave allocator and generator in its midst.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    mode = torch.cuda.get_sync_debug_mode()
    with torch.cuda.stream(stream):
        try:
            for last in (False, False, True):
                torch.cuda.set_sync_debug_mode("error" if last else mode)
                function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    replay: Callable[[], None] = graph.replay
    return replay


def _why_not_captured(policy: RecurrentActorCriticPolicy) -> str | None:
    """What of a policy a capture would pass by; None where there is nothing known."""
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        return "state-dependent exploration replaces its noise matrices"
    if _has_code_of_its_own(policy):
        return f"{type(policy).__name__} changes how the policy acts, by a method or a hook of its own"
    return None


def _copy_into(buffers: Any, values: Any) -> None:
    if isinstance(buffers, dict):
        for key, part in buffers.items():
            _copy_into(part, values[key])
    else:
        np.copyto(buffers.numpy(), values)


def _same_kind(buffers: Any, values: Any) -> bool:
    """Whether arrays have the shapes and dtypes of the buffers made for them."""
    if isinstance(buffers, dict):
        return buffers.keys() == values.keys() and all(_same_kind(part, values[key]) for key, part in buffers.items())
    array: NDArray[Any] = buffers.numpy()
    return bool(array.shape == values.shape and array.dtype == values.dtype)


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
        policy.head.check_outputs(len(policy.action_net.get_parameter("weight")))
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
        if hidden is features:
            hidden = hidden.copy()  # the same
        latent = hidden if self._latent is None else self._latent(hidden)
        actions, log_probs = self._sample(self._output(latent), latent)

        def finish() -> tuple[Array, Array, NumpyState]:
            if self._critic_step is None:
                return self._values(hidden)[:, 0].copy(), log_probs, actor_state
            critic_hidden, critic_state = self._critic_step(features, state[self._n_actor_parts :], episode_starts)
            return self._values(critic_hidden)[:, 0].copy(), log_probs, actor_state + critic_state

        return actions, finish

    def on_host(self, actions: NDArray[Any]) -> NDArray[Any]:
        return actions


def make_actor(
    policy: RecurrentActorCriticPolicy,
    rng: np.random.Generator,
    last: GraphActor | None = None,
    capture: bool = True,
) -> Actor:
    """The actor with the least overhead for this policy, as it is now.

    Args:
        last: the actor of the rollout before, if it was captured; where it still fits it is used again.
        capture: whether acting on a GPU is captured as a CUDA graph.
    """
    if policy.autocast is None and acts_in_numpy(policy):
        return NumpyActor(policy, rng)
    if policy.device.type != "cuda" or not capture:
        return TorchActor(policy)
    return last if last is not None and last.acts_for(policy) else GraphActor(policy)


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
        and type(policy.head) in _HEADS
        and all(memory is None or _has_step(memory) for memory in (policy.memory_actor, policy.memory_critic))
        and _are_plain(policy.mlp_extractor.policy_net, policy.action_net)
        and _are_plain(policy.mlp_extractor.value_net, policy.value_net)
    )


def _has_code_of_its_own(policy: RecurrentActorCriticPolicy) -> bool:
    """Whether a subclass, a hook or a method put in place of another changes how the policy acts, which a copy of its
    layers would pass by."""
    ours = ("forward", "extract_features", "_encode", "_features", "_step", "_hidden_layers", "_in_one_call", "_value")
    return any(
        name in vars(policy) or getattr(type(policy), name) is not getattr(RecurrentActorCriticPolicy, name)
        for name in (*ours, "_distribution_parameters")
    ) or any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in policy.modules()
    )


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


_HEADS = (CategoricalHead, MultiCategoricalHead, BernoulliHead, GaussianHead, StateDependentHead)

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
