"""Gradients of a minibatch that several processes share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.distributed import group


def average_gradients(parameters: Sequence[Tensor], n_steps: int) -> Tensor:
    """Makes every gradient the mean over the steps of all processes, where it is the mean over ``n_steps`` of this one.

    One exchange of one buffer: all gradients, which parameters have one, and the number of steps. Gradients are views
    of it afterwards. A process without a step takes part with none; a parameter without a gradient anywhere keeps none.

    Returns:
        () the number of steps of all processes, on the parameters' device.
    """
    gradients = [parameter.grad for parameter in parameters]
    parts = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    counts = torch.tensor([*(gradient is not None for gradient in gradients), n_steps], dtype=parts[0].dtype)
    flat = torch.cat([*(part.flatten() for part in parts), counts.to(parts[0].device)])
    split: Sequence[Tensor] = flat.split([*(part.numel() for part in parts), len(counts)])  # type: ignore[no-untyped-call]
    if n_steps:
        flat[: -len(counts)] *= n_steps
    group.summed(flat)
    total = flat[-1].clone()
    flat[: -len(counts)] /= total.clamp(min=1.0)
    has_all = all(gradient is not None for gradient in gradients)
    is_anywhere = [True] * len(parts) if has_all else (split[-1][:-1] > 0).tolist()
    for parameter, mean, has_one in zip(parameters, split, is_anywhere, strict=False):
        parameter.grad = mean.view_as(parameter) if has_one else None
    return total
