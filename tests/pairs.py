"""Selections of cases of several parameters, for laws that need no full product."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any


def pairwise(*values: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Cases with every pair of values of any two axes; three axes of 8, 8 and 4 need 64, not 256.

    A fault that needs two settings (a memory and a critic, a critic and a kind of action) is found.
    Greedy, and the same in every process.
    """
    axes = [list(axis) for axis in values]
    left = {
        (i, a, j, b)
        for i, j in itertools.combinations(range(len(axes)), 2)
        for a, b in itertools.product(range(len(axes[i])), range(len(axes[j])))
    }
    candidates = list(itertools.product(*(range(len(axis)) for axis in axes)))
    chosen = []
    while left:
        best = max(candidates, key=lambda case: len(left & _pairs(case)))
        left -= _pairs(best)
        chosen.append(best)
    return [tuple(axis[k] for axis, k in zip(axes, case, strict=True)) for case in sorted(chosen)]


def each(*values: Iterable[Any]) -> list[tuple[Any, ...]]:
    """As many cases as the longest axis has values, in which every value of every axis occurs."""
    axes = [list(axis) for axis in values]
    longest = max(len(axis) for axis in axes)
    return [tuple(axis[(k + k // len(axis)) % len(axis)] for axis in axes) for k in range(longest)]


def _pairs(case: Sequence[int]) -> set[tuple[int, int, int, int]]:
    return {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(case)), 2)}
