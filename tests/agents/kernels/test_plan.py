"""Whatever is done to a policy is seen by all that computes with it: acting, evaluating, learning give torch's numbers.

What is compared with is the same policy under ``in_torch``, where all is computed by calling its modules.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils import parametrize, prune

from agents.kernels import heads, in_torch
from agents.memory import GRU, LSTM, MEMORIES
from agents.policy.actor_critic import RecurrentActorCriticPolicy
from agents.rollout.numpy_actor import make_actor
from tests.agents.probe_envs import clocks, policy_arguments, small_ppo

Touch = Callable[[RecurrentActorCriticPolicy, list[str]], Any]
"""Does something to a policy whose effect is noted in the list, each time that it takes place."""

MODULES = [
    *("features_extractor", "memory_actor", "memory_critic", "action_net", "value_net"),
    *("mlp_extractor.policy_net", "mlp_extractor.policy_net.0", "mlp_extractor.policy_net.1"),
    *("mlp_extractor.value_net", "mlp_extractor.value_net.0"),
]
WEIGHTS = [
    *("memory_actor.weight_ih_l0", "memory_actor.weight_hh_l0", "memory_critic.bias_hh_l0"),
    *("mlp_extractor.policy_net.0.weight", "action_net.bias", "value_net.weight"),
]


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 0.7 * weight


def scaled(output: Any) -> Any:
    """An output, or that of a step together with the state after it, which stays."""
    return (0.9 * output[0], *output[1:]) if isinstance(output, tuple) else 0.9 * output


def forward_hook(name: str) -> Touch:
    def touch(policy: RecurrentActorCriticPolicy, calls: list[str]) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            calls.append(name)
            return scaled(output)

        return policy.get_submodule(name).register_forward_hook(hook)

    return touch


def forward_pre_hook(name: str) -> Touch:
    def touch(policy: RecurrentActorCriticPolicy, calls: list[str]) -> Any:
        def hook(module: nn.Module, inputs: Any) -> Any:
            calls.append(name)
            return (0.9 * inputs[0], *inputs[1:])

        return policy.get_submodule(name).register_forward_pre_hook(hook)

    return touch


def backward_hook(name: str) -> Touch:
    def touch(policy: RecurrentActorCriticPolicy, calls: list[str]) -> Any:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            calls.append(name)

        return policy.get_submodule(name).register_full_backward_hook(hook)

    return touch


def backward_pre_hook(name: str) -> Touch:
    def touch(policy: RecurrentActorCriticPolicy, calls: list[str]) -> Any:
        def hook(module: nn.Module, gradients: Any) -> Any:
            calls.append(name)
            return tuple(None if part is None else 0.5 * part for part in gradients)

        return policy.get_submodule(name).register_full_backward_pre_hook(hook)

    return touch


def forward_of_its_own(name: str) -> Touch:
    def touch(policy: RecurrentActorCriticPolicy, calls: list[str]) -> None:
        module = policy.get_submodule(name)
        forward = module.forward

        def replaced(*arguments: Any) -> Any:
            calls.append(name)
            return scaled(forward(*arguments))

        module.forward = replaced  # type: ignore[method-assign]

    return touch


def parametrization(weight: str) -> Touch:
    def touch(policy: RecurrentActorCriticPolicy, calls: list[str]) -> None:
        module, _, name = weight.rpartition(".")
        parametrize.register_parametrization(policy.get_submodule(module), name, Scaled())
        calls.append(weight)

    return touch


def pruning(weight: str) -> Touch:
    def touch(policy: RecurrentActorCriticPolicy, calls: list[str]) -> None:
        module, _, name = weight.rpartition(".")
        prune.l1_unstructured(policy.get_submodule(module), name, 0.5)
        calls.append(weight)

    return touch


def hook_of_all_modules(policy: RecurrentActorCriticPolicy, calls: list[str]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(module, nn.Linear | LSTM):
            calls.append(type(module).__name__)
            return scaled(output)
        return None

    return torch_modules.register_module_forward_hook(hook)


def on_each(touches: list[Callable[[str], Touch]], names: list[str]) -> Iterator[Any]:
    for make in touches:
        for name in names:
            yield pytest.param(make(name), id=f"{make.__name__}-{name}")


TOUCHES = [
    *on_each([forward_hook, forward_pre_hook, forward_of_its_own], MODULES),
    *on_each([backward_hook, backward_pre_hook], [name for name in MODULES if name != "features_extractor"]),
    *on_each([parametrization, pruning], WEIGHTS),
    pytest.param(hook_of_all_modules, id="hook_of_all_modules"),
]


def learned(touch: Touch, in_place: Any) -> tuple[str, dict[str, int], list[Tensor]]:
    """How a model acts in two rollouts with an update each; how often each effect took place; what came of it."""
    model, calls = small_ppo(clocks(), "lstm", "separate", n_epochs=1), list[str]()
    handle = touch(model.policy, calls)
    try:
        with in_place:
            model.learn(48)
            how = model.policy.acting_plan().part.how
            (batch,) = model.rollout_buffer.get(None)
            outputs = model.policy.evaluate_actions(
                batch.observations, batch.actions, batch.state, batch.episode_starts
            )
    finally:
        if handle is not None:
            handle.remove()
    buffer = model.rollout_buffer
    numbers = [buffer.values, buffer.log_probs, *model._last_state, *outputs, *model.policy.parameters()]
    return how, {name: calls.count(name) for name in calls}, [part.detach().clone() for part in numbers]


@pytest.mark.parametrize("touch", TOUCHES)
def test_what_is_done_to_a_module_reaches_acting_evaluating_and_learning(touch: Touch) -> None:
    how, calls, numbers = learned(touch, nullcontext())
    _, expected_calls, expected = learned(touch, in_torch())
    assert calls == expected_calls
    assert calls
    for one, other in zip(numbers, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert how == "torch"


@pytest.mark.parametrize(
    "method", sorted(name for name, value in vars(RecurrentActorCriticPolicy).items() if callable(value))
)
def test_a_method_of_a_subclass_is_called_in_acting_wherever_torch_calls_it(method: str) -> None:
    def acted(in_place: Any) -> int:
        calls = []

        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return getattr(super(cls, self), method)(*args, **kwargs)

        cls: Any = type("Mine", (RecurrentActorCriticPolicy,), {method: run})
        torch.manual_seed(0)
        arguments = policy_arguments("lstm", "separate")
        policy = cls(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-3, **arguments)
        with in_place:
            actor = make_actor(policy, np.random.default_rng(0))
            calls.clear()
            state = actor.begin(RecurrentActorCriticPolicy.initial_state(policy, 2))
            calls.clear()
            actor.act(np.zeros((2, 3), np.float32), state, np.zeros(2, dtype=bool))[1]()
        return len(calls)

    assert acted(nullcontext()) == acted(in_torch())


@pytest.mark.parametrize("method", ["step", "_cell", "forward"])
def test_a_step_of_a_subclass_is_taken_in_acting_and_in_learning(method: str) -> None:
    def run(self: Any, *arguments: Any) -> Any:
        return scaled(getattr(super(cls, self), method)(*arguments))

    cls: Any = type("Mine", (GRU,), {method: run})

    def numbers(in_place: Any) -> list[Tensor]:
        with in_place:
            model = small_ppo(clocks(), cls, "separate", policy_kwargs=dict(memory_kwargs=dict(hidden_size=8)))
            model.learn(24)
            return [model.rollout_buffer.values, *[part.detach() for part in model.policy.parameters()]]

    for one, other in zip(numbers(nullcontext()), numbers(in_torch()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


class Evaluated(nn.Module):
    def __init__(self, policy: RecurrentActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Tensor, actions: Tensor, starts: Tensor, *state: Tensor) -> Any:
        return self.policy.evaluate_actions(obs, actions, state, starts)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_traced_pass_gives_its_numbers_for_other_inputs_too(memory: str) -> None:
    torch.manual_seed(0)
    policy = RecurrentActorCriticPolicy(
        spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-3, **policy_arguments(memory, "separate")
    )
    module = Evaluated(policy)

    def inputs() -> tuple[Tensor, ...]:
        starts = torch.rand(6, 2) < 0.4
        state = tuple(torch.rand_like(part) for part in policy.initial_state(2))
        return torch.randn(6, 2, 3), torch.randint(2, (6, 2)), starts, *state

    with torch.no_grad():
        traced: Any = torch.jit.trace(module, inputs(), check_trace=False)  # type: ignore[no-untyped-call]
        for _ in range(3):
            given = inputs()
            for one, other in zip(traced(*given), module(*given), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_memory_called_as_torchs_layer_is_that_layer(name: str) -> None:
    torch.manual_seed(0)
    memory: Any = MEMORIES[name](3, 8, 2)
    layer: Any = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[name](3, 8, 2)
    layer.load_state_dict(memory.state_dict())
    x, part = torch.randn(5, 4, 3), torch.randn(2, 4, 8)
    for state in (None, (part, 0.5 * part) if name == "lstm" else part):
        (output, after), (expected, expected_after) = memory(x, state), layer(x, state)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(after, expected_after)
    with pytest.raises(ValueError, match=r"call memory\(features, state, episode_starts\)"):
        memory(x, torch.zeros(4, 2, 8))


@pytest.mark.parametrize("n_categories", [5, 200])
@pytest.mark.parametrize("memory", ["lstm", "gru", "rnn", "lru", "none"])
def test_acting_on_categories_takes_no_more_than_rows_of_them(memory: str, n_categories: int) -> None:
    owner = MEMORIES[memory](n_categories)
    step: Any = owner.numpy_index_step()
    whole: Any = owner.numpy_step()
    state = tuple(part.numpy() for part in owner.initial_state(4))
    rng = np.random.default_rng(0)
    for _ in range(3):
        places, starts = rng.integers(n_categories, size=4), rng.random(4) < 0.5
        output, after = step(places, state, starts)
        expected, state = whole(np.eye(n_categories, dtype=np.float32)[places], state, starts)
        np.testing.assert_allclose(output, expected, atol=1e-6)
        for one, other in zip(after, state, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.skipif(not heads.available, reason="built without a C compiler")
def test_a_plan_says_how_and_why() -> None:
    policy = small_ppo(clocks(), "lstm").policy
    assert policy.plan().acting.how == "NumPy"
    policy.action_net.register_forward_hook(lambda *_: None)
    assert "heads: torch, because action_net has a forward hook" in str(policy.plan())
    with in_torch():
        assert "objective: torch, because in_torch() asks for it" in str(policy.plan())
