"""What goes wrong with an environment, said so that the user can act on it."""

from __future__ import annotations


class EnvError(RuntimeError):
    """An environment raised, died or did not answer; the message names it, the step, and what it said."""


class UnknownEnvError(EnvError, ValueError):
    """No environment has this id; the message names the nearest ones, or what to install."""
