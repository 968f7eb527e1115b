"""Rebind functions that refer to a network to its copy, since deepcopy shares them."""

import operator
from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

_FUNCTIONS = (FunctionType, MethodType, partial)
_COMPILED = "_torchdynamo_orig_callable"  # what a function that torch.compile returned was made of


class Rebinding:
    """What was copied, from which functions are made anew.

    Args:
        copies: The copies by the id of the original, as deepcopy's memo holds them.
    """

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies

    def rebind(self, space: dict[Any, Any]) -> None:
        """Replace the functions in a namespace."""
        for key, value in list(space.items()):
            if isinstance(value, _FUNCTIONS):
                space[key] = self._of(value, set())

    def _of(self, value: Any, seen: set[int]) -> Any:
        if isinstance(value, nn.Module | Tensor):
            return self._copies.get(id(value), value)
        if id(value) in seen or not isinstance(value, _FUNCTIONS):
            return value
        seen.add(id(value))
        compiled = getattr(value, _COMPILED, None)
        return self._of(compiled, seen) if compiled is not None else self._function(value, seen)

    def _function(self, value: Any, seen: set[int]) -> Any:
        if isinstance(value, MethodType):
            owner = value.__self__
            return MethodType(self._of(value.__func__, seen), self._copies.get(id(owner), owner))
        if isinstance(value, partial):
            given = [self._of(one, seen) for one in value.args]
            named = {key: self._of(one, seen) for key, one in value.keywords.items()}
            return partial(self._of(value.func, seen), *given, **named)
        before = value.__closure__ or ()
        cells = tuple(self._cell(cell, seen) for cell in before)
        if all(map(operator.is_, cells, before)):
            return value
        made = FunctionType(
            value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
        )
        made.__kwdefaults__ = value.__kwdefaults__
        return made

    def _cell(self, cell: CellType, seen: set[int]) -> CellType:
        try:
            found = cell.cell_contents
        except ValueError:  # nothing is assigned yet
            return cell
        rebound = self._of(found, seen)
        return cell if rebound is found else CellType(rebound)
