"""Parts of a network that a checkpoint does not hold, and whether a chosen layer depends on them.

`from_pretrained` initializes them at random. That is right for a head that is still to be trained,
but every number that depends on them would be wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from localrank_cli.errors import MismatchError, listed
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.setting import analysis_setting


class Parts:
    """The parts of a network that decide the outputs of chosen calls.

    The network holds the weights of a checkpoint. All points are run, since each may take another
    path.
    """

    def __init__(self, model: nn.Module, calls: Sequence[Call], points: Tensor) -> None:
        self._model, self._calls, self._points = model, calls, points
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

        NaN passes through every operation on an entry, and other values show in entries that only
        choose (the bias of a router).
        """
        state = self._model.state_dict(keep_vars=True)
        floats = {
            name: state[name] for name in names if name in state and state[name].is_floating_point()
        }
        if not floats:
            return ()
        # NaN that a diverged run left in other weights would hide the effect of these.
        others = [one for one in state.values() if not bool(torch.isfinite(one).all())]
        with _filled(others, _zero):
            before = self._outputs()
            if not self._is_touched(list(floats.values()), before):
                return ()
            return tuple(name for name, one in floats.items() if self._is_touched([one], before))

    def _is_touched(self, tensors: Sequence[Tensor], before: list[Tensor]) -> bool:
        for fill in (_nan, _drawn):
            with _filled(tensors, fill):
                try:
                    outputs = self._outputs()
                except Exception:  # the layers cannot run with such values, as with NaN as an index
                    return True
            if not all(map(_same, before, outputs)):
                return True
        return False

    def _outputs(self) -> list[Tensor]:
        """Return the outputs of the calls at every point."""
        floats = (one for one in self._model.parameters() if one.is_floating_point())
        dtype = next((one.dtype for one in floats), torch.get_default_dtype())
        capture, found = Capture(self._model, self._calls), list[Tensor]()
        with analysis_setting(self._model, dtype), torch.no_grad(), capture.installed():
            for index in range(len(self._points)):
                found += capture(self._points[index : index + 1])
        return found


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, 1e-9, 0.0, equal_nan=True)


def _zero(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor)


def _nan(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan)


def _drawn(tensor: Tensor) -> Tensor:
    """Return large values that differ from entry to entry."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
    return (10 * drawn).to(tensor)


@contextmanager
def _filled(tensors: Sequence[Tensor], fill: Callable[[Tensor], Tensor]) -> Iterator[None]:
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.detach().copy_(fill(tensor.detach()))
        yield
    finally:
        for tensor, values in zip(tensors, saved, strict=True):
            tensor.detach().copy_(values)
