"""Which axes of a tensor in a network hold points, features and positions.

A tensor of shape (1, T, d) has T tokens as positions, one of shape (1, C, H, W) has H x W places,
and one of shape (1, d) a single position.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import LayerError
from localrank_cli.layers.capture import Call
from localrank_cli.layers.factored import Factored
from localrank_cli.layers.kinds import is_affine_layer
from localrank_cli.layers.outputs import first_tensor
from localrank_cli.layers.survey import CallRecord
from localrank_cli.layers.transforms import is_vmapped

INPUT = "input"  # the name of the network's input in `--feature-axis`

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_FEATURES_FIRST = (
    *_CONVOLUTIONS,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
)
_FEATURES_LAST = (
    nn.Linear, nn.Bilinear, nn.LayerNorm, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
    nn.MultiheadAttention,
)  # fmt: skip
# Other libraries' classes of these kinds, by their names; of images they may do otherwise.
_FEATURES_LAST_NAMES = re.compile(r"(LayerNorm|RMSNorm|Attention|(RNN|LSTM|GRU)(Cell)?)$")


@dataclass(frozen=True)
class Axes:
    """The axes of a tensor for a batch of one point, as `real_parts`."""

    shape: tuple[int, ...]
    batch: int | None  # of length 1; None where no axis is that of the points alone
    feature: int | None  # None: the tensor has one entry for each position
    is_complex: bool = False  # the last axis is that of real and imaginary parts
    is_guess: bool = False  # another axis is as long as that of features, and nothing shows which

    @property
    def positions(self) -> tuple[int, ...]:
        """The axes that are neither that of the points nor of features."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self._others)

    @property
    def grid(self) -> tuple[int, ...]:
        """The lengths of the position axes; empty for a single position."""
        return tuple(self.shape[axis] for axis in self.positions)

    @property
    def n_positions(self) -> int:
        """The number of positions."""
        return math.prod(self.grid)

    @property
    def n_features(self) -> int:
        """Entries of the tensor at one position."""
        return math.prod(self.shape[axis] for axis in self._features)

    @property
    def _features(self) -> tuple[int, ...]:
        parts = (len(self.shape) - 1,) if self.is_complex else ()
        return ((self.feature,) if self.feature is not None else ()) + parts

    @property
    def _others(self) -> tuple[int, ...]:
        return (*self._features, *((self.batch,) if self.batch is not None else ()))

    def with_features(self, count: int) -> "Axes":
        """Return the axes of a tensor with another number of features."""
        assert self.feature is not None
        shape = [*self.shape]
        shape[self.feature] = count
        return replace(self, shape=tuple(shape))

    def entries(self, positions: Tensor) -> Tensor:
        """Return the entries at some positions, as indices into the flat tensor.

        `positions` has any shape, int64, CPU, and counts along the flat grid; the result has one
        more axis, of `n_features`.
        """
        index = torch.arange(math.prod(self.shape), device="cpu").reshape(self.shape)
        order = (*self.positions, *self._features)
        rest = [axis for axis in range(len(self.shape)) if axis not in order]
        table = index.permute(*order, *rest).reshape(self.n_positions, self.n_features)
        return table[positions]

    def text(self) -> str:
        """Return the shape with the meaning of its axes: `1 point x 8 positions x 16 features`."""
        names = []
        for axis, length in enumerate(self.shape):
            kind = "position"
            if axis == self.batch:
                kind = "point"
            elif axis == self.feature:
                kind = "feature"
            elif axis in self._features:
                kind = "part"
            names.append(f"{length} {kind}{'s' if length != 1 else ''}")
        return " x ".join(names)


@dataclass(frozen=True)
class FeatureAxis:
    """What `--feature-axis` says: the feature axis of modules whose names a glob matches."""

    axis: int  # of the module's output, the batch axis counted; negative: from the end
    pattern: str = "*"


@dataclass(frozen=True)
class _Seen:
    """What a pass of two points shows of one call."""

    call: Call
    module: nn.Module
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Taken:
    """A tensor that a module of a known kind takes."""

    kind: str  # where the module has its features, `first` or `last`
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    is_input: bool  # whether it is the network's input itself, or a view of it
    # The axis of the input on which its features lie by the derivative, if that shows one.
    derived: int | None = None

    @property
    def feature(self) -> int:
        """The index of the axis of features."""
        return 1 if self.kind == "first" else len(self.shape) - 1


def find_axes(
    model: nn.Module,
    point: Tensor,
    records: Sequence[CallRecord],
    overrides: Sequence[FeatureAxis] = (),
) -> tuple[dict[Call, Axes], Axes]:
    """Return the axes of the calls' outputs, and those of the network's input.

    The batch axis is the one that doubles from a batch of one to a batch of two. To be called
    within `analysis_setting`; `point` has shape (1, ...).

    Raises:
        LayerError: If an override does not fit a tensor.
    """
    seen, consumers = _run_of_two(model, point)
    shapes = {one.call: one.shape for one in seen}
    places = {one.call: index for index, one in enumerate(seen)}
    found = {}
    for record in records:
        shape = record.shape[:-1] if record.is_complex else record.shape
        batch = _doubled(shape, shapes.get(record.call))
        feature, is_guess = None, False
        if record.call in places and batch is not None:
            feature, is_guess = _feature_axis(seen, places[record.call], shape, batch)
        found[record.call] = Axes(record.shape, batch, feature, record.is_complex, is_guess)
    n_points = (2 * point.shape[0], *point.shape[1:])
    batch = _doubled(tuple(point.shape), n_points) if seen else None
    feature, is_guess = None, False
    if batch is not None:
        if _is_unclear(consumers, n_points):
            consumers = _run_of_two(model, point, derives=True)[1] or consumers
        feature, is_guess = _input_axis(consumers, n_points)
    whole = Axes(tuple(point.shape), batch, feature, is_guess=is_guess)
    found = _settled(found, model, point, whole)
    return {call: _overridden(axes, call, overrides) for call, axes in found.items()}, _overridden(
        whole, Call(INPUT), overrides
    )


def _settled(
    found: Mapping[Call, Axes], model: nn.Module, point: Tensor, whole: Axes
) -> dict[Call, Axes]:
    """Return the axes with guesses settled by a run of fewer positions, where the network takes it.

    The features of an output are as many as before, and its positions are fewer.
    """
    guesses = [call for call, axes in found.items() if axes.is_guess]
    if not guesses or whole.is_guess:
        return dict(found)
    fewer = point
    # Token ids have no features, and an axis of positions in place of it.
    cut = whole.positions if point.is_floating_point() else tuple(range(1, point.dim()))
    for axis in cut:
        fewer = fewer.narrow(axis, 0, -(-point.shape[axis] // 2))
    shapes = {one.call: one.shape for one in _run_of_two(model, fewer)[0]}
    settled = dict(found)
    for call in guesses:
        axes, shape = found[call], shapes.get(call, ())
        own = axes.shape[:-1] if axes.is_complex else axes.shape
        if len(shape) != len(own):
            continue
        kept = [i for i in range(len(own)) if i != axes.batch and shape[i] == own[i]]
        if len(kept) == 1:
            settled[call] = replace(axes, feature=kept[0], is_guess=False)
    return settled


def _run_of_two(
    model: nn.Module, point: Tensor, *, derives: bool = False
) -> tuple[list[_Seen], list[_Taken]]:
    """Return the calls of a pass of two points as they ended, and what may consume the input.

    That is the first module of a known kind that takes the input or a view of it, and the first one
    that takes a tensor with axes of the same lengths. With `derives`, derivatives show where the
    features of the latter lie in the input.
    """
    seen: list[_Seen] = []
    consumers: list[_Taken] = []
    counts: dict[str, int] = {}
    points = torch.cat([point, point]).contiguous()  # axes of views are found by their strides
    points.requires_grad_(derives and points.is_floating_point())

    def before(module: nn.Module, args: object, kwargs: object) -> None:
        """Note a module if it is the first to take the input, or a tensor with such axes."""
        tensor = first_tensor((args, kwargs))
        if tensor is None or is_vmapped(tensor, 0) or tensor.dim() < 2:
            return
        shape = tuple(tensor.shape)
        is_input = tensor.data_ptr() == points.data_ptr()
        if not is_input and sorted(shape) != sorted(points.shape):
            return
        kind = _takes_features(module, shape)
        if kind is not None and is_input not in [one.is_input for one in consumers]:
            taken = _Taken(kind, shape, tensor.stride(), is_input)
            if points.requires_grad and not is_input:
                taken = replace(taken, derived=_derived(points, tensor, taken.feature))
            consumers.append(taken)

    def after(name: str) -> Callable[..., None]:
        """Return a hook that notes each call of a module as it ends."""

        def hook(module: nn.Module, _: object, output: object) -> None:
            """Note a call that ends, with the shape of what it returns."""
            counts[name] = counts.get(name, 0) + 1
            tensor = first_tensor(output)
            if tensor is not None and not is_vmapped(tensor, 0):
                seen.append(_Seen(Call(name, counts[name]), module, tuple(tensor.shape)))

        return hook

    with _hooks(model, before, after), torch.set_grad_enabled(points.requires_grad):
        try:
            model(points)
        except Exception:  # a forward that only takes one point may raise anything
            return [], []
    return seen, consumers


@contextmanager
def _hooks(
    model: nn.Module, before: Callable[..., None], after: Callable[[str], Callable[..., None]]
) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _doubled(one: tuple[int, ...], two: tuple[int, ...] | None) -> int | None:
    """Return the axis that grew from 1 to 2 while all others stayed."""
    if two is None or len(one) != len(two):
        return None
    grown = [axis for axis in range(len(one)) if one[axis] != two[axis]]
    return grown[0] if len(grown) == 1 and (one[grown[0]], two[grown[0]]) == (1, 2) else None


def _takes_features(module: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Return where a kind of module has its features, `first` or `last`; None if unknown.

    `shape` is that of its output, or of its input.
    """
    if isinstance(module, Factored):
        module = module[-1]
    if isinstance(module, _FEATURES_FIRST):
        return "first"
    normalized = getattr(module, "normalized_shape", None)
    if normalized is not None and len(shape) > 2:
        # A LayerNorm of ConvNeXt moves the channels to the end and back.
        width = tuple(normalized)
        if shape[-len(width) :] != width and width == (shape[1],):
            return "first"
    rms = getattr(nn, "RMSNorm", None)  # since torch 2.4
    if isinstance(module, _FEATURES_LAST) or is_affine_layer(module):
        return "last"
    if rms is not None and isinstance(module, rms):
        return "last"
    is_named = len(shape) <= 3 and _FEATURES_LAST_NAMES.search(type(module).__name__)
    return "last" if is_named else None


def _feature_axis(
    seen: Sequence[_Seen], place: int, shape: tuple[int, ...], batch: int
) -> tuple[int | None, bool]:
    """Return the feature axis of an output, and whether it is a guess."""
    others = [axis for axis in range(len(shape)) if axis != batch]
    if len(others) < 2:
        return (others[0] if others else None), False
    one = seen[place]
    kind = _takes_features(one.module, shape)
    is_guess = kind is None and len({shape[axis] for axis in others}) == 1
    if kind is None:
        kind = _kind_by_modules(seen, place, [shape[axis] for axis in others])
    return (others[0] if kind == "first" else others[-1]), is_guess


def _kind_by_modules(seen: Sequence[_Seen], place: int, lengths: Sequence[int]) -> str:
    """Return where an output of another kind of module has its features.

    As its last submodule of a known kind with an output of that shape, else as the last module of
    a known kind that ran before it with as many axes. `lengths` are those of the output's axes
    without that of the points.
    """
    one = seen[place]
    prefix = one.call.name + "."
    inside = [
        other
        for other in seen[:place]
        if other.call.name.startswith(prefix) and other.shape == one.shape
    ]
    n_axes = len(lengths) + 1
    for other in reversed([*(o for o in seen[:place] if len(o.shape) == n_axes), *inside]):
        kind = _takes_features(other.module, other.shape)
        if kind is not None:
            return _turned(other, kind, lengths) or _of_sequence(other, kind, one.shape)
    return "first" if n_axes >= 4 else "last"


def _turned(before: _Seen, kind: str, lengths: Sequence[int]) -> str:
    """Return where features are after a turn such as from (channels, length) to (length, channels).

    Empty if the lengths do not show that there was one.
    """
    features, places = before.shape[1], [*before.shape[2:]]
    if kind == "last":
        features, places = before.shape[-1], [*before.shape[1:-1]]
    first, last = [features, *places], [*places, features]
    if first == last:
        return ""
    now = {"first": last, "last": first}[kind]
    return {"first": "last", "last": "first"}[kind] if now == [*lengths] else ""


def _of_sequence(before: _Seen, kind: str, shape: tuple[int, ...]) -> str:
    """Return where an output has its features by the module before it, turned or not."""
    is_followed = before.shape == shape or isinstance(before.module, _CONVOLUTIONS)
    # Of three axes, norms and pooling say little: they are often used on turned tokens.
    return kind if len(shape) > 3 or is_followed else "last"


def _derived(points: Tensor, taken: Tensor, feature: int) -> int | None:
    """Return the axis of the points along which one feature of a tensor is a single entry.

    None where the tensor comes from the points otherwise than entry by entry.
    """
    length = taken.shape[feature]
    if not taken.requires_grad:
        return None
    found: set[int] = set()
    for index in {0, length - 1}:
        total = taken.select(feature, index).sum()
        (gradient,) = torch.autograd.grad(total, points, retain_graph=True, allow_unused=True)
        if gradient is None:
            return None
        reached = gradient != 0
        single = {
            axis
            for axis in range(1, points.dim())
            if points.shape[axis] == length
            and not reached.movedim(axis, 0)[torch.arange(length) != index].any()
            and bool(reached.select(axis, index).all())
        }
        found = single if not found else found & single
    return next(iter(found)) if len(found) == 1 else None


def _is_unclear(consumers: Sequence[_Taken], shape: tuple[int, ...]) -> bool:
    """Return whether a copy of the input alone is taken, and its features fit several axes."""
    if not consumers or any(one.is_input for one in consumers):
        return False
    return [*shape[1:]].count(consumers[0].shape[consumers[0].feature]) > 1


def _input_axis(consumers: Sequence[_Taken], shape: tuple[int, ...]) -> tuple[int | None, bool]:
    """Return the feature axis of the network's input, and whether it is a guess.

    `shape` is that of the input for two points.
    """
    others = range(1, len(shape))
    if len(others) < 2:
        return (others[0] if others else None), False
    for taken in sorted(consumers, key=lambda one: not one.is_input):
        length, stride = taken.shape[taken.feature], taken.stride[taken.feature]
        if taken.is_input:
            # A view turns axes, cuts, flattens or adds them: what stays of one is its stride.
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            same = [axis for axis in others if strides[axis] == stride and length <= shape[axis]]
            if not same and length == 1:
                return None, False  # an added axis: each entry is a position
        elif taken.derived is not None:
            return taken.derived, False
        elif taken.shape == shape:
            same = [taken.feature]
        else:
            same = [axis for axis in others if shape[axis] == length]
            same = same if len(same) == 1 else []
        if same:
            found = taken.feature if taken.feature in same else same[0]
            return found, _is_unclear(consumers, shape)
    return (others[0] if len(shape) >= 4 else others[-1]), True


def _overridden(axes: Axes, call: Call, overrides: Sequence[FeatureAxis]) -> Axes:
    for one in overrides:
        if not (fnmatchcase(call.name, one.pattern) or fnmatchcase(call.label, one.pattern)):
            continue
        n_axes = len(axes.shape) - axes.is_complex
        axis = one.axis if one.axis >= 0 else n_axes + one.axis
        if not 0 <= axis < n_axes or axis == axes.batch:
            raise LayerError(
                f"--feature-axis {one.axis}: {call.label!r} has shape {axes.shape} for one point,"
                f" and axis {one.axis} is not one of its features.",
                "Give an axis within the shape (axis 0 holds the points), or NAME=AXIS for single"
                " modules.",
            )
        axes = replace(axes, feature=axis, is_guess=False)
    return axes


def check_known(overrides: Sequence[FeatureAxis], found: Mapping[Call, Axes]) -> None:
    """Check that each name of `--feature-axis` is that of a module that runs.

    Raises:
        LayerError: If one is not.
    """
    labels = [INPUT, *(call.name for call in found), *(call.label for call in found)]
    for one in overrides:
        if not any(fnmatchcase(label, one.pattern) for label in labels):
            raise LayerError(
                f"--feature-axis {one.pattern}={one.axis}: no module that runs has such a name.",
                f"Use the names of the layers, or {INPUT} for the network's input.",
            )
