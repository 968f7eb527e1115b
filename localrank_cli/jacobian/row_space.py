"""Fewer directions: the varied tensor reduced to the row space of the layer that it has to pass.

Where everything that is computed from the varied tensor x is computed from W x, with W of shape
r x n_in and r < n_in, J = J' W at every layer behind. With V an orthonormal basis of the row space,
W^T = V R, the singular values of J V are those of J, up to zeros: forward mode needs r
directions instead of n_in, and whatever mode is used the matrices have r columns.

J' is the Jacobian with respect to the output of the layer. With S = W V, J V = J' S: directions
start there, and what comes before the layer is not differentiated.

Nothing is inferred from the form of the network: a skip connection around the layer, a layer that
sees tokens one by one or an operation before it make the step wrong. What is checked, at every
point and for every layer, is J = J' S V^T: for a random u the rows u^T J and u^T J' come from one
backward pass each, and the mean square of |u^T (J - J' S V^T)| is |J - J' S V^T|_F^2, which bounds
the change of every singular value (Weyl). Where only that fails, as the input reaches a layer on
another path in the same row space, J V itself is taken, if J (1 - V V^T) = 0 by the same check.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from localrank_cli.jacobian.batch import Batch, Layout
from localrank_cli.jacobian.guards import random_cotangent
from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.jacobian.routes import pullbacks, reverse_jacobian
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.survey import CallRecord

# A layer with more outputs, relative to n_in, saves too little to pay for the checks.
_MAX_WIDTH_RATIO = 0.75
# The reduction holds the weight of the layer, its transpose, and what their QR needs.
_WEIGHT_COPIES = 4
# A skip connection leaks by as much as the Jacobian itself: no random row misses it. Leaks as small
# as rounding are estimated: the largest of six norms is under a third of the Frobenius norm three
# times in ten thousand if they are in one row, and practically never if they are spread.
_PROBES = 6
_LEAK_FACTOR = 3.0  # from the largest norm to the bound on the leak
# Entries outside of this range have squares that a double cannot hold.
_SMALLEST, _LARGEST = 1e-100, 1e100


def bottleneck(
    records: Sequence[CallRecord], wanted: Sequence[CallRecord], n_in: int, budget: int
) -> CallRecord | None:
    """Return the layer that may reduce the input, for the calls that are wanted.

    It is the first affine layer that depends on the varied tensor, if it is narrow enough, its
    reduction fits in the budget of bytes, and it has no more rows than are wanted.
    """
    first = next((record for record in records if record.affine and record.depends), None)
    if first is None or first.numel > _MAX_WIDTH_RATIO * n_in:
        return None
    rows = sum(min(record.numel, n_in) for record in wanted)
    fits = _WEIGHT_COPIES * first.numel * n_in * torch.float64.itemsize <= budget
    return first if fits and first.numel <= rows else None


def narrow(
    batch: Batch,
    through: CallRecord,
    records: Sequence[CallRecord],
    good: Mapping[Call, Tensor],
    chunk: int,
) -> Batch | None:
    """Return a batch reduced to the row space of a layer, with the bound on what that changes.

    None where some layer sees more than the row space. The batch is in float64, without a metric;
    `good` says at which points each call's Jacobian is wanted, (points,) bool.
    """
    somewhere = torch.stack([good[record.call] for record in records]).any(dim=0)
    if not bool(somewhere.any()):
        return None
    alone = _single_point(batch, int(somewhere.nonzero()[0]), through)
    weight = reverse_jacobian(alone, through.call, max(2, min(chunk, through.numel)))[0]
    if not bool(torch.isfinite(weight).all()):
        return None
    basis = torch.linalg.qr(weight.mT).Q
    behind = _behind(batch, through)
    if behind is not None:
        reduced = behind.in_metric(MetricFactor(weight @ basis), batch.picked)
        error = _error(batch, reduced, basis, records, good)
        if error is not None:
            return replace(reduced, error=error)
    reduced = batch.in_metric(MetricFactor(basis), batch.picked)
    error = _error(batch, reduced, basis, records, good)
    return None if error is None else replace(reduced, error=error)


def _error(
    batch: Batch,
    reduced: Batch,
    basis: Tensor,
    records: Sequence[CallRecord],
    good: Mapping[Call, Tensor],
) -> float | None:
    """Return a bound on the change of a singular value by a reduction; None if it is too large."""
    errors = [0.0]
    for record in records:
        points = good[record.call]
        if not bool(points.any()):
            continue
        leak, size = _leak_and_size(batch, reduced, record, basis)
        # sigma_1 is at least |J|_F / sqrt(r), and the reduction must not cost more than an SVD.
        rounding = max(record.numel, batch.n_in) * torch.finfo(basis.dtype).eps
        allowed = rounding * size / min(record.numel, basis.shape[1]) ** 0.5
        error = _LEAK_FACTOR * leak
        # A comparison with NaN is false.
        if not bool((error <= allowed)[points].all()):
            return None
        errors.append(float(error[points].max()))
    return max(errors)


def _behind(batch: Batch, through: CallRecord) -> Batch | None:
    """Return the batch whose varied tensor is the output of a layer; None where it has no place."""
    if through.is_complex:
        return None
    with torch.no_grad():
        (output,) = Capture(batch.model, [through.call])(batch.inputs)
    layout = Layout.find(through.shape, tuple(output.shape), batch.n_points)
    if layout is None or output.dtype != batch.varied.dtype:
        return None
    varied = layout.split(output).clone()
    return replace(batch, varied=varied, varied_layout=layout, wrt=through.call)


def _single_point(batch: Batch, index: int, through: CallRecord) -> Batch:
    """Return a batch of one point, for another layer."""
    return replace(
        batch,
        inputs=batch.inputs[index : index + 1].clone(),
        varied=batch.varied[index : index + 1].clone(),
        layouts={through.call: Layout(0, through.shape)},
        picked={},
    )


def _leak_and_size(
    batch: Batch, reduced: Batch, record: CallRecord, basis: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimate |J - M V^T|_F, M being the reduced Jacobian, and |J|_F at each point.

    The first is the largest of the norms of random rows, the second comes from their mean square.
    """
    cotangents = [random_cotangent(record.numel, batch, probe) for probe in range(_PROBES)]
    leaks, sizes = [], []
    for row, within in zip(
        pullbacks(batch, record.call, cotangents),
        pullbacks(reduced, record.call, cotangents),
        strict=True,
    ):
        largest = row.abs().amax(dim=1)
        known = (largest == 0) | ((largest > _SMALLEST) & (largest < _LARGEST))
        leaks.append(torch.where(known, (row - within @ basis.mT).norm(dim=1), torch.nan))
        sizes.append(row.norm(dim=1))
    return torch.stack(leaks).amax(dim=0), torch.stack(sizes).square().mean(dim=0).sqrt()
