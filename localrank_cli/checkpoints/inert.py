"""What lies beside the weights in real checkpoints and is of no use here.

Trainers save their settings and logs with the weights: an argparse.Namespace (timm, fairseq), an
OmegaConf tree (Lightning with Hydra), numpy arrays (the random states of Composer, the history of
mmengine). `torch.load(weights_only=True)` would refuse such a file whole. While it loads, each of
the names below leads to one class that ignores all it is given: no code of those libraries runs,
and they need not be installed. Everything else that is no tensor, number or text is refused.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


class Inert:
    """Stands for an object that is not read. Whatever is done to it has no effect."""

    def __new__(cls, *_: object) -> "Inert":
        """Takes any arguments.

        Returns:
            An empty object.
        """
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Takes any state."""


def _empty_dict(*_: object) -> dict[object, object]:
    return {}  # torch.load fills plain dicts only


_NAMES = (
    "argparse.Namespace",
    "datetime.timedelta",
    "datetime.datetime",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "typing.Any",
    # numpy: arrays, scalars and their types, under the names of versions 1 and 2.
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "_codecs.encode",
    "builtins.bytes",
    # mmengine's log; getattr is how it pickles the log's methods, and is not called here.
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "builtins.getattr",
    # OmegaConf's trees.
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.StringNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.ValueNode",
    "builtins.list",
    "builtins.str",
    "builtins.int",
    "builtins.float",
    "builtins.bool",
)
_DICTS = ("collections.defaultdict", "builtins.dict")


def ignoring_what_is_beside() -> AbstractContextManager[None]:
    """Lets torch.load pass over what trainers keep beside the weights.

    Returns:
        A context; outside of it torch.load is as before.
    """
    names: list[Callable[..., object] | tuple[Callable[..., object], str]] = []
    names += [(Inert, name) for name in _NAMES]
    names += [(_empty_dict, name) for name in _DICTS]
    return torch.serialization.safe_globals(names)
