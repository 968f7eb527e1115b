"""Convolutions of float64 on a CPU, where torch's own waste most of the time of a Jacobian.

oneDNN in torch does not support float64, so torch takes one product for each sample: fast where the
maps are large, 2 to 3 times slower than one product for the whole batch where they are small. And
it multiplies zeros: the gradient of one position of an output is zero outside the part of the map
that the position sees, and so is the tangent of one position of the input. Here, these zeros are
cut out first.

Values, gradients and tangents are torch's up to the order of summation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from localrank_cli.layers.transforms import current_level, grads_batched, is_wrapped

# Positions of an output below which one product for the batch is faster. Processor ms, batch 64, of
# a 3 x 3 convolution and its gradient: 459 -> 262 and 771 -> 290 with 7 x 7 outputs (512 channels),
# 420 -> 409 and 370 -> 388 with 14 x 14 (256 channels), slower with 28 x 28.
_SMALL_MAP = 128
# Bytes of the unfolded inputs that torch makes at once. Processor ms, batch 16, 3 x 3, with 64
# channels of 56 x 56, where the whole has 220 MiB: 185 -> 91 (gradients: 91, and 86 to 97).
_UNFOLDED = 2**25
# Products of numbers in a convolution of one point below which torch is as fast, since the detour
# takes 0.5 to 2 ms. Processor ms, 16 tangents and 16 gradients that are zero nowhere: 3.3 -> 5.2
# and 2.5 -> 2.8 at 2**21 products (64 channels of 8 x 8), 10.8 -> 11.4 and 9.9 -> 9.7 at 2**23.
_FEWEST_PRODUCTS = 2**22
# Bytes of one point's unfolded input from which fewer products pay, since the whole batch is soon
# above `_UNFOLDED`. Processor ms, 42 tangents of 16 channels of 32 x 32 (1.1 MiB): 45 -> 12.
_LARGE_INPUT = 2**20
_NAMES = ("conv1d", "conv2d", "conv3d")
# Read at import, so that an analysis within another one does not wrap them twice.
_torch_convolutions: dict[str, Callable[..., Tensor]] = {
    name: getattr(functional, name) for name in _NAMES
}

_Box = tuple[tuple[int, int], ...]  # from and to, along each axis of a map


@contextmanager
def fast_convolutions() -> Iterator[None]:
    """Let `torch.nn.functional`'s convolutions of float64 on a CPU run as described above."""
    with ExitStack() as stack:
        for name in _NAMES:
            stack.callback(setattr, functional, name, getattr(functional, name))
            setattr(functional, name, _replacement(name))
        yield


def is_convolution_node(node: object) -> bool:
    """Return whether a node of autograd's graph is that of a convolution of this module."""
    return getattr(node, "_forward_cls", None) in {_Convolve, _Pull}


def _replacement(name: str) -> Callable[..., Tensor]:
    original, dims = _torch_convolutions[name], _NAMES.index(name) + 1

    def convolution(
        input: Tensor,  # noqa: A002  # torch's name for it, which callers may use
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """Convolve with faster derivatives where they are worth it, and as torch does elsewhere."""
        kernel = None
        if _is_covered(input, weight, bias, dims):
            kernel = _Kernel.of(weight, bias, stride, padding, dilation, groups)
        if kernel is None or not kernel.pays(input):
            return original(input, weight, bias, stride, padding, dilation, groups)
        output: Tensor = _Convolve.apply(input, kernel, False)
        return output

    return convolution


def _is_covered(inputs: Tensor, weight: Tensor, bias: Tensor | None, dims: int) -> bool:
    given = [one for one in (inputs, weight, bias) if one is not None]
    if any(
        type(one) not in {Tensor, nn.Parameter}
        or one.dtype != torch.float64
        or one.device.type != "cpu"
        for one in given
    ):
        return False
    if inputs.dim() != dims + 2 or weight.dim() != dims + 2 or not inputs.numel():
        return False
    # A weight that is differentiated, or one for each sample of a vmap, is left to torch.
    if any(one.requires_grad or is_wrapped(one) for one in given[1:]):
        return False
    level = forward_ad._current_level
    return level < 0 or current_level() > 0 or all(_tangent(one) is None for one in given[1:])


def _tangent(tensor: Tensor) -> Tensor | None:
    unpacked = forward_ad.unpack_dual(tensor)
    tangent: Tensor | None = unpacked.tangent
    return tangent


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A convolution."""

    weight: Tensor  # (outputs, inputs / groups, *sizes)
    bias: Tensor | None  # of outputs, not of tangents
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
        groups: int,
    ) -> "_Kernel | None":  # fmt: skip
        """Return the convolution that arguments denote; None for those that are left to torch."""
        dims = weight.dim() - 2
        steps, gaps = _tuple(stride, dims), _tuple(dilation, dims)
        if padding == "valid":
            padding = 0
        if padding == "same":
            spans = [gap * (size - 1) for gap, size in zip(gaps, weight.shape[2:], strict=True)]
            if any(span % 2 for span in spans) or set(steps) != {1}:
                return None
            padding = tuple(span // 2 for span in spans)
        if isinstance(padding, str):
            return None
        return cls(weight, bias, steps, _tuple(padding, dims), gaps, groups)

    @property
    def spans(self) -> tuple[int, ...]:
        """Entries of the input that one output spans, along each axis."""
        sizes = zip(self.dilation, self.weight.shape[2:], strict=True)
        return tuple(gap * (size - 1) + 1 for gap, size in sizes)

    def grid(self, maps: Sequence[int]) -> tuple[int, ...]:
        """Return the positions of the output, from those of the input."""
        return tuple(
            (length + 2 * pad - span) // step + 1
            for length, pad, span, step in zip(
                maps, self.padding, self.spans, self.stride, strict=True
            )
        )

    def pays(self, inputs: Tensor) -> bool:
        """Return whether the convolution is worth the detour, and one that torch allows."""
        channels, maps = inputs.shape[1], inputs.shape[2:]
        grid = self.grid(maps)
        allowed = channels == self.groups * self.weight.shape[1] and min(grid) > 0
        is_large = self._unfolded_bytes(grid) >= _LARGE_INPUT
        return allowed and (is_large or prod(grid) * self.weight.numel() >= _FEWEST_PRODUCTS)

    def without_padding(self, inputs: Tensor) -> Tensor:
        """Return the outputs whose inputs are all there: torch's `convolution` without padding."""
        grid = replace(self, padding=(0,) * len(self.padding)).grid(inputs.shape[2:])
        if self.groups == 1 and inputs.shape[0] > 1 and prod(grid) < _SMALL_MAP:
            found = self.weight.flatten(1) @ self._unfolded(inputs, grid)
            return found.view(-1, inputs.shape[0], *grid).transpose(0, 1).contiguous()
        return self.by_torch(inputs, (0,) * len(grid))

    def by_torch(self, inputs: Tensor, padding: tuple[int, ...]) -> Tensor:
        """Return torch's outputs, a share of the batch at a time."""
        grid = replace(self, padding=padding).grid(inputs.shape[2:])
        none, shares = [0] * len(grid), torch.split(inputs, self._share(grid))
        found = [
            torch.convolution(
                share, self.weight, None, self.stride, padding, self.dilation, False, none,
                self.groups,
            )
            for share in shares
        ]  # fmt: skip
        return found[0] if len(found) == 1 else torch.cat(found)

    def _share(self, grid: Sequence[int]) -> int:
        return max(1, _UNFOLDED // max(1, self._unfolded_bytes(grid)))

    def _unfolded_bytes(self, grid: Sequence[int]) -> int:
        return 8 * prod(self.weight.shape[1:]) * prod(grid)

    def _unfolded(self, inputs: Tensor, grid: Sequence[int]) -> Tensor:
        """Return the inputs of each output, (weights of an output, batch * positions)."""
        batch, channel, *steps = inputs.stride()
        gaps = [step * gap for step, gap in zip(steps, self.dilation, strict=True)]
        jumps = [step * jump for step, jump in zip(steps, self.stride, strict=True)]
        sizes = self.weight.shape[2:]
        view = inputs.as_strided(
            (inputs.shape[1], *sizes, inputs.shape[0], *grid), (channel, *gaps, batch, *jumps)
        )
        return view.reshape(self.weight[0].numel(), -1)

    def transposed(self, gradient: Tensor, maps: Sequence[int]) -> Tensor:
        """Return the gradient of the input, whose maps are `maps`, without padding."""
        batch, grid = gradient.shape[0], gradient.shape[2:]
        if self.groups > 1 or batch == 1 or prod(grid) >= _SMALL_MAP:
            none, shares = [0] * len(grid), torch.split(gradient, self._share(grid))
            found = [
                torch.ops.aten.convolution_backward(
                    share, share.new_empty(share.shape[0], self._channels, *maps), self.weight,
                    None, self.stride, none, self.dilation, False, none, self.groups,
                    [True, False, False],
                )[0]
                for share in shares
            ]  # fmt: skip
            return found[0] if len(found) == 1 else torch.cat(found)
        sizes = self.weight.shape[2:]
        rows = gradient.transpose(0, 1).reshape(gradient.shape[1], -1)
        spread = (self.weight.flatten(1).mT @ rows).view(self._channels, -1, batch, *grid)
        total = gradient.new_zeros(self._channels, batch, *maps)
        for index, place in enumerate(product(*(range(size) for size in sizes))):
            spans = zip(place, self.dilation, self.stride, grid, strict=True)
            to = [
                slice(at * gap, at * gap + step * (n - 1) + 1, step) for at, gap, step, n in spans
            ]
            total[:, :, *to] += spread[:, index]
        return total.transpose(0, 1).contiguous()

    @property
    def _channels(self) -> int:
        return self.groups * self.weight.shape[1]


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    found = tuple(int(one) for one in value)
    return found * dims if len(found) == 1 else found


def _box(tensor: Tensor) -> _Box | None:
    """Return where a map is not zero; None: nowhere."""
    somewhere = tensor.ne(0).flatten(0, 1).any(0)
    box = []
    for axis in range(somewhere.dim()):
        rest = [other for other in range(somewhere.dim()) if other != axis]
        along = (somewhere.any(rest) if rest else somewhere).nonzero()
        if not len(along):
            return None
        box.append((int(along[0]), int(along[-1]) + 1))
    return tuple(box)


def _convolve(inputs: Tensor, kernel: _Kernel, box: _Box | None) -> Tensor:
    """Return the convolution of inputs that are zero outside a box."""
    maps = inputs.shape[2:]
    grid = kernel.grid(maps)
    whole = tuple((0, length) for length in maps)
    if box == whole and not any(kernel.padding):
        return kernel.without_padding(inputs)
    if box == whole and prod(grid) >= _SMALL_MAP:
        return kernel.by_torch(inputs, kernel.padding)
    reached, window, pads = list[slice](), list[slice](), list[int]()
    axes = zip(box or (), maps, grid, kernel.padding, kernel.spans, kernel.stride, strict=bool(box))
    for (low, high), length, n, pad, span, step in axes:
        first = max(0, -(-(low + pad - span + 1) // step))
        last = min(n, (high - 1 + pad) // step + 1)
        if first >= last:
            box = None
            break
        begin, end = first * step - pad, (last - 1) * step - pad + span
        reached.append(slice(first, last))
        window.append(slice(max(0, begin), min(length, end)))
        pads = [max(0, -begin), max(0, end - length), *pads]  # the last axis first
    if box is None:
        return inputs.new_zeros(inputs.shape[0], kernel.weight.shape[0], *grid)
    part = kernel.without_padding(functional.pad(inputs[:, :, *window], pads))
    if part.shape[2:] == grid:
        return part
    output = inputs.new_zeros(*part.shape[:2], *grid)
    output[:, :, *reached] = part
    return output


def _pull(gradient: Tensor, kernel: _Kernel, maps: Sequence[int], box: _Box | None) -> Tensor:
    """Return the gradient of the input, from that of the output, which is zero outside a box."""
    shape = gradient.shape[0], kernel.groups * kernel.weight.shape[1], *maps
    if box is None:
        return gradient.new_zeros(shape)
    cut = gradient[:, :, *[slice(low, high) for low, high in box]].contiguous()
    sizes = [
        (n - 1) * step + span
        for n, step, span in zip(cut.shape[2:], kernel.stride, kernel.spans, strict=True)
    ]
    part = kernel.transposed(cut, sizes)
    if part.shape == shape and not any(kernel.padding):
        return part
    to, where = list[slice](), list[slice]()
    axes = zip(box, sizes, maps, kernel.stride, kernel.padding, strict=True)
    for (low, _), size, length, step, pad in axes:
        begin = low * step - pad
        first = min(max(0, begin), length)
        last = max(first, min(length, begin + size))
        to.append(slice(first, last))
        where.append(slice(first - begin, last - begin))
    found = gradient.new_zeros(shape)
    found[:, :, *to] = part[:, :, *where]
    return found


class _Convolve(torch.autograd.Function):
    """The convolution of a kernel that is not differentiated."""

    @staticmethod
    def forward(inputs: Tensor, kernel: _Kernel, is_tangent: bool) -> Tensor:
        """Return the convolution; that of a tangent has no bias, and may be zero in parts."""
        inputs = inputs.contiguous()
        if is_tangent:
            return _convolve(inputs, kernel, _box(inputs))
        output = _convolve(inputs, kernel, tuple((0, length) for length in inputs.shape[2:]))
        if kernel.bias is not None:
            output += kernel.bias.view(-1, *[1] * (output.dim() - 2))
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the kernel; the derivative needs no values."""
        del output
        ctx.kernel, ctx.maps = inputs[1], inputs[0].shape[2:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradient of the input."""
        return _batched(_Pull, gradient, ctx.kernel, ctx.maps), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: None) -> Any:
        """Return the tangent of the output."""
        return _applied(_Convolve, tangent, ctx.kernel, True)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], inputs: Tensor, *others: Any) -> Any:
        """Return the convolution of the samples as one batch."""
        del info
        return _as_one_batch(_Convolve, in_dims[0], inputs, others)


class _Pull(torch.autograd.Function):
    """The gradient of a convolution's input, a linear function of that of its output."""

    @staticmethod
    def forward(gradient: Tensor, kernel: _Kernel, maps: Sequence[int]) -> Tensor:
        """Return the gradient of an input with some maps."""
        return _pull(gradient, kernel, maps, _box(gradient))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the kernel; the derivative needs no values."""
        del output
        ctx.kernel, ctx.maps = inputs[1], inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradient of the gradient: the convolution again."""
        return _batched(_Convolve, gradient, ctx.kernel, True), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Any, *_: None) -> Any:
        """Return the tangent of the gradient."""
        return _applied(_Pull, tangent, ctx.kernel, ctx.maps)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], gradient: Tensor, *others: Any) -> Any:
        """Return the gradients of the samples as one batch."""
        del info
        return _as_one_batch(_Pull, in_dims[0], gradient, others)


def _applied(function: Any, tensor: Tensor, *others: Any) -> Tensor:
    found: Tensor = function.apply(tensor, *others)
    return found


def _batched(function: Any, gradient: Tensor, *others: Any) -> Tensor:
    """Return a function of a gradient, which may be several with `is_grads_batched`."""
    level = grads_batched(gradient)
    if not level:
        return _applied(function, gradient, *others)
    # The third argument is of a gradient that is not batched.
    every = torch._remove_batch_dim(gradient, level, 1, 0)  # as is_grads_batched does
    found = _batched(function, every.flatten(0, 1), *others)
    found = found.view(*every.shape[:2], *found.shape[1:])
    added: Tensor = torch._add_batch_dim(found, 0, level)
    return added


def _as_one_batch(function: Any, axis: int, tensor: Tensor, others: tuple[Any, ...]) -> Any:
    moved = tensor.movedim(axis, 0)
    found = function.apply(moved.flatten(0, 1), *others)
    return found.view(*moved.shape[:2], *found.shape[1:]), 0
