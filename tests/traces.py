"""What an analysis must leave as it found it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Snapshot = dict[str, Any]


def flags() -> Snapshot:
    """The switches of torch that an analysis turns.

    Returns:
        Name -> state.
    """
    backends: Any = torch.backends  # partly untyped
    return {
        "default dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "fastpath": backends.mha.get_fastpath_enabled(),
        "flash": backends.cuda.flash_sdp_enabled(),
        "efficient": backends.cuda.mem_efficient_sdp_enabled(),
        "math": backends.cuda.math_sdp_enabled(),
        "cudnn sdp": backends.cuda.cudnn_sdp_enabled(),
        "cudnn": backends.cudnn.enabled,
        "mkldnn": backends.mkldnn.enabled,
        "matmul precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def state_of(model: nn.Module) -> Snapshot:
    """Everything of a model that an analysis touches.

    Args:
        model: The network.

    Returns:
        Copies, and identities of parameters, buffers and hooks.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "training": {name: module.training for name, module in modules.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "grad": {name: tensor.grad is None for name, tensor in tensors.items()},
        "identity": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "hooks": {
            name: (list(module._forward_hooks), list(module._forward_pre_hooks))
            for name, module in modules.items()
        },
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
    }


@contextmanager
def unchanged(model: nn.Module, points: Tensor) -> Iterator[None]:
    """Asserts that nothing has changed after the block, an error in it or not.

    Args:
        model: The network.
        points: Its points.

    Yields:
        Nothing.
    """
    before, switches, random = state_of(model), flags(), torch.get_rng_state()
    data = points.clone()
    yield
    after = state_of(model)
    for key in before:
        if key == "values":
            for name, value in before[key].items():
                assert torch.equal(value.nan_to_num(), after[key][name].nan_to_num()), name
        else:
            assert before[key] == after[key], key
    assert switches == flags()
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(data.nan_to_num(), points.nan_to_num())
    assert not points.requires_grad
