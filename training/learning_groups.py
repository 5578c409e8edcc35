"""Groups of a model's weights that learn at rates of their own, or not before some epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True, kw_only=True)
class LearningGroup:
    name: str
    parameters: tuple[nn.Parameter, ...]
    rate: float = 1.0
    """Times the recipe's learning rate."""
    from_epoch: int = 0
    """Before it the group is frozen: no gradient, no step, no exchange over the ranks."""


@runtime_checkable
class LearnsInGroups(Protocol):
    """A model whose weights do not all learn alike."""

    def learning_groups(self) -> Sequence[LearningGroup]:
        """Groups that hold every parameter once; in the same order each time, for checkpoints go by it."""


def groups_of(model: nn.Module, parameters: Iterable[nn.Parameter]) -> tuple[LearningGroup, ...]:
    """The model's own groups; for a model that names none, all of `parameters` in one."""
    if isinstance(model, LearnsInGroups):
        return tuple(model.learning_groups())
    return (LearningGroup(name="all", parameters=tuple(parameters)),)


def freeze(groups: Iterable[LearningGroup], epoch: int) -> list[str]:
    """Let those learn whose epoch has come; give the names of the others.

    A function of the epoch alone: a run that goes on in epoch 3 has the stages of epoch 3 unfrozen.
    """
    frozen = []
    for group in groups:
        learns = epoch >= group.from_epoch
        if group.from_epoch > 0:
            for parameter in group.parameters:
                parameter.requires_grad_(learns)
        if not learns:
            frozen.append(group.name)
    return frozen
