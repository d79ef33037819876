"""From the host to an accelerator without waiting for it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: Any, device: torch.device) -> Tensor:
    """An array or tensor, on ``device``.

    A copy to a GPU out of ordinary memory may wait for all that was asked of the GPU before; one out of pinned memory
    does not, and torch keeps the pinned block until the copy is done. The caller may write over ``values`` at once.
    """
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch knows no tensors that must not be written into
    tensor = torch.as_tensor(values)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
