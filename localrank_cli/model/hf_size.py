"""How large a network a config may ask for, judging by the checkpoints next to it.

A config can name 10**18 layers, by a slip or to do harm: building them would never end, or fill the
memory. The library does not check for this.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from localrank_cli.errors import ModelError, printable

# Entries over which the library's configs loop before a network is built.
_COUNTED = re.compile(r"layer|depth|block|stage|expert|dense_replace|indices|label|class")
_LAYERS = re.compile(r"(?:num|n)_.*layers?$")  # others may be negative: vision_feature_layer
_LABELS = re.compile(r"label|class")
_MIN_COUNT = 100_000  # loops of this length take a negligible time
# Heads and other parts may be missing from a checkpoint, tied ones are saved once, and masks and
# tables of positions are never saved.
_NUMBERS_PER_NUMBER, _MIN_NUMBERS = 8, 2**26
_MODULES_PER_TENSOR, _MIN_MODULES = 50, 10_000
_ADVICE = (
    "Check the sizes in it, and that it belongs to these weights; the weights of an adapter or of a"
    " small part alone are not the network's."
)


@dataclass(frozen=True)
class Held:
    """How much the largest checkpoint of a series holds."""

    n_tensors: int
    n_numbers: int

    def check_counts(self, config: object, place: object, key: str = "") -> None:
        """Refuse a config with more layers, experts or labels than the checkpoints can hold.

        Raises:
            ModelError: If there is such an entry, at any depth.
        """
        if isinstance(config, dict):
            for name, value in config.items():
                self.check_counts(value, place, str(name))
        elif isinstance(config, list):
            for value in config:
                self.check_counts(value, place, key)
        elif isinstance(config, int) and _COUNTED.search(key):
            limit = self.n_numbers if _LABELS.search(key) else self.n_tensors
            if config > max(limit, _MIN_COUNT) or (config < 0 and _LAYERS.match(key)):
                shown = config if abs(config) < 10**20 else "of over 20 digits"
                raise ModelError(
                    f"{place}: {printable(key)} is {shown}, but the largest checkpoint holds"
                    f" {self.n_tensors} tensors of {self.n_numbers} numbers.",
                    _ADVICE,
                )

    @contextmanager
    def bounded(self, place: object) -> Iterator[None]:
        """Refuse to build a network that is far larger than the checkpoints.

        Yields:
            Nothing.

        Raises:
            ModelError: As soon as the network is too large.
        """
        most = max(_NUMBERS_PER_NUMBER * self.n_numbers, _MIN_NUMBERS)
        most_modules = max(_MODULES_PER_TENSOR * self.n_tensors, _MIN_MODULES)
        numbers = modules = 0

        def add(_: nn.Module, __: str, tensor: Tensor | None) -> None:
            """Count the numbers of a tensor as torch registers it, up to the limit."""
            nonlocal numbers
            numbers += 0 if tensor is None else tensor.numel()
            if numbers > most:
                raise _too_large(place, f"over {most} numbers", self)

        def add_module(*_: Any) -> None:
            """Count a module as torch registers it, up to the limit."""
            nonlocal modules
            modules += 1
            if modules > most_modules:
                raise _too_large(place, f"over {most_modules} modules", self)

        with ExitStack() as stack:
            for handle in (
                register_module_parameter_registration_hook(add),
                register_module_buffer_registration_hook(add),
                register_module_module_registration_hook(add_module),
            ):
                stack.callback(handle.remove)
            yield


def _too_large(place: object, size: str, held: Held) -> ModelError:
    return ModelError(
        f"{place}: asks for a network of {size}, but the largest checkpoint holds {held.n_numbers}"
        f" numbers in {held.n_tensors} tensors.",
        _ADVICE,
    )
