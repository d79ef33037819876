"""Pictures of tasks that are a grid of cells: one color a cell, enlarged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BACKGROUND = (255, 255, 255)
GRAY, BLUE, GREEN, RED = (200, 200, 200), (50, 90, 200), (60, 170, 80), (200, 60, 50)


def cell_size(columns: int) -> int:
    """Pixels a cell has in a picture about 480 wide: even, as video encoders want, and visible."""
    return max(8, min(64, 480 // columns // 4 * 4))


def enlarge(colors: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(rows, columns, 3) -> (rows * size, columns * size, 3), with a thin line between cells."""
    picture = colors.repeat(size, axis=0).repeat(size, axis=1)
    picture[size - 1 :: size] = BACKGROUND
    picture[:, size - 1 :: size] = BACKGROUND
    return picture
