"""The frames of Atari games, made small."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.wrappers import AtariPreprocessing


class Atari(AtariPreprocessing):
    """Frames of 84 x 84, gray, the maximum of the last two that an action is repeated for (Machado et al. 2018).

    The game begins after up to `noop_max` steps of doing nothing. Its emulator must not skip frames itself: make it
    with frameskip=1, or give frame_skip=1 here.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        frame_skip: int = 4,
        screen_size: int = 84,
        gray: bool = True,
        noop_max: int = 30,
        end_at_life_loss: bool = False,
    ) -> None:
        super().__init__(
            env,
            noop_max=noop_max,
            frame_skip=frame_skip,
            screen_size=screen_size,
            terminal_on_life_loss=end_at_life_loss,
            grayscale_obs=gray,
        )
