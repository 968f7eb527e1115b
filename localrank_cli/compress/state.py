"""The weights of a compressed network as they are saved: factored, or dense under the old names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.compress.matrix import has_bias, matrix_of
from localrank_cli.compress.replace import norm_layers, stored_dtype
from localrank_cli.layers.factored import Factored
from localrank_cli.layers.kinds import is_transposed_linear
from localrank_cli.measures.beside import weight_ranks

State = dict[str, Tensor]


def factored_state(compressed: nn.Module, stored: Mapping[str, Tensor]) -> State:
    """Return every weight of a compressed network.

    What was neither factored nor estimated again is as `stored` has it, and factors have the dtype
    in which their layer was stored.
    """
    estimated = {id(buffer) for norm in norm_layers(compressed) for buffer in norm.buffers()}
    dtypes = {name: value.dtype for name, value in stored.items()}
    found: State = {}
    for name, held in compressed.state_dict(keep_vars=True).items():
        value = held
        if name in stored and id(value) not in estimated:
            found[name] = stored[name]
            continue
        dtype = stored_dtype(name, dtypes)
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        found[name] = value
    return _apart(found)


def dense_state(
    compressed: nn.Module, original: nn.Module, factored: Mapping[str, Tensor]
) -> State:
    """Return the weights of a compressed network under the original's names.

    The factors of a layer without a bias must have none that matters; see `Compressor.calibrate`.
    """
    found = dict(factored)
    for name in factored_layers(compressed):
        module: Any = original.get_submodule(name)
        right, left = (found.pop(f"{name}.{index}.weight") for index in (0, 1))
        # Rounded to bfloat16 it would have any rank.
        dtype = torch.promote_types(left.dtype, torch.float32)
        matrix = (left.flatten(1).double() @ right.flatten(1).double()).to(dtype)
        matrix = matrix.T if is_transposed_linear(module) else matrix
        found[f"{name}.weight"] = matrix.reshape(module.weight.shape).contiguous()
        bias = found.pop(f"{name}.1.bias")
        if has_bias(module):
            found[f"{name}.bias"] = bias
        else:
            assert not bool(bias.any()), name
    return _apart(found)


def factored_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that are factors."""
    return [name for name, module in model.named_modules() if isinstance(module, Factored)]


def _apart(state: State) -> State:
    """Return tensors that share no memory with each other, on the CPU.

    Copied only where they do, or are a part of what they are a view of: weights may be large.
    """
    found: State = {}
    seen: set[int] = set()
    for name, value in state.items():
        one = value.detach().cpu().contiguous()
        storage = one.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != one.nbytes:
            one = one.clone()
        seen.add(storage.data_ptr())
        found[name] = one
    return found


def difference(first: nn.Module, second: nn.Module, batch: Tensor, forward: Any) -> float:
    """Return the largest difference of two networks' outputs, relative to the largest output."""
    with torch.no_grad():
        one, other = forward(first, batch), forward(second, batch)
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def effective_rank_of(module: Any) -> float:
    """Return the effective rank of a layer's matrix."""
    return weight_ranks(matrix_of(module).cpu()).effective_rank
