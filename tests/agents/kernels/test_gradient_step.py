"""Clipping and Adam's step are torch's, and torch takes what is not plain Adam on plain parameters."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from agents.algorithms import losses
from agents.kernels import heads, in_torch
from agents.kernels.gradient_step import AdamStep
from tests.tolerance import assert_close

pytestmark = pytest.mark.skipif(not heads.available, reason="built without a C compiler")

Take = Callable[[torch.optim.Optimizer], Callable[[], Any]]


@pytest.fixture
def adam_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters each compiled step of Adam was for."""
    found: list[int] = []
    function = heads.library["adam"]
    prepare = type(function).with_first_list

    def watched(self: Any, others: Any) -> Any:
        step = prepare(self, others)

        def run(gradients: Any, numbers: Any) -> None:
            found.append(len(gradients))
            step(gradients, numbers)

        return run

    monkeypatch.setattr(type(function), "with_first_list", watched)
    return found


def parameters_of(seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in ((3,), (17, 5), (64, 64), (1,))]


def runs(n_steps: int, take: Take, **settings: Any) -> tuple[list[Tensor], Any]:
    """Parameters and state after some steps along gradients of which one is missing now and then."""
    parameters = parameters_of()
    groups: list[dict[str, Any]] = [dict(params=parameters[:2]), dict(params=parameters[2:], lr=0.3)]
    optimizer = torch.optim.Adam(groups, **{"lr": 0.01, "eps": 1e-5, **settings})
    step = take(optimizer)
    for number in range(n_steps):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        if number % 3 == 2:
            parameters[0].grad = None
        optimizer.param_groups[0]["lr"] = 0.01 / (number + 1)
        step()
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()["state"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(fused=True),
        dict(foreach=False),
        dict(betas=(0.5, 0.9)),
        dict(weight_decay=0.1),
        dict(amsgrad=True),
        dict(maximize=True),
        dict(lr=torch.tensor(0.01)),
    ],
    ids=str,
)
def test_adam_takes_torchs_steps_and_keeps_its_state_where_torch_does(settings: dict[str, Any]) -> None:
    wanted, kept = runs(8, lambda optimizer: optimizer.step, **settings)
    found, ours = runs(8, AdamStep, **settings)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)
    assert ours.keys() == kept.keys()
    for number, state in kept.items():
        assert ours[number].keys() == state.keys()
        for name, part in state.items():
            assert_close(ours[number][name], part)


def test_all_steps_of_plain_adam_but_the_first_are_compiled(adam_steps: list[int]) -> None:
    runs(8, AdamStep)
    assert sum(adam_steps) == 7 * 4 - 2  # the first parameter has no gradient twice


class Other(torch.optim.Adam):
    pass


def nothing(*_: Any) -> None: ...


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a pre-hook": lambda it: it.register_step_pre_hook(nothing),
    "a post-hook": lambda it: it.register_step_post_hook(nothing),
    "a schedule": lambda it: torch.optim.lr_scheduler.ExponentialLR(it, 0.9),
    "weight decay": lambda it: it.param_groups[0].update(weight_decay=0.1),
    "maximize": lambda it: it.param_groups[0].update(maximize=True),
    "a tensor as learning rate": lambda it: it.param_groups[0].update(lr=torch.tensor(0.1)),
    "no state": lambda it: it.state.clear(),
    "moments of another precision": lambda it: [
        state.update(exp_avg=state["exp_avg"].double()) for state in it.state.values()
    ],
}


def second_step(
    cls: type[torch.optim.Optimizer] = torch.optim.Adam,
    change: Callable[[Any], Any] = nothing,
    within: Any = contextlib.nullcontext,
    **settings: Any,
) -> None:
    parameters = parameters_of()
    optimizer: Any = cls(parameters, **settings)
    step = AdamStep(optimizer)
    for take in (nothing, change):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        take(optimizer)
        with within():
            step()


def test_plain_adam_is_compiled_from_the_second_step_on(adam_steps: list[int]) -> None:
    second_step()
    assert adam_steps == [4]


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (Other, {}),
        (torch.optim.AdamW, {}),
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.Adam, {"maximize": True}),
        (torch.optim.Adam, {"differentiable": True}),
        (torch.optim.Adam, {"betas": (torch.tensor(0.9), torch.tensor(0.999)), "lr": torch.tensor(0.1)}),
    ],
    ids=str,
)
def test_another_optimizer_steps_itself(adam_steps: list[int], cls: Any, settings: dict[str, Any]) -> None:
    with contextlib.suppress(RuntimeError):  # a leaf that is to be differentiated through cannot step
        second_step(cls, **settings)
    assert adam_steps == []


@pytest.mark.parametrize("change", CHANGES)
def test_an_optimizer_that_was_changed_steps_itself(adam_steps: list[int], change: str) -> None:
    with contextlib.suppress(RuntimeError):  # torch's own step refuses moments of two precisions
        second_step(change=CHANGES[change])
    assert adam_steps == []


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def hook_for_all(register: Callable[[Any], Any]) -> Iterator[None]:
    handle = register(nothing)
    yield
    handle.remove()


@pytest.mark.parametrize(
    "within",
    [
        in_torch,
        Mode,
        torch.autograd.detect_anomaly,
        lambda: hook_for_all(register_optimizer_step_pre_hook),
        lambda: hook_for_all(register_optimizer_step_post_hook),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly")
def test_a_step_that_something_follows_is_torchs(adam_steps: list[int], within: Any) -> None:
    second_step(within=within)
    assert adam_steps == []


def test_another_place_of_a_parameter_is_noticed_and_another_layout_of_a_gradient_left_to_torch() -> None:
    found: list[list[Tensor]] = []
    for take in (AdamStep, lambda optimizer: optimizer.step):
        parameters = parameters_of()
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        step: Any = take(optimizer)
        for number in range(6):
            torch.manual_seed(number)
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            if number == 2:
                parameters[1].data = parameters[1].detach() + 1
            if number == 4:
                parameters[2].grad = torch.randn(64, 64).t()
            step()
        found.append([parameter.detach() for parameter in parameters])
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_what_was_computed_before_a_step_cannot_be_differentiated_after_it() -> None:
    """As torch's step says: the weights that the gradient needs have been written over."""
    parameters = parameters_of()
    step = AdamStep(torch.optim.Adam(parameters))
    for _ in range(2):
        loss: Any = torch.stack(
            [parameter.exp().sin().sum() + parameter.pow(3).sum() for parameter in parameters]
        ).sum()
        loss.backward(retain_graph=True)
        step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# Clipping


def clipped(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone(memory_format=torch.preserve_format)
    losses.clip_gradients(parameters, max_norm)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1.9e19, 1e30, 3e38])
@pytest.mark.parametrize("max_norm", [0.5, 1e6, float("inf")])
def test_clipping_is_the_same_compiled_and_in_torch(size: float, max_norm: float) -> None:
    torch.manual_seed(0)
    gradients = [size * torch.rand(shape) for shape in ((3,), (64, 70), (), (1200,), (0,), (1, 9))]
    found = clipped(gradients, max_norm)
    with in_torch():
        wanted = clipped(gradients, max_norm)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, terms=64 * 70)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("at", [0, 7, 8, 16])
def test_what_is_not_finite_comes_out_of_clipping_as_out_of_torchs(value: float, at: int) -> None:
    gradients = [torch.ones(17), torch.ones(3)]
    gradients[0][at] = value
    found = clipped(gradients, 0.5)
    with in_torch():
        wanted = clipped(gradients, 0.5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    assert not found[0].isfinite().all()


def test_gradients_that_are_not_contiguous_or_of_another_precision_are_clipped_by_torch() -> None:
    for gradients in ([torch.ones(3, 5).t()], [torch.ones(3, dtype=torch.float64)], [torch.ones(4).expand(3, 4)]):
        (found,) = clipped(gradients, 0.5)
        assert_close(found.norm(), 0.5)
