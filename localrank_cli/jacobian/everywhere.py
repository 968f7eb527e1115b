"""One output over all of the data: for covariances, samples and scores, not for Jacobians."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError
from localrank_cli.jacobian.layout import Layout
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.outputs import first_tensor

# Points on which a batch is held against its points alone.
_TRIED = 4


def outputs_everywhere(
    model: nn.Module, chunks: Iterable[Tensor], call: Call | None, tolerance: float
) -> Iterator[Tensor]:
    """Runs a model over data, many points at a time where that gives what they give alone.

    To be called within `analysis_setting`.

    Args:
        model: The network.
        chunks: Each (some points, ...), on the model's device.
        call: Whose output is wanted; None for that of the network.
        tolerance: Relative difference below which two computations of one value agree.

    Yields:
        For each chunk, shape (points, numel).
    """
    forward = _forward(model, call)
    together: bool | None = None
    for chunk in chunks:
        with torch.no_grad():
            if together is None:
                together = _is_separate(forward, chunk[:_TRIED], tolerance)
            if together:
                yield _split(forward, chunk, chunk.shape[0])
                continue
            yield torch.cat([_split(forward, chunk[i : i + 1], 1) for i in range(chunk.shape[0])])


def _forward(model: nn.Module, call: Call | None) -> Callable[[Tensor], Tensor]:
    capture = None if call is None else Capture(model, [call])

    def forward(batch: Tensor) -> Tensor:
        try:
            # A clone: a model may change its input in place.
            found = first_tensor(model(batch.clone())) if capture is None else capture(batch)[0]
        except LocalrankError:
            raise
        except Exception as error:  # whatever a user's forward may raise
            raise ModelError(
                f"the model's forward pass failed on the data: {type(error).__name__}:"
                f" {' '.join(str(error).split())[:300]}",
                "It ran at the drawn points: look for points that differ from them.",
            ) from error
        if found is None or not found.is_floating_point():
            raise ModelError("the model's output holds no floating-point tensor.")
        return found

    return forward


def _split(forward: Callable[[Tensor], Tensor], points: Tensor, count: int) -> Tensor:
    """Outputs of a batch that is known to be separate, point by point."""
    tensor = forward(points)
    if count == 1:
        return tensor.reshape(1, -1)
    one = tuple(forward(points[:1]).shape)
    layout = Layout.find(one, tuple(tensor.shape), count)
    if layout is None:
        raise ModelError("the shape of the model's output depends on the point.")
    return layout.split(tensor)


def _is_separate(forward: Callable[[Tensor], Tensor], points: Tensor, tolerance: float) -> bool:
    count = points.shape[0]
    if count == 1:
        return True
    alone = torch.cat([_split(forward, points[index : index + 1], 1) for index in range(count)])
    try:
        together = _split(forward, points, count)
    except ModelError:
        return False
    scale = float(alone.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(together, alone, rtol=0, atol=tolerance * scale, equal_nan=True)
