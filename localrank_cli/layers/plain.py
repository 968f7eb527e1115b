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
    """Return where the outputs of calls differ by more than rounding in float32; empty: nowhere."""
    with analysis_setting(model, dtype), torch.no_grad():
        wide = Capture(model, calls)(point.clone())
    for call, ours, theirs in zip(
        calls, wide, _as_written(model, point, calls, dtype), strict=True
    ):
        if ours.shape != theirs.shape:
            return f"in float64 the output of {call.label} has another shape"
        finite = torch.isfinite(theirs)
        scale = theirs[finite].abs().max().item() if bool(finite.any()) else 0.0
        far = (ours - theirs)[finite].abs() > _SAME * scale
        if bool(far.any()) or not torch.equal(finite, torch.isfinite(ours)):
            return f"in float64 the output of {call.label} differs by more than rounding"
    return ""


def _as_written(
    model: nn.Module, point: Tensor, calls: Sequence[Call], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return the outputs of calls without the mode, in float64 or where that fails in float32."""
    run_as_written(model, plain=True)
    try:
        with analysis_setting(model, dtype), torch.no_grad():
            return Capture(model, calls)(point.clone())
    except LocalrankError:
        raise
    except Exception as error:  # a product of float64 and float32, say
        low = torch.float32
        try:
            other = copy.deepcopy(model).to(low)
            inputs = point.to(low) if point.is_floating_point() else point.clone()
            with analysis_setting(other, low), torch.no_grad():
                return tuple(one.to(dtype) for one in Capture(other, calls)(inputs))
        except Exception:  # then nothing tells that the mode is right
            raise ModelError(f"it fails as written: {cause(error)}", "") from error
    finally:
        run_as_written(model, plain=False)
