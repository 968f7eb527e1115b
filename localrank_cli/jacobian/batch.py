"""A batch of points as one function: varied tensor -> outputs of the chosen calls.

`Layout` describes where the points of a batch are in a tensor inside the network.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.layers.capture import Call, Capture, How
from localrank_cli.layers.replay import Replay
from localrank_cli.layers.triangle import Triangle


@dataclass(frozen=True)
class Layout:
    """The layout of a batch of points in a tensor: along one axis, point after point.

    A tensor inside a network need not have the batch first (an inner sequence-first block), and its
    batch axis may be merged with another one (windows of an image).
    """

    axis: int
    shape: tuple[int, ...]  # of the same tensor for a batch of one point

    @classmethod
    def find(cls, one: tuple[int, ...], batch: tuple[int, ...], n_points: int) -> "Layout | None":
        """Return the layout of a batch, from its shape and that for one point; `n_points` >= 1.

        None where no single axis has grown by the factor `n_points`.
        """
        if not one or len(one) != len(batch):
            return None
        if n_points == 1:
            return cls(0, one)
        grown = [axis for axis in range(len(one)) if one[axis] != batch[axis]]
        if len(grown) != 1 or batch[grown[0]] != n_points * one[grown[0]]:
            return None
        return cls(grown[0], one)

    def split(self, tensor: Tensor) -> Tensor:
        """Return a tensor in this layout as (points, numel for one point)."""
        if not self.shape:  # one number, which only a point alone can give
            return tensor.reshape(1, 1)
        length = self.shape[self.axis]
        n_points = tensor.shape[self.axis] // length
        before, after = tensor.shape[: self.axis], tensor.shape[self.axis + 1 :]
        parts = tensor.reshape(*before, n_points, length, *after)
        return torch.movedim(parts, self.axis, 0).reshape(n_points, -1)

    def join(self, flat: Tensor) -> Tensor:
        """Undo `split`."""
        if not self.shape:
            return flat.reshape(())
        parts = flat.reshape(flat.shape[0], *self.shape)
        return torch.movedim(parts, 0, self.axis).flatten(self.axis, self.axis + 1)


@dataclass(frozen=True)
class Batch:
    """Points that may be computed together, and their layout in every tensor.

    A batch is built only by `jacobian.guards`, which shows that together the points give the same
    values as alone.
    """

    model: nn.Module
    inputs: Tensor  # (points, ...), the model's input
    varied: Tensor  # (points, n_in), the varied tensor, flat; with a metric z = 0, (points, k)
    varied_layout: Layout
    layouts: dict[Call, Layout]  # of the outputs
    wrt: Call | None
    metric: MetricFactor | None = None
    origin: Tensor | None = None  # with a metric, the varied tensor itself, (points, n_in)
    # Entries of outputs: (m,), or (points, m) where they differ by point; none: all.
    picked: Mapping[Call, Tensor] = field(default_factory=dict)
    triangles: Mapping[Call, Triangle] = field(default_factory=dict)
    replay: Replay | None = None  # of what comes before the varied tensor
    error: float = 0.0  # bound on the change of a singular value by a reduction of the input
    advance: Callable[[int], None] = lambda _: None  # receives how many passes were made

    @property
    def n_points(self) -> int:
        """The number of points."""
        return self.varied.shape[0]

    @property
    def n_in(self) -> int:
        """Columns of the Jacobian: entries of the varied tensor, or of z."""
        return self.varied.shape[1]

    def in_metric(self, metric: MetricFactor | None, picked: Mapping[Call, Tensor]) -> "Batch":
        """Return the batch whose Jacobians are J L: z -> f(x + L z) at z = 0 in place of f at x.

        Without a metric the varied tensor stays. `picked` holds the indices of the wanted entries
        of outputs; all entries of outputs that it does not name are wanted.
        """
        batch = replace(self, picked={k: v.to(self.varied.device) for k, v in picked.items()})
        if metric is None:
            return batch
        steps = self.varied.new_zeros(self.n_points, metric.width(self.varied.shape[1]))
        return replace(batch, varied=steps, metric=metric, origin=self.varied)

    def without_metric(self) -> "Batch":
        """Return the batch whose varied tensor is x itself."""
        if self.origin is None:
            return self
        return replace(self, varied=self.origin, metric=None, origin=None)

    def outputs(
        self, varied: Tensor, calls: Sequence[Call], *, early: bool = False
    ) -> tuple[Tensor, ...]:
        """Return the outputs of some calls, each (points, n_out): the function to differentiate.

        `varied` has shape (points, n_in); with a metric it is z, (points, k). With `early` the
        entries that are wanted are taken as soon as an output is there, which saves memory. That
        is not for reverse mode: where a checkpoint recomputes it, it would not happen again.
        """
        if self.metric is not None and self.origin is not None:
            varied = self.origin + self.metric.step(varied, self.origin.shape[1])
        joined = self.varied_layout.join(varied)
        capture = Capture(
            self.model,
            calls,
            self.wrt,
            how=How(read=self._part if early else None, inputs_of=self.triangles),
        )
        with self.replay.active() if self.replay is not None else nullcontext():
            given = (joined,) if self.wrt is None else (self.inputs, joined)
            tensors = capture(*given)
        if early:
            return tensors
        return tuple(self._part(call, one) for call, one in zip(calls, tensors, strict=True))

    def _part(self, call: Call, tensor: Tensor) -> Tensor:
        triangle = self.triangles.get(call)
        if triangle is not None:
            tensor = triangle.output(self.model.get_submodule(call.name), tensor)
        output = self.layouts[call].split(tensor)
        entries = self.picked.get(call)
        if entries is None:
            return output
        return output.index_select(1, entries) if entries.dim() == 1 else output.gather(1, entries)
