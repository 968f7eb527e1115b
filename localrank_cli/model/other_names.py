"""Names under which a checkpoint may hold a network's weights, beside the network's own."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from localrank_cli import walk
from localrank_cli.model.build import WholeLayer
from localrank_cli.model.wrappers import COMPILED, PARALLEL

_Value = TypeVar("_Value")


class OtherNames:
    """The names of weights without wrappers, and in the other implementation of weight_norm.

    `names` are those of the network's state dict.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, object]) -> None:
        others: dict[str, set[str]] = {}
        normalized = dict(_weight_norm(model.model if isinstance(model, WholeLayer) else model))
        for name in names:
            for one in {name, normalized.get(name, name)}:
                parts = [part for part in one.split(".") if part not in {COMPILED, PARALLEL}]
                for other in {one, ".".join(parts)}:
                    others.setdefault(other, set()).add(name)
        self._names = {
            other: next(iter(owners))
            for other, owners in others.items()
            if other not in names and len(owners) == 1
        }

    def rename(self, state: Mapping[str, _Value]) -> dict[str, _Value]:
        """Return a state with other names replaced by the network's own."""
        renamed: dict[str, _Value] = {}
        for key, value in state.items():
            own = self._names.get(key, key)
            renamed[key if own in state or own in renamed else own] = value
        return renamed


def _weight_norm(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of normalized weights, and those in the other implementation.

    Those of torch.nn.utils are `weight_g` and `weight_v`.
    """
    for prefix, module in model.named_modules():
        front = f"{prefix}." if prefix else ""
        old = [one.name for one in walk.pre_hooks(module) if isinstance(one, WeightNorm)]
        for weight in old:
            for index, letter in enumerate("gv"):
                new = f"{front}parametrizations.{weight}.original{index}"
                yield f"{front}{weight}_{letter}", new
        if is_parametrized(module):
            for weight, chain in module.parametrizations.items():
                if [type(one).__name__ for one in chain] == ["_WeightNorm"]:
                    for index, letter in enumerate("gv"):
                        new = f"{front}parametrizations.{weight}.original{index}"
                        yield new, f"{front}{weight}_{letter}"
