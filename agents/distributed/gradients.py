"""Gradients of a minibatch that several processes share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.distributed import group


def average_gradients(parameters: Sequence[Tensor], n_steps: int) -> Tensor:
    """Makes every gradient the mean over the steps of all processes, where it is the mean over ``n_steps`` of this one.

    One exchange of one buffer: all gradients, which parameters have one, and the number of steps. A process without a
    step takes part with none; a parameter without a gradient anywhere keeps none.

    Returns:
        () the number of steps of all processes, on the parameters' device.
    """
    gradients = [parameter.grad for parameter in parameters]
    parts = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    counts = torch.tensor([*(gradient is not None for gradient in gradients), n_steps], dtype=parts[0].dtype)
    sizes = [*(part.numel() for part in parts), len(counts)]
    flat = group.room(sum(sizes), counts.dtype, parts[0].device)
    torch.cat([*(part.flatten() for part in parts), counts.to(flat.device)], out=flat)
    if n_steps:
        flat[: -len(counts)] *= n_steps
    flat = group.summed(flat)
    total = flat[-1].clone()
    n_steps_of_all = total.clamp(min=1.0)
    split: Sequence[Tensor] = flat.split(sizes)  # type: ignore[no-untyped-call]
    has_all = all(gradient is not None for gradient in gradients)
    is_anywhere = [True] * len(parts) if has_all else (split[-1][:-1] > 0).tolist()
    for parameter, part, summed, has_one in zip(parameters, parts, split, is_anywhere, strict=False):
        torch.div(summed.view_as(part), n_steps_of_all, out=part)
        parameter.grad = part if has_one else None
    return total
