"""What is compiled for a GPU computes what is computed without it: here on a CPU, traced as for the compiler."""

import copy
from typing import Any

import pytest
import torch

from agents.algorithms.compiled import CompiledObjective
from agents.kernels import heads as fused
from tests.agents.algorithms.test_ppo import clocks, small_ppo
from tests.pairs import each
from tests.tolerance import assert_close

SETTINGS: dict[str, Any] = dict(normalize=True, clip_range=0.2, clip_range_vf=None, ent_coef=0.01, vf_coef=0.5)


def traced(function: Any) -> Any:
    """As ``torch.compile`` traces it, gradients too, without generating code."""
    return torch.compile(function, backend="aot_eager", dynamic=False, fullgraph=True)


def results(model: Any, loss: torch.Tensor, figures: Any) -> list[torch.Tensor]:
    parameters = [parameter for parameter in model.policy.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *figures, *[part for part in gradients if part is not None]]


@pytest.mark.parametrize(
    ("critic", "actions"), each(["shared", "separate"], ["discrete", "box", "multi discrete", "multi binary"])
)
def test_the_traced_objective_is_the_one_that_is_not(
    actions: str, critic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "available", False)
    model = small_ppo(clocks(actions), "gru", critic, actions=actions, ent_coef=0.01)
    model.learn(24)
    (batch,) = model.rollout_buffer.get(None)
    model.policy.set_training_mode(True)
    objective = CompiledObjective(model.policy, traced)
    for changed in ({}, dict(clip_range=0.1, clip_range_vf=0.3), dict(normalize=False, ent_coef=0.0)):
        settings = {**SETTINGS, **changed}
        found = results(model, *objective(batch, **settings))
        wanted = results(model, *CompiledObjective(model.policy, lambda function: function)(batch, **settings))
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    torch._dynamo.reset()


def test_the_objective_behind_the_memory_is_the_algorithms_own() -> None:
    model = small_ppo(clocks(), "lstm", "separate", ent_coef=0.01, normalize_advantage="batch")
    model.learn(24)
    (batch,) = model.rollout_buffer.get(None)
    found = results(model, *CompiledObjective(model.policy, lambda function: function)(batch, **SETTINGS))
    for one, other in zip(found, results(model, *model._loss(batch)), strict=True):
        assert_close(one, other)


def test_a_schedule_that_moves_the_clipping_compiles_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "available", False)
    model = small_ppo(clocks(), "gru")
    model.learn(24)
    (batch,) = model.rollout_buffer.get(None)
    objective = CompiledObjective(model.policy, traced)
    objective(batch, **SETTINGS)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for clip_range, ent_coef in ((0.19, 0.01), (0.05, 0.002), (0.001, 0.0)):
            objective(batch, **{**SETTINGS, "clip_range": clip_range, "ent_coef": ent_coef})
    assert objective._works
    torch._dynamo.reset()


def test_where_it_cannot_be_compiled_it_computes_as_it_is_and_says_so_once() -> None:
    def failing(function: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no compiler here\nand more")

        return run

    model = small_ppo(clocks(), "gru")
    model.learn(24)
    (batch,) = model.rollout_buffer.get(None)
    objective = CompiledObjective(model.policy, failing)
    with pytest.warns(UserWarning, match="RuntimeError: no compiler here; it computes as it is"):
        objective(batch, **SETTINGS)
    loss, _ = objective(batch, **SETTINGS)  # without another warning, which would be an error here
    assert loss.requires_grad


def test_a_copy_of_what_was_compiled_computes_with_the_copy_of_its_policy() -> None:
    model = small_ppo(clocks(), "gru")
    model.learn(24)
    (batch,) = model.rollout_buffer.get(None)
    objective = CompiledObjective(model.policy, lambda function: lambda *arguments: function(*arguments))
    copied = copy.deepcopy(objective)
    with torch.no_grad():
        copied.policy.value_net.bias += 1
    loss, _ = objective(batch, **SETTINGS)
    of_copy, _ = copied(batch, **SETTINGS)
    assert copied.policy is not model.policy
    assert not torch.equal(of_copy.detach(), loss.detach())


def test_only_an_update_on_a_gpu_is_compiled() -> None:
    assert small_ppo(clocks(), "gru").policy.objective_plan().how != "torch.compile"
