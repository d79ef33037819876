"""The environments there are, for ``train.py --list-envs``."""

import contextlib
import io
import warnings

import configs
from envs.vector.families import listed


def print_environments() -> None:
    """A line a family; what its package prints as it is imported is left out."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = list(listed())
    for line in lines:
        configs.say(line)
