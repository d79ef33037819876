"""An episode as a video."""

import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents.analysis.episodes import playing
from agents.checks.extras import require
from agents.deploy.player import Player

LONGEST = 3000  # frames; an episode need not end


class VideoError(Exception):
    """The environment gives no pictures."""


def frame_rate(env: VecEnv) -> float:
    """Frames a second that an environment is meant to be seen at."""
    metadata: dict[str, Any] = env.get_attr("metadata")[0]
    return float(metadata.get("render_fps", 30))


def write_video(player: Player, env: VecEnv, path: Path, *, seed: int | None = None, width: int | None = None) -> int:
    """Lets a player act for one episode, at most 3000 steps, and writes what is seen to an .mp4 or .gif file.

    Args:
        env: a single environment made with ``render_mode="rgb_array"``.
        width: pixels that a frame has at most; None: a .gif 300 to 599, others as they are.

    Returns:
        The number of frames.

    Raises:
        ImportError: a package of the extra ``video`` is missing.
        VideoError: the environment gives no pictures.
    """
    imageio, _ = require("video", "imageio.v2"), require("video", "imageio_ffmpeg")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory; no display is needed
    fps, skip = frame_rate(env), 1
    # H.264 needs even sizes; the default of 16 would stretch the picture.
    options: dict[str, Any] = {"fps": fps, "macro_block_size": 2, "ffmpeg_log_level": "error"}
    if path.suffix == ".gif":
        skip = max(1, round(fps / 25))  # viewers slow down what is faster than 25 frames a second
        options = {"duration": 1000 * skip / fps, "loop": 0}
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Any = imageio.get_writer(path, **options)
    with writer:
        for frame in islice(_frames(player, env, seed), None, None, skip):
            reduced = max(1, frame.shape[1] // 300) if path.suffix == ".gif" else 1  # a file of full frames is huge
            reduced = reduced if width is None else max(1, math.ceil(frame.shape[1] / width))
            writer.append_data(frame[::reduced, ::reduced])
            count += 1
    return count


def _frames(player: Player, env: VecEnv, seed: int | None) -> Iterator[NDArray[np.uint8]]:
    with playing(player, env, seed=seed) as game:
        yield _picture(env)
        for step in islice(game.steps, LONGEST - 1):
            if step.dones[0]:  # what could be seen now is the next episode
                return
            yield _picture(env)


def _picture(env: VecEnv) -> NDArray[np.uint8]:
    picture = env.get_images()[0]
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
        raise VideoError("the environment gives no picture: it must support render_mode='rgb_array'")
    return picture
