"""Whether a network gives in float64 throughout what it gives as it is written."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError, cause
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.precision import run_as_written
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import Survey, survey

# Rounding in float32 is 6e-8 for each operation, and 100 layers multiply it by up to about 1000:
# 1e-4. A network that does something else under a wider type (a test of the dtype, bits read as an
# integer) is off by much more than this.
_SAME = 1e-3


def survey_precisely(
    model: nn.Module, point: Tensor, wrt: Call | None, dtype: torch.dtype
) -> tuple[Survey, str]:
    """Return the survey of a network in float64 throughout, or as written where that differs.

    From here on `analysis_setting` runs the network in the way that was chosen. The text says why
    it is the second way; empty otherwise. `point` has shape (1, ...).

    Raises:
        ModelError: If the forward pass fails.
        LayerError: As in `survey`.
    """
    run_as_written(model, plain=False)
    mode = None
    try:
        with analysis_setting(model, dtype) as mode:
            seen = survey(model, point.clone(), wrt)
        if mode is None or not mode.n_requests:
            # Nothing to answer: the mode would only take time, 2 microseconds for each operation.
            run_as_written(model, plain=True)
            return seen, ""
        reason = _difference(model, point, [record.call for record in seen.records], dtype)
        if not reason:
            return seen, ""
    except ModelError as error:
        if mode is None or not mode.n_requests:
            raise
        reason = error.what
    run_as_written(model, plain=True)
    with analysis_setting(model, dtype):
        seen = survey(model, point.clone(), wrt)
    return seen, f"parts of the network run in float32, as they are written ({reason})"


def _difference(model: nn.Module, point: Tensor, calls: Sequence[Call], dtype: torch.dtype) -> str:
    """Return where the outputs of calls differ by more than rounding in float32; empty: nowhere.

    They are compared with those of the network as it is written, in float64 and, where they differ
    or that fails, in float32: a mask in float32 overflows at the least number of float64.
    """
    with analysis_setting(model, dtype), torch.no_grad():
        wide = Capture(model, calls)(point.clone())
    run_as_written(model, plain=True)
    try:
        try:
            theirs = _outputs(model, point, calls, dtype)
            reason = _distance(calls, wide, theirs)
        except LocalrankError:
            raise
        except Exception as error:  # a product of float64 and float32, say
            reason = f"it fails as written: {cause(error)}"
        if not reason:
            return ""
        low = torch.float32
        other = copy.deepcopy(model).to(low)
        inputs = point.to(low) if point.is_floating_point() else point
        theirs = tuple(one.to(dtype) for one in _outputs(other, inputs, calls, low))
        return reason if _distance(calls, wide, theirs) else ""
    except LocalrankError:
        raise
    except Exception:  # then nothing tells that the mode is right
        return reason
    finally:
        run_as_written(model, plain=False)


def _distance(calls: Sequence[Call], ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    for call, one, other in zip(calls, ours, theirs, strict=True):
        if one.shape != other.shape:
            return f"in float64 the output of {call.label} has another shape"
        finite = torch.isfinite(other)
        scale = other[finite].abs().max().item() if bool(finite.any()) else 0.0
        far = (one - other)[finite].abs() > _SAME * scale
        if bool(far.any()) or not torch.equal(finite, torch.isfinite(one)):
            return f"in float64 the output of {call.label} differs by more than rounding"
    return ""


def _outputs(
    model: nn.Module, point: Tensor, calls: Sequence[Call], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    with analysis_setting(model, dtype), torch.no_grad():
        return Capture(model, calls)(point.clone())
