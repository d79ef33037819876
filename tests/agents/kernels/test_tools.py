"""torch's own tools give torch's own answers through what is compiled: derivatives of any order, parametrizations,
transforms of ``torch.func``, hooks on saved tensors, anomaly detection.

Axes: T time, B sequences, F features in, H hidden units, N steps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from agents import RecurrentPPO
from agents.algorithms import losses
from agents.kernels import heads, in_torch, recurrent
from agents.kernels.heads import CategoricalSampler, layers_of, perceptron
from agents.memory import make_memory
from agents.memory.recurrent import Recurrent

T, B, F, H, N = 6, 3, 4, 8, 5

CELLS: list[tuple[str, dict[str, Any]]] = [
    *((name, kwargs) for name in ("lstm", "gru", "rnn") for kwargs in ({}, {"learned_initial_state": True})),
    ("rnn", {"nonlinearity": "relu"}),
    ("lstm", {"bias": False, "num_layers": 2}),
]
compiled_only = pytest.mark.skipif(not (heads.available and recurrent.available), reason="built without a C compiler")
every_cell = pytest.mark.parametrize(("name", "kwargs"), CELLS)


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def cell(name: str, kwargs: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    memory = make_memory(name, F, {"hidden_size": H, "initialization": "torch", **kwargs})
    assert isinstance(memory, Recurrent)
    if memory.initial is not None:
        nn.init.normal_(memory.initial)
    return memory


def block() -> tuple[Tensor, Tensor]:
    starts = torch.zeros(T, B, dtype=torch.bool)
    starts[2, 1] = starts[4, 0] = starts[0, 2] = True
    return torch.randn(T, B, F, requires_grad=True), starts


def penalty(output: Tensor, x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Gradients of a gradient's size, as WGAN-GP's penalty has it."""
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    return list(torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True))


def both_ways(compute: Callable[[], list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    found = compute()
    with in_torch():
        return zip(found, compute(), strict=True)


@compiled_only
@every_cell
def test_a_gradient_penalty_through_a_memory_is_torchs(name: str, kwargs: dict[str, Any]) -> None:
    memory = cell(name, kwargs)
    x, starts = block()
    state = tuple(torch.randn_like(part).requires_grad_() for part in memory.initial_state(B))
    asked = [*memory.parameters(), x, *state]
    for found, wanted in both_ways(lambda: penalty(memory.unroll(x, state, starts), x, asked)):
        assert found is not None
        assert wanted is not None
        close(found, wanted)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(F, 16), nn.Tanh(), nn.Linear(16, 5), nn.Tanh())


def through(net: nn.Sequential, x: Tensor) -> Tensor:
    layers = layers_of(net)
    return net(x) if layers is None else perceptron(layers, x)


def test_a_gradient_penalty_through_the_heads_is_torchs() -> None:
    net, x = network(), torch.randn(N, F, requires_grad=True)
    for found, wanted in zip(
        penalty(through(net, x), x, list(net.parameters())), penalty(net(x), x, list(net.parameters())), strict=True
    ):
        close(found, wanted)


@compiled_only
def test_an_input_made_of_another_keeps_its_own_part_of_the_second_gradient() -> None:
    """x and a weight that both come from one tensor: the two ways must not be counted twice."""
    net = nn.Sequential(nn.Linear(F, F))
    source = torch.randn(F, F, requires_grad=True)

    def second(run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        weight, x = source * 2, source.exp()
        (gradient,) = torch.autograd.grad(run(x, weight).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), source)[0]

    def compiled(x: Tensor, weight: Tensor) -> Tensor:
        layers = layers_of(net)
        assert layers is not None
        return perceptron(layers._replace(weights=[weight], biases=[None]), x)

    close(second(compiled), second(lambda x, weight: nn.functional.linear(x, weight)))


def test_second_derivatives_of_probabilities_and_of_the_objective_are_torchs() -> None:
    torch.manual_seed(0)
    logits, taken = torch.randn(N, 5, requires_grad=True), torch.tensor([[0, 1], [1, 2], [0, 0], [1, 1], [0, 2]])
    means, log_std = torch.randn(N, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    drawn = [torch.randn(N) for _ in range(7)]
    by = [part.requires_grad_() for part in drawn[:3]]
    settings: dict[str, Any] = dict(normalize=True, clip_range=0.2, clip_range_vf=0.1, ent_coef=0.1, vf_coef=0.5)

    def of_choices() -> list[Tensor]:
        log_probs, entropies = heads.categorical(logits, (2, 3), taken)
        return penalty(log_probs * entropies, logits, [logits])

    def of_gaussian() -> list[Tensor]:
        return penalty(heads.gaussian(means, log_std, torch.ones(N, 2)), means, [means, log_std])

    def of_objective() -> list[Tensor]:
        loss, _ = losses.ppo_objective(*drawn, **settings)
        return [part for part in penalty(loss, by[2], by) if part is not None]

    for compute in (of_choices, of_gaussian, of_objective):
        for found, wanted in both_ways(compute):
            close(found, wanted)


def test_actions_and_returns_that_ask_for_a_gradient_get_torchs() -> None:
    actions = torch.randn(N, 2, requires_grad=True)
    density = heads.gaussian(torch.zeros(N, 2), torch.zeros(2), actions).sum()
    close(torch.autograd.grad(density, actions)[0], -actions.detach())
    drawn = [torch.randn(N) for _ in range(7)]
    drawn[6].requires_grad_()
    settings: dict[str, Any] = dict(normalize=False, clip_range=0.2, clip_range_vf=None, ent_coef=0.0, vf_coef=1.0)
    loss, _ = losses.ppo_objective(*drawn, **settings)
    close(torch.autograd.grad(loss, drawn[6])[0], 2 * (drawn[6] - drawn[2]).detach() / N)


def weight_normed(module: nn.Module, name: str) -> None:
    parametrizations.weight_norm(module, name)


def spectral_normed(module: nn.Module, name: str) -> None:
    parametrizations.spectral_norm(module, name)


def pruned(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, amount=0.5)


@pytest.mark.parametrize("make", [weight_normed, spectral_normed, pruned])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_weights_made_of_others_are_seen_after_each_step(name: str, make: Callable[..., None]) -> None:
    memory = cell(name, {})
    make(memory, "weight_hh_l0")
    memory.eval()  # spectral_norm's own iteration stands still
    optimizer = torch.optim.SGD(memory.parameters(), lr=0.5)
    x, starts = block()
    state = memory.initial_state(B)
    for _ in range(2):  # the second time all must have been rebuilt
        optimizer.zero_grad()
        found = memory(x, state, starts)
        found.square().sum().backward()
        optimizer.step()
    found = memory(x, state, starts)
    before, outputs = state, []
    for t in range(T):
        output, before = memory(x[t], before, starts[t])
        outputs.append(output)
    close(found, torch.stack(outputs))
    assert torch.equal(memory.weight_hh_l0 == 0, memory.weight_hh_l0_mask == 0) if make is pruned else True


@every_cell
def test_transforms_of_torch_func_are_torchs(name: str, kwargs: dict[str, Any]) -> None:
    memory = cell(name, kwargs)
    x, starts = block()
    x, state = x.detach(), memory.initial_state(B)
    parameters = {key: part.detach() for key, part in memory.named_parameters()}

    def loss(parameters: Any, x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(memory, parameters, (x, state, starts))
        return output.square().sum()

    found = torch.func.grad(loss)(parameters, x)
    wanted = torch.autograd.grad(memory.unroll(x, state, starts).square().sum(), list(memory.parameters()))
    for one, other in zip(found.values(), wanted, strict=True):
        close(one, other)
    if name != "lstm":  # torch has no batching rule for its cell, and says so
        found = torch.func.vmap(lambda x: memory.unroll(x, state, starts))(torch.stack((x, 2 * x)))
        close(found[1], memory.unroll(2 * x, state, starts))


def test_transforms_of_torch_func_through_the_heads_are_torchs() -> None:
    net, x = network(), torch.randn(N, F)
    found = torch.func.vmap(torch.func.grad(lambda x: through(net, x[None]).square().sum()))(x)
    asked = x.clone().requires_grad_()
    close(found, torch.autograd.grad(net(asked).square().sum(), asked)[0])


@every_cell
def test_hooks_on_saved_tensors_see_and_may_replace_them(name: str, kwargs: dict[str, Any]) -> None:
    memory, net = cell(name, kwargs), nn.Sequential(nn.Linear(H, 3), nn.Tanh())
    x, starts = block()
    state, asked = memory.initial_state(B), [*memory.parameters(), *net.parameters(), x]

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(through(net, memory.unroll(x, state, starts).flatten(0, 1)).sum(), asked))

    wanted, packed = gradients(), []

    def pack(tensor: Tensor) -> Any:
        packed.append(tensor.shape)
        return tensor.numpy(force=True).copy()

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        found = gradients()
    assert packed
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


def test_anomaly_detection_names_the_operation_at_fault() -> None:
    net, x = network(), torch.full((N, F), torch.nan)
    with torch.autograd.set_detect_anomaly(True), pytest.raises(RuntimeError, match="returned nan"):
        through(net, x).sum().backward()  # type: ignore[no-untyped-call]
    memory, starts = cell("lstm", {}), torch.zeros(T, B, dtype=torch.bool)
    with torch.autograd.set_detect_anomaly(True), pytest.raises(RuntimeError, match="returned nan"):
        memory.unroll(torch.full((T, B, F), torch.nan), memory.initial_state(B), starts).sum().backward()


# Layers of another width than what comes in


class Exactly(gym.Env[Any, Any]):
    """Observations that say nothing."""

    observation_space = gym.spaces.Box(-1, 1, (3,))

    def __init__(self, space: gym.Space[Any]) -> None:
        self.action_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(3, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(3, dtype=np.float32), 0.0, False, False, {}


WRONG: list[tuple[gym.Space[Any], int, int]] = [
    (gym.spaces.Discrete(2), 32, 2),
    (gym.spaces.Discrete(2), 128, 2),
    (gym.spaces.Discrete(2), 16, 3),
    (gym.spaces.MultiDiscrete([3, 4]), 16, 5),
    (gym.spaces.MultiDiscrete([3, 4]), 16, 9),
    (gym.spaces.Box(-1, 1, (2,)), 16, 1),
    (gym.spaces.Box(-1, 1, (2,)), 16, 3),
    (gym.spaces.MultiBinary(3), 16, 2),
]


@pytest.mark.parametrize("without_compiler", [False, True])
@pytest.mark.parametrize(("space", "inputs", "outputs"), WRONG, ids=str)
def test_an_action_net_of_another_width_raises_wherever_it_is_used(
    space: gym.Space[Any], inputs: int, outputs: int, without_compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_compiler:
        monkeypatch.setattr(heads, "available", False)
        monkeypatch.setattr(recurrent, "available", False)
    kwargs = dict(lstm_hidden_size=16, net_arch=[])
    model = RecurrentPPO("MlpLstmPolicy", Exactly(space), n_steps=8, policy_kwargs=kwargs, seed=0)
    model.learn(8)
    policy, batch = model.policy, next(iter(model.rollout_buffer.get(None)))
    policy.action_net = nn.Linear(inputs, outputs)
    said = "cannot be multiplied|must give|must match|mismatch"
    with pytest.raises((RuntimeError, ValueError), match=said):
        policy.evaluate_actions(batch.observations, batch.actions, batch.state, batch.episode_starts)
    with pytest.raises((RuntimeError, ValueError), match=said):
        policy.predict(np.zeros(3, dtype=np.float32), deterministic=True)
    with pytest.raises((RuntimeError, ValueError), match=said):
        model.train()
    with pytest.raises((RuntimeError, ValueError), match=said):
        model.learn(8)


@compiled_only
def test_inner_layers_of_another_width_raise_torchs_error() -> None:
    net = nn.Sequential(nn.Linear(F, 16), nn.Tanh(), nn.Linear(8, 2))
    assert layers_of(net) is None
    layers = layers_of(network())
    assert layers is not None
    for x in (torch.randn(N, F + 1), torch.randn(N, F - 1)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            perceptron(layers, x)


def test_a_bias_of_another_width_is_left_to_torch() -> None:
    layer = nn.Linear(F, 3)
    layer.bias = nn.Parameter(torch.zeros(1))
    assert layers_of(layer) is None


class Noise:
    """A generator that draws what it is told."""

    def __init__(self, noise: Any) -> None:
        self._noise = noise

    def standard_exponential(self, size: Any = None, dtype: Any = None, out: Any = None) -> Any:
        if out is None:
            return self._noise.copy()
        np.copyto(out, self._noise)
        return out


@compiled_only
def test_noise_of_exactly_zero_samples_alike_compiled_and_in_numpy() -> None:
    from agents.rollout import numpy_actor

    rng = np.random.default_rng(0)
    lowest = np.finfo(np.float32).min
    for logits in ([[0.0, 1.0, -2.0]], [[lowest, 1.0, 0.0]], [[-np.inf, 0.0, 3.0]]):
        values: Any = np.array(logits, dtype=np.float32)
        for zeros in ([0], [0, 1], [0, 1, 2], [2]):
            noise = rng.standard_exponential(values.shape, dtype=np.float32)
            noise[:, zeros] = 0.0
            compiled, log_probs = CategoricalSampler([3])(values, Noise(noise))  # type: ignore[arg-type]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(heads, "available", False)
                in_numpy, wanted = numpy_actor._categorical_sampler([3], Noise(noise), None)(values)  # type: ignore[arg-type]
            assert compiled.tolist() == in_numpy.tolist()
            np.testing.assert_allclose(log_probs, wanted, rtol=1e-6)


# Clipping


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15, 1.9e19, 1e25, 1e38])
def test_gradients_of_any_size_are_clipped_to_the_norm(size: float) -> None:
    """torch's own norm, in single precision, overflows from 1.8e19 on."""
    parameters = [nn.Parameter(torch.zeros(3, 7)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4))]
    for parameter in parameters[:2]:  # the last has no gradient
        parameter.grad = torch.full_like(parameter, size)
    losses.clip_gradients(parameters, 0.5)
    for parameter in parameters[:2]:
        assert parameter.grad is not None
        close(parameter.grad.double(), torch.full_like(parameter, min(size, 0.5 / 23**0.5)).double())
    assert parameters[2].grad is None


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_not_hidden_by_clipping(value: float) -> None:
    parameters = [nn.Parameter(torch.zeros(9))]
    parameters[0].grad = torch.ones(9)
    parameters[0].grad[3] = value
    losses.clip_gradients(parameters, 0.5)
    assert not torch.isfinite(parameters[0].grad[3])
