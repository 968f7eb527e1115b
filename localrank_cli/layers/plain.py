"""Check that a network gives the same outputs in float64 throughout as it does as written."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localrank_cli.errors import cause
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.precision import forget, run_as_written
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import Survey, survey

# Share of the largest entry of an output: rounding in float32 is 6e-8 for each operation, and depth
# multiplies it by some tens. A network that does something else under a wider type (a test of the
# dtype, bits read as an integer) is off by more; one that is not runs as written, which is never
# wrong.
_SAME = 1e-5
# Share of the largest entry of a gradient, whose terms cancel more than those of an output do.
_SAME_GRADIENT = 1e-3


def choose_precision(
    model: nn.Module,
    points: Tensor,
    calls: Sequence[Call],
    wrt: Call | None,
    dtype: torch.dtype,
) -> str:
    """Choose how `analysis_setting` runs a network with the weights that it has now.

    It runs in float64 throughout if the outputs of `calls` and their gradient at all points,
    (points, ...), agree with those of the network as it is written.

    Returns:
        Why the network runs as it is written, for a note; empty where it need not, or asks for
        nothing at the first point.
    """
    forget(model)
    mode = None
    try:
        with analysis_setting(model, dtype) as mode, torch.no_grad():
            model(points[:1].clone())  # all of it, as the survey runs all of it
        if mode is None or not mode.n_requests:
            # Without requests the mode would only cost time, 2 microseconds for each operation.
            run_as_written(model)
            return ""
        reason = ""
        for index in range(len(points)):
            point = points[index : index + 1]
            reason = reason or _difference(model, point, calls, wrt, dtype)
    except Exception as error:  # the user's code; without requests the run itself reports it
        reason = cause(error) if mode is not None and mode.n_requests else ""
    if not reason:
        return ""
    run_as_written(model)
    return f"parts of the network run in float32, as written ({reason})"


def survey_precisely(
    model: nn.Module, points: Tensor, wrt: Call | None, dtype: torch.dtype
) -> tuple[Survey, str]:
    """Return the survey of the first point, after `choose_precision` for it and all its calls.

    Raises:
        ModelError: If the forward pass fails.
        LayerError: As in `survey`.
    """
    forget(model)
    mode, seen, reason = None, None, ""
    try:
        with analysis_setting(model, dtype) as mode:
            seen = survey(model, points[:1].clone(), wrt)
    except Exception as error:  # the user's code may fail in float64; then it runs as written
        if mode is None or not mode.n_requests:
            raise
        reason = f"parts of the network run in float32, as written ({cause(error)})"
        run_as_written(model)
    if seen is not None:
        calls = [record.call for record in seen.records]
        # The first point decides: which calls there are (of experts, say) may depend on the point.
        reason = choose_precision(model, points[:1], calls, wrt, dtype)
        if not reason:
            return seen, ""
    with analysis_setting(model, dtype):
        return survey(model, points[:1].clone(), wrt), reason


def _difference(
    model: nn.Module, point: Tensor, calls: Sequence[Call], wrt: Call | None, dtype: torch.dtype
) -> str:
    """Return where a network differs by more than rounding in float32; empty: nowhere.

    It is compared with the network as it is written, in float64 and, where they differ or that
    fails, in float32: a mask in float32 overflows at the least number of float64.
    """
    wide = _values(model, point, calls, wrt, dtype)
    run_as_written(model)
    try:
        try:
            reason = _distance(calls, wide, _values(model, point, calls, wrt, dtype))
        except Exception as error:  # the user's code, or a product of float64 and float32
            reason = f"it fails as written: {cause(error)}"
        if not reason:
            return ""
        low = torch.float32
        other = copy.deepcopy(model).to(low)
        inputs = point.to(low) if point.is_floating_point() else point
        theirs = [one.to(dtype) for one in _values(other, inputs, calls, wrt, low)]
        return reason if _distance(calls, wide, theirs) else ""
    except Exception:  # the user's code may raise anything; the mode is then not known to be right
        return reason
    finally:
        forget(model)


def _distance(calls: Sequence[Call], ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    places = [*(f"the output of {call.label}" for call in calls), "the gradient"]
    if len(ours) != len(theirs):
        return "there is a gradient in only one of float64 and float32"
    for place, one, other in zip(places, ours, theirs, strict=False):
        if one.shape != other.shape:
            return f"in float64 {place} has another shape"
        finite = torch.isfinite(other)
        scale = other[finite].abs().max().item() if bool(finite.any()) else 0.0
        same = _SAME_GRADIENT if place == "the gradient" else _SAME
        far = (one - other)[finite].abs() > same * scale
        if bool(far.any()) or not torch.equal(finite, torch.isfinite(one)):
            return f"in float64 {place} differs by more than rounding"
    return ""


def _values(
    model: nn.Module, point: Tensor, calls: Sequence[Call], wrt: Call | None, dtype: torch.dtype
) -> list[Tensor]:
    """Return the outputs of calls at a point, and the gradient of a random combination of them."""
    with analysis_setting(model, dtype), torch.enable_grad():
        if wrt is None:
            varied = point.clone().requires_grad_(point.is_floating_point())
            outputs = Capture(model, calls)(varied)
        else:
            with torch.no_grad():
                (found,) = Capture(model, [wrt])(point)
            varied = found.clone().requires_grad_(True)
            outputs = Capture(model, calls, wrt)(point, varied)
        generator = torch.Generator().manual_seed(0)
        terms = []
        for output in outputs:
            cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            # Weighted equally, so that a small output is not lost beside a large one.
            cotangent = cotangent.to(output) / output.detach().abs().max().clamp_min(1e-30)
            if output.requires_grad:
                terms.append((output, cotangent))
        values = [output.detach() for output in outputs]
        if terms:
            total = [one for one, _ in terms], [one for _, one in terms]
            (gradient,) = torch.autograd.grad(total[0], varied, total[1], allow_unused=True)
            if gradient is not None:
                values.append(gradient)
        return values
