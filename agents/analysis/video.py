"""An episode as a video."""

import importlib
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from agents.analysis.episodes import playing
from agents.deploy.player import Player

Frame = NDArray[np.uint8]

LONGEST = 3000  # frames; an episode need not end


class VideoError(Exception):
    """A package is missing, or the environment gives no pictures."""


def write_video(player: Player, env: VecEnv, path: Path, *, seed: int | None = None) -> int:
    """Lets a player act for one episode, at most 3000 steps, and writes what is seen to an .mp4 or .gif file.

    Args:
        env: a single environment made with ``render_mode="rgb_array"``.
        seed: of environment and samples; None for none.

    Returns:
        The number of frames.

    Raises:
        VideoError: a package is missing, or the environment gives no pictures.
    """
    write = {".mp4": _write_mp4, ".gif": _write_gif}.get(path.suffix)
    if write is None:
        raise VideoError(f"{path}: expected a name that ends in .mp4 or .gif")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory; no display is needed
    metadata: dict[str, Any] = env.get_attr("metadata")[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, _frames(player, env, seed), float(metadata.get("render_fps", 30)))


def _frames(player: Player, env: VecEnv, seed: int | None) -> Iterator[Frame]:
    with playing(player, env, seed=seed) as game:
        yield _picture(env)
        for step in islice(game.steps, LONGEST - 1):
            if step.dones[0]:  # what could be seen now is the next episode
                return
            yield _picture(env)


def _picture(env: VecEnv) -> Frame:
    picture = env.get_images()[0]
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
        raise VideoError("the environment gives no picture: it must support render_mode='rgb_array'")
    return picture


def _write_mp4(path: Path, frames: Iterator[Frame], fps: float) -> int:
    ffmpeg = _imported("imageio_ffmpeg")
    first = next(frames)
    height, width = first.shape[:2]
    # H.264 needs even sizes; the default of 16 would stretch the picture.
    writer = ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error")
    writer.send(None)
    count = 0
    try:
        for frame in chain([first], frames):
            writer.send(np.ascontiguousarray(frame))
            count += 1
    finally:
        writer.close()
    return count


def _write_gif(path: Path, frames: Iterator[Frame], fps: float) -> int:
    image = _imported("PIL.Image")
    # Viewers slow down what is faster than 25 frames a second, and a file of full frames is huge.
    skip = max(1, round(fps / 25))
    pictures = []
    for frame in islice(frames, None, None, skip):
        picture = image.fromarray(frame)
        pictures.append(picture.reduce(max(1, picture.width // 300)).quantize())
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 * skip / fps, loop=0)
    return len(pictures)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise VideoError(f'a video needs {module}, which is not installed: pip install "recurl[video]"') from error
