"""A group of points as one function: varied tensor -> outputs of the chosen calls."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from localrank_cli.jacobian.layout import Layout
from localrank_cli.layers.capture import Call, Capture


@dataclass(frozen=True)
class Batch:
    """Points that may be computed together, and where they stand in every tensor.

    A batch is made only by `jacobian.guards`, which shows that together they give what they give
    alone.
    """

    model: nn.Module
    inputs: Tensor  # (points, ...), given to the model
    varied: Tensor  # (points, n_in), the varied tensor, flat
    varied_layout: Layout
    layouts: dict[Call, Layout]  # of the outputs
    wrt: Call | None

    @property
    def n_points(self) -> int:
        """How many points."""
        return self.varied.shape[0]

    @property
    def n_in(self) -> int:
        """Entries of the varied tensor for one point."""
        return self.varied.shape[1]

    def outputs(self, varied: Tensor, calls: Sequence[Call]) -> tuple[Tensor, ...]:
        """The function to differentiate.

        Args:
            varied: Shape (points, n_in).
            calls: The calls wanted.

        Returns:
            For each call, shape (points, n_out).
        """
        joined = self.varied_layout.join(varied)
        capture = Capture(self.model, calls, self.wrt)
        tensors = capture(joined) if self.wrt is None else capture(self.inputs, joined)
        return tuple(
            self.layouts[call].split(tensor) for call, tensor in zip(calls, tensors, strict=True)
        )
