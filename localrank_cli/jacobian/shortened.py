"""Whole Jacobians of layers with more outputs than inputs, through the factor R of their weight.

With W = Q R the Jacobian W X of such a layer has the singular values of R X, which has fewer rows:
a quarter of them for the first layer of a transformer's MLP. If W = Q R + E, leaving out E changes
every singular value by |E| |X| at most (Weyl), and |X| <= |R X| / sigma_n(R).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from localrank_cli.jacobian.batch import Batch
from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord
from localrank_cli.layers.triangle import (
    Triangle,
    factor_error,
    has_triangle,
    least_factor_error,
    sound,
    triangle_of,
)

if TYPE_CHECKING:
    from localrank_cli.jacobian.engine import Task

# With fewer entries, the checks cost more than what is saved.
_MIN_ENTRIES = 2**16
# Relative to the Frobenius norm of the Jacobian; a weight whose condition is too bad, or of more
# than about 1000 x 250 entries, is left whole.
_MAX_ERROR = 1e-8


@dataclass(frozen=True)
class Shortened:
    """A batch in which some layers have fewer outputs, whose Jacobians have the same values."""

    batch: Batch
    errors: dict[Call, float] = field(default_factory=dict)  # relative to the Frobenius norm

    def error(self, call: Call, jacobians: Tensor, good: Tensor) -> float:
        """Bound the change of the singular values of (points, r, n_in) where a point is good."""
        share = self.errors.get(call, 0.0)
        if not share:
            return self.batch.error
        sizes = torch.linalg.matrix_norm(jacobians)[good.to(jacobians.device)]
        return self.batch.error + share * float(sizes.max()) if len(sizes) else self.batch.error


def shortened(task: "Task", batch: Batch, records: Sequence[CallRecord]) -> Shortened:
    """Return the batch with the factors of all layers of some calls that have one."""
    fitting = task.dtype == torch.float64 and not (task.residual or task.pooled)
    if not fitting or task.survey.has_low_values:
        return Shortened(batch)
    triangles: dict[Call, Triangle] = {}
    errors: dict[Call, float] = {}
    for record in records:
        # With respect to its own output, a layer is no product with its weight.
        is_whole = record.call not in {batch.wrt, task.wrt} and record.call not in batch.picked
        if not is_whole or record.is_complex or record.numel * batch.n_in < _MIN_ENTRIES:
            continue
        module = task.model.get_submodule(record.call.name)
        if not has_triangle(module) or least_factor_error(module) > _MAX_ERROR:
            continue
        triangle = triangle_of(module)
        error = torch.inf if triangle is None else factor_error(module, triangle)
        if triangle is not None and error <= _MAX_ERROR:
            triangles[record.call], errors[record.call] = triangle, error
    kept = sound(task.model, batch.inputs[:1].clone(), triangles)
    return Shortened(replace(batch, triangles=kept), {call: errors[call] for call in kept})
