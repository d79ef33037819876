"""The console commands ``recurl-train`` and ``recurl-evaluate``: ``train.py`` and ``evaluate.py`` from any folder."""


def train() -> int:
    """What ``python train.py`` does, with the words of the command line; returns the exit code."""
    from train import main

    return main()


def evaluate() -> int:
    """What ``python evaluate.py`` does, with the words of the command line; returns the exit code."""
    from evaluate import main

    return main()
