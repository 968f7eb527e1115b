"""Where the points stand in a batched tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a batch of points lies in a tensor: along one axis, point after point.

    A tensor inside a network need not have the batch first (an inner sequence-first block), and
    its batch axis may be merged with another one (windows of an image).
    """

    axis: int
    shape: tuple[int, ...]  # of the same tensor for a batch of one point

    @classmethod
    def find(cls, one: tuple[int, ...], batch: tuple[int, ...], n_points: int) -> "Layout | None":
        """Compares the shapes for one point and for a batch.

        Args:
            one: Shape for a batch of one point.
            batch: Shape for a batch of `n_points`.
            n_points: At least 1.

        Returns:
            The layout, or None where no single axis has grown by the factor `n_points`.
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
        """Makes the points the first axis, everything else one flat axis.

        Args:
            tensor: In this layout.

        Returns:
            Shape (points, numel for one point).
        """
        if not self.shape:  # one number, which only a point alone can give
            return tensor.reshape(1, 1)
        length = self.shape[self.axis]
        n_points = tensor.shape[self.axis] // length
        before, after = tensor.shape[: self.axis], tensor.shape[self.axis + 1 :]
        parts = tensor.reshape(*before, n_points, length, *after)
        return torch.movedim(parts, self.axis, 0).reshape(n_points, -1)

    def join(self, flat: Tensor) -> Tensor:
        """Undoes `split`.

        Args:
            flat: Shape (points, numel for one point).

        Returns:
            The tensor in this layout.
        """
        if not self.shape:
            return flat.reshape(())
        parts = flat.reshape(flat.shape[0], *self.shape)
        return torch.movedim(parts, 0, self.axis).flatten(self.axis, self.axis + 1)
