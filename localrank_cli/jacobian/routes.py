"""Three ways to the same Jacobians: forward mode, reverse mode, and row by row."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vmap

from localrank_cli.jacobian.batch import Batch
from localrank_cli.layers.capture import Call


def forward_jacobians(batch: Batch, calls: Sequence[Call], chunk: int) -> list[Tensor]:
    """Return the Jacobians of several calls by forward mode, `chunk` directions at a time.

    One direction costs about one forward pass and serves all calls at once. Each Jacobian has shape
    (points, n_out, n_in), in the dtype of the varied tensor.
    """
    jacobians: list[Tensor] = []
    for start in range(0, batch.n_in, chunk):
        stop = min(start + chunk, batch.n_in)
        tangents = pushforward(batch, calls, unit_rows(start, stop, batch.varied))
        if not jacobians:
            # Column by column in memory, as they come: written row by row they took a fifth of the
            # time of a decoder's analysis. What reads them takes either order.
            jacobians = [
                batch.varied.new_empty(batch.n_in, batch.n_points, tangent.shape[2]).permute(
                    1, 2, 0
                )
                for tangent in tangents
            ]
        for jacobian, tangent in zip(jacobians, tangents, strict=True):
            jacobian[:, :, start:stop] = tangent.permute(1, 2, 0)
    return jacobians


def pushforward(batch: Batch, calls: Sequence[Call], directions: Tensor) -> tuple[Tensor, ...]:
    """Return J v for each call, (directions, points, n_out).

    The directions have shape (directions, n_in), the same at every point, or (directions, points,
    n_in).
    """
    whole = batch.without_metric()

    def along(direction: Tensor) -> tuple[Tensor, ...]:
        """Return J v for each call along one direction."""
        tangent = direction if direction.dim() > 1 else direction.unsqueeze(0)
        if batch.metric is not None:  # once for all points
            tangent = batch.metric.step(tangent, whole.n_in)
        pair = jvp(
            lambda varied: whole.outputs(varied, calls, early=True),
            (whole.varied,),
            (tangent.expand_as(whole.varied),),
        )
        tangents: tuple[Tensor, ...] = pair[1]
        return tangents

    found = tuple(vmap(along)(directions))
    batch.advance(directions.shape[0])
    return found


def reverse_jacobian(batch: Batch, call: Call, chunk: int) -> Tensor:
    """Return the Jacobian of one call by reverse mode, (points, n_out, n_in).

    One row costs about one backward pass to that depth: cheap for narrow outputs. `chunk` rows are
    computed at a time; 1 walks row by row, which every differentiable model allows.
    """
    varied = batch.varied.detach().requires_grad_(True)
    with torch.enable_grad():
        (output,) = batch.outputs(varied, [call])
    n_out = output.shape[1]
    if not output.requires_grad:  # a layer of zero weight beside the first, for example
        batch.advance(n_out)
        return batch.varied.new_zeros(batch.n_points, n_out, batch.n_in)
    jacobian = batch.varied.new_empty(batch.n_points, n_out, batch.n_in)
    for start in range(0, n_out, chunk):
        stop = min(start + chunk, n_out)
        cotangents = unit_rows(start, stop, output).unsqueeze(1).expand(-1, *output.shape)
        keep = stop < n_out
        if chunk == 1:
            (rows,) = torch.autograd.grad(output, varied, cotangents[0], retain_graph=keep)
            rows = rows.unsqueeze(0)
        else:
            # Not torch.func.vjp: this handles every operation that has a backward, in place too.
            (rows,) = torch.autograd.grad(
                output, varied, cotangents, retain_graph=keep, is_grads_batched=True
            )
        jacobian[:, start:stop, :] = rows.movedim(0, 1)
        batch.advance(stop - start)
    return jacobian


def pullback(batch: Batch, call: Call, cotangent: Tensor) -> Tensor:
    """Return u^T J at every point, (points, n_in), of u with shape (points, n_out).

    Exact zeros where the output does not depend on the varied tensor.
    """
    return next(pullbacks(batch, call, [cotangent]))


def pullbacks(batch: Batch, call: Call, cotangents: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield u^T J for several u, as `pullback` does, from one forward pass."""
    varied = batch.varied.detach().requires_grad_(True)
    with torch.enable_grad():
        (output,) = batch.outputs(varied, [call])
    for index, cotangent in enumerate(cotangents):
        if not output.requires_grad:
            yield torch.zeros_like(batch.varied)
            continue
        (row,) = torch.autograd.grad(
            contraction([output], [cotangent]),
            varied,
            allow_unused=True,
            retain_graph=index + 1 < len(cotangents),
        )
        yield torch.zeros_like(batch.varied) if row is None else row


def contraction(outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensor:
    """Return the sum of the products of outputs and cotangents, whose gradient is u^T J.

    Torch imports sympy to check cotangents that are given to it: half a second of a short run.
    """
    with torch.enable_grad():
        total = torch.zeros((), dtype=outputs[0].dtype, device=outputs[0].device)
        for output, cotangent in zip(outputs, cotangents, strict=True):
            total = total + (output * cotangent).sum()
    return total


def normal_direction(width: int, like: Tensor) -> Tensor:
    """Return a standard normal v of a width, the same numbers on every device."""
    generator = torch.Generator("cpu").manual_seed(20241007)
    return torch.randn(width, generator=generator, dtype=torch.float64, device="cpu").to(like)


def unit_rows(start: int, stop: int, like: Tensor) -> Tensor:
    """Return rows `start` to `stop` of the identity, as wide as `like`, in its dtype."""
    rows = like.new_zeros(stop - start, like.shape[1])
    rows.diagonal(start).fill_(1)
    return rows
