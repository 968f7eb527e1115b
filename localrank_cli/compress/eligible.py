"""Which layers can be factored, in the order in which they run, and why the others stay dense."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from localrank_cli.compress.matrix import factored, matrix_of, shape_of
from localrank_cli.compress.replace import Forward
from localrank_cli.errors import ModelError
from localrank_cli.layers.factored import can_factor, set_module
from localrank_cli.layers.kinds import is_affine_layer
from localrank_cli.seeds import seeded

# Of a longer side the covariance alone would take more than 2 GiB.
LONGEST_SIDE = 16_384
_LEAST_MOST = 2  # a layer whose largest rank is 1 has nothing to choose
# Two ways to compute one product differ by rounding, which a network magnifies.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True)
class Layers:
    """The layers of a network."""

    chosen: dict[str, nn.Module]  # in the order in which they run
    dense: dict[str, str]  # name -> why it stays as it is
    # Whether the last layer that runs is among the chosen: it is not where it is tied, say.
    has_last: bool = True

    @property
    def weights(self) -> int:
        """The number of weights that a budget is a share of."""
        return sum(shape_of(module).weights for module in self.chosen.values())


def find_layers(
    model: nn.Module, batch: Tensor, forward: Forward, keep: Sequence[str] = ()
) -> Layers:
    """Return the layers that can be factored; the network runs a batch to find them.

    Raises:
        ModelError: If there are none, a glob of `keep` names none, or outputs are not finite.
    """
    ran = _ran(model, batch, forward)
    if not bool(torch.isfinite(ran.output).all()):
        raise ModelError(
            "the network's outputs are not finite.", "Check the checkpoint and the data."
        )
    names = [name for name, module in model.named_modules() if is_affine_layer(module)]
    order = {name: index for index, name in enumerate(ran.calls)}
    names.sort(key=lambda name: order.get(name, len(order)))
    for glob in keep:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ModelError(
                f"--keep {glob}: no layer has a matching name.",
                f"The layers: {', '.join(names[:8]) or 'none'}.",
            )
    dense: dict[str, str] = {}
    chosen: dict[str, nn.Module] = {}
    shared = _shared(model)
    for name in names:
        module = model.get_submodule(name)
        reason = "kept by --keep" if any(fnmatchcase(name, one) for one in keep) else ""
        reason = reason or _reason(module, ran.calls[name], shared)
        if not reason and name in ran.without_gradients:
            reason = "it runs without gradients, as under torch.no_grad()"
        if reason:
            dense[name] = reason
        else:
            chosen[name] = module
    for name in _read_elsewhere(model, chosen, batch, forward):
        dense[name] = "its weight is also read outside its own forward pass"
        del chosen[name]
    if not chosen:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:4])
        raise ModelError(
            f"no layer can be factored ({found or 'the network has no Linear or Conv2d'}).",
            "A layer that can be factored is a Linear or a Conv2d with groups=1 that runs once,"
            " is large enough on both sides, and shares its weight with no other part.",
        )
    last = max((name for name in names if name in order), key=lambda name: order[name])
    return Layers(chosen, dense, has_last=last in chosen)


def _reason(module: nn.Module, n_calls: int, shared: set[int]) -> str:
    """Return why a layer stays dense; empty if it need not."""
    weight = getattr(module, "weight", None)
    if parametrize.is_parametrized(module) or not isinstance(weight, nn.Parameter):
        return "parametrized"
    if not can_factor(module):
        return f"a {type(module).__name__} of this kind cannot be factored"
    shape = shape_of(module)
    reasons = {
        "tied": id(weight) in shared,
        f"of dtype {str(weight.dtype).removeprefix('torch.')}": weight.dtype not in _TOLERANCES,
        "it has hooks": bool(module._forward_hooks or module._forward_pre_hooks),
        f"a side is longer than {LONGEST_SIDE}": max(shape.n_out, shape.n_in) > LONGEST_SIDE,
        "too small: factors of rank 2 have as many weights": shape.most < _LEAST_MOST,
        "it does not run": n_calls == 0,
        "it runs more than once": n_calls > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _shared(model: nn.Module) -> set[int]:
    """Return the ids of parameters that two modules or two names hold."""
    count = Counter(
        id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)
    )
    return {key for key, number in count.items() if number > 1}


@dataclass(frozen=True)
class _Ran:
    calls: Counter[str]  # how often each module runs, in order of its first run
    without_gradients: set[str]  # modules that turn them off
    output: Tensor


def _ran(model: nn.Module, batch: Tensor, forward: Forward) -> _Ran:
    """Return what a network did with a batch; its parameters are frozen, so that no graph grows."""
    calls: Counter[str] = Counter()
    without_gradients: set[str] = set()

    def count(name: str, *_: Any) -> None:
        """Count a call of a layer, as its hook."""
        calls[name] += 1
        if not torch.is_grad_enabled():
            without_gradients.add(name)

    handles = [
        module.register_forward_hook(partial(count, name)) for name, module in model.named_modules()
    ]
    try:
        with torch.enable_grad():
            output = forward(model, batch).detach()
    finally:
        for handle in handles:
            handle.remove()
    return _Ran(calls, without_gradients, output)


def _read_elsewhere(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Tensor, forward: Forward
) -> list[str]:
    """Return the layers without which a network does not run, or gives other outputs.

    Each is put in as two exact factors, in eval and in training mode, with and without gradients:
    torch's fused attention reads weights directly in some of these.
    """
    expected = _outputs(copy.deepcopy(model), batch, forward)
    if _is_same(model, list(layers), batch, forward, expected):
        return []
    return [name for name in layers if not _is_same(model, [name], batch, forward, expected)]


def _is_same(
    model: nn.Module,
    names: Sequence[str],
    batch: Tensor,
    forward: Forward,
    expected: Sequence[Tensor | None],
) -> bool:
    copied = copy.deepcopy(model)
    for name in names:
        set_module(copied, name, exact_factors(copied.get_submodule(name)))
    found = _outputs(copied, batch, forward)
    return all(
        new is not None and _close(new, old)
        for new, old in zip(found, expected, strict=True)
        if old is not None
    )


def exact_factors(module: Any) -> nn.Sequential:
    """Return two layers that compute what one does: its matrix and an identity."""
    matrix = matrix_of(module)
    eye = torch.eye(min(matrix.shape)).to(matrix)
    left, right = (matrix, eye) if matrix.shape[1] <= matrix.shape[0] else (eye, matrix)
    bias = matrix.new_zeros(matrix.shape[0]) if module.bias is None else module.bias.detach()
    return factored(module, left, right, bias)


def _outputs(model: nn.Module, batch: Tensor, forward: Forward) -> list[Tensor | None]:
    """Return a network's output in every setting; None where it does not run."""
    found: list[Tensor | None] = []
    for mode in (torch.no_grad, torch.enable_grad):
        for training in (False, True):
            model.train(training)
            try:
                # Dropout draws alike in both networks.
                with mode(), seeded(0):
                    found.append(forward(model, batch).detach())
            except Exception:  # the user's code may raise anything
                found.append(None)
    return found


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    tolerance = _TOLERANCES.get(second.dtype, 1e-3)
    return bool((first - second).abs().max() <= tolerance * second.abs().max().clamp(min=1e-30))
