"""What is compiled for a GPU computes what the policy itself does: here on a CPU, traced as for the compiler."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from agents.algorithms import on_policy
from agents.algorithms.compiled import CompiledPolicy
from agents.kernels import heads as fused
from agents.rollout.actor import TorchActor
from tests.agents.probe_envs import ALL_MEMORIES, clocks, small_ppo
from tests.pairs import each
from tests.tolerance import assert_close

SETTINGS: dict[str, Any] = dict(normalize=True, clip_range=0.2, clip_range_vf=None, ent_coef=0.01, vf_coef=0.5)


def traced(function: Any, mode: str) -> Any:
    """As ``torch.compile`` traces it, gradients too, without generating code."""
    backend = "eager" if mode == "reduce-overhead" else "aot_eager"
    return torch.compile(function, backend=backend, dynamic=False, fullgraph=True)


def untraced(function: Any, mode: str) -> Any:
    return function


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fused, "available", False)  # there are none on a GPU
    yield
    torch._dynamo.reset()


def trained(actions: str = "discrete", memory: str = "gru", critic: str = "shared", **kwargs: Any) -> tuple[Any, Any]:
    """A model, and all of its last rollout."""
    model = small_ppo(clocks(actions), memory, critic, actions=actions, ent_coef=0.01, **kwargs)
    model.learn(24)
    (batch,) = model.rollout_buffer.get(None)
    model.policy.set_training_mode(True)
    return model, batch


def results(model: Any, loss: torch.Tensor, figures: Any) -> list[torch.Tensor]:
    parameters = [parameter for parameter in model.policy.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *figures, *[part for part in gradients if part is not None]]


@pytest.mark.slow  # the tracing alone takes seconds
@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_a_traced_step_acts_as_the_policy(memory: str) -> None:
    model, _ = trained(memory=memory, critic="separate")
    policy, compiled = model.policy, CompiledPolicy(model.policy, traced)
    state, starts = policy.initial_state(3), torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        for seed in range(3):
            observations = torch.rand(3, 3)
            torch.manual_seed(seed)
            *expected, _ = policy(observations, state, starts)
            torch.manual_seed(seed)
            *found, state = compiled.act(observations, state, starts)
            for one, other in zip(found, expected, strict=True):
                assert_close(one, other)
            starts = torch.tensor([False, True, False])


def test_an_agent_whose_parts_are_compiled_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(compiles: bool) -> list[Any]:
        model = small_ppo(clocks(), "lstm", "separate")
        model._compiled = CompiledPolicy(model.policy, untraced)
        model._compiles = lambda part: compiles
        monkeypatch.setattr(on_policy, "make_actor", lambda policy, rng, forward, noise: TorchActor(policy, forward))
        model.learn(48, callback=lambda *_: True)
        return [*model.policy.parameters(), model.rollout_buffer.values, *model._last_state]

    for one, other in zip(weights(True), weights(False), strict=True):
        assert_close(one.detach(), other.detach())


@pytest.mark.parametrize(
    ("critic", "actions"), each(["shared", "separate"], ["discrete", "box", "multi discrete", "multi binary"])
)
def test_the_objective_and_its_gradients_are_the_algorithms(actions: str, critic: str) -> None:
    model, batch = trained(actions, critic=critic, normalize_advantage="batch")
    found = results(model, *CompiledPolicy(model.policy, untraced).objective(batch, **SETTINGS))
    for one, other in zip(found, results(model, *model._loss(batch)), strict=True):
        assert_close(one, other)


def test_a_traced_objective_has_the_same_gradients_and_is_not_traced_again_where_a_schedule_moves() -> None:
    model, batch = trained("box", critic="separate")
    compiled, reference = CompiledPolicy(model.policy, traced), CompiledPolicy(model.policy, untraced)
    compiled.objective(batch, **SETTINGS)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for clip_range, ent_coef in ((0.19, 0.01), (0.001, 0.0)):
            settings = {**SETTINGS, "clip_range": clip_range, "ent_coef": ent_coef}
            found = results(model, *compiled.objective(batch, **settings))
            for one, other in zip(found, results(model, *reference.objective(batch, **settings)), strict=True):
                assert_close(one, other)
    assert compiled._works


def test_a_policy_that_cannot_be_compiled_computes_as_it_is_with_one_warning() -> None:
    def failing(function: Any, mode: str) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no compiler here\nand more")

        return run

    model, batch = trained()
    compiled = CompiledPolicy(model.policy, failing)
    with pytest.warns(UserWarning, match="RuntimeError: no compiler here; it computes as it is"):
        compiled.objective(batch, **SETTINGS)
    loss, _ = compiled.objective(batch, **SETTINGS)  # without another warning, which would be an error here
    assert loss.requires_grad


def test_a_copy_computes_with_the_copy_of_its_policy() -> None:
    model, batch = trained()
    compiled = CompiledPolicy(model.policy, untraced)
    copied = copy.deepcopy(compiled)
    with torch.no_grad():
        copied.policy.value_net.bias += 1
    loss, _ = compiled.objective(batch, **SETTINGS)
    of_copy, _ = copied.objective(batch, **SETTINGS)
    assert copied.policy is not model.policy
    assert not torch.equal(of_copy.detach(), loss.detach())


def test_nothing_is_compiled_by_torch_unless_asked_for_and_on_a_gpu() -> None:
    policy = small_ppo(clocks(), "gru").policy
    policy.compiles_on_gpu = True
    assert "torch.compile" not in str(policy.plan())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("memory", ALL_MEMORIES)
def test_on_a_gpu_acting_and_learning_are_those_of_the_policy(memory: str) -> None:
    model = small_ppo(clocks(), memory, "separate", device="cuda")
    model.policy.compiles_on_gpu = True
    model.learn(48)
    assert model._compiled is not None
    assert model._compiled._works
    (batch,) = model.rollout_buffer.get(None)
    compiled = results(model, *model._compiled.objective(batch, **SETTINGS))
    policy_own = results(model, *CompiledPolicy(model.policy, untraced).objective(batch, **SETTINGS))
    for one, other in zip(compiled, policy_own, strict=True):
        assert_close(one.cpu(), other.cpu())
    observations, starts = torch.ones(3, 3, device="cuda"), torch.zeros(3, dtype=torch.bool, device="cuda")
    state = model.policy.initial_state(3)
    with torch.no_grad():
        actions, values, _, _ = model._compiled.act(observations, state, starts)
        _, expected, _, _ = model.policy(observations, state, starts)
    assert_close(values.cpu(), expected.cpu())
    assert np.isin(actions.cpu().numpy(), [0, 1, 2]).all()
