"""Losses that an encoder or a memory adds to the policy's."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class HasAuxiliaryLosses(Protocol):
    """A module with losses of its own; it answers for the modules inside it, too.

    ``auxiliary_losses`` gives the losses of the last forward pass in training mode (``module.training``), each a
    scalar with a gradient, by name, already multiplied by its weight: what an algorithm adds to its loss, and logs as
    ``train/<name>``. A module lets go of the losses as it returns them, since a graph that is kept takes memory and
    cannot be copied; without such a pass it returns none.

    A forward pass in training mode must compute the same output as one in evaluation mode; only the losses differ.
    """

    def auxiliary_losses(self) -> dict[str, Tensor]: ...


class AuxiliaryTerms:
    """The auxiliary losses of a module through an update: made when it starts, since finding them takes a while."""

    def __init__(self, module: nn.Module) -> None:
        self._sources = _sources(module, seen=set())
        self._history: dict[str, list[Tensor]] = {}

    def losses(self) -> dict[str, Tensor]:
        """Of the last pass, by name; those of the same name are added up.

        Raises:
            ValueError: a loss is not a scalar.
        """
        total: dict[str, Tensor] = {}
        for source in self._sources:
            for name, loss in source.auxiliary_losses().items():
                if loss.dim() != 0:
                    raise ValueError(
                        f"{type(source).__name__}.auxiliary_losses() must hold scalars; {name!r} is "
                        f"{tuple(loss.shape)}: take its mean"
                    )
                total[name] = total[name] + loss if name in total else loss
        return total

    def add_to(self, loss: Tensor) -> Tensor:
        """The loss of a minibatch with the auxiliary losses of the pass that led to it."""
        for name, term in self.losses().items():
            self._history.setdefault(name, []).append(term.detach())
            loss = loss + term
        return loss

    def means(self) -> dict[str, float]:
        """By name, over the minibatches so far."""
        return {name: torch.stack(terms).mean().item() for name, terms in self._history.items()}


def _sources(module: nn.Module, seen: set[nn.Module]) -> list[HasAuxiliaryLosses]:
    """Modules with losses, each once though it may be reached by several names."""
    if module in seen:
        return []
    seen.add(module)
    if isinstance(module, HasAuxiliaryLosses):
        return [module]
    return [source for child in module.children() for source in _sources(child, seen)]
