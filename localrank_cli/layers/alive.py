"""The memory of the intermediate results that are alive at once in a forward pass."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):
    """Counter of the bytes of all tensors that operations made and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, tuple[Any, int]] = {}  # by storage

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As in `survey`: the default imports torch._dynamo, which takes as long as torch.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference: Any = StorageWeakRef(storage)
                self._sizes.setdefault(reference.cdata, (reference, storage.nbytes()))
        for key in [key for key, (one, _) in self._sizes.items() if one.expired()]:
            del self._sizes[key]
        self.peak = max(self.peak, sum(size for _, size in self._sizes.values()))
        return out
