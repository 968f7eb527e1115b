"""Receptive fields: which part of the input each position of a convolution's output can see.

They come from the geometry of the modules alone (kernels, strides, padding, dilation), on the
assumption that whatever else the network does, it does position by position. This is not a proof:
an operation between the modules may mix positions. The code that uses a field checks it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord

_Axis = tuple[tuple[int, int], ...]  # for each position of the output: from and to of the input
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """What each position of a map can see of the input, as a box."""

    axes: tuple[_Axis, ...]
    maps: tuple[int, ...]  # positions of the input, along each axis

    @classmethod
    def of_input(cls, maps: Sequence[int]) -> "Field":
        """Return the field of the input itself: each position sees itself."""
        axes = tuple(tuple((at, at + 1) for at in range(length)) for length in maps)
        return cls(axes, tuple(maps))

    @property
    def grid(self) -> tuple[int, ...]:
        """Positions along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def spans(self) -> tuple[int, ...]:
        """The longest side of a box, along each axis."""
        return tuple(max(high - low for low, high in axis) for axis in self.axes)

    def box(self, tile: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return what the positions from and to along each axis see together."""
        return tuple(
            (min(low for low, _ in axis[start:stop]), max(high for _, high in axis[start:stop]))
            for axis, (start, stop) in zip(self.axes, tile, strict=True)
        )

    def joined(self, other: "Field | None") -> "Field":
        """Return the field of a map that may see what either sees."""
        if other is None:
            return self
        axes = zip(self.axes, other.axes, strict=True)
        both = tuple(
            tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, two, strict=True))
            for one, two in axes
        )
        return Field(both, self.maps)

    def through(self, module: nn.Module, grid: Sequence[int]) -> "Field | None":
        """Return the field of the output on a grid of a module that reads this map.

        None where the module makes another grid of it.
        """
        dims = len(self.axes)
        kernel, stride = _tuple(module.kernel_size, dims), _tuple(module.stride, dims)
        dilation = _tuple(getattr(module, "dilation", 1), dims)
        spans = [gap * (size - 1) + 1 for gap, size in zip(dilation, kernel, strict=True)]
        pads = [(pad, pad) for pad in _tuple(0, dims)]
        if module.padding == "same":
            pads = [((span - 1) // 2, span // 2) for span in spans]
        elif module.padding != "valid":
            pads = [(pad, pad) for pad in _tuple(module.padding, dims)]
        axes = []
        for axis, n, span, step, (before, after) in zip(
            self.axes, grid, spans, stride, pads, strict=True
        ):
            if n != (len(axis) + before + after - span) // step + 1:
                return None
            starts = [at * step - before for at in range(n)]
            axes.append(tuple(_seen(axis, start, start + span) for start in starts))
        return Field(tuple(axes), self.maps)


def _seen(axis: _Axis, start: int, stop: int) -> tuple[int, int]:
    """Return what positions of a map see together, of which padding sees nothing."""
    some = axis[max(0, start) : max(0, stop)] or (axis[:1] if stop <= 0 else axis[-1:])
    return min(low for low, _ in some), max(high for _, high in some)


def receptive_fields(
    model: nn.Module, records: Iterable[CallRecord], varied_shape: Sequence[int]
) -> dict[Call, Field]:
    """Return the fields of the calls of convolutions that have one.

    `records` are all calls of a forward pass, in order, and `varied_shape` is the shape of the
    input for one point, (1, channels, positions, ...).
    """
    maps = tuple(varied_shape[2:])
    # A map on the same grid as an earlier one may be added to it: it may see what both do.
    known = {maps: Field.of_input(maps)}
    found: dict[Call, Field] = {}
    for record in records:
        module = model.get_submodule(record.call.name)
        if not isinstance(module, (*_CONVOLUTIONS, *_POOLS)):
            continue
        grid = tuple(record.shape[2:])
        fields: list[Field] = []
        if len(record.shape) == len(varied_shape) and not record.is_complex:
            # Whichever map it read.
            every = [field.through(module, grid) for field in known.values()]
            fields = [field for field in every if field is not None]
        if not fields or getattr(module, "padding_mode", "zeros") != "zeros":
            known.clear()  # nor is anything known of what comes after it
            continue
        for field in fields:
            known[grid] = field.joined(known.get(grid))
        if isinstance(module, _CONVOLUTIONS):
            found[record.call] = known[grid]
    return found


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(int(one) for one in value)
    return found * dims if len(found) == 1 else found
