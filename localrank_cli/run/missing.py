"""Parts of a network that a checkpoint does not hold, and whether a chosen layer depends on them.

`from_pretrained` draws them anew, which is right for a head to be trained, and wrong for every
number that they touch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from localrank_cli.errors import MismatchError, listed
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.setting import analysis_setting


class Parts:
    """The parts of a network that decide the outputs of chosen calls at a point.

    Args:
        model: The network, filled with some weights.
        calls: The chosen calls.
        point: Shape (1, ...).
    """

    def __init__(self, model: nn.Module, calls: Sequence[Call], point: Tensor) -> None:
        self._model, self._calls, self._point = model, calls, point
        self._found: dict[tuple[str, ...], tuple[str, ...]] = {}

    def check(self, missing: tuple[str, ...], place: str) -> None:
        """Refuse a checkpoint without a part on which a chosen layer depends.

        `missing` are entries of the network's state dict.

        Raises:
            MismatchError: If there is one.
        """
        if missing not in self._found:
            self._found[missing] = self._deciding(missing)
        found = self._found[missing]
        if found:
            raise MismatchError(
                f"{place}: does not hold {listed(found, 4)}, on which the chosen layers depend;"
                f" transformers would draw {'it' if len(found) == 1 else 'them'} at random.",
                "Choose layers that come before that part (--layers), or name the class that was"
                " trained in 'architectures' of config.json.",
            )

    def _deciding(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return which floating-point entries of the state dict decide an output.

        Each is filled with NaN, which passes through every operation on it.
        """
        state = self._model.state_dict(keep_vars=True)
        floats = {
            name: state[name] for name in names if name in state and state[name].is_floating_point()
        }
        if not floats:
            return ()
        # A diverged run's own NaN would hide what comes from these.
        others = [one for one in state.values() if not bool(torch.isfinite(one).all())]
        with _filled(others, 0.0):
            if not self._is_touched(list(floats.values())):
                return ()
            return tuple(name for name, one in floats.items() if self._is_touched([one]))

    def _is_touched(self, tensors: Sequence[Tensor]) -> bool:
        dtype = tensors[0].dtype
        with _filled(tensors, torch.nan), analysis_setting(self._model, dtype), torch.no_grad():
            try:
                outputs = Capture(self._model, self._calls)(self._point.clone())
            except Exception:  # an index made of NaN, say
                return True
            return any(bool(torch.isnan(output).any()) for output in outputs)


@contextmanager
def _filled(tensors: Sequence[Tensor], value: float) -> Iterator[None]:
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.detach().fill_(value)
        yield
    finally:
        for tensor, values in zip(tensors, saved, strict=True):
            tensor.detach().copy_(values)
