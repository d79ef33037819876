"""The difference allowed between two computations of the same numbers: the one source of tolerances.

A number that is a sum of n products, computed in floating point in any order, is off by about eps times the root of n
times the sum of its terms' magnitudes (Higham and Mary, "A new approach to probabilistic rounding error analysis",
2019: rounding errors are as good as independent; the worst case has n in place of its root). Terms of random sign add
up to a number about as large as one term times the root of n, so that the sum of their magnitudes is the root of n
times the magnitude of the result, and the two roots make n:

    |one - other| <= SAFETY * n * eps * scale

``n`` is the longest chain of roundings behind a number: the width of the widest layer, or the number of steps whose
gradients a weight adds up. ``scale`` is the magnitude of the largest number compared, or, where the terms cancel (a
mean of normalized numbers, a difference of log-probabilities), that of the terms. ``eps`` is that of float32, which
agents compute in, unless a test states float64. ``SAFETY`` is for errors on both sides, and for functions (exp, tanh)
that are accurate to a few units in the last place.

With n = 64 in float32 that is 3e-5 of the largest number: another order of sums, other vector instructions, another
number of threads pass; an error of 1e-3 does not (see test_tolerance.py).
"""

from typing import Any

import numpy as np
import pytest
from torch import Tensor

SAFETY = 4.0
N_TERMS = 64  # no layer of the tests' networks is wider, and few of their weights add up more steps


def tolerance(expected: Any, terms: int = N_TERMS, scale: float | None = None, dtype: Any = np.float32) -> float:
    """The largest difference that rounding explains between numbers computed in ``dtype``, however they are stored."""
    if scale is None:
        values = np.abs(_as_array(expected))
        scale = float(values[np.isfinite(values)].max(initial=0.0))
    return SAFETY * terms * float(np.finfo(dtype).eps) * scale


def assert_close(
    found: Any, expected: Any, terms: int = N_TERMS, scale: float | None = None, dtype: Any = np.float32
) -> None:
    """The same shape (``expected`` may be one number for all), and every number within the tolerance."""
    one, other = _as_array(found), _as_array(expected)
    assert one.shape == other.shape or other.ndim == 0, f"shape {one.shape} in place of {other.shape}"
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance(expected, terms, scale, dtype))


def close(found: Any, expected: Any, terms: int = N_TERMS, scale: float | None = None) -> bool:
    """Whether ``assert_close`` holds."""
    try:
        assert_close(found, expected, terms, scale)
    except AssertionError:
        return False
    return True


def near(expected: Any, terms: int = N_TERMS, scale: float | None = None) -> Any:
    """``pytest.approx`` with the tolerance of float32 numbers of this magnitude."""
    return pytest.approx(expected, rel=0, abs=tolerance(expected, terms, scale))


def _as_array(values: Any) -> np.ndarray[Any, Any]:
    """In float64, so that the comparison itself rounds nothing."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
