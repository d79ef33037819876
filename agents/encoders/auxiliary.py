"""Losses that an encoder or a memory brings along, to be minimised together with the policy's.

Any module of a policy may have the hook; :func:`auxiliary_losses` asks all of them. A module that has it answers for
the modules inside it, too.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class HasAuxiliaryLosses(Protocol):
    """A module with losses of its own.

    ``auxiliary_losses`` gives the losses of the last forward pass, each by a name, a scalar with a gradient, already
    multiplied by its weight: what an algorithm adds to its loss, and logs as ``train/<name>``. It is empty if that
    pass was not in training mode (``module.training``), or if there was none. It is asked once after a pass: a module
    lets go of the losses as it hands them over, since a graph that lives on takes memory and keeps it from being
    copied.

    A forward pass in training mode must compute the same output as one in evaluation mode; only the losses differ.
    """

    def auxiliary_losses(self) -> dict[str, Tensor]: ...


def auxiliary_losses(module: nn.Module) -> dict[str, Tensor]:
    """All losses that ``module`` and the modules in it bring along; those of the same name are added up.

    Raises:
        ValueError: a loss is not a scalar.
    """
    return _losses_of(_sources(module, seen=set()))


class AuxiliaryTerms:
    """The auxiliary losses of a module through an update: made when it starts, since to look for them takes a while."""

    def __init__(self, module: nn.Module) -> None:
        self._sources = _sources(module, seen=set())
        self._history: dict[str, list[Tensor]] = {}

    def add_to(self, loss: Tensor) -> Tensor:
        """The loss of a minibatch with the auxiliary losses of the pass that led to it."""
        for name, term in _losses_of(self._sources).items():
            self._history.setdefault(name, []).append(term.detach())
            loss = loss + term
        return loss

    def means(self) -> dict[str, float]:
        """Of each by its name, over the minibatches so far."""
        return {name: torch.stack(terms).mean().item() for name, terms in self._history.items()}


def _losses_of(found: Sequence[HasAuxiliaryLosses]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for source in found:
        for name, loss in source.auxiliary_losses().items():
            if loss.dim() != 0:
                raise ValueError(
                    f"{type(source).__name__}.auxiliary_losses() must hold scalars; {name!r} is {tuple(loss.shape)}: "
                    "take its mean"
                )
            total[name] = total[name] + loss if name in total else loss
    return total


def _sources(module: nn.Module, seen: set[nn.Module]) -> list[HasAuxiliaryLosses]:
    """Modules with the hook, each once though it may be reached by several names."""
    if module in seen:
        return []
    seen.add(module)
    if isinstance(module, HasAuxiliaryLosses):
        return [module]
    return [source for child in module.children() for source in _sources(child, seen)]
