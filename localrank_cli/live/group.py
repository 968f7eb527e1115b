"""The processes of distributed training: the first one measures while the others wait."""

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from localrank_cli.errors import ModelError

_Value = TypeVar("_Value")
# Of torchrun, Lightning and srun.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_DEFAULT = timedelta(minutes=10)  # of NCCL; gloo waits for 30 minutes


class Group:
    """The process group of the training, if there is one."""

    @property
    def is_several(self) -> bool:
        """Whether there are several processes by now."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the first."""
        return not self.is_several or dist.get_rank() == 0

    @property
    def may_be_first(self) -> bool:
        """Whether this process is the first, also where the training starts its group later.

        Then the program that starts the processes has said in the environment which one this is.
        """
        if self.is_several:
            return self.is_first
        ranks = (os.environ.get(name, "") for name in _RANKS)
        return next((rank for rank in ranks if rank.isdecimal()), "0") == "0"

    def from_first(self, value: _Value) -> _Value:
        """Return the value of the first process, after waiting for it."""
        if not self.is_several:
            return value
        held: list[Any] = [value if self.is_first else None]
        dist.broadcast_object_list(held, src=0)
        found: _Value = held[0]
        return found

    @property
    def seconds(self) -> float:
        """How long a process waits for another before it gives up."""
        try:
            device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
            world: Any = dist.group.WORLD
            found: timedelta = world._get_backend(device).options._timeout
        except (AttributeError, RuntimeError):  # a backend without options
            found = _DEFAULT
        return found.total_seconds()


_FSDP1 = "FullyShardedDataParallel"


def refuse_partitioned(model: nn.Module) -> None:
    """Refuse weights that cannot be gathered: of DeepSpeed's ZeRO-3, and of FSDP1 on the CPU.

    Raises:
        ModelError: If there are some.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ModelError(
            "the weights are sharded by DeepSpeed's ZeRO-3, and cannot be gathered here.",
            "Measure the checkpoints with localrank_cli.analyze, or train with ZeRO-2.",
        )
    if _has_fsdp1(model) and all(one.device.type == "cpu" for one in model.parameters()):
        raise ModelError(
            "the weights are divided by FullyShardedDataParallel on the CPU, where torch can"
            " gather only those of fully_shard.",
            "Divide the network with torch.distributed.fsdp.fully_shard, or measure the checkpoints"
            " with localrank_cli.analyze.",
        )


def _has_fsdp1(model: nn.Module) -> bool:
    return any(type(module).__name__ == _FSDP1 for module in model.modules())


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP divides the weights of a model among processes."""
    return _has_fsdp1(model) or any(
        hasattr(parameter, "full_tensor") for parameter in model.parameters()
    )


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model that FSDP divides; called on every rank."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
    )

    chosen = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = get_model_state_dict(model, options=chosen)
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}
