"""The step along the gradients: their norm is clipped, and Adam steps, each in one call, by ``heads.c``.

An update takes dozens of such steps, on some twenty small parameters, where torch's operations on lists of tensors take
2.1 times as long as these (clipping and Adam together, twenty parameters of an LSTM policy of 64 units, one thread).
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from agents.kernels import heads
from agents.kernels.binding import MismatchError

Step = Callable[[Sequence[Tensor], tuple[float, ...]], None]


def takes(gradients: Sequence[Tensor]) -> bool:
    """Whether the compiled functions can run on these gradients: as others, and all contiguous and constant."""
    for gradient in gradients:  # a loop, as in `plain`
        if gradient.requires_grad or not gradient.is_contiguous():
            return False
    return heads.takes(*gradients)


def clip(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scales gradients that are taken, in place; see ``agents.algorithms.losses.clip_gradients``."""
    heads.library["clip_gradients"](gradients, (float(max_norm),))


class _Group(NamedTuple):
    """Parameters of a group that have a gradient, told by their objects and places, and their prepared step."""

    names: list[int]
    places: list[int]
    parameters: list[Tensor]
    step: Step


class AdamStep:
    """Steps of Adam for an optimizer of torch, whose state, settings and schedule stay where they are.

    What the optimizer's own ``step`` does. That one serves where it is not plain Adam on float32 on a CPU, where
    something hooks into it or follows torch's operations, and for the first step. Make one for every epoch: it
    remembers where the optimizer keeps its moments, and keeps them alive. A parameter that is moved to another place
    is noticed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._groups: dict[int, _Group] = {}

    def __call__(self) -> None:
        if not self._is_plain():
            self._optimizer.step()
            return
        steps: list[tuple[_Group, list[Tensor], dict[str, Any]]] = []
        for number, settings in enumerate(self._optimizer.param_groups):
            given = [parameter for parameter in settings["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in given]
            group = self._group_of(number, given)
            if group is None or not takes(gradients):
                self._optimizer.step()
                return
            steps.append((group, gradients, settings))
        for group, gradients, settings in steps:
            group.step(gradients, (float(settings["lr"]), *map(float, settings["betas"]), float(settings["eps"])))
            torch.autograd.graph.increment_version(group.parameters)

    def _is_plain(self) -> bool:
        optimizer: Any = self._optimizer
        return (
            type(optimizer) is torch.optim.Adam
            and "step" not in vars(optimizer)  # as torch's schedulers put there
            and not optimizer._optimizer_step_pre_hooks
            and not optimizer._optimizer_step_post_hooks
            and not torch_optimizer._global_optimizer_pre_hooks
            and not torch_optimizer._global_optimizer_post_hooks
            and not any(map(_is_special, optimizer.param_groups))
        )

    def _group_of(self, number: int, given: list[Tensor]) -> _Group | None:
        """What is prepared for the parameters of a group that have a gradient; None where torch has to step."""
        names, places = list(map(id, given)), [parameter.data_ptr() for parameter in given]
        known = self._groups.get(number)
        if known is None or known.names != names or known.places != places:
            step = self._prepared(given)
            if step is None:
                return None
            self._groups[number] = known = _Group(names, places, given, step)
        return known

    def _prepared(self, given: list[Tensor]) -> Step | None:
        states: Any = [self._optimizer.state.get(parameter, {}) for parameter in given]
        parts = [state.get(name) for name in ("exp_avg", "exp_avg_sq", "step") for state in states]
        if not heads.takes(*given, *parts):
            return None
        with contextlib.suppress(TypeError, MismatchError):  # of a layout or shapes that torch has to make sense of
            # Detached, they keep the memory alive that is written to, should a parameter move to another place.
            return heads.library["adam"].with_first_list([*[parameter.detach() for parameter in given], *parts])
        return None


def _is_special(group: dict[str, Any]) -> bool:
    return bool(
        any(group.get(name) for name in ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable"))
        or any(isinstance(number, Tensor) for number in (group["lr"], *group["betas"]))
    )
