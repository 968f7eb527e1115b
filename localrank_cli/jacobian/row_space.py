"""Fewer directions: the varied tensor reduced to the row space of the layer that it has to pass.

Where everything that is computed from the varied tensor x is computed from W x, with W of shape
r x n_in and r < n_in, J = J' W at every layer behind. With V an orthonormal basis of the row space,
W^T = V R, the singular values of J V are those of J, zeros apart: forward mode needs r directions
instead of n_in, and whatever mode is used the matrices have r columns.

Nothing is concluded from the form of the network: a skip connection around the layer, a layer that
sees tokens one by one or an operation before it make the step wrong. What is checked, at every
point and for every layer, is J (1 - V V^T) = 0: for a random u the row u^T J comes from one
backward pass, and the mean square of |u^T J (1 - V V^T)| is |J (1 - V V^T)|_F^2, which bounds the
change of every singular value (Weyl).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.guards import random_cotangent
from localrank_cli.jacobian.layout import Layout
from localrank_cli.jacobian.metric import Metric
from localrank_cli.jacobian.routes import pullback, reverse_jacobian
from localrank_cli.layers.survey import CallRecord

# Jacobians of fewer rows cost little more than the checks.
WORTH_ROWS = 32
# Of n_in: a smaller gain does not pay for the checks.
_WORTH = 0.75
# A skip connection leaks by as much as the Jacobian itself: no random row misses it. Leaks as small
# as rounding are estimated: the largest of three norms is under a third of the Frobenius norm twice
# in a hundred times if they stand in one row, and practically never if they are spread.
_PROBES = 3
_ALLOWANCE = 3.0


def bottleneck(records: Sequence[CallRecord], n_in: int) -> CallRecord | None:
    """Finds the layer that may reduce the input.

    Args:
        records: All calls, in order of execution.
        n_in: Entries of the varied tensor.

    Returns:
        The first affine layer that depends on the varied tensor, if it is narrow enough.
    """
    first = next((record for record in records if record.affine and record.depends), None)
    return first if first is not None and first.numel <= _WORTH * n_in else None


def narrow(
    batch: Batch, through: CallRecord, records: Sequence[CallRecord], good: Tensor
) -> Batch | None:
    """Reduces a batch to the row space of a layer, if that is exact up to rounding.

    Args:
        batch: The points, in float64, without a metric.
        through: From `bottleneck`.
        records: All calls that are wanted.
        good: Which points have finite outputs, shape (points,), bool.

    Returns:
        The batch, with the bound on what a singular value may change by; None where some layer sees
        more than the row space.
    """
    if not bool(good.any()):
        return None
    alone = _only(batch, int(good.nonzero()[0]), through)
    weight = reverse_jacobian(alone, through.call, through.numel)[0]
    if not bool(torch.isfinite(weight).all()):
        return None
    basis = torch.linalg.qr(weight.mT).Q
    errors = []
    for record in records:
        leak, size = _seen(batch, record, basis)
        # sigma_1 is at least |J|_F / sqrt(r), and the reduction must not cost more than an SVD.
        rounding = max(record.numel, batch.n_in) * torch.finfo(weight.dtype).eps
        allowed = rounding * size / min(record.numel, through.numel) ** 0.5
        error = _ALLOWANCE * leak
        if not bool((error <= allowed)[good].all()):
            return None
        errors.append(float(error[good].max()))
    reduced = batch.measured_in(Metric(basis), batch.picked)
    return replace(reduced, error=max(errors))


def _only(batch: Batch, index: int, through: CallRecord) -> Batch:
    """One point of a batch, of which another layer is wanted."""
    return replace(
        batch,
        inputs=batch.inputs[index : index + 1].clone(),
        varied=batch.varied[index : index + 1].clone(),
        layouts={through.call: Layout(0, through.shape)},
        picked={},
    )


def _seen(batch: Batch, record: CallRecord, basis: Tensor) -> tuple[Tensor, Tensor]:
    """|J (1 - V V^T)|_F and |J|_F at each point, as random rows show them."""
    leak = size = batch.varied.new_zeros(batch.n_points)
    for probe in range(_PROBES):
        row = pullback(batch, record.call, random_cotangent(record.numel, batch, probe))
        outside = row - (row @ basis) @ basis.mT
        leak = torch.maximum(leak, outside.norm(dim=1))
        size = torch.maximum(size, row.norm(dim=1))
    return leak, size
