"""Diagnose a network that gives a different output when the same point is run again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError, listed
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.kept import changed_by
from localrank_cli.layers.setting import analysis_setting

_OBSERVERS = ("torch.ao.quantization.", "torch.quantization.")
_MOST_NAMED = 12  # layers in an option that a message suggests


def unrepeatable(
    model: nn.Module, point: Tensor, call: Call, difference: float, steady: Sequence[str]
) -> ModelError:
    """Return the error for a network that is random, or that keeps state between calls.

    `point` has shape (1, ...); at `call` two passes of it differ by at most `difference`. `steady`
    are labels of the chosen calls whose outputs agree.
    """
    where = f"layer {call.label!r} gives a different output when the same point is run again" + (
        f" (largest difference {difference:.3g})" if difference else " several times"
    )
    advice = ""
    if steady:
        taken = (
            ",".join(steady) if len(steady) <= _MOST_NAMED else listed(list(steady), _MOST_NAMED)
        )
        advice = f" Layers whose outputs stay the same can be analyzed: --layers '{taken}'."
    # From the same state each time: what one pass leaves behind is gone before the next.
    runs = [_fresh(model, point, call, seed) for seed in (1, 1, 2)]
    if torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2]):
        return _stateful(model, point, where, advice)
    if not torch.equal(runs[0], runs[1]):
        return ModelError(
            f"the model is random in eval mode or keeps state between calls, even with the same"
            f" seed: {where}.",
            "Draw without a generator of your own, and keep counters and other state in attributes"
            f" or not at all.{advice}",
        )
    return ModelError(
        f"the model is random in eval mode: {where}.",
        "Use the module's deterministic mode, or functional dropout with"
        f" training=self.training.{advice}",
    )


def _stateful(model: nn.Module, point: Tensor, where: str, advice: str) -> ModelError:
    changed, observers = _changed(model, point)
    kept = f" ({listed(changed, 4)})" if changed else ""
    what = f"the model keeps state between calls{kept}: {where}."
    if observers:
        return ModelError(
            what,
            "Call model.apply(torch.ao.quantization.disable_observer) at the beginning of forward,"
            f" or in a forward pre-hook of the model.{advice}",
        )
    return ModelError(
        what,
        "Make forward start from the same state each time: reset it at the beginning, or in a"
        f" subclass for --model.{advice}",
    )


def _fresh(model: nn.Module, point: Tensor, call: Call, seed: int) -> Tensor:
    with _setting(model, point, seed), torch.no_grad():
        return Capture(model, [call])(point.clone())[0].nan_to_num()


@contextmanager
def _setting(model: nn.Module, point: Tensor, seed: int) -> Iterator[None]:
    dtype = point.dtype if point.is_floating_point() else torch.get_default_dtype()
    with analysis_setting(model, dtype, seed):
        yield


def _changed(model: nn.Module, point: Tensor) -> tuple[list[str], bool]:
    """Return the attributes and buffers that a pass changes, and whether observers hold one."""
    with _setting(model, point, 1), torch.no_grad():
        try:
            names = changed_by(model, lambda: model(point.clone()))
        except Exception:  # layers after the chosen ones may fail; this only describes an error
            return [], False
        modules = dict(model.named_modules())
        holders = {type(modules[name.rpartition(".")[0]]).__module__ for name in names}
        return names, any(holder.startswith(_OBSERVERS) for holder in holders)
