"""What is computed otherwise than by torch's own operations, and the one place that decides where."""

from agents.kernels.aside import in_torch

__all__ = ["in_torch"]
