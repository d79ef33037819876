"""RecuRL under its own name, the same in a checkout and where it is installed: ``from recurl import RecurrentPPO``.

An installed package has everything below ``recurl``: ``recurl.agents``, ``recurl.envs``, ``recurl.configs``, so that it
can be installed with any other package that has a top-level ``agents`` (OpenAI's Agents SDK). In a checkout the same
folders are called ``agents``, ``envs`` and ``configs``; ``setup.py`` says how one becomes the other.
"""

try:
    from agents import *  # noqa: F403
    from agents import RecurrentPPO, __all__, __version__  # noqa: F401
except ImportError as error:
    import agents

    if (agents.__doc__ or "").startswith("Agents that remember"):
        raise
    raise ImportError(
        f"the package agents is another distribution's, not RecuRL's ({agents.__file__}), and hides this checkout's: "
        "run from the checkout's folder, or install RecuRL without --editable, where all of it lies below recurl"
    ) from error
