"""RecuRL under its own name, the same in a checkout and where it is installed: ``from recurl import RecurrentPPO``.

An installed package has everything below ``recurl``: ``recurl.agents``, ``recurl.envs``, ``recurl.configs``, so that it
can be installed with any other package that has a top-level ``agents`` (OpenAI's Agents SDK). In a checkout the same
folders are called ``agents``, ``envs`` and ``configs``; ``setup.py`` says how one becomes the other.

Names are imported when they are first asked for: ``recurl.play`` needs neither torch nor any of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents import *  # noqa: F403
    from agents import RecurrentPPO, __all__, __version__  # noqa: F401

FOLDERS = ("agents", "envs", "configs")  # modules of this package where it is installed


def __getattr__(name: str) -> Any:
    if name in FOLDERS:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    elif not name.startswith("__") or name in ("__all__", "__version__"):
        found = vars(_agents())
        if name in found["__all__"] or name in ("__all__", "__version__"):
            return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_agents().__all__})


def _agents() -> Any:
    """The package ``agents``.

    Raises:
        ImportError: it is another distribution's.
    """
    try:
        from agents import RecurrentPPO  # noqa: F401
    except ImportError as error:
        import agents

        if (agents.__doc__ or "").startswith("Agents that remember"):
            raise
        raise ImportError(
            f"the package agents is another distribution's, not RecuRL's ({agents.__file__}), and hides this "
            "checkout's: run from the checkout's folder, or install RecuRL without --editable, where all of it lies "
            "below recurl"
        ) from error
    import agents

    return agents
