"""A copy of a network in which layers are replaced by their factors."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localrank_cli.compress.matrix import factored, matrix_of
from localrank_cli.layers.factored import set_module

Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a layer."""

    left: Tensor  # (out, rank)
    right: Tensor  # (rank, in)
    mean: Tensor  # (in,), of the inputs

    def bias(self, module: Any) -> Tensor:
        """Return the bias with which the mean of the outputs stays as it is, (out,)."""
        change = matrix_of(module).to("cpu", torch.float64) @ self.mean
        change -= self.left @ (self.right @ self.mean)
        return change if module.bias is None else module.bias.detach().cpu().double() + change


def replace_layers(model: nn.Module, replacements: Mapping[str, Replacement]) -> nn.Module:
    """Return a copy of a network with two factors in the place of each named layer."""
    copied = copy.deepcopy(model)
    for name, new in replacements.items():
        module = copied.get_submodule(name)
        set_module(copied, name, factored(module, new.left, new.right, new.bias(module)))
    return copied


def norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the modules that hold statistics of the data they saw."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def estimate_norms(model: nn.Module, batches: Iterable[Tensor], forward: Forward) -> None:
    """Estimate the statistics of BatchNorm layers again, as means over batches of points.

    A last batch of less than half the size of the first is left out: it would count as much as the
    others, and one point alone has no variance. A layer that does not run, as in a head for
    training alone, keeps its statistics.
    """
    norms = norm_layers(model)
    if not norms:
        return
    before = [(norm.momentum, norm.training) for norm in norms]
    kept = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    ran: set[nn.Module] = set()
    handles = [norm.register_forward_hook(lambda norm, *_: ran.add(norm)) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        with torch.no_grad():
            first = 0
            for batch in batches:
                first = first or len(batch)
                if 2 * len(batch) >= first:
                    forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        for norm, (momentum, training), buffers in zip(norms, before, kept, strict=True):
            norm.momentum = momentum
            norm.train(training)
            if norm not in ran:
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


def stored_dtype(name: str, stored: Mapping[str, torch.dtype]) -> torch.dtype | None:
    """Return the dtype in which an entry of a compressed network is saved; None: as it is.

    Factors have that of their layer's weight.
    """
    layer = name.rpartition(".")[0].rpartition(".")[0]
    return stored.get(name, stored.get(f"{layer}.weight"))


def round_as(model: nn.Module, stored: Mapping[str, torch.dtype]) -> None:
    """Round weights to the dtypes in which they are saved; each stays in its own dtype."""
    for name, value in model.state_dict(keep_vars=True).items():
        dtype = stored_dtype(name, stored)
        if dtype is not None and value.is_floating_point() and dtype.itemsize < value.itemsize:
            value.data.copy_(value.data.to(dtype))
